"""The checks of the soak and of the scale-out find what they are there to find."""

from collections.abc import Sequence

from benchmarks import accounts
from benchmarks.accounts import Fact
from benchmarks.soak import account_of

SERVERS = ("a", "b")


def said(topic: str, server: str, generation: int, instance: str = "one-1") -> Fact:
    subject = f"stoker.v1.{topic}" + (f".{server}" if server else "")
    return Fact(topic, subject, instance, 0, {"server": server, "generation": generation})


def run_of(generations: Sequence[int]) -> list[Fact]:
    """A run without fault: each generation planned, decided and carried out for every server."""
    found = []
    for generation in generations:
        found += [said("plan.proposed", server, generation) for server in SERVERS]
        found.append(said("plan.issued", "", generation))
        found += [said(t, s, generation) for s in SERVERS for t in ("decision.made", "actuation.applied")]
    return found


def test_a_run_without_fault_has_nothing_to_account_for() -> None:
    account = account_of(run_of([1, 2, 3]), SERVERS, parked=0)
    assert (account.generations, account.decisions, account.actuations) == (3, 6, 6)
    assert (account.partly, account.behind, account.out_of_order, account.parked) == (0, 0, 0, 0)
    assert (account.repeated_decisions, account.repeated_actuations) == (0, 0)


def test_a_second_decision_and_a_second_actuation_of_one_generation_are_found() -> None:
    again = [said("decision.made", "a", 2), said("actuation.applied", "b", 2)]
    account = account_of(run_of([1, 2]) + again, SERVERS, parked=0)
    assert (account.repeated_decisions, account.repeated_actuations) == (1, 1)
    assert account.out_of_order == 2


def test_a_server_left_without_a_decision_is_behind_or_its_generation_was_decided_in_part() -> None:
    found = [
        f for f in run_of([1, 2, 3]) if (f.topic, f.body["server"], f.generation) != ("decision.made", "b", 2)
    ]
    assert account_of(found, SERVERS, parked=0).partly == 1
    assert account_of(found, SERVERS, parked=0).behind == 0
    cut = [f for f in found if (f.topic, f.body["server"], f.generation) != ("decision.made", "b", 3)]
    assert account_of(cut, SERVERS, parked=0).behind == 1


def test_a_plan_of_an_old_generation_after_a_newer_one_is_found() -> None:
    late = said("plan.issued", "", 2)
    assert accounts.out_of_order([f for f in run_of([1, 2, 3]) if f.topic == "plan.issued"] + [late]) == [
        late
    ]


def test_a_key_that_goes_back_to_an_instance_was_held_by_two() -> None:
    moved = [said("forecast.issued", "a", 1, one) for one in ("one-1", "one-1", "two-1", "two-1")]
    assert accounts.shared(accounts.turns(moved, lambda f: f.subject)) == []
    back = [*moved, said("forecast.issued", "a", 1, "one-1")]
    assert accounts.shared(accounts.turns(back, lambda f: f.subject)) == ["stoker.v1.forecast.issued.a"]
