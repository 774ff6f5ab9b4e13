"""The three-parameter iteration law: a fixed time, a time per token computed and a time per KV token read.

T = α + β · (tokens computed) + γ · (KV tokens read). A request of L prompt and K output tokens whose prompt
is prefilled in c chunks is in service for c + K iterations and adds

    w_prefill = (β + γ(c+1)/2) · L,    w_decode = βE[K] + γ(E[LK] + (E[K²]+E[K])/2)

to them, so with δ = (w_prefill + w_decode)/(c+K) an iteration of B requests lasts T(B) = α + Bδ.
The other B − 1 requests and the launch are a request's background, bg(B) = max(0, α + (B−1)δ).

Limits of validity: a prompt token costs what an output token costs, so on measured engines, where prefill is
cheaper by far, TTFT and ITL cannot both be met over several prompt lengths (`seven_parameter`); no overhead
outside the engine; chunks are those of a full mix of prompts and outputs, more than a lone prompt needs.
"""

from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import DEFAULT_TOKEN_BUDGET, Array, TokenCosts, Values, Workload

ROUNDING = 1e-12


def chunk_counts(batch: Values, workload: Workload, token_budget: Values = DEFAULT_TOKEN_BUDGET) -> Array:
    """Prefill chunks per request, c(B): the fewest for which the token budget admits a batch of B.

    batch: requests in service; a fractional one needs the chunks of the next whole one.
    token_budget: tokens computed per iteration, M.

    m chunks admit floor((m+K)(M − L/m)/(L+K)) requests, which grows with m, so the answer is the positive
    root of M·m² + (KM − L − B(L+K))·m − KL = 0, rounded up.
    """
    prompt, output = np.asarray(workload.input_tokens, float), np.asarray(workload.output_tokens, float)
    linear = output * token_budget - prompt - np.ceil(batch) * (prompt + output)
    constant = output * prompt
    root = np.sqrt(linear**2 + 4.0 * token_budget * constant)
    # Of the two textbook forms, each where it does not subtract nearly equal numbers.
    chunks = np.where(
        linear > 0, 2.0 * constant / np.maximum(root + linear, 1e-300), (root - linear) / (2.0 * token_budget)
    )
    # A batch that m chunks admit exactly must not need m + 1 through rounding.
    counts: Array = np.maximum(np.ceil(chunks * (1.0 - ROUNDING)), 1.0)
    return counts


def request_work(parameters: Array, chunks: Values, workload: Workload) -> tuple[Array, Array]:
    """Seconds a request's prefill and its decode add to its iterations, (w_prefill, w_decode).

    parameters: shape (..., 3) in seconds.
    chunks: prefill chunks per request. Of a prompt in the prefix cache only the reads remain: each chunk reads
        the cached part whole, and of the rest what is computed up to it.
    """
    beta, gamma = parameters[..., 1], parameters[..., 2]
    computed = workload.computed_share
    reads_per_token = computed * (chunks + 1.0) / 2.0 + (1.0 - computed) * chunks
    prefill = (beta * computed + gamma * reads_per_token) * workload.input_tokens
    reads = workload.product_moment + (workload.output_second_moment + workload.output_tokens) / 2.0
    return prefill, beta * workload.output_tokens + gamma * reads


def background_time(parameters: Array, batch: Values, slope: Array) -> Array:
    """Seconds an iteration lasts without the request in question, bg(B) = max(0, α + (B−1)δ)."""
    rest: Array = np.maximum(0.0, parameters[..., 0] + (batch - 1.0) * slope)
    return rest


@dataclass(frozen=True)
class ThreeParameterLaw:
    """T(B) = α + Bδ, the work of a request from its token counts; `IterationLaw` documents the methods."""

    name: str = "three-parameter"
    version: str = "1"
    parameter_names: tuple[str, ...] = ("alpha_s", "beta_s", "gamma_s")

    def iteration_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        chunks = chunk_counts(batch, workload, token_budget)
        prefill, decode = request_work(parameters, chunks, workload)
        return parameters[..., 0] + batch * ((prefill + decode) / (chunks + workload.output_tokens))

    def iterations_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        return chunk_counts(batch, workload, token_budget) + workload.output_tokens

    def work_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        prefill, decode = request_work(parameters, chunk_counts(batch, workload, token_budget), workload)
        return prefill + decode

    def prefill_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        chunks = chunk_counts(batch, workload, token_budget)
        prefill, decode = request_work(parameters, chunks, workload)
        slope = (prefill + decode) / (chunks + workload.output_tokens)
        return chunks * background_time(parameters, batch, slope) + prefill

    def inter_token_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        chunks = chunk_counts(batch, workload, token_budget)
        prefill, decode = request_work(parameters, chunks, workload)
        slope = (prefill + decode) / (chunks + workload.output_tokens)
        return background_time(parameters, batch, slope) + decode / workload.output_tokens

    def overhead_time(self, parameters: Array, workload: Workload) -> Array:
        return np.zeros(np.broadcast_shapes(parameters.shape[:-1], np.shape(workload.output_tokens)))

    def residual_share(self, parameters: Array) -> Array:
        """One half: arrivals fall anywhere in an iteration."""
        return np.full(parameters.shape[:-1], 0.5)

    def token_costs(self, parameters: Array) -> TokenCosts:
        """As the reference counts: prompt and output tokens cost alike, and K tokens decode K times."""
        alpha, beta, gamma = (parameters[..., k] for k in range(3))
        return TokenCosts(alpha, beta, gamma, np.zeros_like(alpha), beta, gamma, prefill_tokens=0)
