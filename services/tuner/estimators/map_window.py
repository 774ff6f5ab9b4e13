"""Estimator `map-window`: a maximum a posteriori fit over the newest and a diverse set of observations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from schemas.parameters import FitEvidence, Health
from services.perfmodel.law import Array, IterationLaw
from services.tuner.estimator import Estimate
from services.tuner.fit import Mask, Problem, Solution, Window, first_guess, huber, minimise, noise, predict
from services.tuner.observation import Observation

SNAPSHOT_VERSION = 1
LARGEST_CONDITION = 1e12


class MapWindowSettings(BaseModel):
    """Settings of the estimator over a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    newest: int = Field(default=20, ge=4, le=200)
    """Observations always kept, replica by replica; at four replicas, five cycles."""
    diverse: int = Field(default=20, ge=0, le=200)
    """Older observations kept for being unlike the others; without them a quiet hour forgets the busy one."""
    half_life_s: float = Field(default=3600.0, gt=0)
    """Age at which an observation counts half; long, because only the diverse set tells parameters apart."""
    prior_sd: float = Field(default=0.5, gt=0)
    """Standard deviation of the logarithms around declared parameters; 0.5 is a factor of 1.6."""
    bootstrap_sd: float = Field(default=1.5, gt=0)
    """The same around the first guess of a pair without declared parameters; 1.5 is a factor of 4.5."""
    bootstrap_spread: float = Field(default=1.25, gt=1)
    """Ratio of batch sizes or token lengths that makes two operating points distinct."""
    floor_share: float = Field(default=0.04, gt=0)
    """Error of the law itself, as a share of a latency; it stays however many requests there are."""
    request_share: float = Field(default=0.3, gt=0)
    """Standard deviation of one request's latency, as a share; a mean over n has it over the root of n."""
    steps: int = Field(default=5, ge=1, le=50)
    """Gauss–Newton steps of an update; it starts at the incumbent, so few are enough."""
    first_steps: int = Field(default=20, ge=1, le=100)
    """Steps of the first fit of a pair, which starts far away."""
    ttft_iterations: int = Field(default=0, ge=0, le=1)
    """Decode iterations that the measured time to first token holds beyond the prefill: 0 for engines that
    send the first token as the prefill ends, 1 for those that send it with the next iteration."""
    worse_share: float = Field(default=0.02, ge=0)
    """How much worse than the incumbent a new set may predict the newest observations and still replace it."""
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


@dataclass(frozen=True)
class MapWindowState:
    """Everything an estimate rests on.

    seed: centre of the prior, parameters in the law's order; None until there is a first guess.
    values: the incumbent, in the same order.
    newest, diverse: observations, oldest first.
    itl_error, ttft_error, nis: recent one-step-ahead figures, None until there is one.
    """

    law: IterationLaw
    seed: tuple[float, ...] | None = None
    declared: bool = False
    values: tuple[float, ...] | None = None
    covariance: tuple[tuple[float, ...], ...] = ()
    health: Health = Health.PRIOR
    condition: float | None = None
    seen: int = 0
    worse: int = 0
    itl_error: float | None = None
    ttft_error: float | None = None
    nis: float | None = None
    newest: tuple[Observation, ...] = ()
    diverse: tuple[Observation, ...] = ()


class MapWindow:
    """Fits all kept observations anew in every cycle, starting at the incumbent.

    A pair without declared parameters stays without any until two distinct operating points were seen: at
    one point a fixed time and a time per token explain the same latency, and the guess would be wrong.
    """

    name: ClassVar[str] = "map-window"
    Settings: ClassVar[type[BaseModel]] = MapWindowSettings

    def __init__(self, settings: MapWindowSettings) -> None:
        self._settings = settings

    def start(self, prior: Mapping[str, float] | None, law: IterationLaw) -> MapWindowState:
        """The state before anything is observed; raises ValueError for a prior that is not of the law."""
        if prior is None:
            return MapWindowState(law)
        if set(prior) != set(law.parameter_names) or not any(prior.values()):
            raise ValueError(
                f"parameters {dict(prior)} are not of the law {law.name}: expected "
                f"{', '.join(law.parameter_names)}, not all zero"
            )
        seed = tuple(float(prior[name]) for name in law.parameter_names)
        return MapWindowState(law, seed, True, seed, _diagonal(seed, self._settings.prior_sd))

    def estimate(self, state: MapWindowState) -> Estimate | None:
        """The incumbent, None while there is none."""
        if state.values is None:
            return None
        names = state.law.parameter_names
        order = [names.index(name) for name in sorted(names)]
        return Estimate(
            values=dict(zip(names, state.values, strict=True)),
            covariance=tuple(tuple(state.covariance[i][j] for j in order) for i in order),
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
        self, state: MapWindowState, observations: Sequence[Observation], now_s: float
    ) -> tuple[MapWindowState, Estimate | None]:
        """Learn from all replicas of one cycle at once."""
        if not observations:
            return state, self.estimate(state)
        seen = tuple(self._engine_time(o) for o in observations)
        state = self._scored(state, seen)
        newest = (*state.newest, *seen)
        split = max(0, len(newest) - self._settings.newest)
        state = replace(
            state,
            newest=newest[split:],
            diverse=most_diverse((*state.diverse, *newest[:split]), self._settings.diverse),
            seen=state.seen + len(seen),
        )
        kept = (*state.diverse, *state.newest)
        if state.seed is None:
            if not distinct_points(kept, self._settings.bootstrap_spread):
                return state, None
            guess = first_guess(state.law, Window.of(kept), np.array([o.occupancy for o in kept]))
            if guess is None:
                return state, None
            seed = tuple(guess.tolist())
            covariance = _diagonal(seed, self._settings.bootstrap_sd)
            state = replace(state, seed=seed, values=seed, covariance=covariance)
        state = self._fitted(state, kept, now_s)
        return state, self.estimate(state)

    def dump(self, state: MapWindowState) -> bytes:
        """The state as JSON; Python writes floats so that they are read back exactly."""
        fields = {key: value for key, value in vars(state).items() if key != "law"}
        fields["newest"] = [asdict(o) for o in state.newest]
        fields["diverse"] = [asdict(o) for o in state.diverse]
        law = {"name": state.law.name, "version": state.law.version}
        return json.dumps({"version": SNAPSHOT_VERSION, "law": law, "state": fields}).encode()

    def load(self, raw: bytes, law: IterationLaw) -> MapWindowState:
        """The state of a snapshot; raises ValueError where it is not one of this version and law."""
        try:
            read: dict[str, Any] = json.loads(raw)
            if read["version"] != SNAPSHOT_VERSION or read["law"] != {
                "name": law.name,
                "version": law.version,
            }:
                raise ValueError(f"version {read['version']} of law {read['law']}")
            fields = read["state"]
            fields["newest"] = tuple(Observation(**o) for o in fields["newest"])
            fields["diverse"] = tuple(Observation(**o) for o in fields["diverse"])
            fields["covariance"] = tuple(tuple(row) for row in fields["covariance"])
            fields["health"] = Health(fields["health"])
            for key in ("seed", "values"):
                fields[key] = None if fields[key] is None else tuple(fields[key])
            return MapWindowState(law=law, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a {self.name} snapshot for the law {law.name}: {error}") from None

    def _engine_time(self, observation: Observation) -> Observation:
        """The observation with the time to the end of the prefill as its TTFT."""
        if observation.ttft_s is None or self._settings.ttft_iterations == 0:
            return observation
        prefill_s = observation.ttft_s - self._settings.ttft_iterations * observation.itl_s
        return replace(observation, ttft_s=prefill_s if prefill_s > 0 else None)

    def _scored(self, state: MapWindowState, seen: Sequence[Observation]) -> MapWindowState:
        """The recent errors with those that the incumbent makes on observations it has not seen."""
        if state.values is None:
            return state
        problem = self._problem(state, Window.of(seen), np.ones(len(seen)))
        theta = _log_free(state.values)
        residuals, slope = problem.linearise(theta)
        relative = np.abs(np.expm1(-residuals.reshape(-1, 2) * problem.sigma))
        has = problem.window.weighted
        covariance = np.array(state.covariance)[np.ix_(problem.free, problem.free)]
        pairs, slopes = residuals.reshape(-1, 2)[has[:, 1]], slope.reshape(-1, 2, theta.size)[has[:, 1]]
        spread = slopes @ covariance @ slopes.transpose(0, 2, 1) + np.eye(2)
        nis = np.einsum("ni,ni->n", pairs, np.linalg.solve(spread, pairs[..., None])[..., 0])
        return replace(
            state,
            itl_error=self._recent(state.itl_error, relative[:, 0]),
            ttft_error=self._recent(state.ttft_error, relative[has[:, 1], 1]),
            nis=self._recent(state.nis, nis),
        )

    def _recent(self, before: float | None, figures: Array) -> float | None:
        if figures.size == 0:
            return before
        now = min(float(figures.mean()), 1e9)
        return now if before is None else before + self._settings.memory * (now - before)

    def _problem(self, state: MapWindowState, window: Window, age_weight: Array) -> Problem:
        assert state.seed is not None and state.values is not None
        values = np.array([state.values])
        fullness = predict(state.law, values, window).fullness[0]
        sigma = noise(window, fullness, self._settings.floor_share, self._settings.request_share)
        return Problem(
            law=state.law,
            window=window,
            sigma=sigma / np.sqrt(age_weight)[:, None],
            free=np.array(state.seed) > 0,
            prior=_log_free(state.seed),
            prior_sd=self._settings.prior_sd if state.declared else self._settings.bootstrap_sd,
        )

    def _fitted(self, state: MapWindowState, kept: Sequence[Observation], now_s: float) -> MapWindowState:
        """The state with the candidate as incumbent, if it predicts the newest no worse."""
        settings = self._settings
        age_s = np.array([max(0.0, now_s - o.window_end_s) for o in kept])
        problem = self._problem(
            state, Window.of(kept), np.maximum(0.5 ** (age_s / settings.half_life_s), 1e-3)
        )
        assert state.values is not None
        incumbent = _log_free(state.values)
        first = state.health is Health.PRIOR
        solution = minimise(problem, incumbent, settings.first_steps if first else settings.steps)
        recent = slice(-len(state.newest), None)
        both = problem.residuals(np.stack([incumbent, solution.theta]))[:, recent]
        old, new = huber(both).sum(axis=(1, 2)).tolist()
        # A first guess is no incumbent worth defending; declared parameters are.
        guessed = first and not state.declared
        usable = np.isfinite(solution.theta).all() and np.isfinite(solution.information).all()
        if not usable or (new > old * (1.0 + settings.worse_share) and not guessed):
            error = _error(both[0] * problem.sigma[recent], problem.window.weighted[recent])
            return replace(state, worse=state.worse + 1, health=self._health_of_kept(state.health, error))
        covariance = np.zeros((problem.free.size, problem.free.size))
        inverse = np.linalg.inv(solution.information)
        covariance[np.ix_(problem.free, problem.free)] = (inverse + inverse.T) / 2.0
        error = _error(both[1] * problem.sigma[recent], problem.window.weighted[recent])
        return replace(
            state,
            values=tuple(problem.parameters(solution.theta).tolist()),
            covariance=tuple(tuple(row) for row in covariance.tolist()),
            health=self._health(solution, error),
            condition=_condition(solution.data_information),
        )

    def _health_of_kept(self, health: Health, error: float) -> Health:
        if error > self._settings.suspect_error_share:
            return Health.SUSPECT
        return Health.LEARNING if health is Health.SUSPECT else health

    def _health(self, solution: Solution, error: float) -> Health:
        settings = self._settings
        if error > settings.suspect_error_share:
            return Health.SUSPECT
        if _condition(solution.data_information) > settings.identified_condition:
            return Health.LEARNING
        largest_sd = float(np.sqrt(np.diag(np.linalg.inv(solution.data_information)).max()))
        known = largest_sd <= settings.identified_sd and error <= settings.identified_error_share
        return Health.IDENTIFIED if known else Health.LEARNING


def distinct_points(observations: Sequence[Observation], spread: float) -> bool:
    """Whether two observations differ by a ratio in batch size or token lengths."""
    points = np.array([(o.occupancy + 1.0, o.input_tokens + 1.0, o.output_tokens) for o in observations])
    return bool(np.any(points.max(axis=0) >= spread * points.min(axis=0)))


def most_diverse(observations: tuple[Observation, ...], count: int) -> tuple[Observation, ...]:
    """At most so many observations, dropping again and again the older one of the two most alike."""
    kept = list(observations)
    if len(kept) <= count:
        return observations
    # The rate and not the measured batch: a window with absurd latencies must not be kept for being unlike.
    points = np.log([(o.rate_rps * o.output_tokens, o.input_tokens + 1.0, o.output_tokens) for o in kept])
    while len(kept) > count:
        apart = np.abs(points[:, None, :] - points[None, :, :]).sum(axis=-1)
        apart[np.tril_indices(len(kept))] = np.inf
        older = int(np.argmin(apart)) // len(kept)
        del kept[older]
        points = np.delete(points, older, axis=0)
    return tuple(kept)


def _log_free(values: Sequence[float]) -> Array:
    return np.log([value for value in values if value > 0])


def _diagonal(seed: Sequence[float], sd: float) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(sd**2 if i == j and value > 0 else 0.0 for j in range(len(seed)))
        for i, value in enumerate(seed)
    )


def _error(log_residuals: Array, observed: Mask) -> float:
    return float(np.median(np.abs(log_residuals[observed])))


def _condition(information: Array) -> float:
    eigenvalues = np.linalg.eigvalsh(information)
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[0])
    if not largest > 0 or smallest <= largest / LARGEST_CONDITION:
        return LARGEST_CONDITION
    return largest / smallest
