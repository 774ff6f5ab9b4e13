"""Decisions as metrics: the series that an autoscaler reads, and when they come and go."""

import pytest
from gate_cases import ask, hold
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from schemas.actuation import FailureReason, VariantScale
from services.actuator.desired import DesiredReplicas
from services.actuator.target import Applied, Failed
from services.actuator.targets.metrics import MetricsSettings, MetricsTarget


def scales(**replicas: int) -> list[VariantScale]:
    return [VariantScale(accelerator=name, replicas=n) for name, n in replicas.items()]


def page(desired: DesiredReplicas) -> list[str]:
    """The samples as a scraper sees them."""
    registry = CollectorRegistry()
    registry.register(desired)
    return [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]


def test_every_name_that_an_autoscaler_may_look_for_is_shown() -> None:
    target = MetricsTarget(MetricsSettings(namespace="llm", variant_name="{server}-{accelerator}"))
    target.desired.keep({"a/chat"})
    target.desired.show("a/chat", scales(H100=3))
    labels = '{accelerator_type="H100",namespace="llm",variant_name="a/chat-H100"} 3.0'
    found = page(target.desired)
    assert 'stoker_desired_replicas{accelerator="H100",server="a/chat"} 3.0' in found
    assert f"wva_desired_replicas{labels}" in found and f"inferno_desired_replicas{labels}" in found
    assert len(found) == 3


def test_series_disappear_with_their_server_and_with_nothing_else() -> None:
    desired = DesiredReplicas(("wva_desired_replicas",))
    desired.keep({"a", "b"})
    desired.show("a", scales(H100=2))
    desired.show("b", scales(H100=1))
    desired.show("b", scales())
    assert len(page(desired)) == 4
    desired.keep({"a"})
    assert len(page(desired)) == 2 and all('"a"' in line for line in page(desired))


def test_an_accelerator_that_is_left_is_asked_to_be_empty() -> None:
    desired = DesiredReplicas()
    assert desired.show("s", scales(A=2)) is True
    assert desired.show("s", scales(A=2, B=1)) is True
    assert desired.show("s", scales(B=1)) is True
    assert desired.of("s") == {"A": 0, "B": 1}
    assert desired.show("s", scales(B=1)) is False


async def test_what_an_autoscaler_does_is_not_watched_for_other_writers() -> None:
    target = MetricsTarget(MetricsSettings())
    target.desired.keep({"s"})
    assert await target.apply("s", scales(A=3), hold(ask(A=2))) == Applied(True, owned=False)
    assert await target.apply("s", scales(A=3), hold(ask(A=2))) == Applied(False, owned=False)
    refused = await target.apply("t", scales(A=3), hold(ask(A=2)))
    assert isinstance(refused, Failed) and refused.reason is FailureReason.NOT_FOUND


@pytest.mark.parametrize("template", ["{pod}", "{}", "{server", "{server.name}", "{server[name]}"])
def test_a_template_that_names_something_else_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="expected a text with"):
        MetricsSettings(variant_name=template)
