"""What every iteration law must keep. Subclass `LawContract` and override its `law` and `parameters` fixtures."""

from collections.abc import Callable

import numpy as np
import pytest

from services.perfmodel.law import Array, IterationLaw, Workload, require_parameters

BATCH = np.arange(1.0, 257.0)
WORKLOADS = (Workload(0.0, 1.0), Workload(300.0, 40.0), Workload(6000.0, 200.0), Workload(2500.0, 3.0))
BUDGETS = (1024.0, 8192.0)


class LawContract:
    """Times that models can rely on: broadcasting, rising with the batch, affine, and of the token's costs."""

    @pytest.fixture
    def law(self) -> IterationLaw:
        """The law to test."""
        raise NotImplementedError("override this fixture")

    @pytest.fixture
    def parameters(self, law: IterationLaw) -> Array:
        """Plausible parameters of it, all above zero, shape (p,)."""
        raise NotImplementedError("override this fixture")

    def test_it_has_a_name_a_version_and_names_for_its_parameters(
        self, law: IterationLaw, parameters: Array
    ) -> None:
        assert law.name and law.version
        assert len(set(law.parameter_names)) == len(law.parameter_names) == parameters.size

    def test_parameters_of_another_length_are_refused_with_the_names(self, law: IterationLaw) -> None:
        with pytest.raises(ValueError, match=law.parameter_names[0]):
            require_parameters(law, np.ones(len(law.parameter_names) + 1))

    def test_arrays_give_what_a_loop_gives(self, law: IterationLaw, parameters: Array) -> None:
        rng = np.random.default_rng(1)
        many = parameters * rng.uniform(0.5, 2.0, (4, 1, parameters.size))
        prompt, output = rng.uniform(0.0, 6000.0, (4, 1)), rng.uniform(2.0, 400.0, 3)
        batch, budget = rng.uniform(1.0, 64.0, 3), rng.uniform(512.0, 8192.0, (4, 3))
        for name, method in timings(law).items():
            together = method(many, batch, Workload(prompt, output), budget)
            assert together.shape == (4, 3), name
            for row in range(4):
                for column in range(3):
                    alone = method(
                        many[row, 0],
                        float(batch[column]),
                        Workload(float(prompt[row, 0]), float(output[column])),
                        float(budget[row, column]),
                    )
                    assert np.shape(alone) == (), name
                    assert together[row, column] == pytest.approx(float(alone), rel=1e-12), name

    def test_what_only_the_parameters_decide_has_their_shape(
        self, law: IterationLaw, parameters: Array
    ) -> None:
        many = np.broadcast_to(parameters, (4, 3, parameters.size))
        assert law.residual_share(many).shape == (4, 3)
        assert law.overhead_time(many, Workload(10.0, 10.0)).shape == (4, 3)
        costs = law.token_costs(many)
        assert costs.prefill_tokens in (0, 1)
        for name, value in vars(costs).items():
            if name != "prefill_tokens":
                assert value.shape == (4, 3), name
                assert (value >= 0).all(), name

    def test_times_are_finite_and_above_zero(self, law: IterationLaw, parameters: Array) -> None:
        for workload in WORKLOADS:
            for budget in BUDGETS:
                for name, method in timings(law).items():
                    values = method(parameters, BATCH, workload, budget)
                    assert np.isfinite(values).all() and (values > 0).all(), (name, workload)
        assert (law.overhead_time(parameters, WORKLOADS[1]) >= 0).all()
        assert (law.residual_share(parameters) >= 0).all()

    def test_a_fuller_batch_never_makes_a_request_faster(self, law: IterationLaw, parameters: Array) -> None:
        for workload in WORKLOADS:
            for budget in BUDGETS:
                iterations = law.iterations_per_request(parameters, BATCH, workload, budget)
                service = iterations * law.iteration_time(parameters, BATCH, workload, budget)
                prefill = law.prefill_time(parameters, BATCH, workload, budget)
                for times in (iterations, service, prefill):
                    # Up to rounding of numbers that do not change.
                    assert (np.diff(times) >= -1e-12 * times[1:]).all(), workload

    def test_times_are_affine_in_the_batch_while_the_iterations_stay_the_same(
        self, law: IterationLaw, parameters: Array
    ) -> None:
        for workload in WORKLOADS:
            for budget in BUDGETS:
                iterations = law.iterations_per_request(parameters, BATCH, workload, budget)
                same = (iterations[2:] == iterations[1:-1]) & (iterations[1:-1] == iterations[:-2])
                for method in (law.iteration_time, law.prefill_time, law.inter_token_time):
                    times = method(parameters, BATCH, workload, budget)
                    assert np.abs(np.diff(times, 2)[same]).max(initial=0.0) <= 1e-12 * times.max()

    def test_a_request_adds_its_work_to_its_iterations(self, law: IterationLaw, parameters: Array) -> None:
        for workload in WORKLOADS:
            for budget in BUDGETS:
                question = (parameters, BATCH, workload, budget)
                iterations, times = law.iterations_per_request(*question), law.iteration_time(*question)
                same = iterations[1:] == iterations[:-1]
                slope = (law.work_per_request(*question) / iterations)[1:]
                np.testing.assert_allclose(np.diff(times)[same], slope[same], rtol=1e-8)

    def test_an_iteration_lasts_as_its_tokens_cost(self, law: IterationLaw, parameters: Array) -> None:
        prompt, output = 200, 2000
        costs = law.token_costs(parameters)
        prefill = costs.prefill_token_s * prompt + costs.prefill_read_s * prompt
        prefill += costs.prefill_square_s * prompt**2
        context = prompt + np.arange(1.0, output + 1.0 - costs.prefill_tokens)
        work = prefill + (costs.decode_s + costs.decode_read_s * context).sum()
        batch = np.array([1.0, 8.0, 64.0])
        workload = Workload(float(prompt), float(output))
        iterations = output + 1 - costs.prefill_tokens
        expected = costs.iteration_s + batch * work / iterations
        # Laws may count the iteration of the prefill, and half a token of context, either way.
        np.testing.assert_allclose(
            law.iteration_time(parameters, batch, workload, 1e9), expected, rtol=2.0 / output
        )

    def test_the_work_of_varying_lengths_is_the_mean_of_their_work(
        self, law: IterationLaw, parameters: Array
    ) -> None:
        rng = np.random.default_rng(2)
        prompt = rng.integers(1, 500, 200).astype(float)
        output = np.maximum(1.0, np.floor(0.5 * prompt * rng.exponential(1.0, 200)))
        moments = Workload(
            prompt.mean(),
            output.mean(),
            output_tokens_sq=(output**2).mean(),
            input_output_tokens=(prompt * output).mean(),
            input_tokens_sq=(prompt**2).mean(),
        )
        # One chunk each: what chunks cost is not linear in lengths.
        each = law.work_per_request(parameters, 1.0, Workload(prompt, output), 1e9)
        together = law.work_per_request(parameters, 1.0, moments, 1e9)
        assert float(together) == pytest.approx(float(each.mean()), rel=1e-9)

    def test_prompts_in_the_prefix_cache_cost_less(self, law: IterationLaw, parameters: Array) -> None:
        for method in (law.work_per_request, law.prefill_time, law.iteration_time):
            plain, none, some, most = (
                float(method(parameters, 4.0, Workload(800.0, 50.0, cached_share=share)))
                for share in (None, 0.0, 0.5, 0.9)
            )
            assert none == pytest.approx(plain, rel=1e-12)
            assert plain > some > most > 0


def timings(law: IterationLaw) -> dict[str, Callable[..., Array]]:
    """The methods that take parameters, batch, workload and token budget."""
    return {
        "iteration_time": law.iteration_time,
        "iterations_per_request": law.iterations_per_request,
        "work_per_request": law.work_per_request,
        "prefill_time": law.prefill_time,
        "inter_token_time": law.inter_token_time,
    }
