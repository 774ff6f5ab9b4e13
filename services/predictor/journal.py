"""When a predictor saves what: each step's windows as they came, and whole series in turn. Pure.

A whole series has tens of kilobytes, so it is not written for every window. Each step's windows, as the core used
them, are entries of a journal; for so many windows one server is saved whole, those of the oldest entry first, and
an entry is deleted one step after the last of its servers was saved, when that is certain to be stored. To restore
is to load the whole series and to play back the entries in their order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

_WINDOWS_PER_WHOLE = 32
"""Windows for which one server is saved whole; entries hold at most about as many of each server."""
_MOST_ENTRIES = 1024
"""Entries beyond which the oldest is done with in a few steps, however few windows they hold."""
# A control character: no server can be named so.
_PREFIX = "\x1ejournal-"


@dataclass(frozen=True)
class Journal:
    """Where the journal stands.

    following: number of the next entry; entries: servers by number, oldest first; whole: by server the newest entry
    that it was saved whole after; owed: whole servers to save, a fraction of one; covered: entries that are to be
    deleted in the next step.
    """

    following: int = 0
    entries: Mapping[int, Collection[str]] = field(default_factory=dict)
    whole: Mapping[str, int] = field(default_factory=dict)
    owed: float = 0.0
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


def restored(entries: Mapping[int, Mapping[str, float]], saved: Mapping[str, float]) -> Journal:
    """The journal of what is stored.

    Parameters: entries, by number the end of the newest window of every server in it; saved, the end of the newest
    window of every server that is stored whole; Unix seconds.
    """
    numbers, whole = sorted(entries), dict[str, int]()
    for number in numbers:
        whole |= {name: number for name, end_s in entries[number].items() if end_s <= saved.get(name, -1.0)}
    return Journal(max(numbers, default=-1) + 1, {n: tuple(entries[n]) for n in numbers}, whole)


def written(journal: Journal, chunks: Sequence[Collection[str]]) -> tuple[Journal, Due]:
    """The journal with more entries, and what that makes due.

    Parameters: chunks, the servers of each new entry.
    """
    numbers = range(journal.following, journal.following + len(chunks))
    entries = {**journal.entries, **dict(zip(numbers, map(tuple, chunks), strict=True))}
    owed = journal.owed + sum(map(len, chunks)) / _WINDOWS_PER_WHOLE
    if len(entries) > _MOST_ENTRIES:
        owed = max(owed, float(ceil(len(entries[min(entries)]) / _WINDOWS_PER_WHOLE)))
    saved, whole = dict(journal.whole), list[str]()
    covered = []
    for number, servers in entries.items():
        left = [name for name in servers if saved.get(name, -1) < number]
        now = left[: int(owed) - len(whole)]
        whole += now
        # What is saved in this step holds all windows up to the newest entry.
        saved |= dict.fromkeys(now, numbers.stop - 1)
        if len(now) < len(left):
            break
        covered.append(number)
    entries = {n: servers for n, servers in entries.items() if n not in covered}
    due = Due(tuple(map(key_of, numbers)), tuple(map(key_of, journal.covered)), tuple(whole))
    return Journal(numbers.stop, entries, saved, owed - len(whole), tuple(covered)), due
