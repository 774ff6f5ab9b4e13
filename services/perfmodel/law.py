"""What an iteration law is: the time one engine iteration takes, given the batch and the token lengths."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Values = float | Array

DEFAULT_TOKEN_BUDGET = 8192


@dataclass(frozen=True, eq=False)
class Workload:
    """Token lengths of the requests of one server, and how they arrive; fields broadcast against each other.

    input_tokens: mean prompt length E[L], at least 0.
    output_tokens: mean generated length E[K], at least 1.
    output_tokens_sq: second moment E[K²]; None means every request generates exactly E[K] tokens.
    input_output_tokens: E[LK]; None means prompt and output lengths are uncorrelated.
    input_tokens_sq: second moment E[L²]; None means every prompt has exactly E[L] tokens.
    cached_share: share of the prompt tokens that a prefix cache holds, in [0, 1): read, not computed.
    arrival_scv: squared coefficient of variation of the times between arrivals; 1 is a Poisson process.

    Raises ValueError naming the field that is not finite or out of range.
    """

    input_tokens: Values
    output_tokens: Values
    output_tokens_sq: Values | None = None
    input_output_tokens: Values | None = None
    input_tokens_sq: Values | None = None
    cached_share: Values | None = None
    arrival_scv: Values | None = None

    def __post_init__(self) -> None:
        prompt = require("input_tokens", self.input_tokens, minimum=0.0)
        output = require("output_tokens", self.output_tokens, minimum=1.0)
        for name, square, mean in (
            ("output_tokens", self.output_tokens_sq, output),
            ("input_tokens", self.input_tokens_sq, prompt),
        ):
            if square is not None and np.any(require(f"{name}_sq", square) < mean**2 * (1 - 1e-9)):
                raise ValueError(f"{name}_sq is below {name}², which no distribution has")
        if self.input_output_tokens is not None:
            require("input_output_tokens", self.input_output_tokens, minimum=0.0)
        if self.cached_share is not None and np.any(
            require("cached_share", self.cached_share, minimum=0.0) >= 1.0
        ):
            raise ValueError("cached_share must be below 1: the last token of a prompt is always computed")
        if self.arrival_scv is not None:
            require("arrival_scv", self.arrival_scv, minimum=0.0)

    @property
    def output_second_moment(self) -> Values:
        """E[K²], with deterministic lengths where it was not given."""
        return self.output_tokens**2 if self.output_tokens_sq is None else self.output_tokens_sq

    @property
    def input_second_moment(self) -> Values:
        """E[L²], with deterministic lengths where it was not given."""
        return self.input_tokens**2 if self.input_tokens_sq is None else self.input_tokens_sq

    @property
    def computed_share(self) -> Values:
        """Share of the prompt tokens that the engine computes; all where no prefix cache was named."""
        return 1.0 if self.cached_share is None else 1.0 - self.cached_share

    @property
    def arrival_variability(self) -> Values:
        """Squared coefficient of variation of the times between arrivals, Poisson where it was not given."""
        return 1.0 if self.arrival_scv is None else self.arrival_scv

    @property
    def product_moment(self) -> Values:
        """E[LK], with uncorrelated lengths where it was not given."""
        if self.input_output_tokens is None:
            return self.input_tokens * self.output_tokens
        return self.input_output_tokens


@dataclass(frozen=True, eq=False)
class Limits:
    """The engine's limits of one server; fields broadcast against each other.

    max_batch: N, requests served at once, a whole number of at least 1.
    max_queue: Q, requests that may wait, a whole number of at least 0.
    token_budget: M, tokens computed per iteration, at least 1.
    kv_tokens: tokens the KV cache holds; None means unknown; see `Capabilities.kv_memory`.

    Raises ValueError naming the field that is out of range.
    """

    max_batch: Values
    max_queue: Values
    token_budget: Values = DEFAULT_TOKEN_BUDGET
    kv_tokens: Values | None = None

    def __post_init__(self) -> None:
        require("max_batch", self.max_batch, minimum=1.0, whole=True)
        require("max_queue", self.max_queue, minimum=0.0, whole=True)
        require("token_budget", self.token_budget, minimum=1.0)
        if self.kv_tokens is not None:
            require("kv_tokens", self.kv_tokens, minimum=1.0)


@dataclass(frozen=True, eq=False)
class TokenCosts:
    """What one iteration costs by its content, in seconds; every field has the law's broadcast shape.

    iteration_s: whatever the iteration does.
    prefill_token_s: for each prompt token computed.
    prefill_read_s: for each KV token of a prompt up to and including the chunk computed.
    prefill_square_s: for each prompt token times prompt length: a chunk from token i to j costs j² − i² of it.
    decode_s: for each request that decodes one token.
    decode_read_s: for each KV token that a decoding request reads, prompt and output so far.
    prefill_tokens: output tokens that come with the end of the prefill without a decode iteration, 0 or 1:
        a request of K output tokens decodes for K − prefill_tokens iterations.
    """

    iteration_s: Array
    prefill_token_s: Array
    prefill_read_s: Array
    prefill_square_s: Array
    decode_s: Array
    decode_read_s: Array
    prefill_tokens: int


class IterationLaw(Protocol):
    """How long an engine's iterations take, for a batch of B requests in service.

    While the iterations per request stay the same, every time is affine in the batch: models rely on it.

    Every method takes `parameters` of shape (..., p) in the order of `parameter_names` and in SI units,
    `batch` (requests in service, at least 1, may be fractional), the workload and the token budget, all
    broadcasting against the leading axes of `parameters`, and returns an array of the broadcast shape.
    Parameters belong to one law and one version of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def parameter_names(self) -> tuple[str, ...]: ...

    def iteration_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        """Duration of one iteration in seconds, T(B)."""
        ...

    def iterations_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        """Iterations a request stays in service; times T(B) it is the service time τ(B)."""
        ...

    def work_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        """Seconds one request adds to its iterations, beyond what they last anyway; T is affine in B with it.

        T(B) = base + B · work / iterations while the iterations per request stay the same, so no batch,
        however large, carries a rate of 1 / work.
        """
        ...

    def prefill_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        """Seconds from the start of service to the end of the prefill."""
        ...

    def inter_token_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        """Mean seconds between two output tokens of a request."""
        ...

    def overhead_time(self, parameters: Array, workload: Workload) -> Array:
        """Seconds a request spends outside the engine; they count in its latency and hold no batch slot."""
        ...

    def residual_share(self, parameters: Array) -> Array:
        """Share of the iteration in progress that an arrival waits for before it can be scheduled."""
        ...

    def token_costs(self, parameters: Array) -> TokenCosts:
        """The same law token by token, for models that follow every iteration."""
        ...


def require(
    name: str, value: Any, *, minimum: float = -np.inf, above: float | None = None, whole: bool = False
) -> Array:
    """The value as a float array, if it is finite and in range.

    Raises ValueError naming the argument, its first offending value and what was expected.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}") from None
    wrong = ~np.isfinite(array) | (array < minimum)
    expected = "a finite number" if minimum == -np.inf else f"finite and at least {minimum:g}"
    if above is not None:
        wrong |= array <= above
        expected = f"finite and above {above:g}"
    if whole:
        wrong |= array != np.floor(array)
        expected += ", a whole number"
    if wrong.any():
        raise ValueError(f"{name} must be {expected}, got {array[wrong].flat[0]:g}")
    return array


def require_parameters(law: IterationLaw, parameters: Any) -> Array:
    """The parameters as a float array of shape (..., p), if they are of this law.

    Raises ValueError naming the law where the last axis has another length, a value is negative or not
    finite, or a whole set is zero, which would be an engine of infinite speed.
    """
    array = require(f"parameters of {law.name}", parameters, minimum=0.0)
    count = len(law.parameter_names)
    if array.ndim == 0 or array.shape[-1] != count:
        raise ValueError(
            f"parameters of {law.name} must have {count} values on the last axis "
            f"({', '.join(law.parameter_names)}), got shape {array.shape}"
        )
    if np.any(np.all(array == 0.0, axis=-1)):
        raise ValueError(f"parameters of {law.name} must not all be zero")
    return array
