"""The interference model: prompts that queue for the token budget, and KV memory that bounds the batch."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import DEFAULT_TOKEN_BUDGET, Array, IterationLaw, TokenCosts, Values, Workload
from services.perfmodel.queueing import ALL_WITH_MEMORY, Capabilities, Saturation, ServerModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.perfmodel.root_finding import Rows

MOST_CHUNKS = 64


@dataclass(frozen=True)
class InterferenceModel(CorrectedModel):
    """`corrected`, with prompts computed one after the other from what decoding leaves of the token budget.

    A prompt takes as many chunks as fit it into M − N tokens each, whatever the batch, and prompts that fill
    the budget wait for each other. `Limits.kv_tokens` bounds the batch at the requests whose mean footprint
    fits, and at one where none does; prefix-cache hits save compute, not KV reads or memory.

    Limits of validity: preemption and the variation of footprints do not enter, so close to full KV memory
    it is optimistic; prompts of heavy-tailed length at high load wait longer than it says; blocking as in
    `corrected`.
    """

    name: str = "interference"
    capabilities: Capabilities = ALL_WITH_MEMORY
    long_prompts: bool = True

    def adapted(self, server: ServerModel) -> ServerModel:
        return server.once("chunked", lambda: _chunked(server))

    def held_by(self, server: ServerModel, reasons: NDArray[np.int8], rows: Rows) -> NDArray[np.int8]:
        bounded = server.once("bounded by memory", lambda: np.zeros(1, dtype=bool))
        held = (reasons != Saturation.NONE) & np.broadcast_to(bounded, server.shape).ravel()[rows]
        return np.where(held, np.int8(Saturation.KV), reasons)


def _chunked(server: ServerModel) -> ServerModel:
    limits, load = server.limits, server.workload
    most = np.asarray(limits.max_batch, float)
    places = most
    if limits.kv_tokens is not None:
        # A request in service is seen with the prompt and, on average over its stay, half of its output so far.
        footprint = (load.product_moment + load.output_second_moment / 2.0) / load.output_tokens
        places = np.clip(np.floor(limits.kv_tokens / np.maximum(footprint, 1.0)), 1.0, most)
    left = np.maximum(limits.token_budget - places, 1.0)
    adapted = replace(
        server,
        law=ChunkedLaw(server.law),
        limits=replace(limits, max_batch=places, token_budget=left, kv_tokens=None),
    )
    adapted.once("bounded by memory", lambda: np.broadcast_to(places < most, adapted.shape))
    return adapted


@dataclass(frozen=True)
class ChunkedLaw:
    """A law put together from its token costs, for prompts in chunks of the budget, whatever the batch."""

    law: IterationLaw

    @property
    def name(self) -> str:
        return self.law.name

    @property
    def version(self) -> str:
        return self.law.version

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return self.law.parameter_names

    def iteration_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        slope = self._slope(parameters, workload, token_budget)
        time: Array = self.law.token_costs(parameters).iteration_s + batch * slope
        return time

    def iterations_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        costs = self.law.token_costs(parameters)
        iterations: Array = (
            chunks(workload, token_budget) + _decodes(costs, workload) + np.zeros(np.shape(batch))
        )
        return iterations

    def work_per_request(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        costs = self.law.token_costs(parameters)
        decode = _decodes(costs, workload) * decode_work(costs, workload)
        work: Array = prefill_work(costs, workload, token_budget) + decode + np.zeros(np.shape(batch))
        return work

    def prefill_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        costs = self.law.token_costs(parameters)
        background = costs.iteration_s + (batch - 1.0) * self._slope(parameters, workload, token_budget)
        own = prefill_work(costs, workload, token_budget)
        time: Array = chunks(workload, token_budget) * background + own
        return time

    def inter_token_time(
        self,
        parameters: Array,
        batch: Values,
        workload: Workload,
        token_budget: Values = DEFAULT_TOKEN_BUDGET,
    ) -> Array:
        costs = self.law.token_costs(parameters)
        background = costs.iteration_s + (batch - 1.0) * self._slope(parameters, workload, token_budget)
        time: Array = background + decode_work(costs, workload)
        return time

    def overhead_time(self, parameters: Array, workload: Workload) -> Array:
        return self.law.overhead_time(parameters, workload)

    def residual_share(self, parameters: Array) -> Array:
        return self.law.residual_share(parameters)

    def token_costs(self, parameters: Array) -> TokenCosts:
        return self.law.token_costs(parameters)

    def _slope(self, parameters: Array, workload: Workload, token_budget: Values) -> Array:
        iterations = self.iterations_per_request(parameters, 1.0, workload, token_budget)
        slope: Array = self.work_per_request(parameters, 1.0, workload, token_budget) / iterations
        return slope


def chunks(workload: Workload, token_budget: Values) -> Array:
    """Mean chunks of a prompt, E⌈L/M⌉ = Σ_j P(L > jM), with gamma lengths; at least one."""
    tokens = np.asarray(workload.input_tokens * workload.computed_share, float)
    scv = np.asarray(workload.input_second_moment) / np.maximum(workload.input_tokens, 1e-9) ** 2 - 1.0
    budget = np.asarray(token_budget, float)
    most = np.max(
        np.minimum(np.ceil(tokens / budget) + 1.0 + 6.0 * np.sqrt(np.maximum(scv, 0.0)), MOST_CHUNKS)
    )
    counted: Array = np.ones(np.broadcast_shapes(tokens.shape, budget.shape, scv.shape))
    for j in range(1, int(most) + 1):
        counted = counted + _longer(tokens, scv, j * budget)
    least: Array = np.maximum(counted, tokens / budget)
    return least


def _longer(tokens: Array, scv: Array, limit: Array) -> Array:
    """Share of the prompts above a number of tokens, gamma distributed or, without variability, all the mean."""
    fixed = scv < 1e-9
    if fixed.all():
        return np.asarray(tokens > limit, float)
    # A tenth of a second, which questions about fixed lengths do without.
    from scipy.special import gammaincc

    shape = 1.0 / np.maximum(scv, 1e-9)
    return np.where(fixed, tokens > limit, gammaincc(shape, shape * limit / np.maximum(tokens, 1e-9)))


def prefill_work(costs: TokenCosts, workload: Workload, token_budget: Values) -> Array:
    """Seconds a request's prompt adds to its iterations."""
    share, prompt = workload.computed_share, workload.input_tokens
    count = chunks(workload, token_budget)
    reads = share * (count + 1.0) / 2.0 + (1.0 - share) * count
    squares = (1.0 - (1.0 - share) ** 2) * workload.input_second_moment
    work: Array = (
        costs.prefill_token_s * share + costs.prefill_read_s * reads
    ) * prompt + costs.prefill_square_s * squares
    return work


def decode_work(costs: TokenCosts, workload: Workload) -> Array:
    """Seconds a decoding request adds to one iteration, its reads averaged over its tokens."""
    output = workload.output_tokens
    reads = (workload.product_moment + (workload.output_second_moment + output) / 2.0) / output
    work: Array = costs.decode_s + costs.decode_read_s * reads
    return work


def _decodes(costs: TokenCosts, workload: Workload) -> Values:
    return workload.output_tokens - costs.prefill_tokens
