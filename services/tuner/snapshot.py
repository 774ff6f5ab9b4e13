"""Snapshots of estimators: JSON, in which Python writes floats so that they are read back exactly."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from services.perfmodel.law import IterationLaw

S = TypeVar("S")


def dump_state(law: IterationLaw, version: int, fields: Mapping[str, Any]) -> bytes:
    """The fields of a state, and which law and version of the snapshot they are of."""
    about = {"version": version, "law": {"name": law.name, "version": law.version}}
    return json.dumps({**about, "state": fields}).encode()


def load_state(raw: bytes, law: IterationLaw, version: int, build: Callable[[dict[str, Any]], S]) -> S:
    """The state that `build` makes of the fields; raises ValueError where it is not one of this version and law."""
    try:
        read: dict[str, Any] = json.loads(raw)
        expected = {"name": law.name, "version": law.version}
        if read["version"] != version or read["law"] != expected:
            raise ValueError(f"version {read['version']} of law {read['law']}")
        return build(read["state"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a snapshot for the law {law.name}: {error}") from None
