"""The rights in the operator's manifest are what it needs, and no more: each is taken away in turn."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from custom_resources import SAMPLES, Objects, stoker, until
from test_kubernetes_rights import Right, lacking, named, rights_of

__all__ = ["lacking"]


@pytest.mark.parametrize("right", rights_of("operator"), ids=named)
async def test_the_operator_fails_for_want_of_each_right(
    objects: Objects,
    operator_config: Path,
    namespace: str,
    tmp_path: Path,
    lacking: Callable[[str, Right], None],
    right: Right,
    capfd: pytest.CaptureFixture[str],
) -> None:
    objects.apply([SAMPLES / "fleet.yaml"])
    _, resource, verb = right
    said = f'cannot {verb} resource "{resource}"'
    lacking("operator", right)
    await asyncio.to_thread(_is_taken, objects, right)
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

    _, resource, verb = right
    group = "" if resource == "events" else "inferno.platform.ai"
    name, _, part = resource.partition("/")
    attributes = {"group": group, "resource": name, "subresource": part, "verb": verb}
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
