"""The three questions to a performance model, for one problem or a list: analyze, size, concurrency.

Problems of a list go to their model together, in one call for each law, model, statistic and form, so a list of
thousands costs little more than its longest search. A problem that is bad is an answer in its place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from services.perfmodel.law import IterationLaw
from services.perfmodel.problems.bodies import Body, binding_name, finite, metrics_body
from services.perfmodel.problems.forms import MS, Form, Posed, Problem, ProblemRefused, read
from services.perfmodel.problems.isolation import isolated
from services.perfmodel.problems.servers import parameters, servers, targets
from services.perfmodel.queueing import QueueingModel, ServerModel, Targets
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel

# Models tabulate every batch size; a call takes no more problems than keep that within memory.
BATCH_SIZES_PER_CALL = 1 << 21
CURVE_POINTS = 20
# Shares of the capacity, from 5 % to all of it.
CURVE_SHARES = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS


class Question(StrEnum):
    """What is asked of a server."""

    ANALYZE = "analyze"
    SIZE = "size"
    CONCURRENCY = "concurrency"


class Outcome(StrEnum):
    """What became of a problem."""

    ANSWERED = "answered"
    INFEASIBLE = "infeasible"
    REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """One problem's answer: what became of it, and the JSON object that says so."""

    outcome: Outcome
    body: Body


@dataclass(frozen=True)
class Models:
    """Where laws and queueing models are had by name; both raise ValueError for a name that they do not know."""

    law: Callable[[str], IterationLaw]
    queueing: Callable[[str], QueueingModel]


@dataclass(frozen=True)
class Asking:
    """How problems are answered.

    law, model: used instead of what the problems name.
    curve: with the metrics at rates from 5 to 100 % of the capacity.
    problems_per_call: most problems that a model is given at once; fewer make progress visible.
    most_batch_sizes: most that the batch limits of all problems may add up to, which bounds the work; the
        problems beyond it are refused. Waiting rooms count too where a model's work grows with them.
    progress: told how many problems were answered, after each call.
    """

    law: str | None = None
    model: str | None = None
    curve: bool = False
    problems_per_call: int = 100_000
    most_batch_sizes: int | None = None
    progress: Callable[[int], None] = lambda count: None


def answer(question: Question, raws: Sequence[object], models: Models, asking: Asking) -> list[Answer]:
    """The answers to problems as they were written, in their order and each in its problem's form."""
    answers: list[Answer | None] = [None] * len(raws)
    posed: dict[int, Posed] = {}
    left = asking.most_batch_sizes
    for place, raw in enumerate(raws):
        try:
            one = read(raw, asking.law, asking.model)
            _check(question, one, models, asking)
            left = _less(left, one, models)
            posed[place] = one
        except ValueError as error:
            answers[place] = refused(str(error))
            asking.progress(1)
    for places in _calls(posed, asking):
        group = [posed[place] for place in places]
        # Times beyond what a number holds are left out of an answer, not warned of.
        with np.errstate(all="ignore"):
            made = isolated(group, _asker(question, models, asking), refused)
        for place, one_made in zip(places, made, strict=True):
            answers[place] = one_made
        asking.progress(len(places))
    return [one for one in answers if one is not None]


def refused(reason: str) -> Answer:
    """The answer to a bad problem."""
    return Answer(Outcome.REFUSED, {"error": reason})


def _check(question: Question, posed: Posed, models: Models, asking: Asking) -> None:
    """Raises ValueError for what is wrong with one problem and no model needs to be asked for."""
    problem = posed.problem
    parameters(problem, models.law(problem.law))
    models.queueing(problem.model)
    if question is Question.ANALYZE and problem.rate_rps is None and not asking.curve:
        key = "rate_rps" if posed.form is Form.OWN else "RPS"
        raise ProblemRefused(f"{key}: is required by analyze and missing")


def _less(left: int | None, posed: Posed, models: Models) -> int | None:
    """The batch sizes left after a problem; raises ValueError where it has more.

    The reference's chains are followed through the waiting room too, so that counts with them.
    """
    if left is None:
        return None
    problem, keys = posed.problem, ("max_batch", "max_queue")
    if posed.form is Form.REFERENCE:
        keys = ("maxBatchSize", "maxQueueSize")
    count, key = problem.max_batch, keys[0]
    if isinstance(models.queueing(problem.model), BirthDeathCompatModel):
        count, key = count + problem.max_queue, " + ".join(keys)
    if count > left:
        raise ProblemRefused(f"{key}: the problems of a request may add up to {left} more, got {count}")
    return left - count


def _calls(posed: dict[int, Posed], asking: Asking) -> Iterator[list[int]]:
    """Places of the problems that go into one call, like with like."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, one in posed.items():
        problem = one.problem
        kind = (problem.law, problem.model, problem.targets.statistic, one.form, problem.tolerance)
        groups.setdefault((*kind, problem.kv_tokens is None, problem.rate_rps is None), []).append(place)
    for places in groups.values():
        call: list[int] = []
        sizes = 0
        for place in places:
            batch = posed[place].problem.max_batch
            if call and (sizes + batch > BATCH_SIZES_PER_CALL or len(call) >= asking.problems_per_call):
                yield call
                call, sizes = [], 0
            call.append(place)
            sizes += batch
        yield call


def _asker(question: Question, models: Models, asking: Asking) -> Callable[[Sequence[Posed]], list[Answer]]:
    def ask(group: Sequence[Posed]) -> list[Answer]:
        problems = [one.problem for one in group]
        called = _Call(
            problems,
            group[0].form,
            models.queueing(problems[0].model),
            servers(problems, models.law(problems[0].law)),
            asking.curve,
        )
        return {
            Question.ANALYZE: called.analyses,
            Question.SIZE: called.sizings,
            Question.CONCURRENCY: called.batch_limits,
        }[question]()

    return ask


@dataclass(frozen=True, eq=False)
class _Call:
    """Problems of one kind and what their model is asked about; servers of shape (P,)."""

    problems: Sequence[Problem]
    form: Form
    model: QueueingModel
    servers: ServerModel
    curve: bool

    def analyses(self) -> list[Answer]:
        if self.problems[0].rate_rps is None:
            return self._answered(self.servers, [{} for _ in self.problems])
        rates = np.array([one.rate_rps for one in self.problems], dtype=float)
        metrics = self.model.analyze(self.servers, rates)
        bodies = [metrics_body(self.form, self.model, metrics, (k,)) for k in range(len(self.problems))]
        return self._answered(self.servers, bodies)

    def sizings(self) -> list[Answer]:
        return self._sized(self.servers, [{} for _ in self.problems])

    def batch_limits(self) -> list[Answer]:
        first = self.problems[0]
        limits = self.model.concurrency(
            self.servers, targets(self.problems), first.targets.statistic, first.tolerance
        )
        key = "max_batch" if self.form is Form.OWN else "concurrency"
        chosen = np.where(limits > 0, limits, np.asarray(self.servers.limits.max_batch)).astype(float)
        at = replace(self.servers, limits=replace(self.servers.limits, max_batch=chosen))
        return self._sized(at, [{key: int(limit)} for limit in limits])

    def _sized(self, server: ServerModel, bodies: list[Body]) -> list[Answer]:
        """The largest rates within the targets and the metrics there, added to what is known of each problem."""
        wanted = targets(self.problems)
        sizing = self.model.max_rate(server, wanted, self.problems[0].targets.statistic)
        metrics = self.model.analyze(server, np.where(sizing.feasible, sizing.max_rate_rps, 1.0))
        alone = self._rates_alone(server, wanted) if self.form is Form.REFERENCE else []
        for k, body in enumerate(bodies):
            feasible, rate = bool(sizing.feasible[k]), float(sizing.max_rate_rps[k])
            at_rate = metrics_body(self.form, self.model, metrics, (k,)) if feasible else {}
            stopped_by = binding_name(int(sizing.binding[k]))
            if self.form is Form.OWN:
                body |= {"feasible": feasible, "max_rate_rps": rate, "binding": stopped_by}
                body |= {"at_max_rate": at_rate} if feasible else {}
            elif feasible:
                body |= {**at_rate, **{key: float(rates[k]) for key, rates in alone}}
                body |= {"feasible": True} if "concurrency" in body else {}
            else:
                reason = _unmet(self.problems[k], stopped_by)
                body |= {"feasible": False} if "concurrency" in body else {"error": reason}
        return self._answered(server, bodies, np.asarray(sizing.feasible))

    def _rates_alone(self, server: ServerModel, wanted: Targets) -> list[tuple[str, np.ndarray[Any, Any]]]:
        """The largest rate for each target on its own, and that without targets where one is not given."""
        given = {"TTFT": "ttft_s", "ITL": "itl_s", "TPS": "tps"}
        return [
            (
                f"RPSTarget{key}",
                self.model.max_rate(
                    server,
                    Targets(**{name: getattr(wanted, name)}),
                    self.problems[0].targets.statistic,
                ).max_rate_rps,
            )
            for key, name in given.items()
        ]

    def _answered(
        self, server: ServerModel, bodies: list[Body], feasible: np.ndarray[Any, Any] | None = None
    ) -> list[Answer]:
        if self.curve:
            for body, points in zip(bodies, self._curves(server), strict=True):
                body["curve"] = points
        answers = []
        for k, (problem, body) in enumerate(zip(self.problems, bodies, strict=True)):
            named = {"name": problem.name, "model": problem.model, "law": problem.law}
            labelled = {"label": problem.name}
            head = named if self.form is Form.OWN else labelled
            outcome = Outcome.ANSWERED if feasible is None or feasible[k] else Outcome.INFEASIBLE
            answers.append(Answer(outcome, finite({**head, **body})))
        return answers

    def _curves(self, server: ServerModel) -> list[list[Body]]:
        """For each problem the metrics at shares of its capacity."""
        capacity = self.model.analyze(server, 1.0).capacity_rps
        metrics = self.model.analyze(server, CURVE_SHARES[:, None] * capacity)
        return [
            [metrics_body(self.form, self.model, metrics, (point, k)) for point in range(CURVE_POINTS)]
            for k in range(len(self.problems))
        ]


def _unmet(problem: Problem, target: str) -> str:
    """Why no rate will do, in the reference's words and units."""
    given = problem.targets
    figures = {
        "ttft": ("targetTTFT", given.ttft_s, MS, "a longer time, got {:g} ms"),
        "itl": ("targetITL", given.itl_s, MS, "a longer time, got {:g} ms"),
        "tps": ("targetTPS", given.tps, 1.0, "fewer tokens per second, got {:g}"),
    }
    key, value, unit, expected = figures.get(target, (target, None, 1.0, ""))
    said = "" if value is None else f"; expected {expected.format(value / unit)}"
    return f"{key}: no rate above zero meets it{said}"
