"""One step ahead: what parameters predict of a window from its rate alone, by the queueing model."""

from dataclasses import replace

import numpy as np

from services.perfmodel.law import Array, IterationLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.tuner.fit import Window

# Long enough that what arrives is served, short enough that an overloaded server has an answer.
QUEUE = 128.0
LONGEST_S = 1e9


def predict_ahead(law: IterationLaw, values: Array, window: Window, ttft_iterations: float) -> Array:
    """Mean ITL and TTFT in seconds of every observation, shape (n, 2), under parameters of shape (p,).

    From its rate, its lengths and its limits, and nothing of its latencies; a full batch is predicted as full, as
    its rate says nothing of it.
    """
    limits = replace(window.limits, max_queue=QUEUE)
    found = CorrectedModel().analyze(ServerModel(law, values, window.workload, limits), window.rate_rps, ())
    full = law.inter_token_time(values, limits.max_batch, window.workload, limits.token_budget)
    itl = np.where(window.full, full, found.itl_s.mean)
    times = np.stack([itl, found.ttft_s.mean + ttft_iterations * itl], axis=-1)
    # A law at absurd parameters may overflow; what it says is then only that it is long.
    bounded: Array = np.clip(np.nan_to_num(times, nan=LONGEST_S), 0.0, LONGEST_S)
    return bounded


def error_shares(
    law: IterationLaw, values: Array, window: Window, ttft_iterations: float
) -> tuple[Array, Array]:
    """Sizes of the errors of ITL and TTFT one step ahead, as shares of what was observed, where it was."""
    predicted = predict_ahead(law, values, window, ttft_iterations)
    shares = np.abs(predicted / np.exp(window.log_observed) - 1.0)
    return shares[:, 0], shares[window.weighted[:, 1], 1]


def recent(before: float | None, figures: Array, weight: float) -> float | None:
    """A mean that forgets: the figures of a cycle count `weight`, what was before counts the rest."""
    if figures.size == 0:
        return before
    now = min(float(figures.mean()), 1e9)
    return now if before is None else before + weight * (now - before)
