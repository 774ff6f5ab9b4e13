"""New replicas come before old ones go, whatever is held and asked for."""

from gate_cases import ask, hold
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.plan import Allocation
from schemas.telemetry import InventoryObserved, VariantInventory
from services.actuator.gate import Target, total
from services.actuator.surge import differs, surge

MANY = settings(max_examples=150, derandomize=True, deadline=None)
COUNTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys("ABC", st.tuples(st.integers(0, 8), st.integers(0, 8)))
)


def inventory(counts: dict[str, tuple[int, int]]) -> InventoryObserved:
    """An inventory from (ready, pending) by accelerator."""
    return InventoryObserved(
        server="s",
        model="m",
        observed_at_s=0,
        quality="ok",
        variants=tuple(
            VariantInventory(
                accelerator=a, desired=ready + pending, ready=ready, pending=pending, max_batch=64
            )
            for a, (ready, pending) in counts.items()
        ),
    )


def target(counts: dict[str, tuple[int, int]]) -> Target:
    return tuple(Allocation(accelerator=a, replicas=n, max_batch=64) for a, (n, _) in counts.items())


def ready_after(seen: InventoryObserved, written: dict[str, int]) -> int:
    """Replicas that still serve when pending ones are removed first."""
    return sum(min(v.ready, written.get(v.accelerator, v.desired)) for v in seen.variants)


def scales(asked: Target, seen: InventoryObserved) -> dict[str, int]:
    return {scale.accelerator: scale.replicas for scale in surge(asked, seen)}


@MANY
@given(COUNTS, COUNTS)
def test_never_fewer_serve_than_served_before_or_are_asked_for(
    held: dict[str, tuple[int, int]], asked: dict[str, tuple[int, int]]
) -> None:
    seen = inventory(held)
    ready_before = sum(v.ready for v in seen.variants)
    assert ready_after(seen, scales(target(asked), seen)) >= min(ready_before, total(target(asked)))


@MANY
@given(COUNTS, COUNTS)
def test_what_grows_is_written_at_once_and_what_shrinks_never_grows(
    held: dict[str, tuple[int, int]], asked: dict[str, tuple[int, int]]
) -> None:
    seen = inventory(held)
    written, desired = scales(target(asked), seen), {v.accelerator: v.desired for v in seen.variants}
    for allocation in target(asked):
        before = desired.get(allocation.accelerator, 0)
        if allocation.replicas >= before and allocation.replicas:
            assert written[allocation.accelerator] == allocation.replicas
        elif allocation.accelerator in written:
            assert allocation.replicas <= written[allocation.accelerator] <= before


@MANY
@given(COUNTS, COUNTS)
def test_it_ends_at_what_was_asked_for_once_replicas_become_ready(
    held: dict[str, tuple[int, int]], asked: dict[str, tuple[int, int]]
) -> None:
    seen = inventory(held)
    for _ in range(3):
        written = scales(target(asked), seen)
        kept = {v.accelerator: v.desired for v in seen.variants} | written
        seen = inventory({a: (n, 0) for a, n in kept.items()})
    wanted = {a.accelerator: a.replicas for a in target(asked) if a.replicas}
    assert {v.accelerator: v.desired for v in seen.variants if v.desired} == wanted
    assert not differs(surge(target(asked), seen), seen)


@MANY
@given(COUNTS)
def test_nothing_is_written_when_nothing_differs(held: dict[str, tuple[int, int]]) -> None:
    seen = inventory(held)
    asked = tuple(
        Allocation(accelerator=v.accelerator, replicas=v.desired, max_batch=64) for v in seen.variants
    )
    assert not differs(surge(asked, seen), seen)


def test_a_move_keeps_the_old_until_the_new_serve() -> None:
    started = hold(ask(A=2))
    assert scales(ask(B=4), started) == {"A": 2, "B": 4}
    half = hold(ask(A=2, B=4), B=3)
    assert scales(ask(B=4), half) == {"A": 1, "B": 4}
    done = hold(ask(A=2, B=4))
    assert scales(ask(B=4), done) == {"A": 0, "B": 4}


def test_a_move_to_fewer_and_larger_replicas_keeps_the_share_that_is_missing() -> None:
    assert scales(ask(B=2), hold(ask(A=8))) == {"A": 8, "B": 2}
    assert scales(ask(B=2), hold(ask(A=8, B=2), B=1)) == {"A": 4, "B": 2}
    assert scales(ask(B=2), hold(ask(A=8, B=2))) == {"A": 0, "B": 2}


def test_old_replicas_that_do_not_serve_are_not_kept() -> None:
    assert scales(ask(B=4), hold(ask(A=3), A=1)) == {"A": 1, "B": 4}


def test_going_to_nothing_waits_for_nobody() -> None:
    assert scales((), hold(ask(A=3))) == {"A": 0}


def test_another_batch_limit_differs() -> None:
    seen = hold(ask(64, A=3))
    assert differs(surge(ask(32, A=3), seen), seen)
    assert not differs(surge(ask(32, A=0), hold(ask(64, A=0))), hold(ask(64, A=0)))


def test_a_batch_limit_that_cannot_be_set_differs_from_none() -> None:
    seen = hold(ask(64, A=3))
    fixed = seen.model_copy(
        update={"variants": (seen.variants[0].model_copy(update={"batch_settable": False}),)}
    )
    assert not differs(surge(ask(32, A=3), fixed), fixed)
    assert differs(surge(ask(32, A=4), fixed), fixed)
