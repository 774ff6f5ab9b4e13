"""Golden examples, committed for ever: each parses, fits the JSON Schema and comes back as it was."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from schemas.topics import TOPIC_BY_NAME, TOPICS
from services.runtime.envelope import Emit, Raw, decode, encode

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted((SCHEMAS / "examples").glob("*/v1/*.json"))


def topic_of(path: Path):
    return TOPIC_BY_NAME[path.parent.parent.name]


def named(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.stem}"


def test_every_topic_has_a_full_and_a_minimal_example():
    found = {named(path) for path in EXAMPLES}
    assert {f"{topic.name}/full" for topic in TOPICS} | {f"{topic.name}/minimal" for topic in TOPICS} <= found


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_a_golden_example_parses_and_comes_back_as_it_was(path: Path):
    topic = topic_of(path)
    payload = topic.payload.model_validate_json(path.read_bytes())
    written = payload.model_dump_json(exclude_none=True)
    assert topic.payload.model_validate_json(written) == payload
    golden = json.loads(path.read_text())
    assert {k: v for k, v in json.loads(written).items() if k in golden}.keys() == golden.keys()
    assert json.loads(payload.model_dump_json(exclude_unset=True)) == golden


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_a_golden_example_fits_the_committed_schema_as_it_is_and_as_it_is_sent(path: Path):
    topic = topic_of(path)
    schema = json.loads((SCHEMAS / "json" / f"{topic.name}.v1.json").read_text())
    validator = Draft202012Validator(schema)
    validator.validate(json.loads(path.read_text()))
    validator.validate(json.loads(topic.payload.model_validate_json(path.read_bytes()).model_dump_json()))


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_schema_and_contract_refuse_an_example_that_lacks_any_one_required_field(path: Path):
    topic = topic_of(path)
    schema = json.loads((SCHEMAS / "json" / f"{topic.name}.v1.json").read_text())
    required = {name for name, field in topic.payload.model_fields.items() if field.is_required()}
    assert set(schema["required"]) == required
    golden = json.loads(path.read_text())
    for name in required:
        lacking = {k: v for k, v in golden.items() if k != name}
        assert not Draft202012Validator(schema).is_valid(lacking), name
        with pytest.raises(ValueError, match=name):
            topic.payload.model_validate(lacking)


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_a_golden_example_survives_the_wire(path: Path):
    payload = topic_of(path).payload.model_validate_json(path.read_bytes())
    wire = encode(Emit(payload), "collector", 1_760_000_100.0)
    assert decode(Raw(wire.subject, wire.data, wire.headers)).payload == payload
