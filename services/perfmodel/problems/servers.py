"""From problems to what queueing models take: one server model, and targets, for many problems."""

from collections.abc import Sequence

import numpy as np

from services.perfmodel.law import Array, IterationLaw, Limits, Workload
from services.perfmodel.problems.forms import MOST_NAMED, Problem, plain
from services.perfmodel.queueing import ServerModel, Targets


def parameters(problem: Problem, law: IterationLaw) -> list[float]:
    """The parameters in the law's order; raises ValueError naming those that are missing or foreign."""
    names = law.parameter_names
    if wrong := sorted(set(problem.parameters) ^ set(names)):
        named = ", ".join(
            f"{plain(name)} is {'missing' if name in names else 'foreign'}" for name in wrong[:MOST_NAMED]
        )
        raise ValueError(f"parameters: {named}; expected those of {law.name}: {', '.join(names)}")
    return [problem.parameters[name] for name in names]


def servers(problems: Sequence[Problem], law: IterationLaw) -> ServerModel:
    """All servers along one axis, of shape (P,); KV memory must be known of all or of none.

    Raises ValueError for what the law or its parameters do not allow.
    """

    def column(name: str) -> Array:
        return np.array([getattr(one, name) for one in problems], dtype=float)

    def moment(name: str, default: Array) -> Array:
        given = column(name)
        return np.where(np.isnan(given), default, given)

    prompt, output = column("input_tokens"), column("output_tokens")
    return ServerModel(
        law,
        np.array([parameters(one, law) for one in problems]),
        Workload(
            prompt,
            output,
            moment("output_tokens_sq", output**2),
            moment("input_output_tokens", prompt * output),
            moment("input_tokens_sq", prompt**2),
            column("cached_share"),
            column("arrival_scv"),
        ),
        Limits(
            column("max_batch"),
            column("max_queue"),
            column("token_budget"),
            None if problems[0].kv_tokens is None else column("kv_tokens"),
        ),
    )


def targets(problems: Sequence[Problem]) -> Targets:
    """The targets of all, of shape (P,)."""
    given = [one.targets for one in problems]
    ttft, itl, tps, share = (
        np.array([getattr(one, name) for one in given], dtype=float)
        for name in ("ttft_s", "itl_s", "tps", "max_blocked_share")
    )
    return Targets(ttft, itl, tps, share)
