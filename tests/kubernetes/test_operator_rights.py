"""The rights in the operator's manifest are what it needs, and no more: each is taken away in turn."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from custom_resources import SAMPLES, Objects, stoker, until
from manifests import GROUPS, deployment, group
from test_kubernetes_rights import Right, lacking, named, rights_of, role_of

__all__ = ["lacking"]


@pytest.fixture
def fleet(objects: Objects, leader_worker_sets: None) -> Iterator[Objects]:
    """Two Servers that name workloads without marks, one a Deployment and one a group."""
    admin, namespace = objects.cluster.admin, objects.namespace
    objects.apply([SAMPLES / "fleet.yaml"])
    admin.create(deployment(namespace, "engine"))
    made = group(namespace, "digest")
    admin.create({**made, "metadata": {**made["metadata"], "annotations": {}}})
    objects.edit("Server", "chat", scaleTargetRef={"kind": "Deployment", "name": "engine"})
    objects.edit("Server", "digest", scaleTargetRef={"kind": "LeaderWorkerSet", "name": "digest-group"})
    yield objects
    admin.delete(f"/apis/{GROUPS}/v1/namespaces/{namespace}/leaderworkersets/digest-group")


@pytest.mark.parametrize("right", rights_of("operator"), ids=named)
async def test_the_operator_fails_for_want_of_each_right(
    fleet: Objects,
    operator_config: Path,
    namespace: str,
    tmp_path: Path,
    lacking: Callable[[str, Right], None],
    right: Right,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, resource, verb = right
    said = f'cannot {verb} resource "{resource}"'
    lacking("operator", right)
    await asyncio.to_thread(_is_taken, fleet, right)
    printed: list[str] = []

    async with stoker(operator_config, namespace, tmp_path) as around:
        around.operator()

        async def refused() -> bool:
            # An Event is only news: its refusal is logged and keeps nothing from being ready.
            # Where logs go, and whether as JSON, an earlier test of this process may have set.
            captured = capfd.readouterr()
            printed.append((captured.out + captured.err).replace('\\"', '"'))
            return any(said in text for text in (*around.reasons(), *printed))

        await until(refused, lambda: f"{around.reasons()}")


def _is_taken(objects: Objects, right: Right) -> None:
    """Wait until the API server's authoriser has seen the change of the role."""
    from api_server import until as wait

    number, resource, verb = right
    (api_group,) = role_of("operator")["rules"][number]["apiGroups"]
    name, _, part = resource.partition("/")
    attributes = {"group": api_group, "resource": name, "subresource": part, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": "system:serviceaccount:stoker:stoker-operator",
            "resourceAttributes": {**attributes, "namespace": objects.namespace},
        },
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    wait(lambda: not objects.cluster.admin.post(path, review)["status"]["allowed"], f"{right} taken")
