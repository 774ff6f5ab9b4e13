"""The rules in the custom resources' definitions, which API servers before 1.25 do not know: they are valid, and say
what they are meant to."""

from collections.abc import Iterator
from typing import Any

import cel
import pytest
import yaml
from kustomized import DEPLOY

DEFINITIONS = sorted((DEPLOY / "kubernetes" / "operator" / "crds").glob("*.yaml"))
REPLICAS = "maxReplicas must be at least minReplicas"
GROUP = "a Deployment is of the group apps"
ENGINE = {"kind": "Deployment", "name": "engine"}


def rules(schema: Any) -> Iterator[tuple[str, str]]:
    """Message and expression of each rule of a schema and of what is in it."""
    if isinstance(schema, dict):
        for one in schema.get("x-kubernetes-validations", ()):
            yield one["message"], one["rule"]
        for inner in schema.values():
            yield from rules(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from rules(inner)


RULES = dict(rule for path in DEFINITIONS for rule in rules(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(
    ("message", "value", "allowed"),
    [
        # The default of minReplicas is filled in before rules are asked.
        (REPLICAS, {"minReplicas": 1}, True),
        (REPLICAS, {"minReplicas": 2, "maxReplicas": 2}, True),
        (REPLICAS, {"minReplicas": 2, "maxReplicas": 1}, False),
        (GROUP, ENGINE, True),
        (GROUP, {**ENGINE, "apiVersion": "apps/v1"}, True),
        (GROUP, {**ENGINE, "apiVersion": "other/v1"}, False),
        (GROUP, {**ENGINE, "kind": "Other", "apiVersion": "other/v1"}, True),
    ],
)
def test_a_rule_allows_and_refuses_what_its_message_says(
    message: str, value: dict[str, Any], allowed: bool
) -> None:
    assert cel.evaluate(RULES[message], {"self": value}) is allowed


def test_every_rule_is_tried() -> None:
    assert set(RULES) == {REPLICAS, GROUP}
