"""When a predictor saves what: each step's windows as they came, and whole series in turn. Pure.

A whole series has tens of kilobytes, so it is not written for every window. Each step's windows, as the core used
them, are entries of a journal; the servers of entries that have grown old are saved whole, a few in each step, and
an entry is deleted one step after the last of its servers was saved, when that is certain to be stored. To restore
is to load the whole series and to play back the entries in their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

_OLD = 32
"""Entries after which the servers of an entry are saved whole; each server is, once in about as many steps."""
# A control character: no server can be named so.
_PREFIX = "\x1ejournal-"


@dataclass(frozen=True)
class Journal:
    """Where the journal stands.

    following: number of the next entry; entries: by number, oldest first, the end of the newest window of each
    of its servers that is not yet saved whole; covered: entries that are to be deleted in the next step.
    """

    following: int = 0
    entries: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    covered: tuple[int, ...] = ()


@dataclass(frozen=True)
class Due:
    """What has to be stored: a key for each new entry, keys to delete, and servers to save whole."""

    new: tuple[str, ...]
    delete: tuple[str, ...]
    whole: tuple[str, ...]


def key_of(number: int) -> str:
    """The key of an entry."""
    return f"{_PREFIX}{number}"


def number_of(key: str) -> int | None:
    """The number behind a key, nothing for a server's; raises ValueError for one that no entry has."""
    return int(key.removeprefix(_PREFIX)) if key.startswith(_PREFIX) else None


def written(journal: Journal, chunks: Sequence[Mapping[str, float]]) -> tuple[Journal, Due]:
    """The journal with more entries, and what that makes due.

    Parameters: chunks, for each new entry the end of the newest window of every server in it, Unix seconds.
    """
    numbers = range(journal.following, journal.following + len(chunks))
    entries = {**journal.entries, **dict(zip(numbers, chunks, strict=True))}
    servers = len({name for entry in entries.values() for name in entry})
    most, whole = ceil(servers / _OLD), dict[str, None]()
    for number in [n for n in entries if n <= numbers.stop - 1 - _OLD]:
        whole |= dict.fromkeys(list(entries[number])[: max(0, most - len(whole))])
        if len(whole) >= most:
            break
    if whole:
        entries = {n: {s: e for s, e in entry.items() if s not in whole} for n, entry in entries.items()}
    covered = tuple(n for n, entry in entries.items() if not entry)
    left = {n: entry for n, entry in entries.items() if entry}
    due = Due(tuple(map(key_of, numbers)), tuple(map(key_of, journal.covered)), tuple(whole))
    return Journal(numbers.stop, left, covered), due
