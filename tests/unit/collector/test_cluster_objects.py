"""How a cluster's objects are read, where a real server would need parts that the tests do not have."""

from typing import Any

import pytest

from services.cluster.workloads import AcceleratorNames, argument_of, kind_of, read_workload, selects
from services.collector.cluster_inventory import inventory_of, quotas_of
from services.collector.cluster_objects import Pod, read_node, read_pod, read_quota, seconds
from services.collector.source import QuotaReading, ReplicaState
from services.collector.sources.kubernetes import _first_ready_s

NAMES = AcceleratorNames(type_names={"NVIDIA-H100-80GB-HBM3": "H100"})


def deployment(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    meta = {"name": "d", "namespace": "n", "resourceVersion": "7", "annotations": annotations}
    return {"kind": "Deployment", "metadata": meta, "spec": spec, "status": {}}


def pod(**changes: Any) -> dict[str, Any]:
    meta = {"name": "p", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta | changes.pop("metadata", {}), "spec": {}, "status": {}} | changes


def test_the_type_of_a_node_is_translated_to_the_name_that_the_fleet_declares() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    item = {
        "metadata": {"name": "x", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
        "spec": {},
        "status": {"allocatable": {"nvidia.com/gpu": "8", "cpu": "96"}, "conditions": ready},
    }
    found = read_node(item, NAMES)
    assert found is not None and (found.type, found.cards, found.open) == ("H100", 8, True)
    item["status"]["allocatable"] = {"cpu": "96"}
    assert read_node(item, NAMES) is None


@pytest.mark.parametrize("amount", ["-1", "", "0.5", "500m", "9" * 5000])
def test_an_amount_of_cards_that_is_no_whole_number_counts_nothing(amount: str) -> None:
    assert NAMES.cards({"nvidia.com/gpu": amount}) == 0


@pytest.mark.parametrize(
    ("amount", "cards"), [("8", 8), ("1k", 1000), ("1500", 1500), ("2Ki", 2048), ("1M", 10**6)]
)
def test_thousands_of_cards_are_read_as_the_platform_writes_them(amount: str, cards: int) -> None:
    counts = {"requests.nvidia.com/gpu": amount}
    item = {"metadata": {"name": "q", "namespace": "n"}, "status": {"hard": counts, "used": counts}}
    found = read_quota(item, NAMES)
    assert found is not None and (found.cards, found.used) == (cards, cards)


MARKS = {"stoker.dev/server": "s", "stoker.dev/accelerator": "A"}


@pytest.mark.parametrize(
    ("text", "limit"),
    [("64", 64), ("064", 64), ("1000000", 10**6), ("1000001", None), ("0", None), ("9" * 5000, None)],
)
def test_a_batch_limit_is_read_where_it_is_one_and_nothing_that_people_write_ends_the_reading(
    text: str, limit: int | None
) -> None:
    found = read_workload(deployment(MARKS | {"stoker.dev/max-batch": text}), NAMES)
    assert found is not None and found.max_batch == limit


def test_a_failure_that_does_not_say_since_when_is_left_out() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}
    item = deployment(MARKS)
    for since, trouble in ((None, None), ("2026-01-01T00:00:00Z", "FailedCreate: quota")):
        item["status"] = {"conditions": [failure | {"lastTransitionTime": since}]}
        found = read_workload(item, NAMES)
        assert found is not None and (found.trouble and found.trouble[0]) == trouble


def test_a_pod_was_first_ready_when_it_was_and_not_when_one_of_its_name_before_it_was() -> None:
    def seen(created: str, ready: str | None) -> Pod:
        conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": f"2026-01-01T{ready}Z"}]
        meta = {"creationTimestamp": f"2026-01-01T{created}Z"}
        found = read_pod(pod(metadata=meta, status={"conditions": conditions if ready else []}), NAMES)
        assert found is not None
        return found

    key, first_s = ("n", "p"), dict[tuple[str, str], float]()
    told = []
    for created, ready in (
        ("00:00:00", "00:01:00"),
        ("00:00:00", None),
        ("00:00:00", "00:09:00"),
        ("00:10:00", None),
        ("00:10:00", "00:12:00"),
    ):
        first_s = _first_ready_s(first_s, {key: seen(created, ready)})
        told.append(first_s.get(key))
    began_s = seconds("2026-01-01T00:00:00Z")
    assert [None if at is None else at - began_s for at in told] == [60, 60, 60, None, 720]


def test_a_pod_that_has_ended_holds_nothing_and_a_worker_of_a_group_is_no_replica() -> None:
    assert read_pod(pod(status={"phase": "Succeeded"}), NAMES) is None
    labels = {"leaderworkerset.sigs.k8s.io/name": "g", "leaderworkerset.sigs.k8s.io/worker-index": "1"}
    worker = read_pod(pod(metadata={"labels": labels}), NAMES)
    assert worker is not None
    assert (worker.owner, worker.counts) == (("LeaderWorkerSet", "g"), False)


def test_a_pod_that_ends_says_so_whatever_else_it_is() -> None:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}]
    ends = {"deletionTimestamp": "2026-01-01T00:02:00Z"}
    found = read_pod(pod(metadata=ends, status={"conditions": conditions}), NAMES)
    assert found is not None and found.state is ReplicaState.TERMINATING


def test_a_pod_of_a_stateful_set_belongs_to_it() -> None:
    owner = {"kind": "StatefulSet", "name": "s", "controller": True}
    found = read_pod(pod(metadata={"ownerReferences": [owner]}), NAMES)
    assert found is not None and found.owner == ("StatefulSet", "s")


def test_a_quota_on_other_things_is_none_on_cards() -> None:
    meta = {"name": "q", "namespace": "n"}
    assert (
        read_quota({"metadata": meta, "status": {"hard": {"cpu": "4"}, "used": {"cpu": "1"}}}, NAMES) is None
    )


def quota(name: str, namespace: str = "n", **spec: Any) -> dict[str, Any]:
    counts = {"hard": {"requests.nvidia.com/gpu": "8"}, "used": {"requests.nvidia.com/gpu": "5"}}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec, "status": counts}


def test_a_variant_counts_against_the_quotas_of_its_namespace_that_count_every_pod() -> None:
    workload = read_workload(deployment({"stoker.dev/server": "s", "stoker.dev/accelerator": "A"}), NAMES)
    items = (
        quota("every"),
        quota("best-effort", scopes=["BestEffort"]),
        quota("urgent", scopeSelector={"matchExpressions": [{"scopeName": "PriorityClass"}]}),
        quota("other", "elsewhere"),
    )
    quotas = [found for item in items if (found := read_quota(item, NAMES)) is not None]
    assert workload is not None and len(quotas) == 4
    ((server,), _) = inventory_of([workload], (), (), quotas, lambda wall_s: wall_s, 0.0)
    assert server.variants[0].quotas == ("n/every",)


def test_what_others_use_of_a_quota_is_what_no_marked_workload_has_pods_for() -> None:
    marked = read_workload(
        deployment({"stoker.dev/server": "s", "stoker.dev/accelerator": "A"}, replicas=9), NAMES
    )
    limited = read_quota(quota("q"), NAMES)
    asks = {"containers": [{"resources": {"requests": {"nvidia.com/gpu": "3"}}}]}
    owners = [{"kind": "ReplicaSet", "name": f"{name}-1", "controller": True} for name in ("d", "stranger")]
    pods = [
        read_pod(
            pod(spec=asks, metadata={"labels": {"pod-template-hash": "1"}, "ownerReferences": [o]}), NAMES
        )
        for o in owners
    ]
    assert marked is not None and limited is not None and pods[0] is not None and pods[1] is not None
    assert quotas_of([limited], [marked], [pods[0], pods[1]]) == (QuotaReading("n/q", 8, 5, 2),)
    assert quotas_of([limited], [], [pods[0]]) == (QuotaReading("n/q", 8, 5, 5),)
    assert quotas_of([limited], [marked], [pods[0]] * 2) == (QuotaReading("n/q", 8, 5, 0),)


def test_a_server_with_a_paused_variant_is_paused() -> None:
    marks = {"stoker.dev/server": "s", "stoker.dev/accelerator": "A"}
    for paused in (False, True):
        item = deployment(marks | ({"stoker.dev/paused": "true"} if paused else {}), replicas=2)
        workload = read_workload(item, NAMES)
        assert workload is not None
        ((server,), problems) = inventory_of([workload], (), (), (), lambda wall_s: wall_s, 0.0)
        assert server.paused is paused and not problems
        assert (server.variants[0].desired, server.variants[0].ready, server.variants[0].pending) == (2, 0, 2)


def test_a_workload_without_marks_or_without_a_known_accelerator_is_no_servers() -> None:
    assert read_workload(deployment({}), NAMES) is None
    assert read_workload(deployment({"stoker.dev/server": "s"}), NAMES) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--n", "4"], "4"), (["--n=4"], "4"), (["--n"], None), (["--nn=4"], None), ([], None)],
)
def test_an_argument_is_one_word_or_two(words: list[str], expected: str | None) -> None:
    assert argument_of([{"args": words}], "--n") == expected
    assert argument_of([{}, {"command": words}], "--n") == expected


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors_select_as_the_platform_says(selector: dict[str, Any], matches: bool) -> None:
    assert selects(selector, {"a": "1"}) is matches


@pytest.mark.parametrize("text", ["deployments", "apps/deployments", "apps/v1/", "a/b/c/d"])
def test_a_workload_that_is_no_resource_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected group/version/plural"):
        kind_of(text)
