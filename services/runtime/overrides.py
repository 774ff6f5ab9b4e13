"""What-if: single fields of a fleet's document overridden by path, for example servers[chat].min_replicas=2."""

import json
import re
from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from typing import Any

_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]+)\]")
_IDENTITY = ("name", "type", "acc", "accelerator", "model")


class OverrideRefused(ValueError):
    """An override that cannot be made; it names the path and what is there."""


def overridden(
    document: Mapping[str, Any], assignments: Sequence[str], optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """A copy of a document of objects and lists with `path=value` assignments made, in their order.

    A step of a path is a key, matched in any case and without underscores, or in brackets an element of a
    list: its index, its name, or its names joined by a slash where one is not enough. A value is JSON, or text
    when it is no JSON.

    optional: keys that may be set although they are absent, in lower case without underscores.
    Raises OverrideRefused.
    """
    changed: dict[str, Any] = deepcopy(dict(document))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise OverrideRefused(f"--set {assignment!r}: expected PATH=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        _assign(changed, path, value, optional)
    return changed


def _assign(document: dict[str, Any], path: str, value: Any, optional: Set[str]) -> None:
    steps = [key or f"[{element}]" for key, element in _STEP.findall(path)]
    if "".join(steps).replace("[", "").replace("]", "") != re.sub(r"[.\[\]]", "", path) or not steps:
        raise OverrideRefused(f"--set {path}: expected keys joined by dots, elements of lists in brackets")
    holder: Any = document
    for step in steps[:-1]:
        holder = holder[_place(holder, step, path, frozenset())]
    place = _place(holder, steps[-1], path, optional)
    holder[place] = value


def _place(holder: Any, step: str, path: str, optional: Set[str]) -> Any:
    if isinstance(holder, list):
        if step.startswith("["):
            return _element(holder, step[1:-1], path)
        raise OverrideRefused(f"--set {path}: {step} is looked for in a list: expected [NAME] or [INDEX]")
    if not isinstance(holder, dict):
        raise OverrideRefused(f"--set {path}: there is nothing below {holder!r} to set {step} in")
    wanted = _plain(step.strip("[]"))
    for key in holder:
        if _plain(key) == wanted:
            return key
    if wanted in optional:
        return wanted
    raise OverrideRefused(
        f"--set {path}: {step} is not there: expected one of {', '.join(map(str, holder)) or 'nothing'}"
    )


def _element(holder: list[Any], wanted: str, path: str) -> int:
    if wanted.isdigit() and int(wanted) < len(holder):
        return int(wanted)
    names = [
        [str(v) for k, v in element.items() if _plain(k) in _IDENTITY] if isinstance(element, dict) else []
        for element in holder
    ]
    for chosen in (
        [i for i, parts in enumerate(names) if "/".join(parts[:2]) == wanted],
        [i for i, parts in enumerate(names) if parts[:1] == [wanted]],
    ):
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            some = ", ".join("/".join(names[i][:2]) for i in chosen[:10])
            raise OverrideRefused(f"--set {path}: {wanted!r} names several: expected one of {some}")
    listed = ", ".join("/".join(parts[:1]) for parts in names[:20]) or "nothing"
    raise OverrideRefused(f"--set {path}: {wanted!r} is not in the list: expected one of {listed}")


def _plain(key: Any) -> str:
    return str(key).lower().replace("_", "")
