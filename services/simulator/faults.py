"""Faults that can be put into the simulated fleet."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class FaultModel(BaseModel):
    """Base of every fault: unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MetricsDropout(FaultModel):
    """A replica answers no scrape for a while; it goes on serving."""

    kind: Literal["metrics-dropout"]
    pod: str
    duration_s: Annotated[float, Field(gt=0.0)]


class ReplicaCrash(FaultModel):
    """A replica's process ends: its requests go back to the gateway, its counters restart from zero."""

    kind: Literal["replica-crash"]
    pod: str


class SlowReplica(FaultModel):
    """A replica's iterations take `factor` times as long, from its next one on; 1 ends it."""

    kind: Literal["slow-replica"]
    pod: str
    factor: Annotated[float, Field(gt=0.0)]


class SpeedChange(FaultModel):
    """Every replica of a variant, now and later, takes `factor` times as long, reached over `over_s`: a driver, an
    engine version, a clock limit at once, or a drift."""

    kind: Literal["speed-change"]
    server: str
    accelerator: str
    factor: Annotated[float, Field(gt=0.0)]
    over_s: Annotated[float, Field(ge=0.0)] = 0.0


class CapacityChange(FaultModel):
    """An accelerator type has `count` units from now on; replicas that no longer fit are evicted."""

    kind: Literal["capacity-change"]
    accelerator_type: str
    count: Annotated[int, Field(ge=0)]


Fault = Annotated[
    MetricsDropout | ReplicaCrash | SlowReplica | SpeedChange | CapacityChange, Field(discriminator="kind")
]
FAULTS: TypeAdapter[Fault] = TypeAdapter(Fault)
