"""The Prometheus text format, as far as it is read: the series of wanted names, comments skipped.

`prometheus_client.parser` takes 155 ms for a page of 30 replicas, most of it for series that nobody wants.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType

from services.collector.series import Series

_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE = re.compile(r"\\(.)")


class Malformed(ValueError):
    """A page that is not in the text format; names the line."""


def parse(
    text: str, wanted: frozenset[str], sampled_at_s: float, to_clock_s: Callable[[float], float]
) -> list[Series]:
    """Read the series of the wanted names from one page.

    Parameters: sampled_at_s, control time of a sample without a timestamp of its own; to_clock_s maps a
    timestamp's wall time, Unix seconds, to control time. Raises Malformed.
    """
    found: list[Series] = []
    for number, line in enumerate(text.split("\n"), 1):
        head, brace, rest = line.partition("{")
        if brace:
            name = head.strip()
            if name not in wanted:
                continue
            # A label's value may hold a closing brace, what follows the labels may not.
            body, closed, tail = rest.rpartition("}")
            labels = _labels(body) if closed else None
        else:
            name, _, tail = line.strip().partition(" ")
            if name not in wanted:
                continue
            labels = MappingProxyType({})
        if labels is None:
            raise Malformed(f"line {number}: {line[:200]!r} has no readable labels")
        try:
            value, *stamp = [float(part) for part in tail.split()]
            at_s = to_clock_s(stamp[0] / 1000.0) if stamp else sampled_at_s
        except (ValueError, OverflowError):
            raise Malformed(f"line {number}: {line[:200]!r}: expected a number after the labels") from None
        found.append(Series(name, labels, value, at_s))
    return found


@lru_cache(maxsize=65_536)
def _labels(body: str) -> MappingProxyType[str, str] | None:
    labels: dict[str, str] = {}
    at = 0
    while at < len(body):
        match = _LABEL.match(body, at)
        if match is None:
            return None if body[at:].strip(" ,") else MappingProxyType(labels)
        labels[match[1]] = _ESCAPE.sub(_unescape, match[2]) if "\\" in match[2] else match[2]
        at = match.end()
    return MappingProxyType(labels)


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
