"""Which partitions an instance should hold, of what it sees in the records of all. Pure.

Every instance that lives gets an equal share, whoever holds what at the moment: who has more than its share gives
the surplus back, who has less takes what is free. Leases see to it that no partition has two holders meanwhile.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from zlib import crc32

_FORGOTTEN_TERMS = 10


@dataclass(frozen=True)
class Roll:
    """The instances of a service: by name the revision of their last sign of life, and when it was first seen."""

    seen: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def called(self, signs: Mapping[str, int], at_s: float) -> "Roll":
        """The roll with what is read now: the revision of each instance's sign. Times are monotonic seconds."""
        before = self.seen
        return Roll(
            {
                name: before[name] if name in before and before[name][0] == revision else (revision, at_s)
                for name, revision in signs.items()
            }
        )

    def living(self, at_s: float, term_s: float) -> list[str]:
        """The instances that gave a sign within a term, by name."""
        return sorted(name for name, (_, since_s) in self.seen.items() if at_s - since_s < term_s)

    def forgotten(self, at_s: float, term_s: float) -> dict[str, int]:
        """Instances long gone, with the revision of their last sign, so that it can be removed."""
        return {
            name: revision
            for name, (revision, since_s) in self.seen.items()
            if at_s - since_s >= _FORGOTTEN_TERMS * term_s
        }


def share_of(instance: str, living: Collection[str], partitions: int) -> int:
    """How many of the partitions are an instance's, so that all of the living have theirs and none is left."""
    members = sorted({*living, instance})
    each, over = divmod(partitions, len(members))
    return each + (members.index(instance) < over)


def preferred(instance: str, partitions: int) -> list[str]:
    """All partitions in an instance's own order, so that instances do not reach for the same ones."""
    numbers = (str(number) for number in range(partitions))
    return sorted(numbers, key=lambda number: (crc32(f"{instance}/{number}".encode()), number))
