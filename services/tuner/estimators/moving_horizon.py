"""Estimator `moving-horizon`: a maximum a posteriori fit over the newest and a diverse set of observations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from schemas.parameters import FitEvidence, Health
from services.perfmodel.law import Array, IterationLaw
from services.tuner.ahead import error_shares, recent
from services.tuner.change import Cusum
from services.tuner.estimator import Estimate
from services.tuner.fit import Mask, Problem, Solution, Window, first_guess, minimise
from services.tuner.logarithms import (
    by_sorted_name,
    condition_of,
    free,
    inverse_of,
    log_free,
    seed_of,
    spread,
)
from services.tuner.memory import Memory, distinct_points
from services.tuner.observation import Observation
from services.tuner.snapshot import dump_state, load_state

SNAPSHOT_VERSION = 1
# Of a normal distribution, over its median distance from the middle.
DEVIATIONS_PER_MEDIAN = 1.4826
SCALES = (0.1, 3.0)


class MovingHorizonSettings(BaseModel):
    """Settings of the estimator over a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    newest: int = Field(default=20, ge=4, le=200)
    """Observations always kept, replica by replica; at four replicas, five cycles."""
    diverse: int = Field(default=60, ge=0, le=200)
    """Older observations kept for being unlike the others; without them a quiet hour forgets the busy one."""
    half_life_cycles: float = Field(default=15.0, gt=0)
    """Cycles after which an observation counts half."""
    oldest_weight: float = Field(default=0.2, gt=0, le=1)
    """Weight that an old observation never falls below: until a change is found, what told the parameters apart
    goes on telling them apart, however long the load is flat."""
    prior_sd: float = Field(default=0.5, gt=0)
    """Standard deviation of the logarithms around declared parameters; 0.5 is a factor of 1.6."""
    bootstrap_sd: float = Field(default=1.5, gt=0)
    """The same around the first guess of a pair without declared parameters; 1.5 is a factor of 4.5."""
    bootstrap_spread: float = Field(default=1.25, gt=1)
    """Ratio of batch sizes or token lengths that makes two operating points distinct."""
    changed_speed_sd: float = Field(default=1.0, gt=0)
    """After a change, standard deviation of the logarithm of the speed, common to all parameters."""
    changed_sd: float = Field(default=0.2, gt=0)
    """After a change, that of each parameter beside it: a slower card is slower at everything."""
    floor_share: float = Field(default=0.03, gt=0)
    """Error of a measured latency, as a share, that stays however many requests there are."""
    request_share: float = Field(default=0.1, gt=0)
    """Standard deviation of one request's latency at a given batch, as a share."""
    scale_observations: float = Field(default=3.0, gt=0)
    """Observations that these two are worth against the noise that is seen."""
    steps: int = Field(default=5, ge=1, le=50)
    """Gauss–Newton steps of an update; it starts at the incumbent, so few are enough."""
    young_observations: int = Field(default=20, ge=0)
    """Observations up to which an update starts from several points, with more steps."""
    young_steps: int = Field(default=20, ge=1, le=100)
    """Steps from each of those."""
    ttft_iterations: int = Field(default=0, ge=0, le=1)
    """Decode iterations that the measured time to first token holds beyond the prefill: 0 for engines that
    send the first token as the prefill ends, 1 for those that send it with the next iteration."""
    worse_share: float = Field(default=0.02, ge=0)
    """How much worse than the incumbent a new set may predict the newest observations and still replace it."""
    change_slack: float = Field(default=0.75, ge=0)
    """Standard deviations that a cycle may be off before it counts towards a change."""
    change_threshold: float = Field(default=6.0, gt=0)
    """Sum of what is beyond from which it is a change: three cycles that are far off, many that are a little."""
    identified_condition: float = Field(default=1e4, gt=1)
    """Condition number of the data's information up to which parameters can be told apart."""
    identified_sd: float = Field(default=0.25, gt=0)
    """Largest standard deviation of a logarithm, from data alone, of an identified set."""
    identified_error_share: float = Field(default=0.15, gt=0)
    """Largest recent error of an identified set."""
    suspect_error_share: float = Field(default=0.3, gt=0)
    """Recent error from which a set is suspect."""
    memory: float = Field(default=0.2, gt=0, le=1)
    """Weight of the newest cycle in the recent errors; 0.2 remembers about five."""


class Origin(StrEnum):
    """Where the centre of the prior is from."""

    DECLARED = "declared"
    GUESSED = "guessed"
    CHANGED = "changed"


@dataclass(frozen=True)
class MovingHorizonState:
    """Everything an estimate rests on.

    seed: centre of the prior, parameters in the law's order; None until there is a first guess.
    values: the incumbent, in the same order.
    cycle: updates so far.
    seen: observations so far; since_change: those since the last change.
    scale: factors on the noise of ITL and TTFT, from what is seen.
    itl_error, ttft_error, nis: recent one-step-ahead figures, None until there is one.
    """

    law: IterationLaw
    seed: tuple[float, ...] | None = None
    origin: Origin = Origin.GUESSED
    values: tuple[float, ...] | None = None
    covariance: tuple[tuple[float, ...], ...] = ()
    health: Health = Health.PRIOR
    condition: float | None = None
    cycle: int = 0
    seen: int = 0
    since_change: int = 0
    worse: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    itl_error: float | None = None
    ttft_error: float | None = None
    nis: float | None = None
    cusum: Cusum = field(default_factory=Cusum)
    memory: Memory = field(default_factory=Memory)


class MovingHorizon:
    """Fits all kept observations anew in every cycle, starting at the incumbent.

    A pair without declared parameters stays without any until two distinct operating points were seen: at
    one point a fixed time and a time per token explain the same latency, and the guess would be wrong.
    """

    name: ClassVar[str] = "moving-horizon"
    Settings: ClassVar[type[BaseModel]] = MovingHorizonSettings

    def __init__(self, settings: MovingHorizonSettings) -> None:
        self._settings = settings

    def start(self, prior: Mapping[str, float] | None, law: IterationLaw) -> MovingHorizonState:
        """The state before anything is observed; raises ValueError for a prior that is not of the law."""
        if prior is None:
            return MovingHorizonState(law)
        return self._at_seed(MovingHorizonState(law), seed_of(prior, law), Origin.DECLARED)

    def estimate(self, state: MovingHorizonState) -> Estimate | None:
        """The incumbent, None while there is none."""
        if state.values is None:
            return None
        return Estimate(
            values=dict(zip(state.law.parameter_names, state.values, strict=True)),
            covariance=by_sorted_name(state.covariance, state.law),
            health=state.health,
            evidence=FitEvidence(
                observations=min(state.seen, 1_000_000),
                rejected=min(state.worse, 1_000_000),
                ttft_error_share=state.ttft_error,
                itl_error_share=state.itl_error,
                nis_mean=state.nis,
                condition_number=state.condition,
            ),
        )

    def update(
        self, state: MovingHorizonState, observations: Sequence[Observation], now_s: float
    ) -> tuple[MovingHorizonState, Estimate | None]:
        """Learn from all replicas of one cycle at once."""
        if not observations:
            return state, self.estimate(state)
        count = len(observations)
        cycle = state.cycle + 1
        memory = state.memory.extended(cycle, observations, self._settings.newest, self._settings.diverse)
        state = replace(
            state,
            cycle=cycle,
            seen=state.seen + count,
            since_change=state.since_change + count,
            memory=memory,
        )
        if state.seed is None:
            kept = [seen for _, seen in memory.kept]
            if not distinct_points(kept, self._settings.bootstrap_spread):
                return state, None
            guess = first_guess(state.law, Window.of(kept))
            if guess is None:
                return state, None
            state = self._at_seed(state, tuple(guess.tolist()), Origin.GUESSED)
        else:
            state = self._scored(state, observations)
            change = state.cusum.change(self._settings.change_threshold)
            if change is not None:
                state = self._changed(state, change)
        state = self._fitted(state)
        return state, self.estimate(state)

    def dump(self, state: MovingHorizonState) -> bytes:
        """The state as JSON; Python writes floats so that they are read back exactly."""
        fields = {key: value for key, value in vars(state).items() if key != "law"}
        fields["cusum"] = asdict(state.cusum)
        fields["memory"] = {
            name: [[cycle, vars(seen)] for cycle, seen in rows] for name, rows in vars(state.memory).items()
        }
        return dump_state(state.law, SNAPSHOT_VERSION, fields)

    def load(self, raw: bytes, law: IterationLaw) -> MovingHorizonState:
        """The state of a snapshot; raises ValueError where it is not one of this version and law."""

        def built(fields: dict[str, Any]) -> MovingHorizonState:
            fields["memory"] = Memory(
                **{
                    name: tuple((int(cycle), Observation(**seen)) for cycle, seen in rows)
                    for name, rows in fields["memory"].items()
                }
            )
            fields["cusum"] = Cusum(**{name: tuple(row) for name, row in fields["cusum"].items()})
            fields["covariance"] = tuple(tuple(row) for row in fields["covariance"])
            fields["health"], fields["origin"] = Health(fields["health"]), Origin(fields["origin"])
            for key in ("seed", "values", "scale"):
                fields[key] = None if fields[key] is None else tuple(fields[key])
            return MovingHorizonState(law=law, **fields)

        return load_state(raw, law, SNAPSHOT_VERSION, built)

    def _at_seed(
        self, state: MovingHorizonState, seed: tuple[float, ...], origin: Origin
    ) -> MovingHorizonState:
        """The state with a prior and with its centre as the incumbent."""
        state = replace(state, seed=seed, origin=origin, values=seed)
        return replace(state, covariance=spread(free(seed), self._prior_covariance(state)))

    def _prior_covariance(self, state: MovingHorizonState) -> Array:
        """Covariance of the logarithms of the free parameters around the seed."""
        assert state.seed is not None
        settings, count = self._settings, int(free(state.seed).sum())
        if state.origin is Origin.CHANGED:
            speed = np.full((count, count), settings.changed_speed_sd**2)
            return speed + settings.changed_sd**2 * np.eye(count)
        deviation = settings.prior_sd if state.origin is Origin.DECLARED else settings.bootstrap_sd
        return deviation**2 * np.eye(count)

    def _problem(self, state: MovingHorizonState, rows: Sequence[tuple[int, Observation]]) -> Problem:
        """The fit of some observations, each with the cycle that it came in."""
        assert state.seed is not None
        settings = self._settings
        age = state.cycle - np.array([cycle for cycle, _ in rows])
        return Problem(
            law=state.law,
            window=Window.of([seen for _, seen in rows]),
            ttft_iterations=settings.ttft_iterations,
            floor_share=settings.floor_share,
            request_share=settings.request_share,
            weight=np.maximum(0.5 ** (age / settings.half_life_cycles), settings.oldest_weight),
            scale=np.array(state.scale),
            settled=state.since_change > settings.young_observations,
            free=free(state.seed),
            prior=log_free(state.seed),
            prior_information=inverse_of(self._prior_covariance(state)),
        )

    def _scored(self, state: MovingHorizonState, seen: Sequence[Observation]) -> MovingHorizonState:
        """The recent figures with those of observations that the incumbent has not seen."""
        assert state.values is not None
        problem = self._problem(state, [(state.cycle, one) for one in seen])
        theta = log_free(state.values)
        residuals, slope = problem.linearise(theta)
        innovation, slope = residuals.reshape(-1, 2), slope.reshape(-1, 2, theta.size)
        covariance = np.array(state.covariance)[np.ix_(problem.free, problem.free)]
        # Standardised: in units of the noise, of which a unit matrix is left.
        known = slope @ covariance @ slope.transpose(0, 2, 1) + np.eye(2)
        has = problem.window.weighted
        pairs, together = innovation[has[:, 1]], known[has[:, 1]]
        nis = np.einsum("ni,ni->n", pairs, np.linalg.solve(together, pairs[..., None])[..., 0])
        # A queue that builds up is no change of the engine.
        tells = has & np.stack([np.ones(len(seen), dtype=bool), problem.calm(theta)], axis=-1)
        standardised = innovation / np.sqrt(np.diagonal(known, axis1=1, axis2=2))
        itl, ttft = error_shares(
            state.law, np.array(state.values), problem.window, self._settings.ttft_iterations
        )
        return replace(
            state,
            itl_error=recent(state.itl_error, itl, self._settings.memory),
            ttft_error=recent(state.ttft_error, ttft, self._settings.memory),
            nis=recent(state.nis, nis, self._settings.memory),
            cusum=state.cusum.extended(state.cycle, standardised, tells, self._settings.change_slack),
        )

    def _changed(self, state: MovingHorizonState, since: int) -> MovingHorizonState:
        """The state after a change: what was before is forgotten but for the proportions of the parameters."""
        assert state.values is not None
        memory, incumbent = state.memory.since(min(since, state.cycle)), state.values
        state = replace(
            state,
            cusum=Cusum(since=(state.cycle,) * 4),
            memory=memory,
            since_change=len(memory.kept),
            scale=(1.0, 1.0),
        )
        return self._at_seed(state, incumbent, Origin.CHANGED)

    def _fitted(self, state: MovingHorizonState) -> MovingHorizonState:
        """The state with the candidate as incumbent, if it predicts the newest no worse."""
        settings = self._settings
        problem = self._problem(state, state.memory.kept)
        assert state.values is not None
        incumbent = log_free(state.values)
        young = state.since_change <= settings.young_observations
        starts = [incumbent, problem.prior, incumbent + np.log(2.0), incumbent - np.log(2.0)]
        found = [
            minimise(problem, start, settings.young_steps if young else settings.steps)
            for start in (starts if young else starts[:1])
        ]
        solution = min(found, key=lambda one: one.loss if np.isfinite(one.loss) else np.inf)
        recent = slice(-len(state.memory.newest), None)
        residual, deviation = problem.innovations(np.stack([incumbent, solution.theta]))
        standardised = residual / deviation
        old, new = problem.robust(standardised[:, recent]).sum(axis=(1, 2)).tolist()
        old_error, new_error = (_error(one[recent], problem.window.weighted[recent]) for one in residual)
        # A first guess is no incumbent worth defending; declared parameters are.
        guessed = state.health is Health.PRIOR and state.origin is Origin.GUESSED
        usable = np.isfinite(solution.theta).all() and np.isfinite(solution.covariance).all()
        if not usable or (new > old * (1.0 + settings.worse_share) and not guessed):
            return replace(state, worse=state.worse + 1, health=self._health_of_kept(state.health, old_error))
        return replace(
            state,
            values=tuple(problem.parameters(solution.theta).tolist()),
            covariance=spread(problem.free, solution.covariance),
            health=self._health(solution, new_error),
            condition=condition_of(solution.data_information),
            scale=self._scale(problem, standardised[1] * problem.scale),
        )

    def _scale(self, problem: Problem, residuals: Array) -> tuple[float, float]:
        """The noise that is seen over that of the settings, for ITL and TTFT, which the settings pull to one."""
        count, scales = problem.prior.size, []
        for figure in (0, 1):
            seen = np.abs(residuals[problem.window.weighted[:, figure], figure])
            square = 1.0
            if seen.size > count:
                # Half of the parameters are spent on either figure.
                free_share = seen.size / (seen.size - count / 2.0)
                square = free_share * (DEVIATIONS_PER_MEDIAN * float(np.median(seen))) ** 2
            held = self._settings.scale_observations
            pooled = (held + seen.size * square) / (held + seen.size)
            scales.append(float(np.clip(np.sqrt(pooled), *SCALES)))
        return scales[0], scales[1]

    def _health_of_kept(self, health: Health, error: float) -> Health:
        if error > self._settings.suspect_error_share:
            return Health.SUSPECT
        return Health.LEARNING if health is Health.SUSPECT else health

    def _health(self, solution: Solution, error: float) -> Health:
        settings = self._settings
        if error > settings.suspect_error_share:
            return Health.SUSPECT
        if condition_of(solution.data_information) > settings.identified_condition:
            return Health.LEARNING
        largest_sd = float(np.sqrt(np.diag(np.linalg.inv(solution.data_information)).max()))
        known = largest_sd <= settings.identified_sd and error <= settings.identified_error_share
        return Health.IDENTIFIED if known else Health.LEARNING


def _error(log_residuals: Array, observed: Mask) -> float:
    """The median size of the log residuals of what was observed."""
    return float(np.median(np.abs(log_residuals[observed])))
