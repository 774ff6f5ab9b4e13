"""Shares of the partitions are equal, whole and stable, and the silent are found out."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.shares import Roll, preferred, share_of

NAMES = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=80)
TERM_S = 10.0


@given(NAMES, st.integers(1, 200))
def test_the_shares_of_all_instances_are_all_partitions_and_differ_by_one_at_most(
    instances: set[str], partitions: int
):
    shares = [share_of(name, instances, partitions) for name in instances]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(NAMES, st.text("xyz", min_size=1))
def test_an_instance_that_nobody_has_seen_yet_counts_itself(instances: set[str], newcomer: str):
    assert share_of(newcomer, instances, 64) == share_of(newcomer, {*instances, newcomer}, 64)


def test_an_instance_alone_has_everything():
    assert share_of("one", [], 64) == 64


def test_instances_reach_for_different_partitions_and_each_for_all_of_them_in_the_end():
    orders = [preferred(f"instance-{i}", 64) for i in range(3)]
    assert all(sorted(order, key=int) == [str(n) for n in range(64)] for order in orders)
    assert len({tuple(order[:8]) for order in orders}) == 3


def test_an_instance_whose_sign_does_not_change_for_a_term_is_not_living_and_is_forgotten_after_ten():
    roll = Roll().called({"a": 1, "b": 2}, 0.0)
    roll = roll.called({"a": 3, "b": 2}, 9.0)
    assert roll.living(9.0, TERM_S) == ["a", "b"]
    roll = roll.called({"a": 4, "b": 2}, 10.0)
    assert roll.living(10.0, TERM_S) == ["a"]
    assert roll.forgotten(99.0, TERM_S) == {}
    roll = roll.called({"a": 5, "b": 2}, 100.0)
    assert roll.forgotten(100.0, TERM_S) == {"b": 2}
    assert roll.living(100.0, TERM_S) == ["a"]


def test_an_instance_that_speaks_again_lives_again_and_one_whose_record_is_gone_is_gone():
    roll = Roll().called({"a": 1}, 0.0).called({"a": 1}, 20.0)
    assert roll.living(20.0, TERM_S) == []
    assert roll.called({"a": 2}, 21.0).living(21.0, TERM_S) == ["a"]
    assert roll.called({}, 21.0).living(21.0, TERM_S) == []
