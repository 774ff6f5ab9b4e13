"""Cumulative histograms with the bucket edges that vLLM registers."""

from bisect import bisect_left

TTFT_EDGES_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_EDGES_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_EDGES_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    """Counts of observations by upper bucket edge, with their sum; an edge belongs to its own bucket.

    `counts` has one entry per edge and a last one for what is above every edge; entries are per bucket,
    not yet cumulative.
    """

    __slots__ = ("counts", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value `times` times."""
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times

    def observe_series(self, first: float, step: float, length: int, times: int) -> None:
        """Count each of first, first + step, …, first + (length - 1)·step, `times` times; step ≥ 0."""
        last = first + (length - 1) * step
        self.sum += times * length * (first + last) / 2.0
        edges, bucket, done = self.edges, bisect_left(self.edges, first), 0
        while done < length:
            if bucket == len(edges) or last <= edges[bucket]:
                below = length
            else:
                below = max(done, min(length, int((edges[bucket] - first) / step) + 1))
            self.counts[bucket] += times * (below - done)
            done, bucket = below, bucket + 1
