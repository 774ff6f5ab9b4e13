"""What an estimator is: it keeps the parameters of one model on one accelerator true to what is observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from pydantic import BaseModel

from schemas.parameters import FitEvidence, Health
from services.perfmodel.law import IterationLaw
from services.tuner.observation import Observation

S = TypeVar("S")


@dataclass(frozen=True)
class Estimate:
    """The parameters in force.

    values: each parameter by name, in SI units.
    covariance: of the logarithms, rows and columns in the order of the sorted names; empty when unknown. A
        parameter declared as zero stays zero and has a row of zeros.
    """

    values: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]
    health: Health
    evidence: FitEvidence


class Estimator(Protocol[S]):
    """Learns the parameters of one pair; `S` is its state, immutable and its own.

    An estimator is constructed as `Estimator(settings)`, is free of clocks and of hidden state, and gives the
    same answer bit by bit for the same state and observations.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def start(self, prior: Mapping[str, float] | None, law: IterationLaw) -> S:
        """The state before anything is observed.

        prior: declared parameters by name in SI units, at least 0 and one of them above 0; None when the
            pair has none and they must be found from observations alone.

        Raises ValueError for a prior whose names are not the law's.
        """
        ...

    def estimate(self, state: S) -> Estimate | None:
        """The parameters in force in a state; None while there are none."""
        ...

    def update(
        self, state: S, observations: Sequence[Observation], now_s: float
    ) -> tuple[S, Estimate | None]:
        """Learn from all replicas of one cycle at once; never raises for what they say.

        observations: oldest window first; may be empty.
        now_s: control time in Unix seconds.
        """
        ...

    def dump(self, state: S) -> bytes:
        """A snapshot that `load` continues from bit by bit."""
        ...

    def load(self, raw: bytes, law: IterationLaw) -> S:
        """The state of a snapshot.

        Raises ValueError where it cannot be read, is of another version or of another law.
        """
        ...
