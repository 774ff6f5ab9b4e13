"""Workloads that carry no marks, named by a Server's `scaleTargetRef`, on a real API server and with just the rights
that each service is given."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from api_server import Refusal
from custom_resources import SAMPLES, Objects, Stoker, condition, stoker, until
from manifests import deployment, path_of

from services.actuator.service import ActuatorService
from services.actuator.settings import Settings as ActuatorProcess
from services.cluster.workloads import ACCELERATOR, MARKED, SERVER
from services.collector.service import CollectorService
from services.collector.settings import Settings as CollectorProcess

ENGINE = {"kind": "Deployment", "name": "engine"}
MARKS = {SERVER: "chat", MARKED: SERVER}


@pytest_asyncio.fixture
async def around(
    objects: Objects, operator_config: Path, namespace: str, tmp_path: Path
) -> AsyncIterator[Stoker]:
    """Stoker without an operator yet, beside the sample fleet."""
    objects.apply([SAMPLES / "fleet.yaml"])
    async with stoker(operator_config, namespace, tmp_path) as made:
        objects.reasons = made.reasons
        yield made


def marks_of(objects: Objects, name: str) -> dict[str, str]:
    found = objects.cluster.admin.get(path_of(objects.namespace, name))["metadata"]
    return {k: v for k, v in found.get("annotations", {}).items() if k.startswith("stoker.dev/")}


async def marked(objects: Objects, name: str, marks: dict[str, str]) -> None:
    async def look() -> bool:
        return marks_of(objects, name) == marks

    await until(look, lambda: f"{name}: {marks_of(objects, name)}, not {marks}; {objects.reasons()}")


async def test_a_workload_without_marks_is_collected_decided_and_scaled(
    objects: Objects, around: Stoker, reader: Path, writer: Path, namespace: str
) -> None:
    admin = objects.cluster.admin
    admin.create(deployment(namespace, "engine", kind="H100"))
    objects.edit("Server", "chat", minReplicas=3, scaleTargetRef={"apiVersion": "apps/v1", **ENGINE})
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    around.operator()
    inventory: dict[str, Any] = {"kubernetes": {"cluster": {"kubeconfig": str(reader)}}}
    collector = CollectorProcess.model_validate(
        {
            "bus": {"url": around.url},
            "collector": {"cycle_s": 1, "sources": list(inventory), "source_settings": inventory},
        }
    )
    access = {"cluster": {"kubeconfig": str(writer)}}
    actuator = ActuatorProcess.model_validate(
        {"bus": {"url": around.url}, "actuator": {"target": "kubernetes", "target_settings": access}}
    )
    around.start("collector", CollectorService(collector), collector)
    around.start("actuator", ActuatorService(actuator), actuator)
    status = await objects.until(
        "Server", "chat", lambda s: condition(s, "Actuated").get("reason") == "Applied"
    )
    assert status["decision"]["numReplicas"] == 3
    engine = admin.get(path_of(namespace, "engine"))
    assert engine["spec"]["replicas"] == 3
    assert "stoker-operator" in {one["manager"] for one in engine["metadata"]["managedFields"]}
    # Nothing but annotations of the workload itself: its pods are as they were.
    assert SERVER not in engine["spec"]["template"]["metadata"].get("annotations", {})
    # The other server has no workload, and that stays its own trouble.
    assert condition(objects.get("Server", "digest")["status"], "Actuated").get("status") != "True"
    await around.stop("actuator")
    await around.stop("collector")


async def test_marks_follow_the_reference_and_go_with_it(objects: Objects, around: Stoker) -> None:
    for name in ("engine", "other"):
        objects.cluster.admin.create(deployment(objects.namespace, name, annotations={"owner": "people"}))
    objects.edit("Server", "chat", scaleTargetRef=ENGINE)
    around.operator()
    await marked(objects, "engine", MARKS)
    objects.edit("Server", "chat", scaleTargetRef={"name": "other"})
    await marked(objects, "other", MARKS)
    await marked(objects, "engine", {})
    await around.stop("operator")
    objects.delete("Server", "chat")
    around.operator()
    await objects.gone("Server", "chat")
    await marked(objects, "other", {})
    engine = objects.cluster.admin.get(path_of(objects.namespace, "engine"))
    assert engine["metadata"]["annotations"]["owner"] == "people"
    # What people wrote stays, and no pod is started anew.
    sets = objects.cluster.admin.get(f"/apis/apps/v1/namespaces/{objects.namespace}/replicasets")["items"]
    assert len(sets) == 2


async def test_an_operator_of_one_namespace_leaves_the_marks_in_others(
    objects: Objects, around: Stoker
) -> None:
    admin, other = objects.cluster.admin, Objects(objects.cluster, f"{objects.namespace}-other")
    admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}})
    admin.create(deployment(other.namespace, "engine", annotations=MARKS))
    admin.create(deployment(objects.namespace, "engine"))
    admin.create(deployment(objects.namespace, "left-over", annotations=MARKS))
    objects.edit("Server", "chat", scaleTargetRef=ENGINE)
    around.operator()
    await marked(objects, "engine", MARKS)
    await marked(objects, "left-over", {})
    assert marks_of(other, "engine") == MARKS
    admin.delete(path_of(other.namespace, "engine"))
    admin.delete(f"/api/v1/namespaces/{other.namespace}")


async def test_an_accelerator_that_the_workload_does_not_say_is_the_one_that_the_server_has(
    objects: Objects, around: Stoker
) -> None:
    made = deployment(objects.namespace, "engine")
    del made["spec"]["template"]["spec"]["nodeSelector"]
    objects.cluster.admin.create(made)
    objects.edit("Server", "chat", scaleTargetRef=ENGINE)
    around.operator()
    await marked(objects, "engine", {SERVER: "chat", ACCELERATOR: "H100", MARKED: f"{ACCELERATOR},{SERVER}"})


async def test_a_target_that_is_not_there_is_said_until_it_comes(objects: Objects, around: Stoker) -> None:
    objects.edit("Server", "chat", scaleTargetRef=ENGINE)
    around.operator()
    said = (
        f"there is no Deployment 'engine' in namespace {objects.namespace}; followed are: apps/v1/deployments"
    )

    def lacking(status: dict[str, Any]) -> bool:
        return said in condition(status, "Degraded").get("message", "")

    status = await objects.until("Server", "chat", lambda s: lacking(s) and "desiredAlloc" in s)
    assert condition(status, "Ready")["status"] == "True"

    async def told() -> bool:
        return any(about == "chat" and said in text for about, _, text in objects.events())

    await until(told, lambda: f"{objects.events()}")
    objects.cluster.admin.create(deployment(objects.namespace, "engine"))
    await objects.until("Server", "chat", lambda s: condition(s, "Degraded").get("status") == "False")
    await marked(objects, "engine", MARKS)


async def test_where_no_workloads_are_followed_the_rest_goes_on(objects: Objects, around: Stoker) -> None:
    objects.cluster.admin.create(deployment(objects.namespace, "engine"))
    objects.edit("Server", "chat", scaleTargetRef=ENGINE)
    operator = around.operator(workloads=[])
    status = await objects.until("Server", "chat", lambda s: "desiredAlloc" in s)
    assert "followed are: nothing" in condition(status, "Degraded")["message"]
    assert marks_of(objects, "engine") == {} and operator.reasons() == []


@pytest.mark.parametrize(
    "ref",
    [
        {"kind": "Deployment"},
        {"name": "engine"},
        {"kind": "deployment", "name": "engine"},
        {**ENGINE, "apiVersion": "apps/"},
        {**ENGINE, "name": ""},
    ],
)
def test_the_api_server_refuses_a_reference_that_names_nothing(objects: Objects, ref: dict[str, str]) -> None:
    objects.apply([SAMPLES / "fleet.yaml"])
    with pytest.raises(Refusal) as refusal:
        objects.edit("Server", "chat", scaleTargetRef=ref)
    assert refusal.value.status == 422
