"""Plug-ins: found by entry points, chosen by configuration alone, imported only when chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

GROUPS = (
    "stoker.laws",
    "stoker.queueing",
    "stoker.estimators",
    "stoker.forecasters",
    "stoker.solvers",
    "stoker.gates",
    "stoker.sources",
    "stoker.targets",
)


class PluginRefused(ValueError):
    """A plug-in that does not exist, cannot be imported, or was given settings that it does not take."""


@dataclass(frozen=True)
class Listed:
    """One plug-in that is installed."""

    group: str
    name: str
    value: str
    distribution: str


@cache
def _found() -> Mapping[str, Mapping[str, EntryPoint]]:
    """Entry points by group and name; every look for them reads the metadata of all that is installed."""
    points = entry_points()
    return {group: {point.name: point for point in points.select(group=group)} for group in GROUPS}


def names(group: str) -> list[str]:
    """The installed plug-ins of a group."""
    return sorted(_found()[group])


def listed() -> list[Listed]:
    """Every installed plug-in, by group and name."""
    return [
        Listed(group, name, point.value, point.dist.name if point.dist else "")
        for group in GROUPS
        for name, point in sorted(_found()[group].items())
    ]


def load(group: str, name: str) -> Any:
    """The class behind a plug-in's name; raises PluginRefused, listing what exists."""
    found = _found().get(group, {})
    if name not in found:
        known = ", ".join(sorted(found)) or "nothing"
        raise PluginRefused(f"{group.removeprefix('stoker.')}: {name!r} is not installed; there is: {known}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise PluginRefused(f"{group} {name!r} ({found[name].value}) cannot be imported: {error}") from error


def build(group: str, name: str, settings: Mapping[str, Any] | None = None, **context: Any) -> Any:
    """Construct a plug-in from its settings; raises PluginRefused, naming the setting and what was expected."""
    plugin = load(group, name)
    declared: type[BaseModel] | None = getattr(plugin, "Settings", None)
    if declared is None:
        if settings:
            raise PluginRefused(f"settings of {group} {name!r}: it takes none")
        return plugin(**context)
    try:
        chosen = declared.model_validate(dict(settings or {}))
    except ValidationError as error:
        # The envelope knows every contract; whoever only loads plug-ins does not wait for them.
        from services.runtime.envelope import problems

        raise PluginRefused(f"settings of {group} {name!r}: {problems(error)}") from None
    return plugin(chosen, **context)
