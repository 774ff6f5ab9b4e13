"""The figures of an answer under one name and unit, whichever form it is in: what tables and plots are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MS_PER_S = 1000.0


@dataclass(frozen=True)
class Figure:
    """One figure.

    title: what it is, with its unit, which is the reference's.
    own, reference: its key in either form.
    per_own: what our value is multiplied with.
    """

    title: str
    own: str
    reference: str
    per_own: float = 1.0

    def of(self, metrics: Mapping[str, Any], statistic: str = "mean") -> float | None:
        """Its value in some metrics, None where they have none."""
        value = metrics.get(self.own, metrics.get(self.reference))
        if isinstance(value, Mapping):
            value = value.get(statistic)
        elif statistic != "mean":
            return None
        return None if value is None else value * (self.per_own if self.own in metrics else 1.0)


RATE = Figure("rate (req/s)", "offered_rps", "offeredRPS")
SERVED = Figure("served (req/s)", "throughput_rps", "throughput")
CAPACITY = Figure("capacity (req/s)", "capacity_rps", "maxRPS")
IN_SERVICE = Figure("in service", "occupancy", "avgNumInServ")
WAIT = Figure("wait (ms)", "wait_s", "avgWaitTime", MS_PER_S)
TTFT = Figure("TTFT (ms)", "ttft_s", "avgTTFT", MS_PER_S)
ITL = Figure("ITL (ms)", "itl_s", "avgITL", MS_PER_S)
FIGURES = (RATE, SERVED, CAPACITY, IN_SERVICE, WAIT, TTFT, ITL)
BATCH_LIMIT = Figure("batch limit", "max_batch", "concurrency")


def metrics_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics of an answer: those at its largest rate, where it has one."""
    inner = body.get("at_max_rate")
    return inner if isinstance(inner, Mapping) else body


def name_of(body: Mapping[str, Any], place: int) -> str:
    """What the problem of an answer is called."""
    return str(body.get("name") or body.get("label") or f"problem {place}")
