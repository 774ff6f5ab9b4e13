"""What every queueing model must keep. Subclass `QueueingContract` and override its `model` fixture."""

from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import pytest

from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import (
    Binding,
    Distribution,
    Metrics,
    QueueingModel,
    ServerModel,
    Statistic,
    Targets,
)

PARAMETERS = np.array([0.008, 3.3e-5, 3.3e-7])
PERCENTILES = (Statistic.P50, Statistic.P90, Statistic.P95, Statistic.P99)
TIMES = ("wait_s", "ttft_s", "itl_s", "end_to_end_s")


def server(
    parameters: Any = PARAMETERS,
    prompt: Any = 1024.0,
    output: Any = 256.0,
    batch: Any = 64,
    queue: Any = 100,
    budget: Any = 8192,
    kv_tokens: Any = None,
) -> ServerModel:
    """A server, or many: every argument broadcasts."""
    return ServerModel(
        ThreeParameterLaw(),
        np.asarray(parameters),
        Workload(prompt, output),
        Limits(batch, queue, budget, kv_tokens),
    )


def flatten(metrics: Metrics) -> dict[str, Array]:
    """Every array of the metrics by name, percentiles too where there are any."""
    values = {}
    for field in fields(metrics):
        value = getattr(metrics, field.name)
        if isinstance(value, Distribution):
            parts = {f"{field.name} {name}": part for name, part in vars(value).items()}
            values.update({name: part for name, part in parts.items() if part is not None})
        else:
            values[field.name] = value
    return values


class QueueingContract:
    """Arrays as loops, load that never helps, sizings that hold, and only what the capabilities promise."""

    # Share of a latency or a rate by which answers may be off: the noise of a model that draws at random.
    noise: ClassVar[float] = 1e-6
    # The largest batch limit that is looked at where every smaller one is.
    widest: ClassVar[int] = 48
    # Whether blocking bounds its sizings, every cause is named, and the batch limit is searched for in full.
    complete: ClassVar[bool] = True

    @pytest.fixture
    def model(self) -> QueueingModel:
        """The model to test."""
        raise NotImplementedError("override this fixture")

    def test_it_has_a_name_and_can_answer_for_means(self, model: QueueingModel) -> None:
        assert model.name
        assert Statistic.MEAN in model.capabilities.statistics

    def test_arrays_give_what_a_loop_gives(self, model: QueueingModel) -> None:
        rng = np.random.default_rng(3)
        parameters = PARAMETERS * rng.uniform(0.3, 3.0, (4, 1, 3))
        prompt, batch = rng.uniform(10.0, 6000.0, 3), np.array([2, 3, self.widest])
        queue = np.array([[0], [1], [50], [900]])
        rate = rng.uniform(0.1, 6.0, (4, 3))
        many = server(parameters, prompt=prompt, batch=batch, queue=queue)
        targets = Targets(rng.uniform(0.1, 2.0, (4, 3)), np.array([0.02, np.nan, 0.05]))
        metrics, sizing = flatten(model.analyze(many, rate)), model.max_rate(many, targets)
        concurrency = model.concurrency(many, targets)
        for row in range(4):
            for column in range(3):
                one = server(
                    parameters[row, 0], prompt=prompt[column], batch=batch[column], queue=queue[row, 0]
                )
                bounds = Targets(
                    *(
                        np.asarray(bound)[at]
                        for bound, at in ((targets.ttft_s, (row, column)), (targets.itl_s, column))
                    )
                )
                for name, value in flatten(model.analyze(one, rate[row, column])).items():
                    assert metrics[name].shape == (4, 3), name
                    np.testing.assert_allclose(
                        metrics[name][row, column], value, rtol=1e-6, atol=1e-12, err_msg=name
                    )
                alone = model.max_rate(one, bounds)
                np.testing.assert_allclose(sizing.max_rate_rps[row, column], alone.max_rate_rps, rtol=1e-6)
                assert sizing.feasible[row, column] == alone.feasible
                assert sizing.binding[row, column] == alone.binding
                assert concurrency[row, column] == model.concurrency(one, bounds)

    def test_load_never_helps_along_a_curve_of_rates(self, model: QueueingModel) -> None:
        metrics = flatten(model.analyze(server(), np.linspace(0.3, 4.0, 12)))
        for name, values in metrics.items():
            assert values.shape == (12,), name
        rising = ["throughput_rps", "occupancy", "blocked_share"]
        rising += [f"{time} {statistic}" for time in TIMES for statistic in model.capabilities.statistics]
        for name in rising:
            values = metrics[name]
            assert (np.diff(values) >= -10.0 * self.noise * np.abs(values[1:]) - 1e-15).all(), name
        assert metrics["end_to_end_s mean"][-1] > metrics["end_to_end_s mean"][0]

    @pytest.mark.parametrize("rate", [0.5, 2.0, 50.0])
    def test_percentiles_are_ordered_and_there_as_promised(self, model: QueueingModel, rate: float) -> None:
        metrics = model.analyze(server(), rate)
        for name in TIMES:
            times = getattr(metrics, name)
            found = [getattr(times, statistic.value) for statistic in PERCENTILES]
            assert float(times.mean) >= 0.0
            for statistic, value in zip(PERCENTILES, found, strict=True):
                assert (value is not None) == (statistic in model.capabilities.statistics), (name, statistic)
            values = [float(value) for value in found if value is not None]
            assert values == sorted(values), name
            assert all(np.isfinite(value) and value >= 0.0 for value in values), name

    def test_shares_and_contents_stay_within_their_limits(self, model: QueueingModel) -> None:
        metrics = model.analyze(server(batch=8, queue=20), np.array([0.2, 1.0, 5.0, 30.0]))
        assert ((metrics.blocked_share >= 0.0) & (metrics.blocked_share <= 1.0)).all()
        assert (metrics.occupancy <= 8.0 * (1.0 + 1e-3 + self.noise)).all()
        assert (metrics.throughput_rps <= metrics.offered_rps * (1.0 + 10.0 * self.noise)).all()
        assert metrics.overloaded.tolist() == (metrics.offered_rps >= metrics.capacity_rps).tolist()

    @pytest.mark.parametrize("rate", [np.nan, np.inf, -1.0, [1.0, np.nan]])
    def test_a_rate_that_cannot_be_is_refused_by_name(self, model: QueueingModel, rate: Any) -> None:
        with pytest.raises(ValueError, match="rate_rps"):
            model.analyze(server(), rate)

    @pytest.mark.parametrize("statistic", list(Statistic))
    def test_the_largest_rate_meets_its_targets_and_a_tenth_more_does_not(
        self, model: QueueingModel, statistic: Statistic
    ) -> None:
        if statistic not in model.capabilities.statistics:
            pytest.skip(f"{model.name} does not answer for {statistic}")
        # Times of a nearly idle server, so that both targets can be met.
        idle = model.analyze(server(), 0.05)
        base = [float(getattr(times, statistic.value)) for times in (idle.ttft_s, idle.itl_s)]
        for ttft, itl in ((1.5, 1.3), (4.0, np.nan), (np.nan, 1.2)):
            targets = Targets(ttft * base[0], itl * base[1])
            sizing = model.max_rate(server(), targets, statistic)
            assert sizing.feasible
            rate = float(sizing.max_rate_rps)
            assert self._kept(model, targets, statistic, rate, 1.0 + self.noise)
            assert not self._kept(model, targets, statistic, 1.1 * rate, 1.0)

    def test_looser_targets_never_allow_less(self, model: QueueingModel) -> None:
        factors = np.array([1.05, 1.2, 1.5, 2.0, 5.0, 20.0])
        idle = model.analyze(server(), 0.05)
        for targets in (Targets(ttft_s=factors * idle.ttft_s.mean), Targets(itl_s=factors * idle.itl_s.mean)):
            rates = model.max_rate(server(), targets).max_rate_rps
            assert (np.diff(rates) >= -self.noise * rates[1:]).all()

    def test_a_statistic_beyond_the_capabilities_is_refused_with_what_is_supported(
        self, model: QueueingModel
    ) -> None:
        beyond = [one for one in Statistic if one not in model.capabilities.statistics]
        if not beyond:
            pytest.skip(f"{model.name} answers for every statistic")
        for ask in (model.max_rate, model.concurrency):
            with pytest.raises(ValueError, match=f"{beyond[0]} is not supported by {model.name}.*mean"):
                ask(server(), Targets(1.0), beyond[0])

    def test_infeasible_targets_say_which_and_leave_the_others_alone(self, model: QueueingModel) -> None:
        if not self.complete:
            pytest.skip(f"{model.name} does not say why")
        nothing = np.nan
        targets = Targets(
            np.array([1e-6, 1.0, 1.0, nothing]),
            np.array([1.0, 1e-6, 1.0, nothing]),
            np.array([nothing, nothing, 1e9, nothing]),
        )
        sizing = model.max_rate(server(), targets)
        assert sizing.feasible.tolist() == [False, False, False, True]
        assert sizing.max_rate_rps[:3].tolist() == [0.0, 0.0, 0.0]
        assert sizing.binding[:3].tolist() == [Binding.TTFT, Binding.ITL, Binding.TPS]
        assert sizing.max_rate_rps[3] > 0.0

    @pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.2])
    def test_concurrency_is_the_smallest_batch_near_the_best_of_the_whole_curve(
        self, model: QueueingModel, tolerance: float
    ) -> None:
        if not self.complete:
            pytest.skip(f"{model.name} looks at a few batches only")
        targets, limits = Targets(0.5, 0.03), range(1, self.widest + 1)
        rates = [float(model.max_rate(server(batch=batch), targets).max_rate_rps) for batch in limits]
        least = (1.0 - tolerance) * max(rates) * (1.0 - 1e-9)
        smallest = next(batch for batch, rate in zip(limits, rates, strict=True) if rate >= least)
        assert model.concurrency(server(batch=self.widest), targets, tolerance=tolerance) == smallest

    def test_concurrency_is_zero_where_no_batch_is_feasible(self, model: QueueingModel) -> None:
        answer = model.concurrency(server(batch=np.array([8, 8])), Targets(np.array([1e-6, 5.0])))
        assert answer[0] == 0 and answer[1] > 0

    @pytest.mark.parametrize("tolerance", [-0.1, 1.0, np.nan])
    def test_a_tolerance_that_cannot_be_is_refused(self, model: QueueingModel, tolerance: float) -> None:
        if not self.complete:
            pytest.skip(f"{model.name} knows no tolerance")
        with pytest.raises(ValueError, match="tolerance"):
            model.concurrency(server(batch=4), Targets(1.0), tolerance=tolerance)

    def test_memory_bounds_the_capacity_of_the_models_that_say_so_and_of_no_other(
        self, model: QueueingModel
    ) -> None:
        # Room for about four of the requests.
        free, held = (
            float(model.analyze(server(kv_tokens=tokens), 0.5).capacity_rps) for tokens in (None, 5120.0)
        )
        if model.capabilities.kv_memory:
            assert held < 0.5 * free
        else:
            assert held == free

    def _kept(
        self, model: QueueingModel, targets: Targets, statistic: Statistic, rate: float, slack: float
    ) -> bool:
        metrics = model.analyze(server(), rate)
        ttft, itl = (float(getattr(times, statistic.value)) for times in (metrics.ttft_s, metrics.itl_s))
        blocked = self.complete and metrics.blocked_share > targets.max_blocked_share * slack
        return not (
            ttft > float(np.asarray(targets.ttft_s)) * slack
            or itl > float(np.asarray(targets.itl_s)) * slack
            or blocked
            or rate > float(metrics.capacity_rps) * slack
        )
