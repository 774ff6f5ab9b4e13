"""Marks for the workloads that Servers name: what is given, what is left alone, and what is taken away."""

from collections.abc import Mapping
from typing import Any

import pytest
from declared_objects import server
from hypothesis import given
from hypothesis import strategies as st

from services.cluster.workloads import ACCELERATOR, MARKED, SERVER, AcceleratorNames, kind_of, read_workload
from services.operator.resources import Resource
from services.operator.scale_targets import Candidate, Marking, mark, read_candidate

NAMES, DEPLOYMENTS = AcceleratorNames(), kind_of("apps/v1/deployments")
FOLLOWED = ("apps/v1/deployments",)
BOTH = {SERVER: "chat", ACCELERATOR: "H100", MARKED: f"{ACCELERATOR},{SERVER}"}


def workload(
    name: str = "engine",
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """A Deployment as the API server has it; kind is the type of its one card, where a node selector says it."""
    card = {"resources": {"requests": {"nvidia.com/gpu": "1"}}}
    selector = {} if kind is None else {"nvidia.com/gpu.product": kind}
    meta = {"namespace": "n", "name": name, "resourceVersion": "7"}
    return {
        "kind": "Deployment",
        "metadata": {**meta, "annotations": dict(annotations or {}), "labels": dict(labels or {})},
        "spec": {"replicas": 1, "template": {"spec": {"nodeSelector": selector, "containers": [card]}}},
    }


def read(item: dict[str, Any]) -> Candidate:
    return read_candidate(item, DEPLOYMENTS, NAMES)


def named(target: str = "engine", name: str = "chat", about: Any = None, **ref: str) -> Resource:
    return server(name, about=about, scaleTargetRef={"kind": "Deployment", "name": target, **ref})


def marking(servers: list[Resource], *items: dict[str, Any]) -> Marking:
    return mark(servers, ("H100", "L4"), [read(item) for item in items], FOLLOWED)


def written(item: dict[str, Any], found: Marking) -> dict[str, Any]:
    """The workload after what is to be written to it, which is a merge patch."""
    (path,) = {read(item).path}
    meta = item["metadata"]
    annotations = dict(meta["annotations"])
    for change in found.changes:
        if change.path == path:
            annotations |= change.annotations
    kept = {key: value for key, value in annotations.items() if value is not None}
    return {**item, "metadata": {**meta, "annotations": kept}}


def test_a_workload_without_marks_is_one_that_collector_and_actuator_know_afterwards() -> None:
    bare = workload()
    assert read_workload(bare, NAMES) is None
    found = marking([named()], bare)
    assert found.remarks == {}
    (change,) = found.changes
    assert (change.annotations, change.resource_version) == (BOTH, "7")
    assert change.path == "/apis/apps/v1/namespaces/n/deployments/engine"
    seen = read_workload(written(bare, found), NAMES)
    assert seen is not None and (seen.server, seen.accelerator) == ("chat", "H100")


def test_what_a_workload_says_itself_is_not_said_again() -> None:
    by_selector = marking([named()], workload(kind="L4"))
    assert [change.annotations for change in by_selector.changes] == [{SERVER: "chat", MARKED: SERVER}]
    by_label = marking([named()], workload(labels={ACCELERATOR: "L4", SERVER: "chat"}))
    assert by_label == Marking((), {})


@pytest.mark.parametrize(
    ("servers", "item", "text"),
    [
        (
            [named("absent")],
            workload(),
            "there is no Deployment 'absent' in namespace n; followed are: apps/v1",
        ),
        ([named(apiVersion="other/v1")], workload(), "there is no other/v1 Deployment 'engine'"),
        ([named(kind="StatefulSet")], workload(), "there is no StatefulSet 'engine'"),
        ([named()], workload(labels={SERVER: "else"}), "says that it is of server 'else', which holds"),
        (
            [named()],
            workload(annotations={"llm-d.ai/managed": "true", "llm-d.ai/model-id": "else"}),
            "says that it is of server 'else'",
        ),
    ],
    ids=["absent", "of another group", "of another kind", "marked by people", "marked by another system"],
)
def test_a_target_that_is_not_to_be_had_is_left_alone_and_said(
    servers: list[Resource], item: dict[str, Any], text: str
) -> None:
    found = marking(servers, item)
    assert found.changes == ()
    assert text in found.remarks[servers[0].key]
    assert found.remarks[servers[0].key].startswith("spec.scaleTargetRef: ")


def test_the_version_of_the_group_does_not_matter() -> None:
    assert marking([named(apiVersion="apps/v1beta2")], workload()).changes


def test_of_two_servers_that_name_one_workload_the_elder_has_it() -> None:
    young = named(name="young", about={"created": "2026-11-25T00:00:00Z"})
    found = marking([young, named()], workload())
    assert [change.annotations[SERVER] for change in found.changes] == ["chat"]
    assert "is the target of Server n/chat already" in found.remarks[young.key]


def test_an_accelerator_that_is_not_declared_is_said_and_the_server_marked_all_the_same() -> None:
    found = marking([named()], workload(kind="B200"))
    assert [change.annotations for change in found.changes] == [{SERVER: "chat", MARKED: SERVER}]
    assert "is on accelerator 'B200', but there is no usable Accelerator" in found.remarks[named().key]
    assert "there is: H100, L4" in found.remarks[named().key]


def test_marks_go_with_the_reference_and_what_people_wrote_stays() -> None:
    marked = workload(annotations={**BOTH, "owner": "people"})
    gone = dict.fromkeys(BOTH)
    for servers in ([], [server("chat")], [named("other")]):
        found = marking(servers, marked)
        assert [change.annotations for change in found.changes] == [gone]
        assert written(marked, found)["metadata"]["annotations"] == {"owner": "people"}


def test_a_mark_of_people_that_was_there_before_is_not_taken_away() -> None:
    # The accelerator is theirs: the list of what was given does not have it.
    marked = workload(annotations={SERVER: "chat", MARKED: SERVER, ACCELERATOR: "L4"})
    (change,) = marking([], marked).changes
    assert change.annotations == {SERVER: None, MARKED: None}


def test_a_workload_changes_hands() -> None:
    marked = workload(annotations=BOTH)
    (change,) = marking([named(name="heir")], marked).changes
    assert change.annotations == {SERVER: "heir"}


WORKLOADS = st.builds(
    workload,
    name=st.sampled_from(["w1", "w2"]),
    annotations=st.dictionaries(
        st.sampled_from([SERVER, ACCELERATOR, "owner"]), st.sampled_from(["s1", "s2", "L4"])
    ),
    kind=st.sampled_from([None, "H100", "B200"]),
)


@given(
    st.lists(st.tuples(st.sampled_from(["w1", "w2", "w3"]), st.sampled_from(["s1", "s2"])), max_size=3),
    st.lists(WORKLOADS, max_size=2, unique_by=lambda item: item["metadata"]["name"]),
)
def test_marks_settle_in_one_step_and_undo_themselves_without_a_trace(
    references: list[tuple[str, str]], items: list[dict[str, Any]]
) -> None:
    servers = [named(target, name) for target, name in references]
    first = marking(servers, *items)
    after = [written(item, first) for item in items]
    assert marking(servers, *after).changes == ()
    assert marking(servers, *after).remarks == first.remarks
    assert [written(item, marking([], *after)) for item in after] == items
    for item, then in zip(items, after, strict=True):
        before = item["metadata"]["annotations"]
        assert before.items() <= then["metadata"]["annotations"].items()
