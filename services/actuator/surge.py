"""From a target to what is written now: new replicas come before old ones go. Pure."""

from collections.abc import Sequence
from math import ceil

from schemas.actuation import VariantScale
from schemas.plan import Allocation
from schemas.telemetry import InventoryObserved


def surge(target: Sequence[Allocation], inventory: InventoryObserved) -> tuple[VariantScale, ...]:
    """The scales of every variant that a server has or shall have, in the order of their names.

    A variant that grows is written at once. One that shrinks or is left keeps its replicas until the ready
    replicas of the target, without those, are as many as asked for: what is missing there is kept here, and the
    same share of what goes where the new replicas are fewer and larger.
    """
    wanted = {a.accelerator: a for a in target if a.replicas}
    held = {v.accelerator: v for v in inventory.variants}
    missing = sum(
        max(0, a.replicas - held[name].ready) if name in held else a.replicas for name, a in wanted.items()
    )
    asked = sum(a.replicas for a in wanted.values())
    going = sum(
        max(0, v.desired - (wanted[name].replicas if name in wanted else 0)) for name, v in held.items()
    )
    keeping = max(missing, ceil(going * missing / asked)) if asked else 0
    scales = []
    for name in sorted(wanted.keys() | held.keys()):
        ask, have = wanted.get(name), held.get(name)
        replicas = ask.replicas if ask else 0
        if have is not None and have.desired > replicas and keeping:
            keep = min(have.desired - replicas, keeping)
            # Only replicas that serve can stand in for those that are still coming.
            keep = min(keep, max(0, have.ready - replicas))
            keeping -= keep
            replicas += keep
        if ask is None and have is not None and not have.desired and not replicas:
            continue
        scales.append(
            VariantScale(accelerator=name, replicas=replicas, max_batch=ask.max_batch if ask else None)
        )
    return tuple(scales)


def differs(scales: Sequence[VariantScale], inventory: InventoryObserved) -> bool:
    """Whether writing the scales would change anything."""
    held = {v.accelerator: v for v in inventory.variants}
    for scale in scales:
        have = held.get(scale.accelerator)
        if have is None or have.desired != scale.replicas:
            if have is not None or scale.replicas:
                return True
        elif scale.max_batch not in (None, have.max_batch) and have.batch_settable and scale.replicas:
            return True
    return False
