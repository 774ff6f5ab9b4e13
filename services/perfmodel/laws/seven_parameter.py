"""The seven-parameter iteration law, found on measured vLLM sweeps.

Parameters, all in SI units: a, an iteration's weights and launch; b_p, a prompt token; b_d, a sequence that
decodes; g, a KV token that decoding reads; q, a squared prompt token of attention; h, overhead outside the
engine; r, the share of the iteration in progress that an arrival waits for. With n requests in service

    T = a + n·d + λT·p,    d = b_d + g(L + K/2),    p = b_pL + qL²,    n = λKT,

which is affine in the batch, T(B) = a + Bδ with δ = d + p/K; a request stays for K iterations, the first of
which is its prefill. TTFT is h, the wait, r·T where the engine is busy, and a + (B−1)δ + p:
the prefills of others share the iteration too.

Limits of validity: one prefill iteration whatever the prompt, so prompts beyond the token budget are taken for
cheaper than they are; parameters need sweeps of several prompt and output lengths, one sweep alone does not
identify them; they hold for the engine version and hardware they were fitted on.
"""

from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import DEFAULT_TOKEN_BUDGET, Array, TokenCosts, Values, Workload


def prefill_work(parameters: Array, workload: Workload) -> Array:
    """Seconds a prompt adds to the iteration that computes it, p = b_pL + q(L² − (cached part)²)."""
    cached = 1.0 - workload.computed_share
    computed: Array = (
        parameters[..., 1] * workload.computed_share * workload.input_tokens
        + parameters[..., 4] * (1.0 - cached**2) * workload.input_second_moment
    )
    return computed


def decode_work(parameters: Array, workload: Workload) -> Array:
    """Seconds a decoding request adds to one iteration, d, its KV reads averaged over its tokens."""
    reads = (workload.product_moment + workload.output_second_moment / 2.0) / workload.output_tokens
    work: Array = parameters[..., 2] + parameters[..., 3] * reads
    return work


@dataclass(frozen=True)
class SevenParameterLaw:
    """T(B) = a + Bδ with prefill and decode apart; `IterationLaw` documents the methods."""

    name: str = "seven-parameter"
    version: str = "1"
    parameter_names: tuple[str, ...] = ("a_s", "b_p_s", "b_d_s", "g_s", "q_s", "h_s", "r")

    def iteration_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        return (
            parameters[..., 0] + batch * self._slope(parameters, workload) + np.zeros(np.shape(token_budget))
        )

    def iterations_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        shape = np.broadcast_shapes(parameters.shape[:-1], np.shape(batch), np.shape(token_budget))
        return workload.output_tokens + np.zeros(shape)

    def work_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        shape = np.broadcast_shapes(np.shape(batch), np.shape(token_budget))
        return workload.output_tokens * self._slope(parameters, workload) + np.zeros(shape)

    def prefill_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        others = (batch - 1.0) * self._slope(parameters, workload)
        prefill: Array = parameters[..., 0] + others + prefill_work(parameters, workload)
        return prefill + np.zeros(np.shape(token_budget))

    def inter_token_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        background = parameters[..., 0] + (batch - 1.0) * self._slope(parameters, workload)
        inter_token: Array = background + decode_work(parameters, workload)
        return inter_token + np.zeros(np.shape(token_budget))

    def overhead_time(self, parameters: Array, workload: Workload) -> Array:
        shape = np.broadcast_shapes(parameters.shape[:-1], np.shape(workload.output_tokens))
        return np.broadcast_to(parameters[..., 5], shape)

    def residual_share(self, parameters: Array) -> Array:
        """Fitted, r: engines schedule ahead, so it may exceed the half that uniform arrivals would wait."""
        return parameters[..., 6]

    def token_costs(self, parameters: Array) -> TokenCosts:
        a, b_p, b_d, g, q = (parameters[..., k] for k in range(5))
        return TokenCosts(a, b_p, np.zeros_like(a), q, b_d, g, prefill_tokens=1)

    def _slope(self, parameters: Array, workload: Workload) -> Array:
        return decode_work(parameters, workload) + prefill_work(parameters, workload) / workload.output_tokens
