"""Estimator `ekf`: an extended Kalman filter on the parameters or their logarithms.

With the state x, its covariance P, the observation z of one replica and its model h, H = ∂h/∂x:

    predict  P ← P + Q
    update   S = HPHᵀ + R,  K = PHᵀS⁻¹,  x ← x + K(z − h(x)),  P ← (I−KH)P(I−KH)ᵀ + KRKᵀ

By default x are the logarithms of the parameters, z those of ITL and TTFT at the batch that was observed, R the noise
of `fit`, and Q is added once per cycle. An observation whose normalised innovation squared yᵀS⁻¹y is beyond the gate
leaves x and P as they were; after `reset_after` cycles of nothing else P is made wide again.

`compat` is the published filter (llm-inferno/model-tuner): x in milliseconds, z TTFT and ITL in milliseconds as a
queueing model has them at the rate, P₀ = Q = (p·x₀)², R = ((e/t)²/g)·z², predict and update per replica, and no
reset. It has the faults of it and is there to be compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from schemas.parameters import FitEvidence, Health
from services.perfmodel.law import Array, IterationLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.tuner.ahead import LONGEST_S, QUEUE, error_shares, recent
from services.tuner.estimator import Estimate
from services.tuner.fit import Mask, Problem, Window, first_guess, minimise
from services.tuner.logarithms import by_sorted_name, condition_of, free, inverse_of, seed_of, spread
from services.tuner.memory import distinct_points
from services.tuner.observation import Observation
from services.tuner.snapshot import dump_state, load_state

SNAPSHOT_VERSION = 1
# χ² of two degrees of freedom at 97.5 %.
GATE = 7.378
MS = 1e3
# Of the published filter: e, t, g, p, and the TTFT and ITL that it expects.
ERROR_LEVEL, PERCENTILE, GAMMA, PERCENT_CHANGE = 0.2, 1.96, 1.0, 0.1
EXPECTED_MS = (1000.0, 100.0)
# Central differences.
STEP = 1e-4
MOST_RESETS = 4
BOOTSTRAP_KEPT = 40
BOOTSTRAP_STEPS = 30


class EkfSettings(BaseModel):
    """Settings of the extended Kalman filter."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    compat: bool = False
    """Replay the published filter, with its faults."""
    prior_sd: float = Field(default=0.5, gt=0)
    """Standard deviation of the logarithms around declared parameters; 0.5 is a factor of 1.6."""
    bootstrap_sd: float = Field(default=1.5, gt=0)
    """The same around the first guess of a pair without declared parameters."""
    bootstrap_spread: float = Field(default=1.25, gt=1)
    """Ratio of batch sizes or token lengths that makes two operating points distinct."""
    process_sd: float = Field(default=0.01, ge=0)
    """How far a logarithm may wander in one cycle."""
    floor_share: float = Field(default=0.03, gt=0)
    """Error of a latency that stays however many requests there are."""
    request_share: float = Field(default=0.1, gt=0)
    """Standard deviation of one request's latency at a given batch, as a share."""
    gate: float = Field(default=GATE, gt=0)
    """Normalised innovation squared beyond which an observation is left out."""
    reset_after: int = Field(default=4, ge=1)
    """Cycles of nothing but rejections after which the covariance is that of the prior again, then twice as wide."""
    clamp: float = Field(default=10.0, gt=1)
    """Factor around what it started from that no parameter leaves."""
    ttft_iterations: int = Field(default=0, ge=0, le=1)
    """Decode iterations that the measured time to first token holds beyond the prefill."""
    identified_sd: float = Field(default=0.15, gt=0)
    """Largest standard deviation of a logarithm of an identified set."""
    suspect_error_share: float = Field(default=0.3, gt=0)
    """Recent error from which a set is suspect."""
    memory: float = Field(default=0.2, gt=0, le=1)
    """Weight of the newest cycle in the recent errors."""


@dataclass(frozen=True)
class EkfState:
    """The filter between cycles.

    seed, values: what it started from and the incumbent, parameters in the law's order; None until there are some.
    covariance: of the logarithms, in the law's order.
    waiting: observations of a pair that has no parameters yet.
    seen, rejected: observations so far; rejected_cycles: cycles in a row in which none passed the gate; resets: how
        often the covariance was made wide again since one did.
    """

    law: IterationLaw
    seed: tuple[float, ...] | None = None
    declared: bool = True
    values: tuple[float, ...] | None = None
    covariance: tuple[tuple[float, ...], ...] = ()
    seen: int = 0
    rejected: int = 0
    rejected_cycles: int = 0
    resets: int = 0
    itl_error: float | None = None
    ttft_error: float | None = None
    nis: float | None = None
    waiting: tuple[Observation, ...] = ()


class Ekf:
    """Forgets every observation once it is used; what it knows is a mean and a covariance."""

    name: ClassVar[str] = "ekf"
    Settings: ClassVar[type[BaseModel]] = EkfSettings

    def __init__(self, settings: EkfSettings) -> None:
        self._settings = settings

    def start(self, prior: Mapping[str, float] | None, law: IterationLaw) -> EkfState:
        """The state before anything is observed; raises ValueError for a prior that is not of the law."""
        if prior is None:
            return EkfState(law, declared=False)
        return self._at(EkfState(law), seed_of(prior, law))

    def estimate(self, state: EkfState) -> Estimate | None:
        """The incumbent, None while there is none."""
        if state.values is None:
            return None
        learned = free(state.values)
        known = np.array(state.covariance)[np.ix_(learned, learned)]
        return Estimate(
            values=dict(zip(state.law.parameter_names, state.values, strict=True)),
            covariance=by_sorted_name(state.covariance, state.law),
            health=self._health(state, known),
            evidence=FitEvidence(
                observations=min(state.seen, 1_000_000),
                rejected=min(state.rejected, 1_000_000),
                ttft_error_share=state.ttft_error,
                itl_error_share=state.itl_error,
                nis_mean=state.nis,
                condition_number=condition_of(known),
            ),
        )

    def update(
        self, state: EkfState, observations: Sequence[Observation], now_s: float
    ) -> tuple[EkfState, Estimate | None]:
        """Learn from the replicas of one cycle, one after the other."""
        if not observations:
            return state, self.estimate(state)
        state = replace(state, seen=state.seen + len(observations))
        if state.values is None:
            state = self._guessed(state, observations)
            return state, self.estimate(state)
        itl, ttft = error_shares(
            state.law, np.array(state.values), Window.of(observations), self._settings.ttft_iterations
        )
        state = replace(
            state,
            itl_error=recent(state.itl_error, itl, self._settings.memory),
            ttft_error=recent(state.ttft_error, ttft, self._settings.memory),
        )
        state = self._filtered(state, observations)
        if state.rejected_cycles >= self._settings.reset_after and not self._settings.compat:
            state = replace(state, rejected_cycles=0, resets=min(state.resets + 1, MOST_RESETS))
            state = replace(state, covariance=self._prior_covariance(state))
        return state, self.estimate(state)

    def dump(self, state: EkfState) -> bytes:
        """The state as JSON; Python writes floats so that they are read back exactly."""
        fields = {key: value for key, value in vars(state).items() if key != "law"}
        fields["waiting"] = [vars(seen) for seen in state.waiting]
        return dump_state(state.law, SNAPSHOT_VERSION, fields)

    def load(self, raw: bytes, law: IterationLaw) -> EkfState:
        """The state of a snapshot; raises ValueError where it is not one of this version and law."""

        def built(fields: dict[str, Any]) -> EkfState:
            fields["waiting"] = tuple(Observation(**seen) for seen in fields["waiting"])
            fields["covariance"] = tuple(tuple(row) for row in fields["covariance"])
            for key in ("seed", "values"):
                fields[key] = None if fields[key] is None else tuple(fields[key])
            return EkfState(law=law, **fields)

        return load_state(raw, law, SNAPSHOT_VERSION, built)

    def _at(self, state: EkfState, seed: tuple[float, ...]) -> EkfState:
        """The state with what it starts from."""
        state = replace(state, seed=seed, values=seed, waiting=())
        return replace(state, covariance=self._prior_covariance(state))

    def _prior_covariance(self, state: EkfState) -> tuple[tuple[float, ...], ...]:
        assert state.seed is not None
        settings, learned = self._settings, free(state.seed)
        deviation = PERCENT_CHANGE if settings.compat else settings.prior_sd * 2.0**state.resets
        return spread(learned, deviation**2 * np.eye(int(learned.sum())))

    def _guessed(self, state: EkfState, observations: Sequence[Observation]) -> EkfState:
        """A state that fits the first observations, once they are of two distinct operating points."""
        settings = self._settings
        waiting = (*state.waiting, *observations)[-BOOTSTRAP_KEPT:]
        state = replace(state, waiting=waiting)
        if not distinct_points(waiting, settings.bootstrap_spread):
            return state
        window = Window.of(waiting)
        guess = first_guess(state.law, window)
        if guess is None:
            return state
        prior = np.log(guess)
        information = np.eye(prior.size) / settings.bootstrap_sd**2
        problem = self._problem(state.law, window, np.ones(prior.size, dtype=bool), prior, information)
        found = minimise(problem, prior, BOOTSTRAP_STEPS)
        if not np.isfinite(found.theta).all() or not np.isfinite(found.information).all():
            return state
        started = self._at(state, tuple(problem.parameters(found.theta).tolist()))
        if settings.compat:
            return started
        return replace(started, covariance=spread(problem.free, inverse_of(found.information)))

    def _problem(
        self, law: IterationLaw, window: Window, learned: Mask, prior: Array, information: Array
    ) -> Problem:
        settings, count = self._settings, window.rate_rps.size
        return Problem(
            law=law,
            window=window,
            ttft_iterations=settings.ttft_iterations,
            floor_share=settings.floor_share,
            request_share=settings.request_share,
            weight=np.ones(count),
            scale=np.ones(2),
            settled=False,
            free=learned,
            prior=prior,
            prior_information=information,
        )

    def _filtered(self, state: EkfState, observations: Sequence[Observation]) -> EkfState:
        """The state after predict and update with every replica of a cycle."""
        from filterpy.kalman import ExtendedKalmanFilter

        assert state.seed is not None and state.values is not None
        settings, learned = self._settings, free(state.seed)
        seed, values = (np.array(one)[learned] for one in (state.seed, state.values))
        known = np.array(state.covariance)[np.ix_(learned, learned)]
        kalman = ExtendedKalmanFilter(seed.size, 2)
        if settings.compat:
            kalman.x, bounds = values * MS, (seed * MS / settings.clamp, seed * MS * settings.clamp)
            kalman.P = known * np.outer(kalman.x, kalman.x)
            kalman.Q = np.diag((PERCENT_CHANGE * seed * MS) ** 2)
        else:
            kalman.x = np.log(values)
            bounds = (np.log(seed) - np.log(settings.clamp), np.log(seed) + np.log(settings.clamp))
            kalman.P, kalman.Q = known, settings.process_sd**2 * np.eye(seed.size)
            kalman.predict()
        passed, squares = 0, []
        views = [] if settings.compat else self._views(state, learned, observations, kalman.x)
        for row, seen in enumerate(observations):
            if settings.compat:
                kalman.predict()
                views = [*views, *self._published_views(state, learned, seen, kalman.x)]
            view = views[row]
            stash = kalman.x.copy(), kalman.P.copy()
            kalman.update(view.z, view.jacobian, view.expected, R=view.noise)
            square = float(kalman.y @ kalman.SI @ kalman.y)
            usable = np.isfinite(kalman.x).all() and np.isfinite(kalman.P).all()
            if not usable or not square <= settings.gate:
                kalman.x, kalman.P = stash
            else:
                passed += 1
                kalman.x = np.clip(kalman.x, *bounds)
            if view.z.size == 2:
                squares.append(min(square, 1e9) if np.isfinite(square) else 1e9)
        # In compat the state is plain; what is kept is the covariance of the logarithms, to first order.
        found = kalman.x / MS if settings.compat else np.exp(kalman.x)
        covariance = kalman.P / np.outer(kalman.x, kalman.x) if settings.compat else kalman.P
        everything = np.zeros(learned.size)
        everything[learned] = found
        return replace(
            state,
            values=tuple(everything.tolist()),
            covariance=spread(learned, covariance),
            rejected=state.rejected + len(observations) - passed,
            rejected_cycles=0 if passed else state.rejected_cycles + 1,
            resets=0 if passed else state.resets,
            nis=recent(state.nis, np.array(squares), self._settings.memory),
        )

    def _views(
        self, state: EkfState, learned: Mask, observations: Sequence[Observation], x: Array
    ) -> list["View"]:
        """All observations of a cycle, at the state before any of them."""
        window = Window.of(observations)
        problem = self._problem(state.law, window, learned, x, np.eye(x.size))
        steps = _steps(x)
        residual, deviation = problem.innovations(np.concatenate([x[None], x + steps, x - steps]))
        times = window.log_observed - residual
        return [
            View.of(
                window.log_observed[row][there],
                deviation[0, row][there] ** 2,
                x,
                times[:, row][:, there],
                steps,
            )
            for row, there in enumerate(window.weighted)
        ]

    def _published_views(self, state: EkfState, learned: Mask, seen: Observation, x: Array) -> list["View"]:
        """One observation as the published filter has it: TTFT first, none where requests surely waited."""
        window, steps = Window.of([seen]), _steps(x)
        states = np.concatenate([x[None], x + steps, x - steps])
        everything = np.zeros((len(states), learned.size))
        everything[:, learned] = states / MS
        times = _published(state.law, everything, window, self._settings.ttft_iterations)
        there = window.weighted[0, ::-1]
        noise = (ERROR_LEVEL / PERCENTILE) ** 2 / GAMMA * np.square(EXPECTED_MS)
        return [
            View.of(np.exp(window.log_observed[0, ::-1][there]) * MS, noise[there], x, times[:, there], steps)
        ]

    def _health(self, state: EkfState, known: Array) -> Health:
        settings = self._settings
        if state.seen == 0:
            return Health.PRIOR
        if state.rejected_cycles > 1 or (state.itl_error or 0.0) > settings.suspect_error_share:
            return Health.SUSPECT
        certain = float(np.sqrt(np.diag(known).max())) <= settings.identified_sd
        return Health.IDENTIFIED if certain else Health.LEARNING


def _published(law: IterationLaw, parameters: Array, window: Window, ttft_iterations: int) -> Array:
    """TTFT and ITL in milliseconds by the birth-death model at the rate of one observation, shape (m, 2)."""
    limits = replace(window.limits, max_queue=QUEUE)
    found = BirthDeathModel().analyze(
        ServerModel(law, parameters, window.workload, limits), window.rate_rps, ()
    )
    itl = found.itl_s.mean
    times = np.stack([found.ttft_s.mean + ttft_iterations * itl, itl], axis=-1)
    bounded: Array = np.clip(np.nan_to_num(times, nan=LONGEST_S), 0.0, LONGEST_S) * MS
    return bounded


@dataclass(frozen=True, eq=False)
class View:
    """One observation, shape (z,), with its noise, shape (z, z), and what is expected of it near a state.

    at: the state, shape (k,); there: what is expected at it; slope: its derivative, shape (z, k).
    """

    z: Array
    noise: Array
    at: Array
    there: Array
    slope: Array

    @classmethod
    def of(cls, z: Array, variance: Array, at: Array, times: Array, steps: Array) -> "View":
        """From what is expected at a state and at steps up and down from it, shape (1 + 2k, z)."""
        up, down = times[1 : at.size + 1], times[at.size + 1 :]
        return cls(z, np.diag(variance), at, times[0], ((up - down) / (2.0 * np.diag(steps)[:, None])).T)

    def jacobian(self, x: Array) -> Array:
        """The same wherever the filter has moved to since."""
        return self.slope

    def expected(self, x: Array) -> Array:
        """To first order."""
        near: Array = self.there + self.slope @ (x - self.at)
        return near


def _steps(x: Array) -> Array:
    return np.diag(STEP * np.maximum(np.abs(x), np.finfo(float).tiny))
