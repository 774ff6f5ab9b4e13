"""The description of a plant, and the one that is shipped."""

from itertools import islice
from pathlib import Path

import pytest

from schemas.fleet import (
    Accelerator,
    DeclaredCapacity,
    FleetDeclared,
    LawParameters,
    Model,
    ModelProfile,
    Objective,
    Server,
    ServiceClass,
)
from services.simulator.demo import DEMO_PLANT
from services.simulator.derive import plant_of
from services.simulator.fleet import Fleet
from services.simulator.plant import PlantError, load_plant
from services.simulator.service import trace_folders

PARAMETERS = LawParameters(values={"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7})
DEMO = DEMO_PLANT.read_text(encoding="utf-8")


def refusal(folder: Path, text: str) -> str:
    path = folder / "plant.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlantError) as caught:
        load_plant(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_demonstration_plant_is_valid_and_runs_without_the_trace() -> None:
    demo = load_plant(DEMO_PLANT)
    fleet = Fleet(demo, trace_folders=[])
    fleet.advance(30.0)
    for server in fleet.servers.values():
        assert "generated (trace azure-llm-2023-conv.csv not found" in server.source
        assert server.requests_total > 0


def test_the_demonstration_plant_uses_the_trace_where_it_finds_it(reference_data: Path) -> None:
    folder = reference_data / "traces"
    if not (folder / "azure-llm-2023-conv.csv").is_file():
        pytest.skip(f"no azure-llm-2023-conv.csv in {folder}")
    fleet = Fleet(load_plant(DEMO_PLANT), trace_folders=[Path("nowhere"), folder])
    fleet.advance(30.0)
    for server in fleet.servers.values():
        assert server.source.startswith("trace ")
        assert server.requests_total > 0
        assert list(islice(server.arrivals, 3))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "alpha_s: 0.008",
            "alpha_s: -1",
            "servers.0.variants.0.alpha_s: Input should be greater than 0, not -1",
        ),
        ("alpha_s: 0.008", "alpha_s: .nan", "servers.0.variants.0.alpha_s"),
        ("alpha_s: 0.008", "alfa_s: 0.008", "servers.0.variants.0.alfa_s: Extra inputs are not permitted"),
        ("accelerator_type: A100", "accelerator_type: B200", "expected one of ['A100', 'H100'"),
        ("{accelerator: H100, replicas: 1}", "{accelerator: H100, replicas: 25}", "at most 24 H100, not 31"),
        ("{accelerator: H100, replicas: 1}", "{accelerator: TPU, replicas: 1}", "not 'TPU'"),
        ("name: chat-standard", "name: chat-premium", "chat-premium"),
        ("[480, 0.6]", "[0, 0.6]", "expected times that increase"),
        ("p95: 85", "p95: 5", "p95 of at least the median"),
        ("kind: trace", "kind: guess", "kind"),
    ],
)
def test_a_bad_plant_is_refused_by_file_path_value_and_expectation(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in DEMO
    assert told in refusal(tmp_path, DEMO.replace(old, new, 1))


def test_a_file_that_is_not_a_plant_is_refused(tmp_path: Path) -> None:
    assert "expected YAML" in refusal(tmp_path, "servers: [")
    assert "(whole)" in refusal(tmp_path, "just words")
    with pytest.raises(PlantError, match="expected a readable YAML file"):
        load_plant(tmp_path / "absent.yaml")


def test_a_missing_trace_without_an_alternative_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plant.yaml"
    start, end = DEMO.index("      otherwise:"), DEMO.index("  - name: chat-standard")
    text = DEMO[:start] + DEMO[end : DEMO.index("      otherwise:", end)]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlantError, match=r"not found in .*nowhere.*otherwise"):
        Fleet(load_plant(path), trace_folders=[tmp_path / "nowhere"])


def test_a_fleet_that_its_cards_cannot_hold_makes_no_plant_and_says_what_there_is() -> None:
    fleet = FleetDeclared(
        declared_at_s=1.0,
        revision="1",
        accelerators=(Accelerator(name="2xA100", type="A100", multiplicity=2, cost_per_hour=1),),
        models=(Model(name="m", profiles=(ModelProfile(accelerator="2xA100", parameters=PARAMETERS),)),),
        service_classes=(ServiceClass(name="c", priority=1, objectives=(Objective(model="m"),)),),
        servers=(Server(name="s", model="m", service_class="c", min_replicas=3),),
        capacity=(DeclaredCapacity(type="A100", count=6),),
    )
    assert plant_of(fleet).servers[0].initial[0].replicas == 3
    with pytest.raises(PlantError, match="expected at most 5 A100, not 6; give one with --plant"):
        plant_of(fleet.model_copy(update={"capacity": (DeclaredCapacity(type="A100", count=5),)}))


def test_traces_are_looked_for_where_the_environment_says_and_beside_the_directory() -> None:
    here = Path("/projects/stoker")
    beside = Path("/projects/shared/data/traces")
    assert trace_folders({"STOKER_DATA": "/data"}, here) == [Path("/data/traces"), beside]
    assert trace_folders({}, here) == [beside]
