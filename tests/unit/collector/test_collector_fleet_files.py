"""The fleet from files."""

import json
from pathlib import Path
from textwrap import dedent

import pytest

from services.collector.fleet_files import FleetRefused, fingerprint, parse_fleet, read_fleet

FLEET = {
    "accelerators": [{"name": "H100", "type": "H100", "cost_per_hour": 4}],
    "models": [{"name": "m", "profiles": [{"accelerator": "H100", "max_batch": 64}]}],
    "service_classes": [{"name": "gold", "priority": 1, "objectives": [{"model": "m", "ttft_s": 1}]}],
    "servers": [{"name": "chat", "model": "m", "service_class": "gold"}],
}
SERVERS = """
    servers:
      - {name: chat, model: m, service_class: gold}
      - name: batch
        model: m
        service_class: gold
"""


def split(**files: str) -> dict[str, str]:
    rest = json.dumps({key: value for key, value in FLEET.items() if key != "servers"})
    return {"rest.json": rest, **{f"{name}.yaml": dedent(text) for name, text in files.items()}}


def test_lists_may_be_split_over_files() -> None:
    fleet = parse_fleet(
        split(
            one=SERVERS, two="servers: [{name: more, model: m, service_class: gold}]\noptimizer: {solver: x}"
        ),
        7.0,
    )
    assert [server.name for server in fleet.servers] == ["chat", "batch", "more"]
    assert fleet.declared_at_s == 7.0


def test_the_revision_is_a_digest_of_the_content_alone() -> None:
    one = parse_fleet({"a.json": json.dumps(FLEET)}, 1.0)
    two = parse_fleet(
        split(x="# a comment\nservers: [{name: chat, model: m, service_class: gold, min_replicas: 1}]"), 2.0
    )
    other = parse_fleet(split(x=SERVERS), 1.0)
    assert one.revision == two.revision != other.revision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servers: [{name: a, model: m, service_class: x}, {name: b, model: m, service_class: x, max_batch: x}]",
         r"bad\.yaml: servers\[1\]\.max_batch is 'x': .*integer"),
        ("servers: [{name: b, model: m, service_class: gold, max_replica: 3}]",
         r"bad\.yaml: servers\[0\]\.max_replica is not a key of a Server: expected name, .*max_replicas"),
        ("servers: [{name: b, model: other, service_class: gold}]",
         r"servers\[0\] \(b\)\.model is 'other', which is not declared; declared: m"),
        ("servers: [{name: b, model: m}]", r"bad\.yaml: servers\[0\]\.service_class: Field required"),
        ("servers: {name: b}", r"bad\.yaml: servers is \{'name': 'b'\}: expected a list"),
        ("server: []", r"bad\.yaml: key 'server' is unknown: expected accelerators, models"),
        ("[1, 2]", r"bad\.yaml: holds \[1, 2\]: expected a mapping"),
        ("servers: [\n", r"bad\.yaml: is not readable: .*line 2"),
        ("servers: [{name: a, name: b}]", r"bad\.yaml: is not readable: .*'name' occurs twice"),
        ("revision: x", r"bad\.yaml: key 'revision' is unknown"),
        ("optimizer: {time_limit_s: 0}", r"bad\.yaml: optimizer\.time_limit_s is 0: .*greater than 0"),
        ("capacity: [{type: H100, count: .nan}]", r"bad\.yaml: capacity\[0\]\.count is nan"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_the_place_the_value_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(FleetRefused, match=message):
        parse_fleet(split(bad=text), 1.0)


def test_a_directory_and_its_changes(tmp_path: Path) -> None:
    with pytest.raises(FleetRefused, match=r"holds no fleet file: expected \.yaml"):
        read_fleet([tmp_path], 1.0)
    for name, text in split(servers=SERVERS).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not a fleet")
    (tmp_path / ".hidden.yaml").write_text("[")
    before, fleet = fingerprint([tmp_path]), read_fleet([tmp_path], 1.0)
    assert read_fleet([tmp_path / "rest.json", tmp_path / "servers.yaml"], 1.0) == fleet
    (tmp_path / "more.yaml").write_text("servers: [{name: more, model: m, service_class: gold}]")
    assert fingerprint([tmp_path]) != before
    assert read_fleet([tmp_path], 1.0).revision != fleet.revision
    with pytest.raises(FleetRefused, match="does not exist"):
        read_fleet([tmp_path / "absent"], 1.0)


def test_yaml_anchors_and_merges_are_understood() -> None:
    text = """
        servers:
          - &base {name: chat, model: m, service_class: gold}
          - {<<: *base, name: batch}
    """
    fleet = parse_fleet(split(x=text), 1.0)
    assert [(server.name, server.model) for server in fleet.servers] == [("chat", "m"), ("batch", "m")]
