"""The loop closed by the operator: the fleet from custom resources alone, against the simulated fleet."""

from pathlib import Path

from custom_resources import SAMPLES, Objects, condition, stoker
from test_custom_resources import declared

from services.actuator.service import ActuatorService
from services.actuator.settings import Settings as ActuatorProcess
from services.collector.service import CollectorService
from services.collector.settings import Settings as CollectorProcess
from services.runtime.clock import WallClock
from services.simulator.derive import plant_of
from services.simulator.fleet import Fleet
from services.simulator.service import serving


async def test_the_loop_closes_on_the_simulated_fleet_without_any_fleet_file(
    objects: Objects, operator_config: Path, namespace: str, tmp_path: Path
) -> None:
    objects.apply([SAMPLES / "fleet.yaml"])
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    async with stoker(operator_config, namespace, tmp_path) as around:
        around.operator()
        await objects.until("Server", "chat", lambda s: "desiredAlloc" in s)
        fleet = (await declared(around))[-1]
        clock = WallClock()
        plant = Fleet(plant_of(fleet), (), clock.now_s())
        async with serving(plant, clock, "127.0.0.1", 0) as url:
            simulated = {"url": url}
            bus = {"url": around.url}
            sources = {"endpoints": {"urls": [f"{url}/metrics"]}, "simulated": simulated}
            collector = CollectorProcess.model_validate(
                {
                    "bus": bus,
                    "collector": {"cycle_s": 2, "sources": list(sources), "source_settings": sources},
                }
            )
            actuator = ActuatorProcess.model_validate(
                {"bus": bus, "actuator": {"target": "simulated", "target_settings": simulated}}
            )
            around.start("collector", CollectorService(collector), collector)
            around.start("actuator", ActuatorService(actuator), actuator)
            objects.edit("Server", "chat", minReplicas=4)
            status = await objects.until(
                "Server",
                "chat",
                lambda s: (
                    condition(s, "Actuated").get("status") == "True"
                    and condition(s, "MetricsAvailable").get("status") == "True"
                    and s["decision"]["numReplicas"] >= 4
                ),
            )
            # The decision on a plan comes after it.
            assert 0 <= status["planGeneration"] - status["decision"]["generation"] <= 1
            await around.stop("actuator")
            await around.stop("collector")
