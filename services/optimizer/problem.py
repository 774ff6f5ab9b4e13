"""The boundary of the optimizer: the problem that solvers see and the answer they give, as plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, Quota
from schemas.plan import ClassService, Prediction, ShadowPrice, Shortfall, SolveStatus

# Share of the cost before and after that moving to another accelerator is taken to cost.
SWITCHING_SHARE = 0.1
# Shares of a rate are sums of quotients; this far below 1 they are 1.
SERVED_ROUNDING = 1e-9
# The contracts' largest count.
MOST_CARDS = 1_000_000


@dataclass(frozen=True)
class ReplicaCase:
    """Everything that the performance of one replica depends on except its rate; equal cases perform alike.

    law: name of the iteration law that `parameters`, in the law's order and in SI units, belong to.
    input_tokens, output_tokens: means of a request.
    max_batch, max_queue, token_budget, kv_tokens: the engine's limits; kv_tokens is None when unknown.
    ttft_s, itl_s, tokens_per_s: objectives of `statistic`; None is no objective.
    """

    law: str
    parameters: tuple[float, ...]
    input_tokens: float
    output_tokens: float
    max_batch: int
    max_queue: int
    token_budget: int
    kv_tokens: int | None
    ttft_s: float | None
    itl_s: float | None
    tokens_per_s: float | None
    statistic: Statistic


@dataclass(frozen=True)
class Held:
    """Replicas that a server is asked to have now on one accelerator; the cost is that of all of them."""

    accelerator: str
    replicas: int
    cost_per_hour: float


@dataclass(frozen=True)
class Candidate:
    """One way to serve one server: an accelerator with a batch limit, and the replicas that it takes.

    type, units_per_replica: what capacity is counted in, and how many cards of it one replica takes.
    max_rate_rps: the largest rate of one replica within the objectives.
    needed_replicas: planned rate over `max_rate_rps`, not rounded.
    replicas: whole replicas, within the server's bounds; the most that a solver may give.
    served_share: share of the planned rate that `replicas` carry within the objectives, at most 1.
    value: the change of cost per hour from what the server has now, and the cost of switching.
    binding: the objective or limit that decides `replicas`.
    region, power_w: where its accelerator is, and what one replica draws at most; empty and 0 when unknown.
    quotas: names of the platform's quotas that its replicas count against.
    held: what the server has now, which `value` is counted from.
    predicted, predicted_one_fewer: performance of `replicas`, and of one fewer, under the planned rate;
        None where there are no replicas or the performance model has no finite answer.
    parameters_at_s: when the parameters were estimated; None for declared ones.
    """

    server: str
    accelerator: str
    type: str
    accelerator_count: int
    units_per_replica: int
    max_batch: int
    max_rate_rps: float
    needed_replicas: float
    replicas: int
    served_share: float
    cost_per_replica_per_hour: float
    value: float
    binding: str
    case: ReplicaCase
    region: str = ""
    power_w: float = 0.0
    quotas: tuple[str, ...] = ()
    held: Held | None = None
    predicted: Prediction | None = None
    predicted_one_fewer: Prediction | None = None
    parameters_at_s: float | None = None

    @property
    def cost_per_hour(self) -> float:
        """Cost of all its replicas."""
        return self.replicas * self.cost_per_replica_per_hour

    @property
    def objectives_met(self) -> bool:
        """Whether its replicas carry the planned rate within every objective."""
        return self.served_share >= 1.0

    def rank(self) -> tuple[float, float, str, int]:
        """Key that sorts the candidates of one server, best first: most served, least value, then name."""
        return (-self.served_share, self.value, self.accelerator, self.max_batch)


@dataclass(frozen=True)
class ServerProblem:
    """One server that has something to choose: at least one candidate.

    priority: 1 is the most important.
    candidates: best first.
    current: what it is asked to have now; None when unknown or nothing.
    rate_rps: the rate planned for.
    tenant: who it belongs to; empty when unknown.
    violation_cost_per_hour: of all of its rate, where what is not served is weighed against cost.
    min_served_share: least share of its rate that best effort may carry.
    """

    server: str
    priority: int
    candidates: tuple[Candidate, ...]
    current: Held | None
    min_replicas: int
    max_replicas: int | None
    rate_rps: float
    tenant: str = ""
    violation_cost_per_hour: float = 0.0
    min_served_share: float = 0.0

    def least_replicas(self, candidate: Candidate) -> int:
        """The fewest replicas of a candidate that best effort may give."""
        return max(
            1,
            math.ceil(self.min_served_share * candidate.replicas / candidate.served_share - SERVED_ROUNDING),
        )


@dataclass(frozen=True)
class Problem:
    """What a solver decides: one choice for each server, within capacity and budget.

    capacity: cards by type that these servers may use together, a type that is absent has none;
        None is without limit.
    budget_per_hour, power_limit_w: the most that these servers may cost, and draw, together; None is without
        limit.
    quotas: declared limits on the cards of some of them.
    platform_quotas: by name, the most cards of candidates that count against it.
    """

    servers: tuple[ServerProblem, ...]
    capacity: Mapping[str, int] | None
    budget_per_hour: float | None
    options: OptimizerOptions
    now_s: float
    power_limit_w: float | None = None
    quotas: tuple[Quota, ...] = ()
    platform_quotas: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Replicas given to a server on one of its candidates; fewer than the candidate has is best effort."""

    candidate: Candidate
    replicas: int

    @property
    def cost_per_hour(self) -> float:
        """Cost of the replicas given."""
        return self.replicas * self.candidate.cost_per_replica_per_hour

    @property
    def cards(self) -> int:
        """Cards that the replicas given take."""
        return self.replicas * self.candidate.units_per_replica

    @property
    def value(self) -> float:
        """The candidate's value in proportion to the replicas given."""
        whole = self.candidate
        return (
            whole.value if self.replicas == whole.replicas else whole.value * self.replicas / whole.replicas
        )


@dataclass(frozen=True)
class Solution:
    """Choices by server; several on distinct accelerators are a mix, and a server without is not served."""

    choices: Mapping[str, tuple[Choice, ...]]

    @property
    def cost_per_hour(self) -> float:
        """Cost of every choice."""
        return math.fsum(c.cost_per_hour for choices in self.choices.values() for c in choices)

    @property
    def value(self) -> float:
        """Value of every choice, of a mix with what is kept of the current allocation."""
        return math.fsum(
            choices[0].value if len(choices) == 1 else mix_value(choices) for choices in self.choices.values()
        )


@dataclass(frozen=True)
class SolveOutcome:
    """How a solve ended; the caller adds how long it took.

    objective: value of the solution, per hour.
    bound: no solution that serves the same servers as fully has a lower objective; None when not proven.
    shortfall: servers that get less than they need.
    shadow_prices: fall of the objective per card and hour, by type, where the solver has them.
    classes: how far each class is served, with the solver's bounds where it has them.
    """

    status: SolveStatus
    solution: Solution
    objective: float
    bound: float | None = None
    shortfall: tuple[Shortfall, ...] = ()
    shadow_prices: tuple[ShadowPrice, ...] = ()
    classes: tuple[ClassService, ...] = ()

    @property
    def gap_share(self) -> float | None:
        """Distance of the objective to its bound as a share of the cost; None without a bound."""
        if self.bound is None:
            return None
        distance, cost = max(0.0, self.objective - self.bound), self.solution.cost_per_hour
        if distance == 0.0:
            return 0.0
        return distance / cost if cost > 0 else None


def transition_value(accelerator: str, cost_per_hour: float, current: Held | None) -> float:
    """Change of the cost per hour from what a server has now, and the cost of switching accelerators."""
    before = current.cost_per_hour if current else 0.0
    change = cost_per_hour - before
    if current is not None and current.accelerator == accelerator:
        return change
    return SWITCHING_SHARE * (cost_per_hour + before) + change


def mix_value(choices: Sequence[Choice]) -> float:
    """Value of one server's replicas on several accelerators, `transition_value` part by part.

    What stays on the current accelerator costs no switching; the rest does, and so does leaving it wholly.
    """
    held = choices[0].candidate.held
    before = held.cost_per_hour if held else 0.0
    value = -before
    kept = False
    for choice in choices:
        stays = held is not None and choice.candidate.accelerator == held.accelerator
        kept |= stays
        value += choice.cost_per_hour * (1.0 if stays else 1.0 + SWITCHING_SHARE)
    return value if kept or held is None else value + SWITCHING_SHARE * before


def carried_share(choices: Sequence[Choice]) -> float:
    """Share of its planned rate that a server's choices carry within the objectives, at most 1."""
    carried = math.fsum(
        c.replicas / c.candidate.replicas * c.candidate.served_share
        if len(choices) == 1
        else c.replicas / c.candidate.needed_replicas
        for c in choices
        if c.candidate.replicas
    )
    idle = any(not c.candidate.replicas or not c.candidate.needed_replicas for c in choices)
    return 1.0 if carried >= 1.0 - SERVED_ROUNDING or (idle and not carried) else carried


def service_of(problem: Problem, solution: Solution) -> tuple[ClassService, ...]:
    """How far a solution serves each class, the most important first."""
    shares = {s.server: carried_share(solution.choices.get(s.server, ())) for s in problem.servers}
    found = []
    for priority in sorted({s.priority for s in problem.servers}):
        members = [s for s in problem.servers if s.priority == priority]
        served = [s for s in members if shares[s.server] >= 1.0 and s.server in solution.choices]
        found.append(
            ClassService(
                priority=priority,
                servers=len(members),
                servers_served=len(served),
                demand_rps=math.fsum(s.rate_rps for s in members),
                demand_served_rps=math.fsum(s.rate_rps for s in served),
                demand_carried_rps=math.fsum(s.rate_rps * shares[s.server] for s in members),
            )
        )
    return tuple(found)


def shortfall_of(problem: Problem, solution: Solution) -> tuple[Shortfall, ...]:
    """Servers whose choices carry less than the planned rate, and what they lack where they would run."""
    short = []
    for server in problem.servers:
        choices = solution.choices.get(server.server, ())
        if choices and carried_share(choices) >= 1.0:
            continue
        wanted = choices[0].candidate if choices else server.candidates[0]
        missing = max(
            1,
            max(wanted.replicas, math.ceil(wanted.needed_replicas - SERVED_ROUNDING))
            - sum(c.replicas for c in choices),
        )
        short.append(
            Shortfall(
                server=server.server,
                missing_replicas=missing,
                accelerator=wanted.accelerator,
                type=wanted.type,
                missing_cards=min(MOST_CARDS, missing * wanted.units_per_replica),
            )
        )
    return tuple(short)
