"""The rights in the deployment's manifests are what the collector and the actuator need, and no more.

The other tests of this folder run the actuator with just these roles, which shows that nothing is missing. Here each
right is taken away in turn, and something must fail for want of it.
"""

import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import READY_S, ApiServer
from manifests import GROUPS, ROLES, group, variant
from operation import Operation, only

from schemas.actuation import ActuationFailed, FailureReason, VariantScale
from schemas.telemetry import InventoryObserved, VariantInventory
from services.actuator.target import Applied, Failed
from services.actuator.targets.kubernetes import KubernetesSettings, KubernetesTarget
from services.cluster.client import ClusterSettings
from services.collector.sources.kubernetes import KubernetesSettings as SourceSettings
from services.collector.sources.kubernetes import KubernetesSource

Right = tuple[int, str, str]
"""Number of a rule, a resource of it, and a verb."""

CLUSTER_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"


def role_of(service: str) -> dict[str, Any]:
    """The role in a service's manifest."""
    documents = [one for path in ROLES for one in yaml.safe_load_all(path.read_text())]
    (role,) = [
        one
        for one in documents
        if (one["kind"], one["metadata"]["name"]) == ("ClusterRole", f"stoker-{service}")
    ]
    return dict(role)


def rights_of(service: str) -> list[Right]:
    rules = enumerate(role_of(service)["rules"])
    return [(number, r, verb) for number, rule in rules for r in rule["resources"] for verb in rule["verbs"]]


def without(service: str, right: Right) -> dict[str, Any]:
    """The role less one right."""
    role = copy.deepcopy(role_of(service))
    number, _, verb = right
    role["rules"][number]["verbs"].remove(verb)
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    return role


def named(right: Right) -> str:
    return f"{right[2]} {right[1]}"


@pytest.fixture
def lacking(cluster: ApiServer, roles: None) -> Iterator[Callable[[str, Right], None]]:
    """Takes a right from a service until the end of the test."""
    changed = []

    def take(service: str, right: Right) -> None:
        changed.append(service)
        cluster.admin.call("PUT", f"{CLUSTER_ROLES}/stoker-{service}", without(service, right))

    yield take
    for service in changed:
        cluster.admin.call("PUT", f"{CLUSTER_ROLES}/stoker-{service}", role_of(service))


@pytest.mark.parametrize("right", rights_of("collector"), ids=named)
async def test_the_collector_fails_for_want_of_each_right(
    cluster: ApiServer,
    reader: Path,
    leader_worker_sets: None,
    lacking: Callable[[str, Right], None],
    right: Right,
) -> None:
    lacking("collector", right)
    source = KubernetesSource(
        SourceSettings(cluster=ClusterSettings(kubeconfig=reader, watch_s=1)),
        to_clock_s=lambda wall_s: wall_s,
    )
    try:
        readings = await until(lambda: source.poll(time.time()), lambda found: found.failed)
    finally:
        await source.close()
    assert "HTTP status 403" in readings.problems[0].message
    assert f'cannot {right[2]} resource "{right[1]}"' in readings.problems[0].message


@pytest.fixture
def grouped(cluster: ApiServer, namespace: str, leader_worker_sets: None) -> Iterator[dict[str, Any]]:
    """A server of groups; a namespace that ends may leave it for a while, so it is deleted."""
    made = group(namespace, "draw")
    cluster.admin.create(made)
    yield made
    cluster.admin.delete(f"/apis/{GROUPS}/v1/namespaces/{namespace}/leaderworkersets/draw-group")


async def test_the_collector_reads_everything_with_its_role(
    cluster: ApiServer, namespace: str, reader: Path, grouped: dict[str, Any]
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    async with Operation(reader, reader, "chat", "draw") as operation:
        await operation.settled("chat", H100=1)
        seen = await operation.until("draw", lambda v: "8xH100" in v)
    (groups,) = seen.variants
    assert (groups.desired, groups.ready, groups.pending, groups.max_batch) == (1, 0, 1, 64)


@pytest.fixture
async def work(
    cluster: ApiServer, namespace: str, reader: Path, writer: Path, grouped: dict[str, Any]
) -> AsyncIterator[Callable[[], Awaitable[list[Applied | Failed]]]]:
    """Does once everything that the target can do; what came of each piece."""
    annotations = {"stoker.dev/max-batch-by": "argument:--max-num-seqs"}
    cluster.admin.create(variant(namespace, "chat", "H100", replicas=2, annotations=annotations))
    targets: list[KubernetesTarget] = []
    async with Operation(reader, reader, "chat", "draw") as operation:
        await operation.settled("chat", H100=2)

    async def do() -> list[Applied | Failed]:
        target = KubernetesTarget(KubernetesSettings(cluster=ClusterSettings(kubeconfig=writer, watch_s=1)))
        targets.append(target)
        cluster.admin.patch(
            f"/apis/apps/v1/namespaces/{namespace}/deployments/chat-h100/scale", {"spec": {"replicas": 2}}
        )
        cluster.admin.patch(
            f"/apis/{GROUPS}/v1/namespaces/{namespace}/leaderworkersets/draw-group", {"spec": {"replicas": 1}}
        )
        batch = 32 + 16 * (len(targets) % 2)
        return [
            await target.apply(server, [scale(name, replicas, batch)], held(server, name, before))
            for server, name, before, replicas in (
                ("chat", "H100", 2, 1),
                ("draw", "8xH100", 1, 2),
            )
        ]

    yield do
    for target in targets:
        await target.close()


def scale(accelerator: str, replicas: int, max_batch: int) -> VariantScale:
    return VariantScale(accelerator=accelerator, replicas=replicas, max_batch=max_batch)


def held(server: str, accelerator: str, desired: int) -> InventoryObserved:
    variants = (VariantInventory(accelerator=accelerator, desired=desired, ready=desired, pending=0),)
    return InventoryObserved(
        server=server, model="m", observed_at_s=time.time(), quality="ok", variants=variants
    )


async def test_the_actuator_does_everything_with_its_role(
    work: Callable[[], Awaitable[list[Applied | Failed]]],
) -> None:
    for result in await work():
        assert isinstance(result, Applied) and result.changed, result


@pytest.mark.parametrize("right", rights_of("actuator"), ids=named)
async def test_the_actuator_fails_for_want_of_each_right(
    work: Callable[[], Awaitable[list[Applied | Failed]]],
    lacking: Callable[[str, Right], None],
    right: Right,
) -> None:
    lacking("actuator", right)
    results = await until(work, lambda found: any(isinstance(one, Failed) for one in found))
    failed = [one for one in results if isinstance(one, Failed)]
    assert {one.reason for one in failed} == {FailureReason.FORBIDDEN}
    assert all(f'cannot {right[2]} resource "{right[1]}"' in one.message for one in failed)


async def test_a_verb_that_is_forbidden_is_an_event_that_names_it_and_is_counted(
    cluster: ApiServer,
    namespace: str,
    reader: Path,
    writer: Path,
    lacking: Callable[[str, Right], None],
) -> None:
    for server in ("chat", "draw"):
        cluster.admin.create(variant(namespace, server, "H100"))
    async with Operation(reader, writer, "chat", "draw") as operation:
        await operation.settled("chat", H100=1)
        await operation.settled("draw", H100=1)
        number = next(n for n, r, v in rights_of("actuator") if (r, v) == ("deployments/scale", "update"))
        lacking("actuator", (number, "deployments/scale", "update"))
        facts = await until(
            lambda: operation.plan(chat={"H100": 1}, draw={"H100": 2}),
            lambda found: any(isinstance(fact, ActuationFailed) for fact in found),
        )
        failed = only(ActuationFailed, facts)
        assert (failed.server, failed.reason) == ("draw", FailureReason.FORBIDDEN)
        assert 'cannot update resource "deployments/scale"' in failed.message
        assert operation.outcomes()["forbidden"] == 1.0


async def until(read: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    """What was read as soon as it is good; a role takes effect some milliseconds after it was written."""
    deadline_s = time.monotonic() + READY_S
    while not good(found := await read()):
        assert time.monotonic() < deadline_s, found
    return found
