"""The operator on a real API server: custom resources in, statuses and Events out."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from api_server import Refusal
from custom_resources import SAMPLES, Objects, Stoker, condition, stoker, until

from schemas.fleet import FleetDeclared
from services.operator.resources import KINDS, collection
from services.runtime.envelope import decode

FLEET = SAMPLES / "fleet.yaml"
ONCE = {"optimize": True, "periodSeconds": None}
ONCE_TOLD = [("chat", "Planned"), ("digest", "Planned"), ("optimizer", "Optimized")]
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest_asyncio.fixture
async def around(
    objects: Objects, operator_config: Path, namespace: str, tmp_path: Path
) -> AsyncIterator[Stoker]:
    """Stoker without an operator yet; those that a test starts act with the operator's own rights."""
    async with stoker(operator_config, namespace, tmp_path) as made:
        objects.reasons = made.reasons
        yield made


def planned(status: dict[str, Any]) -> bool:
    return "desiredAlloc" in status


async def declared(around: Stoker) -> list[FleetDeclared]:
    events = [decode(raw) for raw in await around.bus.everything("STATE", ["stoker.v1.fleet.declared"])]
    assert all(event.source == "/stoker/operator" for event in events)
    return [event.payload for event in events if isinstance(event.payload, FleetDeclared)]


def columns(objects: Objects, kind: str) -> list[dict[str, Any]]:
    """What the API server answers to `kubectl get`, row by row."""
    admin = objects.cluster.admin
    answer = admin.pool.request(
        "GET",
        admin.url + collection(kind, objects.namespace),
        headers=admin._headers | {"Accept": TABLE},
    ).json()
    names = [column["name"] for column in answer["columnDefinitions"]]
    return [dict(zip(names, row["cells"], strict=True)) for row in answer["rows"]]


async def test_the_references_own_samples_are_planned_once_when_they_ask_for_it(
    objects: Objects, around: Stoker, reference_data: Path
) -> None:
    objects.apply(sorted((reference_data / "custom-resources").glob("*.yaml")))
    around.operator()
    model = await objects.until("Model", "model-sample", lambda s: s.get("active"))
    assert "'G2', but there is no usable Accelerator" in condition(model, "Degraded")["message"]
    idle = await objects.until("Optimizer", "optimizer-sample", lambda s: s.get("active"))
    assert idle["done"] is False
    objects.edit("Optimizer", "optimizer-sample", optimize=True)
    done = await objects.until("Optimizer", "optimizer-sample", lambda s: s.get("done"))
    server = objects.get("Server", "server-sample")
    desired = server["status"]["desiredAlloc"]
    assert desired["accelerator"] == "A100" and desired["numReplicas"] >= 1
    assert desired["cost"] == 40 * desired["numReplicas"] == done["cost"]
    # The objectives of the sample, in milliseconds.
    assert desired["itlAverage"] <= 40 and desired["ttftAverage"] <= 500
    assert server["spec"].get("desiredAlloc") is None
    assert condition(server["status"], "MetricsAvailable")["reason"] == "NotMeasured"
    assert condition(server["status"], "Feasible")["status"] == "True"
    assert server["status"]["observedGeneration"] == server["metadata"]["generation"]
    fleets = await declared(around)
    # A single plan is advice.
    assert all(server.paused for fleet in fleets for server in fleet.servers)


async def test_one_plan_is_one_plan_until_the_optimizer_is_edited(objects: Objects, around: Stoker) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", **ONCE)
    around.operator()
    first = await objects.until("Optimizer", "optimizer", lambda s: s.get("done"))
    before = objects.get("Server", "chat")["status"]
    # The load changes, the fleet is declared anew and planned; the statuses keep the one plan that was asked for.
    objects.edit("Server", "chat", currentAlloc={"load": {"arrivalRate": 2400}})

    async def replanned() -> bool:
        raws = await around.bus.everything("STATE", ["stoker.v1.plan.issued"])
        return any(decode(raw).payload.generation > first["planGeneration"] for raw in raws)  # type: ignore[attr-defined]

    await until(replanned, lambda: "no second plan")
    seen = await objects.until(
        "Server", "chat", lambda s: s["observedGeneration"] > before["observedGeneration"]
    )
    assert seen["desiredAlloc"] == before["desiredAlloc"]
    objects.edit("Optimizer", "optimizer", data={"optimizer": {"unlimited": True}})
    again = await objects.until(
        "Optimizer", "optimizer", lambda s: s["planGeneration"] > first["planGeneration"] and s["done"]
    )
    assert again["observedGeneration"] > first["observedGeneration"]
    more = objects.get("Server", "chat")["status"]["desiredAlloc"]
    assert more["numReplicas"] > before["desiredAlloc"]["numReplicas"]
    twice = [("optimizer", "Optimized"), ("chat", "Planned")] * 2
    told = await objects.told(*twice)
    assert sorted(twice) == [one for one in told if one in twice]


async def test_with_a_period_plans_keep_coming_and_what_is_edited_counts(
    objects: Objects, around: Stoker
) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    around.operator()
    first = await objects.until("Server", "chat", planned)
    later = await objects.until(
        "Server", "chat", lambda s: s["planGeneration"] >= first["planGeneration"] + 3
    )
    assert later["desiredAlloc"]["numReplicas"] == first["desiredAlloc"]["numReplicas"]
    objects.edit("Server", "chat", minReplicas=5)
    edited = await objects.until("Server", "chat", lambda s: s["desiredAlloc"]["numReplicas"] >= 5)
    assert edited["observedGeneration"] == objects.get("Server", "chat")["metadata"]["generation"]
    assert not any(server.paused for server in (await declared(around))[-1].servers)


async def test_a_deleted_server_goes_once_a_fleet_without_it_is_declared(
    objects: Objects, around: Stoker
) -> None:
    objects.apply([FLEET])
    around.operator()
    await objects.until("Server", "digest", planned)
    await around.stop("operator")
    objects.delete("Server", "digest")
    assert "deletionTimestamp" in objects.get("Server", "digest")["metadata"]
    around.operator()
    await objects.gone("Server", "digest")
    fleets = await declared(around)
    assert [server.name for server in fleets[-1].servers] == ["chat"]
    assert {server.name for server in fleets[0].servers} == {"chat", "digest"}


async def test_what_others_refer_to_may_go_and_come_back(objects: Objects, around: Stoker) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    around.operator()
    await objects.until("Server", "chat", planned)
    objects.delete("Model", "granite-8b")
    lost = await objects.until("Server", "chat", lambda s: condition(s, "Ready").get("status") == "False")
    assert lost["active"] is False
    assert "there is no usable Model of that spec.name" in condition(lost, "Ready")["message"]
    (again,) = [m for m in _manifests() if m["kind"] == "Model"]
    objects.make(again)
    back = await objects.until("Server", "chat", lambda s: condition(s, "Ready").get("status") == "True")
    await objects.until("Server", "chat", lambda s: s["planGeneration"] > back["planGeneration"])
    # Without an Optimizer nobody acts any more.
    objects.delete("Optimizer", "optimizer")

    async def paused() -> bool:
        return all(server.paused for server in (await declared(around))[-1].servers)

    await until(paused, lambda: f"{objects.reasons()}")


@pytest.mark.parametrize(
    ("kind", "name", "spec", "said"),
    [
        ("Server", "chat", {"model": "absent"}, "spec.model is 'absent', but there is no usable Model"),
        ("Server", "chat", {"class": "Gold"}, "there is: Bronze, Premium"),
        ("Model", "granite-8b", {"data": []}, "spec.data is empty"),
    ],
)
async def test_what_refers_to_nothing_is_left_out_by_name_and_the_others_are_planned(
    objects: Objects, around: Stoker, kind: str, name: str, spec: dict[str, Any], said: str
) -> None:
    objects.apply([FLEET])
    objects.edit(kind, name, **spec)
    around.operator()
    status = await objects.until(kind, name, lambda s: condition(s, "Ready").get("status") == "False")
    assert status["active"] is False
    assert said in condition(status, "Ready")["message"]

    async def told() -> bool:
        return any(about == name and said in text for about, _, text in objects.events())

    await until(told, lambda: f"{objects.events()}")
    if kind == "Server":
        await objects.until("Server", "digest", planned)
    else:
        users = await objects.until(
            "Server", "chat", lambda s: condition(s, "Ready").get("status") == "False"
        )
        assert "no usable Model" in condition(users, "Ready")["message"]


async def test_of_two_servers_with_one_name_the_elder_is_planned(objects: Objects, around: Stoker) -> None:
    objects.apply([FLEET])
    (chat,) = [m for m in _manifests() if m["metadata"]["name"] == "chat"]
    objects.make({**chat, "metadata": {"name": "younger"}})
    around.operator()
    refused = await objects.until("Server", "younger", bool)
    ready = condition(refused, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NameTaken")
    assert f"which Server {objects.namespace}/chat has already" in ready["message"]
    await objects.until("Server", "chat", planned)
    objects.delete("Server", "chat")
    await objects.until("Server", "younger", planned)


def _manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FLEET.read_text()))


def test_the_api_server_refuses_what_the_definitions_rule_out(objects: Objects) -> None:
    good = {m["kind"]: m for m in _manifests()}
    bad: list[tuple[str, Any]] = [
        ("Accelerator", {**good["Accelerator"]["spec"], "multiplicity": 0}),
        ("Accelerator", {**good["Accelerator"]["spec"], "cost": -1}),
        ("ServiceClass", {**good["ServiceClass"]["spec"], "priority": 101}),
        ("ServiceClass", {"name": "x", "data": [{"model": "m", "slo-ttw": 1, "slo-ttft": 1}]}),
        ("Model", {"name": "m", "data": [{"acc": "A", "accCount": 1, "maxBatchSize": 1, "atTokens": 1}]}),
        ("Server", {"name": "s", "class": "c", "model": "m"}),
        ("Optimizer", {"optimize": "yes"}),
        ("Capacity", {}),
    ]
    for number, (kind, spec) in enumerate(bad):
        manifest = {**good[kind], "metadata": {"name": f"bad-{number}"}, "spec": spec}
        with pytest.raises(Refusal) as refusal:
            objects.make(manifest)
        assert refusal.value.status == 422, (kind, spec)


async def test_kubectl_get_shows_what_is_decided(objects: Objects, around: Stoker) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", **ONCE)
    around.operator()
    await objects.until("Optimizer", "optimizer", lambda s: s.get("done"))
    chat, _ = sorted(columns(objects, "Server"), key=lambda row: row["Name"])
    desired = objects.get("Server", "chat")["status"]["desiredAlloc"]
    shown = [chat[key] for key in ("Accelerator", "Replicas", "Batch", "Cost", "Ready", "Feasible")]
    wanted = [desired[key] for key in ("accelerator", "numReplicas", "maxBatch", "cost")]
    assert shown == [*wanted, "True", "True"]
    (optimizer,) = columns(objects, "Optimizer")
    assert (optimizer["Optimize"], optimizer["Done"], optimizer["Servers"]) == (True, True, 2)
    kinds = ("Accelerator", "Model", "ServiceClass", "Capacity")
    assert all(row["Ready"] == "True" for kind in kinds for row in columns(objects, kind))
    (capacity,), (model,) = columns(objects, "Capacity"), columns(objects, "Model")
    assert (capacity["Cards"], model["Accelerators"]) == ("12 H100, 8 L4", "H100, L4")


def test_kubectl_itself_shows_the_kinds_by_their_category(objects: Objects, admin_config: Path) -> None:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on PATH; Debian has it in the package kubernetes-client")
    objects.apply([FLEET])
    objects.edit("Server", "chat", scaleTargetRef={"kind": "Deployment", "name": "engine"})
    asked = [program, "--kubeconfig", admin_config, "--namespace", objects.namespace, "get"]
    whole = subprocess.run([*asked, "stoker"], capture_output=True, text=True, timeout=30)
    assert whole.returncode == 0, whole.stderr
    named = {line.split(".")[0] for line in whole.stdout.splitlines() if ".inferno.platform.ai/" in line}
    assert named == {kind.lower() for kind in KINDS}
    wide = subprocess.run([*asked, "servers", "-o", "wide"], capture_output=True, text=True, timeout=30)
    head, chat, _ = wide.stdout.splitlines()
    assert {"ACCELERATOR", "REPLICAS", "FEASIBLE", "VERDICT", "TARGET", "CLASS", "MODEL"} <= set(head.split())
    assert chat.split()[:2] == ["chat", "chat"] and chat.split()[-4:-1] == ["engine", "Premium", "granite-8b"]


async def test_an_operator_that_starts_again_plans_nothing_anew_and_goes_on(
    objects: Objects, around: Stoker
) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", **ONCE)
    around.operator()
    await objects.until("Optimizer", "optimizer", lambda s: s.get("done"))
    before = {name: objects.get("Server", name) for name in ("chat", "digest")}
    assert await objects.told(*ONCE_TOLD) == ONCE_TOLD
    await around.stop("operator")
    around.operator()
    objects.edit("Accelerator", "l4", cost=101)
    await objects.until("Accelerator", "l4", lambda s: s.get("observedGeneration") == 2)
    assert {name: objects.get("Server", name) for name in before} == before
    assert await objects.told(*ONCE_TOLD) == ONCE_TOLD


async def test_of_two_operators_that_start_at_once_one_plans_and_tells(
    objects: Objects, around: Stoker
) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", **ONCE)
    both = [around.operator(name) for name in ("first", "second")]
    await objects.until("Optimizer", "optimizer", lambda s: s.get("done"))
    assert sorted(chassis.active for chassis in both) == [False, True]
    assert await objects.told(*ONCE_TOLD) == ONCE_TOLD
    assert len(await declared(around)) == 1


async def test_of_two_operators_one_acts_and_the_other_takes_over(objects: Objects, around: Stoker) -> None:
    objects.apply([FLEET])
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    first = around.operator("first")
    await objects.until("Server", "chat", planned)
    second = around.operator("second")
    await objects.until("Server", "chat", lambda s: s["planGeneration"] >= 3)
    assert (first.active, second.active) == (True, False)
    await around.kill("first")
    objects.edit("Server", "chat", minReplicas=4)
    await objects.until("Server", "chat", lambda s: s["desiredAlloc"]["numReplicas"] >= 4)
    assert second.active
    # Nothing was told twice: each change of what is desired has one Event.
    told = [text for name, reason, text in objects.events() if (name, reason) == ("chat", "Planned")]
    assert len(told) == len(set(told))
