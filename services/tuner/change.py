"""Change-point detection: cumulative sums of standardised innovations (CUSUM; Page, Biometrika 41, 1954)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array

# A single cycle counts for at most this many standard deviations: one absurd window is no change.
MOST = 3.0


@dataclass(frozen=True)
class Cusum:
    """Sums of both signs of ITL and TTFT, in the order ITL up, ITL down, TTFT up, TTFT down.

    since: the cycle in which each sum last was zero; a change lies after it.
    """

    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    since: tuple[int, ...] = (0, 0, 0, 0)

    def extended(self, cycle: int, innovations: Array, observed: NDArray[np.bool_], slack: float) -> "Cusum":
        """With a cycle's innovations, shape (n, 2), of which `observed` tells which there are.

        The replicas' median counts, so that one bad replica is no change; `slack` is what a cycle is allowed.
        """
        sums, since = list(self.sums), list(self.since)
        for figure in (0, 1):
            seen = innovations[observed[:, figure], figure]
            if not seen.size:
                continue
            middle = float(np.median(np.clip(seen, -MOST, MOST)))
            for row, sign in ((2 * figure, 1.0), (2 * figure + 1, -1.0)):
                sums[row] = max(0.0, sums[row] + sign * middle - slack)
                if sums[row] == 0.0:
                    since[row] = cycle
        return Cusum(tuple(sums), tuple(since))

    def change(self, threshold: float) -> int | None:
        """The first cycle after a change, None where there was none."""
        largest = int(np.argmax(self.sums))
        return self.since[largest] + 1 if self.sums[largest] > threshold else None
