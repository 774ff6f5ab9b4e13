"""The fleet from files: one YAML or JSON file, or a directory of them, in the form of `FleetDeclared`.

The lists may be split over files by their top-level key: each file holds some servers, models and so on, and
the whole is their union. Unknown keys are refused, because a misspelt limit must not vanish. The legacy form,
one file or a directory of up to six, is read as laxly as its own programs read it.
"""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from schemas.fleet import FleetDeclared
from services.legacy.form import LegacyRefused
from services.legacy.reader import fleet_of, is_legacy, read_system

SUFFIXES = (".yaml", ".yml", ".json")
SET_BY_US = ("declared_at_s", "revision")
KEYS = tuple(name for name in FleetDeclared.model_fields if name not in SET_BY_US)
LISTS = tuple(name for name in KEYS if name != "optimizer")


class FleetRefused(ValueError):
    """A fleet that cannot be used; a line names the file, the place in it, the value and what was expected."""


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML in which a key may occur once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} occurs twice", key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def fingerprint(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, modification time in nanoseconds and size of each file, to see cheaply whether to read again."""
    stats = [(str(path), path.stat()) for path in _files(paths)]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def read_fleet(paths: Sequence[Path], now_s: float) -> FleetDeclared:
    """Read the fleet from files and directories.

    Parameters: paths, each a file or a directory; now_s, Unix seconds, becomes `declared_at_s`. The revision
    is a digest of what was declared, so that layout, comments and the split over files do not change it.
    Raises FleetRefused.
    """
    if len(paths) == 1 and is_legacy(paths[0]):
        try:
            return fleet_of(read_system(paths[0]), now_s).fleet
        except LegacyRefused as error:
            raise FleetRefused(f"{paths[0]}: {error}") from None
    texts: dict[str, str] = {}
    for path in _files(paths):
        try:
            texts[str(path)] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FleetRefused(f"{path}: cannot be read: {error}") from None
    return parse_fleet(texts, now_s)


def parse_fleet(texts: Mapping[str, str], now_s: float) -> FleetDeclared:
    """The fleet from the text of each file by its name, as `read_fleet` describes; raises FleetRefused."""
    merged: dict[str, Any] = {name: [] for name in LISTS}
    origins: dict[str, list[tuple[str, int]]] = {name: [] for name in LISTS}
    options_from: str | None = None
    for file, text in texts.items():
        content = _content(file, text)
        for key, value in content.items():
            if key not in KEYS:
                raise FleetRefused(f"{file}: key {key!r} is unknown: expected {', '.join(KEYS)}")
            if key in LISTS:
                if not isinstance(value, list):
                    raise FleetRefused(f"{file}: {key} is {_shown(value)}: expected a list")
                merged[key] += value
                origins[key] += [(file, index) for index in range(len(value))]
            elif options_from is not None:
                raise FleetRefused(f"{file}: optimizer is declared in {options_from} already: expected once")
            else:
                merged[key], options_from = value, file

    def place(loc: Sequence[int | str]) -> str:
        head, *rest = loc or ("",)
        if head in LISTS and rest and isinstance(rest[0], int):
            file, index = origins[str(head)][rest[0]]
            rest[0] = index
        else:
            file = options_from if head == "optimizer" and options_from else ", ".join(texts)
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (head, *rest))
        return f"{file}: {path.lstrip('.')}" if path.strip(".") else file

    unknown = [
        f"{place(loc)} is not a key of a {model.__name__}: expected {', '.join(model.model_fields)}"
        for loc, model in _unknown(merged, FleetDeclared, ())
    ]
    if unknown:
        raise FleetRefused("\n".join(unknown))
    try:
        fleet = FleetDeclared.model_validate({**merged, "declared_at_s": now_s, "revision": "unknown"})
    except ValidationError as error:
        lines = [
            f"{place(e['loc'])}{_value(e)}{e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        ]
        raise FleetRefused("\n".join(lines)) from None
    declared = fleet.model_dump(mode="json", exclude=set(SET_BY_US))
    digest = sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:16]
    return fleet.model_copy(update={"revision": digest})


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p
                for p in path.iterdir()
                if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file()
            )
            if not inside:
                raise FleetRefused(f"{path}: holds no fleet file: expected {', '.join(SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FleetRefused(f"{path}: does not exist: expected a file or a directory")
    return found


def _content(file: str, text: str) -> dict[Any, Any]:
    try:
        if file.endswith(".json"):
            content = json.loads(text, object_pairs_hook=_once)
        else:
            # The loader is a safe one, above.
            content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise FleetRefused(f"{file}: is not readable: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FleetRefused(f"{file}: holds {_shown(content)}: expected a mapping with {', '.join(KEYS)}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return mapping


def _unknown(
    value: Any, model: type[BaseModel], loc: tuple[int | str, ...]
) -> Iterable[tuple[tuple[int | str, ...], type[BaseModel]]]:
    """Where raw data holds a key that its contract does not know; contracts themselves tolerate it."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        known = model.model_fields.get(key)
        if known is None:
            yield (*loc, str(key)), model
            continue
        for nested in _models(known.annotation):
            items = enumerate(inner) if isinstance(inner, list) else [(None, inner)]
            for index, item in items:
                yield from _unknown(item, nested, (*loc, key) if index is None else (*loc, key, index))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _value(error: Any) -> str:
    """The offending value, where it is one and not the whole fleet."""
    given = error["input"]
    return ": " if error["type"] == "missing" or not error["loc"] else f" is {_shown(given)}: "


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
