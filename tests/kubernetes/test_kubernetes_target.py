"""The actuator on a real API server, with just the rights that the deployment gives it.

Each test looks at the cluster, at the facts that are published, and at the metric.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, Refusal, names_of, until, wait_for
from kubelet import GPU, Behaviour, Kubelet
from manifests import path_of, variant
from operation import Operation, none, only
from target_suite import TargetContract

from schemas.actuation import ActuationApplied, ActuationFailed, FailureReason
from schemas.alert import AlertKind, AlertRaised
from schemas.decision import DecisionMade, Verdict
from schemas.telemetry import InventoryObserved
from services.actuator.target import Target
from services.actuator.targets.kubernetes import DELETION_COST, DRAINING, KubernetesSettings, KubernetesTarget
from services.cluster.client import ClusterSettings

Operate = Callable[..., Operation]


@pytest.fixture
async def operate(reader: Path, writer: Path) -> AsyncIterator[Operate]:
    """Makes operations of servers under the deployment's own rights, and ends them after the test."""
    begun: list[Operation] = []

    def begin(*servers: str, **target: Any) -> Operation:
        begun.append(Operation(reader, writer, *servers, **target))
        return begun[-1]

    yield begin
    for one in begun:
        await one.__aexit__()


def desired(cluster: ApiServer, namespace: str, name: str) -> int:
    return int(cluster.admin.get(path_of(namespace, name))["spec"]["replicas"])


def set_by_hand(cluster: ApiServer, namespace: str, name: str, replicas: int) -> None:
    cluster.admin.patch(f"{path_of(namespace, name)}/scale", {"spec": {"replicas": replicas}})


class TestContract(TargetContract):
    @pytest.fixture
    async def operation(self, cluster: ApiServer, namespace: str, operate: Operate) -> Operation:
        cluster.admin.create(variant(namespace, "chat", "H100", replicas=2))
        self._operation = operate("chat")
        await self._operation.settled("chat", H100=2)
        return self._operation

    @pytest.fixture
    async def target(self, operation: Operation, writer: Path) -> AsyncIterator[Target]:
        built = KubernetesTarget(KubernetesSettings(cluster=ClusterSettings(kubeconfig=writer)))
        yield built
        await built.close()

    @pytest.fixture
    async def broken(self, cluster: ApiServer, unused_tcp_port: int) -> Target:
        nobody = cluster.kubeconfig_file("nobody", url=f"https://127.0.0.1:{unused_tcp_port}")
        return KubernetesTarget(KubernetesSettings(cluster=ClusterSettings(kubeconfig=nobody)))

    async def inventory(self, target: Target) -> InventoryObserved:
        replicas = [
            item["spec"]["replicas"]
            for item in self._operation_cluster().get("/apis/apps/v1/deployments")["items"]
            if item["metadata"].get("annotations", {}).get("stoker.dev/server") == "chat"
        ]
        return await self._operation.until("chat", lambda v: "H100" in v and [v["H100"].desired] == replicas)

    @pytest.fixture(autouse=True)
    def _of(self, cluster: ApiServer) -> None:
        self._operation_cluster = lambda: cluster.admin


async def test_it_scales_up_and_down_and_to_zero_and_back(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    await operation.settled("chat", H100=1)
    for replicas in (3, 1, 0, 2):
        facts = await operation.plan(chat={"H100": replicas})
        applied = only(ActuationApplied, facts)
        assert applied.changed and applied.target == "kubernetes"
        assert [(s.accelerator, s.replicas) for s in applied.scaled] == [("H100", replicas)]
        assert desired(cluster, namespace, "chat-h100") == replicas
        await operation.settled("chat", **({"H100": replicas} if replicas else {}))
    assert operation.outcomes() == {"applied": 4.0}
    fields = cluster.admin.get(path_of(namespace, "chat-h100"))["metadata"].get("managedFields", [])
    # Servers before 1.22 do not say who set a scale.
    assert "stoker" in {one["manager"] for one in fields} or not any(one.get("subresource") for one in fields)


async def test_a_move_brings_the_new_replicas_before_the_old_ones_go(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "L4", replicas=4))
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=0))
    operation = operate("chat")
    await operation.settled("chat", L4=4)
    kubelet.behave("chat-h100", Behaviour.SLOW)
    await operation.plan(chat={"H100": 2})
    seen = await operation.until("chat", lambda v: v["H100"].pending == 2)
    assert {v.accelerator: v.desired for v in seen.variants} == {"H100": 2, "L4": 4}
    facts = await operation.plan(chat={"H100": 2})
    assert none(ActuationApplied, facts) and desired(cluster, namespace, "chat-l4") == 4
    kubelet.forget()
    await operation.settled("chat", H100=2, L4=4)
    applied = only(ActuationApplied, await operation.plan(chat={"H100": 2}))
    assert [(s.accelerator, s.replicas) for s in applied.scaled] == [("H100", 2), ("L4", 0)]
    await operation.settled("chat", H100=2)


async def test_a_move_that_does_not_become_ready_is_taken_back_with_the_reason(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "L4", replicas=4))
    # A card more than the largest node has.
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=0, cards=9))
    operation = operate("chat")
    await operation.settled("chat", L4=4)
    await operation.plan(chat={"H100": 1})
    await operation.until("chat", lambda v: v["H100"].desired == 1)
    failed = await overdue(operation, "chat", {"H100": 1})
    assert failed.reason is FailureReason.UNSCHEDULABLE
    assert "0/3 nodes are available" in failed.message and "on H100" in failed.message
    await operation.settled("chat", L4=4)
    assert desired(cluster, namespace, "chat-h100") == 0
    assert operation.outcomes() == {"applied": 2.0, "unschedulable": 1.0}


@pytest.mark.parametrize("why", ["image", "quota", "not_ready"])
async def test_replicas_that_do_not_come_are_given_up_once_with_the_reason(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, operate: Operate, why: str
) -> None:
    if why == "quota":
        quota = {"hard": {f"requests.{GPU}": "1"}}
        meta = {"name": "cards", "namespace": namespace}
        made = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": quota}
        cluster.admin.create(made)
        path = f"/api/v1/namespaces/{namespace}/resourcequotas/cards"
        wait_for(cluster, path, lambda item: "hard" in item.get("status", {}))
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    await operation.settled("chat", H100=1)
    if why != "quota":
        kubelet.behave("chat", Behaviour.NO_IMAGE if why == "image" else Behaviour.SLOW)
    await operation.plan(chat={"H100": 2})
    await operation.until("chat", lambda v: v["H100"].desired == 2)
    failed = await overdue(operation, "chat", {"H100": 2})
    words = {"image": "ImagePullBackOff", "quota": "exceeded quota: cards", "not_ready": "no reason"}
    assert failed.reason is FailureReason(why) and words[why] in failed.message
    again = await operation.plan(chat={"H100": 2})
    assert none(ActuationFailed, again)
    assert operation.outcomes() == {"applied": 1.0, why: 1.0}


async def overdue(operation: Operation, server: str, target: dict[str, int]) -> ActuationFailed:
    """The failure that is published once replicas are pending for too long."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        facts = await operation.plan(**{server: target})
        if not none(ActuationFailed, facts):
            return only(ActuationFailed, facts)
        await operation.host.sleep_until(time.time() + 0.2)
    raise AssertionError("nothing was given up")


async def test_a_person_who_changes_the_replicas_is_seen_and_not_overwritten(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    await operation.settled("chat", H100=1)
    await operation.plan(chat={"H100": 2})
    await operation.settled("chat", H100=2)
    set_by_hand(cluster, namespace, "chat-h100", 3)
    await operation.settled("chat", H100=3)
    # The rule leaves our own write half a second to be seen.
    await operation.host.sleep_until(time.time() + 0.6)
    facts = await operation.plan(chat={"H100": 4})
    decision, alert = only(DecisionMade, facts), only(AlertRaised, facts)
    assert (decision.verdict, decision.rule) == (Verdict.REJECT, "ownership")
    assert (alert.kind, alert.subject, alert.resolved) == (AlertKind.FOREIGN_WRITER, "chat", False)
    assert "3×H100 where 2×H100 was written" in alert.message
    assert none(ActuationApplied, facts) and desired(cluster, namespace, "chat-h100") == 3
    counted = operation.host.metrics.decisions.labels("reject", "ownership")
    assert counted._value.get() == 1


async def test_a_change_between_the_view_and_the_write_is_a_conflict_and_stands(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    seen = await operation.settled("chat", H100=1)
    set_by_hand(cluster, namespace, "chat-h100", 3)
    failed = only(ActuationFailed, await operation.plan(seen={"chat": seen}, chat={"H100": 2}))
    assert failed.reason is FailureReason.CONFLICT
    assert "another writer set 3 replicas where 1 were seen" in failed.message
    assert desired(cluster, namespace, "chat-h100") == 3
    assert operation.outcomes() == {"conflict": 1.0}


async def test_a_status_that_changes_meanwhile_is_no_conflict(
    cluster: ApiServer, namespace: str, operate: Operate, kubelet: Kubelet
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    seen = await operation.settled("chat", H100=1)
    # Its version is another one by now, its replicas are not.
    cluster.admin.patch(path_of(namespace, "chat-h100"), {"metadata": {"labels": {"touched": "yes"}}})
    assert only(ActuationApplied, await operation.plan(seen={"chat": seen}, chat={"H100": 2})).changed
    assert desired(cluster, namespace, "chat-h100") == 2


async def test_an_autoscaler_owns_what_it_scales_until_it_is_gone(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat-h100"}
    cluster.admin.create(
        {
            "apiVersion": "autoscaling/v1",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "theirs", "namespace": namespace},
            "spec": {"scaleTargetRef": reference, "maxReplicas": 4},
        }
    )
    operation = operate("chat")
    await operation.until("chat", lambda v: "H100" in v and v["H100"].autoscaler is not None)
    facts = await operation.plan(chat={"H100": 2})
    decision, alert = only(DecisionMade, facts), only(AlertRaised, facts)
    assert (decision.verdict, decision.rule) == (Verdict.REJECT, "ownership")
    assert (
        alert.kind is AlertKind.FOREIGN_WRITER and "HorizontalPodAutoscaler theirs on H100" in alert.message
    )
    assert desired(cluster, namespace, "chat-h100") == 1
    cluster.admin.delete(f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers/theirs")
    await operation.until("chat", lambda v: v["H100"].autoscaler is None)
    facts = await operation.plan(chat={"H100": 2})
    assert only(AlertRaised, facts).resolved and only(ActuationApplied, facts).changed
    assert desired(cluster, namespace, "chat-h100") == 2


async def test_a_workload_that_was_deleted_is_not_found_and_the_next_server_is_written(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    for server in ("chat", "draw"):
        cluster.admin.create(variant(namespace, server, "H100"))
    operation = operate("chat", "draw")
    await operation.settled("chat", H100=1)
    await operation.settled("draw", H100=1)
    seen = await operation.inventory()
    cluster.admin.delete(path_of(namespace, "chat-h100"))
    facts = await operation.plan(seen=seen, chat={"H100": 2}, draw={"H100": 2})
    failed, applied = only(ActuationFailed, facts), only(ActuationApplied, facts)
    assert (failed.server, failed.reason) == ("chat", FailureReason.NOT_FOUND)
    assert applied.server == "draw" and desired(cluster, namespace, "draw-h100") == 2
    assert operation.outcomes() == {"not_found": 1.0, "applied": 1.0}


async def test_one_servers_failure_is_an_event_and_does_not_stop_the_next(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    for server in ("chat", "draw"):
        cluster.admin.create(variant(namespace, server, "H100"))
    operation = operate("chat", "draw")
    await operation.settled("chat", H100=1)
    await operation.settled("draw", H100=1)
    facts = await operation.plan(chat={"H100": 1, "L4": 1}, draw={"H100": 2})
    failed, applied = only(ActuationFailed, facts), only(ActuationApplied, facts)
    assert (failed.server, failed.reason) == ("chat", FailureReason.NOT_FOUND)
    assert "no workload is marked as 'chat' on L4; there is: H100" in failed.message
    assert applied.server == "draw" and desired(cluster, namespace, "draw-h100") == 2
    assert operation.outcomes() == {"applied": 1.0, "not_found": 1.0}


async def test_a_credential_that_is_no_longer_good_is_an_event_until_it_is_rotated(
    cluster: ApiServer, namespace: str, reader: Path, roles: None
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    writer = cluster.kubeconfig_file("rotated-writer", cluster.token("stoker", "stoker-actuator"))
    async with Operation(reader, writer, "chat") as operation:
        await operation.settled("chat", H100=1)
        only(ActuationApplied, await operation.plan(chat={"H100": 2}))
        await operation.settled("chat", H100=2)
        accounts = "/api/v1/namespaces/stoker/serviceaccounts"
        account = cluster.admin.get(f"{accounts}/stoker-actuator")
        # The tokens of an account that is deleted end with it, as a token that expires does.
        cluster.admin.delete(f"{accounts}/stoker-actuator")
        stale = cluster.admin.url + "/version", writer.read_text().split("token: ")[1].split()[0]
        until(lambda: _is_refused(cluster, stale[1]), "the end of the token")
        failed = only(ActuationFailed, await operation.plan(chat={"H100": 3}))
        assert failed.reason is FailureReason.UNAUTHORIZED and "HTTP status 401" in failed.message
        assert desired(cluster, namespace, "chat-h100") == 2
        meta = {key: account["metadata"][key] for key in ("name", "namespace")}
        cluster.admin.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        cluster.kubeconfig_file("rotated-writer", cluster.token("stoker", "stoker-actuator"))
        only(ActuationApplied, await operation.plan(chat={"H100": 3}))
        assert operation.outcomes() == {"applied": 2.0, "unauthorized": 1.0}


def _is_refused(cluster: ApiServer, token: str) -> bool:
    try:
        cluster.as_bearer(token).get("/version")
    except Refusal as refusal:
        return refusal.status == 401
    return False


async def test_while_the_api_server_is_away_nothing_is_lost_and_then_it_is_written(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    if not cluster.restarts:
        pytest.skip("the API server is not ours to restart")
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat")
    await operation.settled("chat", H100=1)
    only(ActuationApplied, await operation.plan(chat={"H100": 2}))
    seen = await operation.settled("chat", H100=2)
    cluster.stop()
    try:
        # What was seen just before the server went away is acted upon, in vain.
        failed = only(ActuationFailed, await operation.plan(seen={"chat": seen}, chat={"H100": 3}))
        assert failed.reason is FailureReason.UNREACHABLE
        assert operation.outcomes() == {"applied": 1.0, "unreachable": 1.0}
    finally:
        cluster.start()
    await operation.settled("chat", H100=2)
    deadline_s = time.monotonic() + 40
    while none(ActuationApplied, facts := await operation.plan(chat={"H100": 3})):
        assert time.monotonic() < deadline_s, facts
        await operation.host.sleep_until(time.time() + 0.2)
    await operation.settled("chat", H100=3)


async def test_a_disruption_budget_is_kept_step_by_step(
    cluster: ApiServer, namespace: str, kubelet: Kubelet, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=4))
    operation = operate("chat")
    await operation.settled("chat", H100=4)
    budget = budget_for(cluster, namespace, {"maxUnavailable": 1})
    wait_for(cluster, budget, lambda b: b.get("status", {}).get("disruptionsAllowed") == 1)
    applied = only(ActuationApplied, await operation.plan(chat={"H100": 2}))
    assert [s.replicas for s in applied.scaled] == [3]
    await operation.settled("chat", H100=3)
    wait_for(
        cluster, budget, lambda b: b["status"]["expectedPods"] == 3 and b["status"]["disruptionsAllowed"] == 1
    )
    await operation.host.sleep_until(time.time() + 0.6)
    applied = only(ActuationApplied, await operation.plan(chat={"H100": 2}))
    assert [s.replicas for s in applied.scaled] == [2]
    await operation.settled("chat", H100=2)
    cluster.admin.patch(budget, {"spec": {"maxUnavailable": None, "minAvailable": 2}})
    wait_for(cluster, budget, lambda b: b["status"]["disruptionsAllowed"] == 0)
    failed = only(ActuationFailed, await operation.plan(chat={"H100": 1}))
    assert (
        failed.reason is FailureReason.REFUSED
        and "PodDisruptionBudget keep lets no replica" in failed.message
    )
    assert desired(cluster, namespace, "chat-h100") == 2


def budget_for(cluster: ApiServer, namespace: str, spec: dict[str, Any]) -> str:
    """Make a budget on the pods of the server chat; the path of it."""
    body = {
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep", "namespace": namespace},
        "spec": {"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}} | spec,
    }
    for version in ("policy/v1", "policy/v1beta1"):
        base = f"/apis/{version}/namespaces/{namespace}/poddisruptionbudgets"
        try:
            cluster.admin.post(base, body | {"apiVersion": version})
            return f"{base}/keep"
        except Refusal as refusal:
            if refusal.status != 404:
                raise
    raise AssertionError("the server has no disruption budgets")


async def test_the_pods_that_shall_go_are_marked_before_they_go(
    cluster: ApiServer, namespace: str, operate: Operate, kubelet: Kubelet
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    operation = operate("chat", drain_s=0.5)
    await operation.settled("chat", H100=1)
    (oldest,) = names_of(cluster.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"])
    # Times of creation are whole seconds.
    await operation.host.sleep_until(time.time() + 1.0)
    await operation.plan(chat={"H100": 3})
    await operation.settled("chat", H100=3)
    kubelet.lingering.add("chat")
    began_s = time.monotonic()
    await operation.plan(chat={"H100": 1})
    assert time.monotonic() - began_s >= 0.5
    pods = cluster.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    marked = {
        pod["metadata"]["name"]: pod["metadata"]["labels"].get(DRAINING)
        for pod in pods
        if pod["metadata"].get("annotations", {}).get(DELETION_COST) == "-1"
    }
    assert len(marked) == 2 and oldest not in marked and set(marked.values()) == {"true"}


async def test_pods_that_stay_because_another_writer_came_first_are_not_left_marked(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=3))
    operation = operate("chat", drain_s=1.0)
    await operation.settled("chat", H100=3)

    def marked() -> list[str]:
        pods = cluster.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return names_of(
            pod
            for pod in pods
            if DRAINING in pod["metadata"]["labels"]
            or DELETION_COST in pod["metadata"].get("annotations", {})
        )

    planning = asyncio.create_task(operation.plan(chat={"H100": 1}))
    deadline_s = time.monotonic() + 20
    while len(marked()) < 2:
        assert time.monotonic() < deadline_s
        await operation.host.sleep_until(time.time() + 0.05)
    set_by_hand(cluster, namespace, "chat-h100", 4)
    assert only(ActuationFailed, await planning).reason is FailureReason.CONFLICT
    assert marked() == [] and desired(cluster, namespace, "chat-h100") == 4


async def test_a_budget_that_stops_the_second_variant_leaves_the_step_of_the_first_ours(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    for accelerator in ("H100", "L4"):
        cluster.admin.create(variant(namespace, "chat", accelerator, replicas=3))
    operation = operate("chat")
    await operation.settled("chat", H100=3, L4=3)
    await operation.plan(chat={"H100": 4, "L4": 3})
    await operation.settled("chat", H100=4, L4=3)
    # Of the seven six must stay, whether or not the budget has seen yet that one went.
    budget = budget_for(cluster, namespace, {"minAvailable": 6})
    wait_for(cluster, budget, lambda b: b.get("status", {}).get("disruptionsAllowed") == 1)
    await operation.host.sleep_until(time.time() + 0.6)
    stopped = await operation.plan(chat={"H100": 1, "L4": 1})
    assert only(ActuationFailed, stopped).reason is FailureReason.REFUSED
    left = {name: desired(cluster, namespace, f"chat-{name.lower()}") for name in ("H100", "L4")}
    assert sum(left.values()) == 6
    await operation.settled("chat", **left)
    await operation.host.sleep_until(time.time() + 0.6)
    after = await operation.plan(chat={"H100": 1, "L4": 1})
    assert none(AlertRaised, after) and only(DecisionMade, after).rule != "ownership"


@pytest.mark.parametrize("by", ["annotation", "argument:--max-num-seqs", "configmap:limits/chat", None])
async def test_a_batch_limit_is_set_by_the_mechanism_that_is_named(
    cluster: ApiServer, namespace: str, operate: Operate, by: str | None
) -> None:
    annotations = {} if by is None else {"stoker.dev/max-batch-by": by}
    args = ("--model", "m", "--max-num-seqs", "64")
    cluster.admin.create(variant(namespace, "chat", "H100", annotations=annotations, args=args))
    limits = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "limits", "namespace": namespace}}
    cluster.admin.create(limits | {"data": {"chat": "64", "other": "1"}})
    cluster.admin.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "limits", "namespace": namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "stoker-actuator-proxy-limits",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "stoker-actuator", "namespace": "stoker"}],
        }
    )
    operation = operate("chat")
    await operation.settled("chat", H100=1)
    facts = await operation.plan(max_batch=32, chat={"H100": 1})
    if by is None:
        assert none(ActuationApplied, facts)
    else:
        assert only(ActuationApplied, facts).changed
    made = cluster.admin.get(path_of(namespace, "chat-h100"))
    words = made["spec"]["template"]["spec"]["containers"][0]["args"]
    config = cluster.admin.get(f"/api/v1/namespaces/{namespace}/configmaps/limits")["data"]
    assert words == [*args[:3], "32" if by and by.startswith("argument") else "64"]
    assert config == {"chat": "32" if by and by.startswith("configmap") else "64", "other": "1"}
    if by is None:
        return
    seen = await operation.until("chat", lambda v: v["H100"].max_batch == 32 and v["H100"].ready == 1)
    assert seen.variants[0].desired == 1
    await operation.settled("chat", H100=1)
    assert none(ActuationApplied, await operation.plan(max_batch=32, chat={"H100": 1}))


async def test_a_mechanism_that_cannot_be_used_is_refused_with_what_was_expected(
    cluster: ApiServer, namespace: str, operate: Operate
) -> None:
    for server, by in (("chat", "argument:--no-such"), ("draw", "wish")):
        annotations = {"stoker.dev/max-batch-by": by}
        cluster.admin.create(variant(namespace, server, "H100", annotations=annotations))
    operation = operate("chat", "draw")
    await operation.settled("chat", H100=1)
    await operation.settled("draw", H100=1)
    facts = await operation.plan(max_batch=32, chat={"H100": 1}, draw={"H100": 1})
    failed = {fact.server: fact for fact in facts if isinstance(fact, ActuationFailed)}
    assert {one.reason for one in failed.values()} == {FailureReason.REFUSED}
    assert "no container of it has the argument --no-such" in failed["chat"].message
    assert "'wish': expected annotation, argument:--NAME or configmap:NAME/KEY" in failed["draw"].message
