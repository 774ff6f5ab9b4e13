"""What the tuner learns: parameters of iteration laws and how well they are known."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Contract, Count, LawParametersValues, Name, Positive, Rate, Tokens, UnixSeconds


class Health(StrEnum):
    """How far a parameter set can be trusted."""

    PRIOR = "prior"
    LEARNING = "learning"
    IDENTIFIED = "identified"
    SUSPECT = "suspect"


class FitEvidence(Contract):
    """Why a parameter set is believed."""

    observations: Count
    """Windows that it rests on."""
    rejected: Count = 0
    """Windows that were excluded: warm-up, saturation, gate."""
    ttft_error_share: Annotated[float, Field(ge=0)] | None = None
    """Recent mean absolute one-step-ahead error of TTFT as a share of the observed."""
    itl_error_share: Annotated[float, Field(ge=0)] | None = None
    """Recent mean absolute one-step-ahead error of ITL as a share of the observed."""
    nis_mean: Annotated[float, Field(ge=0)] | None = None
    """Mean normalised innovation squared; the number of observed figures when consistent."""
    condition_number: Annotated[float, Field(ge=1)] | None = None
    """Condition of the information matrix in log parameters; large when some cannot be told apart."""


class ParametersEstimated(Contract):
    """The parameters in force for one model on one accelerator."""

    model: Name
    """The model."""
    accelerator: Name
    """The accelerator."""
    law: Name
    """Iteration law that they are parameters of."""
    law_version: Positive
    """Version of that law."""
    values: LawParametersValues
    """Each parameter by name, in SI units."""
    covariance: tuple[tuple[float, ...], ...] = ()
    """Covariance of the logarithms, in the order of the sorted names; empty when unknown."""
    health: Health
    """How far they can be trusted."""
    evidence: FitEvidence
    """Why they are believed."""
    estimator: Name
    """Plug-in that estimated them."""
    estimated_at_s: UnixSeconds
    """End of the newest window used."""

    @model_validator(mode="after")
    def _covariance_is_square(self) -> "ParametersEstimated":
        n = len(self.values)
        if self.covariance and (len(self.covariance) != n or any(len(row) != n for row in self.covariance)):
            raise ValueError(f"covariance: expected {n} rows of {n}, one for each parameter")
        return self


class CalibrationPoint(Contract):
    """One point of a sweep."""

    rate_rps: Rate
    """Request rate of one replica."""
    input_tokens: Tokens
    """Input tokens of each request."""
    output_tokens: Tokens
    """Output tokens of each request."""


class CalibrationProposed(Contract):
    """A small sweep that would identify parameters that operation alone does not."""

    model: Name
    """The model."""
    accelerator: Name
    """The accelerator."""
    points: tuple[CalibrationPoint, ...] = Field(min_length=1)
    """Points to measure."""
    reason: Annotated[str, Field(max_length=2000)]
    """What is not identified and why it matters."""
    proposed_at_s: UnixSeconds
    """When it was proposed."""
