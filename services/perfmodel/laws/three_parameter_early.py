"""The three-parameter law as it was first published, before prompts came in chunks.

With δ = [β(L+K) + γ(E[LK] + E[K²]/2 + L + K/2)]/(K+1) a request in a batch of B finds iterations of α + Bδ, counts
its own work on top of a batch that already holds it, and starts with one prefill iteration among the B − 1 others:

    prefill(B) = α + (B−1)δ + (β+γ)L,    ITL(B) = α + Bδ + β + γ(L + K/2),    T(B) = α + (B+1)δ,    c = 1,

so the same engine gets a smaller α than from `three_parameter`: parameters are not portable between the two.

Limits of validity: prompts within one token budget. It is for records of systems that used it: it reproduces what
the published control-loop runs 7b, 9 and 11 measured, to the noise in them, and `three_parameter` does not.
"""

from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import DEFAULT_TOKEN_BUDGET, Array, TokenCosts, Values, Workload


@dataclass(frozen=True)
class EarlyThreeParameterLaw:
    """A request's own work on top of α + Bδ; `IterationLaw` documents the methods."""

    name: str = "three-parameter-early"
    version: str = "1"
    parameter_names: tuple[str, ...] = ("alpha_s", "beta_s", "gamma_s")

    def iteration_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        return _shared(parameters, batch + 1.0, workload, token_budget)

    def iterations_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        shape = np.broadcast_shapes(parameters.shape[:-1], np.shape(batch), np.shape(token_budget))
        return workload.output_tokens + 1.0 + np.zeros(shape)

    def work_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        shape = np.broadcast_shapes(np.shape(batch), np.shape(token_budget))
        return (workload.output_tokens + 1.0) * _slope(parameters, workload) + np.zeros(shape)

    def prefill_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        own = parameters[..., 1] * workload.computed_share + parameters[..., 2]
        return _shared(parameters, batch - 1.0, workload, token_budget) + own * workload.input_tokens

    def inter_token_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        reads = (workload.product_moment + workload.output_second_moment / 2.0) / workload.output_tokens
        own = parameters[..., 1] + parameters[..., 2] * reads
        return _shared(parameters, batch, workload, token_budget) + own

    def overhead_time(self, parameters: Array, workload: Workload) -> Array:
        return np.zeros(np.broadcast_shapes(parameters.shape[:-1], np.shape(workload.output_tokens)))

    def residual_share(self, parameters: Array) -> Array:
        """None: the published times hold no iteration in progress."""
        return np.zeros(parameters.shape[:-1])

    def token_costs(self, parameters: Array) -> TokenCosts:
        """Token by token nothing is counted twice: an iteration of B costs what T says of B − 1."""
        alpha, beta, gamma = (parameters[..., k] for k in range(3))
        return TokenCosts(alpha, beta, gamma, np.zeros_like(alpha), beta, gamma, prefill_tokens=0)


def _shared(parameters: Array, count: Values, workload: Workload, token_budget: Values) -> Array:
    """The launch and what so many requests add to it, α + nδ."""
    shared: Array = parameters[..., 0] + count * _slope(parameters, workload)
    return shared + np.zeros(np.shape(token_budget))


def _slope(parameters: Array, workload: Workload) -> Array:
    """What a request adds to each of its iterations, δ."""
    prompt, output = workload.input_tokens, workload.output_tokens
    computed = prompt * workload.computed_share + output
    reads = workload.product_moment + workload.output_second_moment / 2.0 + prompt + output / 2.0
    slope: Array = (parameters[..., 1] * computed + parameters[..., 2] * reads) / (output + 1.0)
    return slope
