"""The Kubernetes source against a real API server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest
from api_server import READY_S, ApiServer, wait_for
from kubelet import GPU, Behaviour, Kubelet
from manifests import deployment, path_of, variant
from source_suite import SourceContract

from schemas.alert import AlertKind
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from services.cluster.client import ClusterSettings
from services.collector.core import State, step
from services.collector.settings import CollectorSettings
from services.collector.source import ReplicaState, ServerInventory, Source
from services.collector.sources.kubernetes import KubernetesSettings, KubernetesSource

T = TypeVar("T")
AHEAD_S = 1000.0
"""Control time is this far ahead of wall time, so that a time that was not mapped is seen."""


def source_of(kubeconfig: Path, **settings: object) -> KubernetesSource:
    chosen = KubernetesSettings(
        cluster=ClusterSettings(kubeconfig=kubeconfig, timeout_s=5, watch_s=1), **settings
    )
    return KubernetesSource(chosen, to_clock_s=lambda wall_s: wall_s + AHEAD_S)


@pytest.fixture
async def source(admin_config: Path) -> AsyncIterator[KubernetesSource]:
    source = source_of(admin_config)
    yield source
    await source.close()


async def until(read: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """What was read as soon as it is good, or what it last was after the deadline."""
    deadline_s = time.monotonic() + READY_S
    while True:
        found = await read()
        if good(found) or time.monotonic() > deadline_s:
            return found
        await asyncio.sleep(0.05)


async def server_of(
    source: KubernetesSource, name: str, good: Callable[[ServerInventory], bool]
) -> ServerInventory:
    """What the source says of a server as soon as it is good."""

    deadline_s = time.monotonic() + READY_S
    while True:
        readings = await source.poll(time.time() + AHEAD_S)
        found = next((one for one in readings.inventory if one.server == name), None)
        if found is not None and good(found):
            return found
        assert time.monotonic() < deadline_s, (found, readings.problems)
        await asyncio.sleep(0.05)


def ready(count: int) -> Callable[[ServerInventory], bool]:
    return lambda server: sum(v.ready for v in server.variants) == count


class TestContract(SourceContract):
    @pytest.fixture
    async def source(self, cluster: ApiServer, namespace: str, admin_config: Path) -> AsyncIterator[Source]:
        cluster.admin.create(variant(namespace, "contract", "H100"))
        found = source_of(admin_config)
        yield found
        await found.close()

    @pytest.fixture
    def broken(self, cluster: ApiServer, unused_tcp_port: int) -> Source:
        nobody = cluster.kubeconfig_file("nobody", url=f"https://127.0.0.1:{unused_tcp_port}")
        return source_of(nobody)


async def test_a_server_is_read_with_its_variants_its_replicas_and_when_they_became_ready(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    for accelerator, replicas in (("H100", 2), ("L4", 0)):
        made = variant(
            namespace, "chat", accelerator, replicas=replicas, cards=2, args=("--max-num-seqs=48",)
        )
        cluster.admin.create(made)
    began_s = time.time() + AHEAD_S
    server = await server_of(source, "chat", ready(2))
    assert [(v.accelerator, v.desired, v.ready, v.pending, v.max_batch) for v in server.variants] == [
        ("H100", 2, 2, 0, 48),
        ("L4", 0, 0, 0, 48),
    ]

    def newest(server: ServerInventory) -> bool:
        now = cluster.admin.get(path_of(namespace, "chat-h100"))["metadata"]["resourceVersion"]
        return server.variants[0].resource_version == now

    await server_of(source, "chat", newest)
    assert {one.state for one in server.replicas} == {ReplicaState.READY}
    for one in server.replicas:
        # The platform's times are whole seconds.
        assert one.name.startswith("chat-h100-") and one.accelerator == "H100"
        assert began_s - 10 < one.created_at_s <= one.ready_at_s < began_s + READY_S + 1
    readings = await source.poll(server.observed_at_s + 1)
    assert [(c.type, c.total, c.free) for c in readings.capacity] == [("H100", 12, 8), ("L4", 8, 8)]


async def test_a_replica_that_was_unready_for_a_while_became_ready_once(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, source: KubernetesSource
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    first = (await server_of(source, "chat", ready(1))).replicas[0].ready_at_s
    kubelet.behave("chat", Behaviour.SLOW)
    await server_of(source, "chat", ready(0))
    # Times are whole seconds: after this one the platform's own time is another.
    await asyncio.sleep(1.1)
    kubelet.forget()
    assert (await server_of(source, "chat", ready(1))).replicas[0].ready_at_s == first


async def test_marks_of_the_reference_and_of_llm_d_are_read(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    reference = {
        "inferno.server.managed": "true",
        "inferno.server.name": "summaries",
        "inferno.server.model": "llama",
        "inferno.server.allocation.accelerator": "H100",
        "inferno.server.allocation.maxbatchsize": "24",
    }
    cluster.admin.create(deployment(namespace, "one", labels=reference, args=()))
    theirs = {"llm-d.ai/managed": "true", "llm-d.ai/model-id": "meta-llama/Llama-3.1-8B"}
    cluster.admin.create(deployment(namespace, "two", cards=2, annotations=theirs))
    cluster.admin.create(deployment(namespace, "three", labels={"inferno.server.managed": "false"}))
    await server_of(source, "summaries", ready(1))
    await server_of(source, "meta-llama/Llama-3.1-8B", ready(1))
    readings = await source.poll(time.time())
    found = {s.server: [(v.accelerator, v.max_batch) for v in s.variants] for s in readings.inventory}
    assert found == {"summaries": [("H100", 24)], "meta-llama/Llama-3.1-8B": [("2xH100", 64)]}


async def test_pods_that_cannot_be_had_say_why_and_their_cards_stay_free(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, source: KubernetesSource
) -> None:
    kubelet.behave("draw", Behaviour.NO_IMAGE)
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=3, cards=6))
    cluster.admin.create(variant(namespace, "draw", "L4"))
    await server_of(source, "draw", lambda s: any(r.reason and "ImagePull" in r.reason for r in s.replicas))

    def two_wait(server: ServerInventory) -> bool:
        return [r.state for r in server.replicas if r.reason] == [ReplicaState.PENDING] * 2

    await server_of(source, "chat", lambda s: two_wait(s) and ready(1)(s))
    readings = await source.poll(time.time() + AHEAD_S)
    _, out = step(State(), [readings], fleet("chat", "draw"), time.time() + AHEAD_S, CollectorSettings())
    chat, draw = (one.variants[0] for one in out.inventory)
    assert (chat.desired, chat.ready, chat.pending) == (3, 1, 2)
    assert chat.pending_since_s is not None
    assert (chat.pending_reason or "").startswith("Unschedulable: 0/3 nodes are available")
    assert (draw.pending_reason or "").startswith("ImagePullBackOff: cannot pull registry.invalid")
    assert out.capacity is not None
    assert {c.type: c.free for c in out.capacity.types} == {"H100": 6, "L4": 7}


async def test_a_quota_is_read_and_is_why_pods_are_not_made(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    hard = {f"requests.{GPU}": "3", "pods": "50"}
    meta = {"name": "cards", "namespace": namespace}
    cluster.admin.create(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}}
    )
    path = f"/api/v1/namespaces/{namespace}/resourcequotas/cards"
    wait_for(cluster, path, lambda quota: "hard" in quota.get("status", {}))
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=2, cards=2))
    server = await server_of(source, "chat", lambda s: s.variants[0].trouble is not None)
    assert "exceeded quota: cards" in (server.variants[0].trouble or "")
    await server_of(source, "chat", ready(1))
    # Quotas and pods are watched side by side.
    readings = await until(
        lambda: source.poll(time.time() + AHEAD_S), lambda found: [q.used for q in found.quotas] == [2]
    )
    _, out = step(State(), [readings], fleet("chat"), time.time() + AHEAD_S, CollectorSettings())
    assert out.capacity is not None
    quotas = [(q.name, q.cards, q.used, q.used_by_others) for q in out.capacity.quotas]
    assert quotas == [(f"{namespace}/cards", 3, 2, 0)]
    assert out.inventory[0].variants[0].quotas == (f"{namespace}/cards",)
    assert "exceeded quota" in (out.inventory[0].variants[0].pending_reason or "")


async def test_pods_that_drain_are_counted_and_hold_their_cards(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, source: KubernetesSource
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=2))
    await server_of(source, "chat", ready(2))
    kubelet.lingering.add("chat")
    cluster.admin.patch(f"{path_of(namespace, 'chat-h100')}/scale", {"spec": {"replicas": 1}})
    server = await server_of(
        source, "chat", lambda s: (s.variants[0].desired, s.variants[0].terminating) == (1, 1)
    )
    assert server.variants[0].ready == 1
    readings = await source.poll(time.time())
    assert {c.type: c.free for c in readings.capacity}["H100"] == 10
    kubelet.forget()
    await server_of(source, "chat", lambda s: s.variants[0].terminating == 0)


async def test_a_closed_node_offers_no_more_cards_and_one_that_is_gone_none(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    async def capacity() -> dict[str, tuple[int, int]]:
        return {c.type: (c.total, c.free) for c in (await source.poll(time.time())).capacity}

    def is_ready(status: str) -> dict[str, object]:
        return {"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Test"}]}}

    before = await until(capacity, lambda found: found["H100"] == (12, 12))
    assert before == {"H100": (12, 12), "L4": (8, 8)}
    path = "/api/v1/nodes/node-h100-b"
    try:
        cluster.admin.patch(path, {"spec": {"unschedulable": True}})
        assert (await until(capacity, lambda found: found["H100"][1] == 8))["H100"] == (12, 8)
        cluster.admin.patch(f"{path}/status", is_ready("False"))
        assert (await until(capacity, lambda found: found["H100"][0] == 8))["H100"] == (8, 8)
    finally:
        cluster.admin.patch(path, {"spec": {"unschedulable": None}})
        cluster.admin.patch(f"{path}/status", is_ready("True"))


async def test_what_scales_a_server_besides_us_is_named(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    cluster.admin.create(autoscaler(namespace, "chat-h100"))
    server = await server_of(source, "chat", lambda s: s.variants[0].autoscaler is not None)
    assert server.variants[0].autoscaler == "ScaledObject chat through HorizontalPodAutoscaler keda-chat"
    cluster.admin.delete(f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers/keda-chat")
    await server_of(source, "chat", lambda s: s.variants[0].autoscaler is None)


async def test_two_workloads_that_claim_the_same_variant_are_a_problem(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    marks = {"stoker.dev/server": "chat", "stoker.dev/accelerator": "H100"}
    for name, replicas in (("first", 1), ("second", 2)):
        cluster.admin.create(deployment(namespace, name, replicas=replicas, annotations=marks))
    server = await server_of(source, "chat", ready(1))
    assert [v.desired for v in server.variants] == [1]
    readings = await until(lambda: source.poll(time.time()), lambda found: bool(found.problems))
    (problem,) = readings.problems
    assert problem.kind is AlertKind.VARIANT_CLAIMED_TWICE and not readings.failed
    assert f"{namespace}/first and {namespace}/second both claim" in problem.message


async def test_watches_are_resumed_and_a_poll_costs_few_calls(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    await server_of(source, "chat", ready(1))
    before, polls = dict(source.cluster.calls), 0
    deadline_s = time.monotonic() + READY_S
    while source.cluster.calls["WATCH"] < before["WATCH"] + 10 and time.monotonic() < deadline_s:
        assert not (await source.poll(time.time())).failed
        polls += 1
        await asyncio.sleep(0.05)
    # Each poll makes one request, and nothing was listed again.
    assert source.cluster.calls["WATCH"] >= before["WATCH"] + 10
    assert source.cluster.calls["GET"] - before["GET"] == polls
    assert source.cluster.calls.keys() == {"GET", "WATCH"}
    cluster.admin.patch(f"{path_of(namespace, 'chat-h100')}/scale", {"spec": {"replicas": 2}})
    await server_of(source, "chat", ready(2))


async def test_a_restart_of_the_api_server_fails_polls_until_it_is_back(
    cluster: ApiServer, namespace: str, source: KubernetesSource
) -> None:
    if not cluster.restarts:
        pytest.skip("the API server is not ours to restart")
    cluster.admin.create(variant(namespace, "chat", "H100"))
    await server_of(source, "chat", ready(1))
    cluster.stop()
    try:
        down = await source.poll(time.time())
        assert down.failed and down.inventory == ()
        # Whichever notices first.
        assert down.problems[0].message.startswith(("GET /version", "watch of /"))
    finally:
        cluster.start()
    cluster.admin.patch(f"{path_of(namespace, 'chat-h100')}/scale", {"spec": {"replicas": 2}})
    await server_of(source, "chat", ready(2))


async def test_a_credential_that_is_no_longer_good_fails_polls_until_it_is_rotated(
    cluster: ApiServer, namespace: str
) -> None:
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "reader", "namespace": namespace},
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{namespace}-reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
    }
    cluster.admin.create(account)
    cluster.admin.create(binding)
    kubeconfig = cluster.kubeconfig_file("rotated", cluster.token(namespace, "reader"))
    source = source_of(kubeconfig)
    assert not (await source.poll(time.time())).failed
    # The tokens of an account that is deleted end with it, as a token that expires does.
    cluster.admin.delete(f"/api/v1/namespaces/{namespace}/serviceaccounts/reader")
    failed = await until(lambda: source.poll(time.time()), lambda found: found.failed)
    assert "HTTP status 401" in failed.problems[0].message
    cluster.admin.create(account)
    cluster.kubeconfig_file("rotated", cluster.token(namespace, "reader"))
    good = await until(lambda: source.poll(time.time()), lambda found: not found.failed)
    assert not good.failed
    await source.close()
    cluster.admin.delete(f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{namespace}-reader")


def autoscaler(namespace: str, name: str) -> dict[str, object]:
    owner = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "name": "chat",
        "uid": str(UUID(int=1)),
    }
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-chat", "namespace": namespace, "ownerReferences": [owner]},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "maxReplicas": 4,
        },
    }


def fleet(*servers: str) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=0,
        revision="r",
        accelerators=tuple(Accelerator(name=a, type=a, cost_per_hour=1) for a in ("H100", "L4")),
        models=(
            Model(name="m", profiles=(ModelProfile(accelerator="H100"), ModelProfile(accelerator="L4"))),
        ),
        service_classes=(ServiceClass(name="gold", priority=1),),
        servers=tuple(Server(name=name, model="m", service_class="gold") for name in servers),
    )
