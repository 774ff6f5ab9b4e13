"""Why a server gets what it gets, in short plain sentences."""

from collections.abc import Sequence

from schemas.plan import Allocation, PlanProposed, ShadowPrice
from services.optimizer.problem import Candidate, Choice, ServerProblem

LONGEST = 4000

BINDING = {
    "ttft": "time to first token decides the size",
    "itl": "inter-token latency decides the size",
    "tps": "token throughput decides the size",
    "throughput": "the engine's throughput decides the size",
    "queue": "the waiting room decides the size",
    "minimum": "the least number of replicas decides",
    "maximum": "the most replicas allowed are fewer than it needs",
    "capacity": "no more accelerators are to be had",
}


def explain(
    server: ServerProblem,
    choices: Sequence[Choice],
    binding: str,
    allocations: Sequence[Allocation],
    rate_rps: float,
    previous: PlanProposed | None,
    dropped: Sequence[str],
    prices: Sequence[ShadowPrice] = (),
) -> str:
    """What was chosen and what decides, the next-best candidate, what its cards are worth to others, what
    changed, and what was no candidate.
    """
    given = ", ".join(f"{c.replicas} of {c.candidate.replicas} x {c.candidate.accelerator}" for c in choices)
    sentences = [
        f"{_described(allocations)} for {rate_rps:.4g} requests/s: {BINDING[binding]}.",
        f"It gets {given} replicas that it would take." if binding == "capacity" else "",
        _next_best(server, choices),
        _worth(choices, prices),
        change(previous, allocations, rate_rps),
        f"Not considered: {'; '.join(dropped)}." if dropped else "",
    ]
    return shortened(" ".join(s for s in sentences if s))


def explain_unserved(server: ServerProblem, dropped: Sequence[str]) -> str:
    """What an unserved server would have taken."""
    best = server.candidates[0]
    sentences = [
        f"No accelerators are left for it within capacity, quotas and budget: it would take {best.replicas} x "
        f"{best.accelerator}, {best.replicas * best.units_per_replica} cards of {best.type}.",
        f"Not considered: {'; '.join(dropped)}." if dropped else "",
    ]
    return shortened(" ".join(s for s in sentences if s))


def change(previous: PlanProposed | None, allocations: Sequence[Allocation], rate_rps: float) -> str:
    """What differs from the plan before, and why as far as the inputs tell."""
    if previous is None:
        return "This is its first plan."
    if previous.allocations is None:
        return f"Generation {previous.generation} had no target for it ({previous.status.value})."
    before = _described(previous.allocations)
    if before == _described(allocations):
        return f"As in generation {previous.generation}."
    old_rate = previous.inputs.rate_rps
    if old_rate is None or abs(rate_rps - old_rate) <= 0.01 * max(rate_rps, old_rate):
        why = "the load is as it was, so parameters, prices, bounds or capacity changed"
    else:
        why = f"the planned load {'rose' if rate_rps > old_rate else 'fell'} from {old_rate:.4g} requests/s"
    return f"It was {before} in generation {previous.generation}: {why}."


def shortened(text: str) -> str:
    """The text within what a plan may carry."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _described(allocations: Sequence[Allocation]) -> str:
    if not allocations:
        return "No replicas"
    return " and ".join(f"{a.replicas} x {a.accelerator} (batch {a.max_batch})" for a in allocations)


def _worth(choices: Sequence[Choice], prices: Sequence[ShadowPrice]) -> str:
    """What one more card of the types that it uses would be worth, where they are scarce."""
    types = {c.candidate.type for c in choices}
    scarce = [p for p in prices if p.type in types and p.cost_per_hour > 0]
    return " ".join(f"One more {p.type} would be worth {p.cost_per_hour:.4g} per hour." for p in scarce)


def _next_best(server: ServerProblem, choices: Sequence[Choice]) -> str:
    taken = {(c.candidate.accelerator, c.candidate.max_batch) for c in choices}
    others: list[Candidate] = [c for c in server.candidates if (c.accelerator, c.max_batch) not in taken]
    if not others:
        return "It has no other candidate."
    best = min(others, key=Candidate.rank)
    extra = best.cost_per_hour - sum(c.cost_per_hour for c in choices)
    short = "" if best.objectives_met else ", short of its objectives"
    return (
        f"Next best: {best.replicas} x {best.accelerator} at {best.cost_per_hour:.4g} per hour "
        f"({extra:+.4g}){short}."
    )
