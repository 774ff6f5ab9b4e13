"""What derives from the contracts is committed and has not drifted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from schemas import export
from schemas.topics import TOPICS, VERBS

FOLDER = Path(export.__file__).parent / "json"
FILES = sorted(FOLDER.rglob("*.json"))


def test_nothing_that_is_derived_differs_from_what_is_committed():
    assert export.drift() == []


def test_no_file_is_left_over_from_a_contract_that_is_gone():
    assert {path for path in export.files() if FOLDER in path.parents} == set(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_schema_is_json_schema_of_2020_12_and_stands_alone(path: Path):
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for reference in references(schema):
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_identifiers_of_schemas_are_unique():
    ids = [json.loads(path.read_text())["$id"] for path in FILES]
    assert len(set(ids)) == len(ids)


def test_the_document_has_every_topic_and_verb_and_no_dangling_reference():
    document = yaml.safe_load((FOLDER.parent / "asyncapi.yaml").read_text())
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert {t.address for t in TOPICS} | {v.subject for v in VERBS} <= addresses
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_the_table_in_the_readme_lists_every_topic():
    table = export.topic_table()
    assert all(f"`{t.address}`" in table for t in TOPICS)
    assert table in export.README.read_text()


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [r for value in node.values() for r in references(value)]
    if isinstance(node, list):
        return [r for value in node for r in references(value)]
    return []
