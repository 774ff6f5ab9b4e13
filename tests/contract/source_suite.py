"""What every source must keep. Subclass `SourceContract` and override its `source` and `broken` fixtures."""

import pytest

from schemas.alert import AlertKind
from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from services.collector.core import State, step
from services.collector.settings import CollectorSettings
from services.collector.source import Provides, Readings, Source


def fleet_of(readings: Readings) -> FleetDeclared:
    """A fleet that declares every server in some readings."""
    names = {
        one.server for part in (readings.replicas, readings.gateways, readings.inventory) for one in part
    }
    return FleetDeclared(
        declared_at_s=0,
        revision="contract",
        accelerators=(Accelerator(name="A", type="A", cost_per_hour=1),),
        models=(Model(name="m", profiles=(ModelProfile(accelerator="A"),)),),
        service_classes=(ServiceClass(name="gold", priority=1),),
        servers=tuple(Server(name=name, model="m", service_class="gold") for name in sorted(names)),
    )


class SourceContract:
    """Each test polls at NOW_S, which is also the control time that the sources' clocks should be near."""

    NOW_S = 1_700_000_000.0

    @pytest.fixture
    def source(self) -> Source:
        """A source whose backend answers, with something of everything that the source provides."""
        raise NotImplementedError

    @pytest.fixture
    def broken(self) -> Source:
        """The same with a backend that is not there."""
        raise NotImplementedError

    async def test_it_reads_what_it_says_it_provides(self, source: Source) -> None:
        readings = await source.poll(self.NOW_S)
        await source.close()
        assert readings.source == source.name and readings.provides == source.provides != frozenset()
        assert readings.problems == () and not readings.failed
        assert bool(readings.replicas) == (Provides.METRICS in source.provides)
        assert bool(readings.inventory) == (Provides.INVENTORY in source.provides)
        assert bool(readings.capacity) == (Provides.CAPACITY in source.provides)

    async def test_its_counters_are_cumulative_and_its_names_unique(self, source: Source) -> None:
        first, second = await source.poll(self.NOW_S), await source.poll(self.NOW_S + 1)
        await source.close()
        before = {(one.server, one.replica): one for one in first.replicas}
        assert len(before) == len(first.replicas)
        for one in second.replicas:
            earlier = before[one.server, one.replica]
            assert one.sampled_at_s >= earlier.sampled_at_s
            for name in ("completed", "input_tokens", "output_tokens"):
                after, then = getattr(one, name), getattr(earlier, name)
                assert after is None or then is None or after >= then
            for histogram in (one.ttft, one.itl):
                if histogram is not None:
                    assert len(histogram.counts) == len(histogram.edges_s) + 1
                    assert list(histogram.counts) == sorted(histogram.counts)
                    assert list(histogram.edges_s) == sorted(set(histogram.edges_s))

    async def test_the_core_takes_its_readings(self, source: Source) -> None:
        readings = await source.poll(self.NOW_S)
        await source.close()
        _, out = step(State(), [readings], fleet_of(readings), self.NOW_S, CollectorSettings())
        assert len(out.telemetry) == len(out.inventory) == len(fleet_of(readings).servers) > 0
        assert all(
            (one.quality is Quality.OK) == (Provides.INVENTORY in source.provides) for one in out.inventory
        )
        assert out.skipped == {}

    async def test_a_backend_that_is_not_there_is_a_problem_and_no_reading(self, broken: Source) -> None:
        for _ in range(2):
            readings = await broken.poll(self.NOW_S)
            assert readings.failed
            assert all(problem.message for problem in readings.problems)
            assert all(problem.kind in AlertKind for problem in readings.problems)
            assert (readings.replicas, readings.gateways) == ((), ())
            assert (readings.inventory, readings.capacity) == ((), ())
        await broken.close()

    async def test_closing_twice_or_before_use_is_harmless(self, source: Source, broken: Source) -> None:
        await broken.close()
        await source.poll(self.NOW_S)
        await source.close()
        await source.close()
