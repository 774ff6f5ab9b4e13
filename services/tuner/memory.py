"""Which observations an estimator keeps: the newest, and older ones for being unlike each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.tuner.observation import Observation


@dataclass(frozen=True)
class Memory:
    """Observations with the cycle that each came in, oldest first."""

    newest: tuple[tuple[int, Observation], ...] = ()
    diverse: tuple[tuple[int, Observation], ...] = ()

    @property
    def kept(self) -> tuple[tuple[int, Observation], ...]:
        """All of them, the newest last."""
        return (*self.diverse, *self.newest)

    def extended(self, cycle: int, seen: Sequence[Observation], newest: int, diverse: int) -> "Memory":
        """With those of a cycle, and at most so many newest and diverse ones.

        A whole cycle is never cut: with more replicas than there is room, the newest are the last cycle's.
        """
        together = (*self.newest, *((cycle, observation) for observation in seen))
        split = max(0, len(together) - max(newest, len(seen)))
        return Memory(together[split:], most_diverse((*self.diverse, *together[:split]), diverse))

    def since(self, cycle: int) -> "Memory":
        """Those of a cycle and later."""
        return Memory(
            tuple(row for row in self.newest if row[0] >= cycle),
            tuple(row for row in self.diverse if row[0] >= cycle),
        )


def most_diverse(
    rows: tuple[tuple[int, Observation], ...], count: int
) -> tuple[tuple[int, Observation], ...]:
    """At most so many, dropping again and again the older one of the two most alike."""
    if len(rows) <= count:
        return rows
    kept = list(rows)
    # The rate and not the measured batch: a window with absurd latencies must not be kept for being unlike.
    points = np.log([(o.rate_rps * o.output_tokens, o.input_tokens + 1.0, o.output_tokens) for _, o in kept])
    apart = np.abs(points[:, None, :] - points[None, :, :]).sum(axis=-1)
    apart[np.tril_indices(len(kept))] = np.inf
    while len(kept) > count:
        older = int(np.argmin(apart)) // len(kept)
        del kept[older]
        apart = np.delete(np.delete(apart, older, axis=0), older, axis=1)
    return tuple(kept)


def distinct_points(observations: Sequence[Observation], spread: float) -> bool:
    """Whether two observations differ by a ratio in batch or token lengths."""
    points = np.array([(o.decoding + 1.0, o.input_tokens + 1.0, o.output_tokens) for o in observations])
    return bool(np.any(points.max(axis=0) >= spread * points.min(axis=0)))
