"""The fleet that custom resources declare: units, spellings, references, and what becomes of the rest."""

import random
from typing import Any

import pytest
from declared_objects import (
    KINDS,
    NOW_S,
    accelerator,
    fleet,
    model,
    optimizer,
    resource,
    resources,
    server,
    service_class,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.fleet import FleetDeclared, SaturationPolicy
from services.operator.declaration import Declaration, declare, period_s, wants_once
from services.operator.resources import Resource


def said(declaration: Declaration, one: Resource) -> str:
    return declaration.problems[one.key].message


def test_figures_come_over_in_si_units_and_whole_cost() -> None:
    power = {"idle": 50, "full": 700, "midPower": 400, "midUtil": 0.6}
    h100 = accelerator(multiplicity=2, memSize=80, memBW=3350, power=power)
    chat = server(minReplicas=2, maxReplicas=5, maxBatchSize=32, maxQueueSize=7, keepAccelerator=True)
    cards = resource("Capacity", "cards", {"count": [{"type": "H100", "count": 12}]})
    made = declare([h100, model(), service_class(), chat, cards, optimizer(periodSeconds=30)], NOW_S).fleet
    (card,), (profile,), (objective,), (one,) = (
        made.accelerators,
        made.models[0].profiles,
        made.service_classes[0].objectives,
        made.servers,
    )
    assert (card.cost_per_hour, card.multiplicity) == (4.0, 2)
    # 80 GB are 80e9 bytes.
    assert card.memory_gib == pytest.approx(80e9 / 2**30, rel=1e-12)
    assert card.power is not None
    assert (card.power.idle_w, card.power.mid_w, card.power.mid_utilisation_share) == (50, 400, 0.6)
    assert profile.parameters is not None
    wanted = {"alpha_s": 0.008, "beta_s": 1.6e-5, "gamma_s": 5e-7}
    assert profile.parameters.values == pytest.approx(wanted, rel=1e-12)
    assert (profile.max_batch, profile.at_tokens) == (64, 256)
    assert (objective.itl_s, objective.ttft_s, objective.tokens_per_s) == (0.06, 1.0, None)
    assert (one.min_replicas, one.max_replicas, one.max_batch, one.max_queue) == (2, 5, 32, 7)
    assert (one.nominal_rate_rps, one.nominal_input_tokens, one.nominal_output_tokens) == (4.0, 512, 256)
    assert one.keep_accelerator and not one.paused
    assert [(c.type, c.count) for c in made.capacity] == [("H100", 12)]
    assert made.declared_at_s == NOW_S


def test_the_older_spelling_declares_the_same_fleet() -> None:
    older_row = {"acc": "H100", "accCount": 1, "alpha": 8.0, "beta": 0.016, "gamma": 0.0005}
    older = model(data=[{**older_row, "maxBatchSize": 64, "atTokens": 256}])
    slower = service_class(data=[{"model": "granite", "slo-itl": 60, "slo-ttw": 1000}])
    load = {"arrivalRate": 240, "avgLength": 256}
    chat = server(currentAlloc={"accelerator": "H100", "numReplicas": 1, "load": load})
    made = declare([accelerator(), older, slower, chat], NOW_S).fleet
    today = declare(fleet(server()), NOW_S).fleet
    assert (made.models, made.service_classes) == (today.models, today.service_classes)
    # The older form has no input length: it is zero there too.
    assert made.servers[0].nominal_output_tokens == today.servers[0].nominal_output_tokens
    assert made.servers[0].nominal_input_tokens == 0


def test_without_a_load_nothing_is_said_of_it() -> None:
    made = declare(fleet(server(currentAlloc={"accelerator": "H100", "numReplicas": 1})), NOW_S).fleet
    (one,) = made.servers
    assert (one.nominal_rate_rps, one.nominal_input_tokens, one.nominal_output_tokens) == (None,) * 3


@pytest.mark.parametrize(
    ("broken", "reason", "text"),
    [
        (server(model="absent"), "ReferenceMissing", "spec.model is 'absent', but there is no usable Model"),
        (server(**{"class": "Tin"}), "ReferenceMissing", "spec.class is 'Tin'"),
        (server(minReplicas=3, maxReplicas=2), "Invalid", "spec.maxReplicas is 2: expected at least"),
        (server(maxReplicas=10**7), "Invalid", "max_replicas is 10000000"),
        (model("new", data=[]), "Invalid", "spec.data is empty"),
        (accelerator("A\n100"), "Invalid", "none of them a control character"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_left_out_with_the_reason(broken: Resource, reason: str, text: str) -> None:
    made = declare(fleet(broken, server("other")), NOW_S)
    assert made.problems[broken.key].reason == reason
    assert text in said(made, broken)
    assert [one.name for one in made.fleet.servers] == ["other"]


def test_what_refers_to_what_cannot_be_used_is_left_out_with_it() -> None:
    gone = model(data=[{**model().spec["data"][0], "acc": "absent"}])
    made = declare([accelerator(), gone, service_class(), server()], NOW_S)
    assert "spec.data[0].acc is 'absent', but there is no usable Accelerator" in said(made, gone)
    assert "there is: H100" in said(made, gone)
    assert "spec.model is 'granite', but there is no usable Model" in said(made, server())
    assert made.fleet.models == made.fleet.servers == ()
    (remark,) = made.remarks[service_class().key]
    assert "spec.data[0].model is 'granite'" in remark


def test_what_is_only_partly_honoured_is_taken_with_a_remark() -> None:
    row = model().spec["data"][0]
    partly = model(data=[row, {**row, "acc": "G2"}])
    chat = server(currentAlloc={"accelerator": "G2", "numReplicas": 1}, **{"class": "Empty"})
    empty = service_class("Empty", data=[])
    made = declare([accelerator(), partly, service_class(), empty, chat], NOW_S)
    assert made.problems == {}
    assert [p.accelerator for p in made.fleet.models[0].profiles] == ["H100"]
    assert "spec.data[1].acc is 'G2'" in made.remarks[partly.key][0]
    assert made.remarks[chat.key][0] == "ServiceClass 'Empty' has no objectives for Model 'granite'"
    assert "spec.currentAlloc.accelerator is 'G2'" in made.remarks[chat.key][1]


def test_of_objects_with_one_name_the_eldest_has_it() -> None:
    young = server(about={"created": "2026-11-25T00:00:00Z", "namespace": "m"})
    made = declare(fleet(young, server()), NOW_S)
    assert made.servers == {"chat": server().key}
    assert made.problems[young.key].reason == "NameTaken"
    assert "Server n/chat has already" in said(made, young)


def test_of_two_that_count_one_type_the_eldest_holds() -> None:
    def cards(name: str, count: int, created: str) -> Resource:
        spec = {"count": [{"type": "H100", "count": count}]}
        return resource("Capacity", name, spec, created=created)

    elder, younger = cards("z", 4, "2026-01-01T00:00:00Z"), cards("a", 9, "2026-01-02T00:00:00Z")
    made = declare(fleet(younger, elder), NOW_S)
    assert [(one.type, one.count) for one in made.fleet.capacity] == [("H100", 4)]
    assert "counted by Capacity n/z already" in made.remarks[younger.key][0]


def test_an_object_that_is_being_deleted_is_no_part_of_the_fleet() -> None:
    made = declare(fleet(server(about={"deleting": True})), NOW_S)
    assert made.fleet.servers == () and made.problems == {}


@pytest.mark.parametrize(
    ("spec", "once", "period", "paused"),
    [
        ({"optimize": False}, False, None, True),
        ({"optimize": True}, True, None, True),
        ({"optimize": True, "periodSeconds": 30}, False, 30.0, False),
        ({"optimize": False, "periodSeconds": 30}, False, None, True),
    ],
)
def test_only_a_period_lets_anybody_act(
    spec: dict[str, Any], once: bool, period: float | None, paused: bool
) -> None:
    asking = optimizer(**spec)
    made = declare(fleet(server(), asking), NOW_S)
    assert made.optimizer == asking
    assert (wants_once(asking), period_s(asking)) == (once, period)
    assert [one.paused for one in made.fleet.servers] == [paused]


def test_a_plan_that_was_had_is_asked_for_again_only_for_another_spec() -> None:
    done = {"done": True, "observedGeneration": 1}
    assert not wants_once(optimizer(about={"status": done}))
    assert wants_once(optimizer(about={"status": done, "generation": 2}))


def test_an_optimizer_that_has_something_to_do_goes_before_one_that_has_not() -> None:
    idle = optimizer(optimize=False)
    asking = resource("Optimizer", "young", {"optimize": True}, created="2026-11-25T00:00:00Z")
    options = {"unlimited": True, "heterogeneous": True, "milpSolver": True, "useCplex": False}
    made = declare(fleet(idle, asking), NOW_S)
    assert made.optimizer == asking
    assert made.problems[idle.key].reason == "Superseded"
    told = optimizer(data={"optimizer": {**options, "saturationPolicy": "RoundRobin"}})
    taken = declare(fleet(told), NOW_S).fleet.optimizer
    assert (taken.solver, taken.unlimited, taken.heterogeneous) == ("milp", True, True)
    assert taken.saturation_policy is SaturationPolicy.ROUND_ROBIN


def test_the_revision_is_of_what_is_declared_and_not_of_when() -> None:
    one, later = declare(fleet(server()), NOW_S).fleet, declare(fleet(server()), NOW_S + 9).fleet
    other = declare(fleet(server(minReplicas=2)), NOW_S).fleet
    assert one.revision == later.revision != other.revision


@given(resources())
@settings(max_examples=80)
def test_whatever_the_api_server_lets_through_makes_a_valid_fleet(found: list[Resource]) -> None:
    made = declare(found, NOW_S)
    FleetDeclared.model_validate(made.fleet.model_dump(mode="json"))
    standing = [one for one in found if not one.deleting]
    assert made.problems.keys() | made.remarks.keys() <= {one.key for one in standing}
    parts = {
        "Accelerator": [one.name for one in made.fleet.accelerators],
        "Model": [one.name for one in made.fleet.models],
        "ServiceClass": [one.name for one in made.fleet.service_classes],
        "Server": [one.name for one in made.fleet.servers],
    }
    for kind, names in parts.items():
        taken = [one.spec["name"] for one in standing if one.kind == kind and one.key not in made.problems]
        assert sorted(names) == sorted(taken)
    assert sorted(made.servers) == sorted(parts["Server"])


@given(resources(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_the_objects_does_not_matter(found: list[Resource], chance: random.Random) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert declare(shuffled, NOW_S) == declare(found, NOW_S)


@st.composite
def strangers(draw: st.DrawFn) -> Resource:
    """An object that is younger than all others and has a name that nobody uses; a Server refers to theirs."""
    kind = draw(st.sampled_from(("Server", "Accelerator", "Model", "ServiceClass")))
    spec = {
        **draw(draw(st.sampled_from(KINDS[1:]))[kind]),
        "name": draw(st.sampled_from(["fresh", "fre\nsh"])),
    }
    if kind == "Server" and draw(st.integers(0, 3)):
        spec |= {"model": "granite", "class": "Gold"}
    return resource(kind, "stranger", spec, created="2026-12-01T00:00:00Z")


@given(resources(), strangers())
@settings(max_examples=100)
def test_an_object_more_takes_no_other_down(found: list[Resource], stranger: Resource) -> None:
    before, after = declare(found, NOW_S), declare([*found, stranger], NOW_S)
    # What there is, which messages list, has grown.
    reasons = {key: one.reason for key, one in after.problems.items() if key != stranger.key}
    assert {key: one.reason for key, one in before.problems.items()} == reasons
    for part in ("accelerators", "models", "service_classes", "servers"):
        kept = [one for one in getattr(after.fleet, part) if one.name != stranger.spec["name"]]
        assert kept == list(getattr(before.fleet, part))
    assert (before.fleet.capacity, before.fleet.optimizer) == (after.fleet.capacity, after.fleet.optimizer)
