"""What `kubectl kustomize` makes of deploy/kubernetes: valid to the published schemas, least rights, nothing open."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import nkeys
import pytest
import trustme
from kustomized import DEPLOY, OF_THE_PROMETHEUS_OPERATOR, OVERLAYS, of_kind, rendered

from schemas.topics import TOPICS
from services.cli import settings_of
from services.cluster.workloads import selects
from services.operator.resources import KINDS
from services.runtime.embedded import find_nats
from services.runtime.permissions import OPERATOR, users
from services.runtime.settings import load, unknown_environment

CLUSTER = "1.34"
SERVICES = {name for topic in TOPICS for name in (*topic.publishers, *topic.consumers)}
FLEET_FILE = "STOKER_COLLECTOR__FLEET"


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(overlay: str) -> list[dict[str, Any]]:
    return rendered(overlay)


@pytest.fixture
def services(overlay: str) -> set[str]:
    """Those that an overlay deploys: the operator only where no file declares the fleet."""
    return SERVICES if overlay == "custom-resources" else SERVICES - {"operator"}


def settings_in(objects: list[dict[str, Any]]) -> dict[str, str]:
    (held,) = [
        one["data"]
        for one in of_kind(objects, "ConfigMap")
        if one["metadata"]["name"].startswith("stoker-settings")
    ]
    return dict(held)


def test_the_fleet_has_one_authority_in_each_overlay_a_file_or_the_operator(
    overlay: str, objects: list[dict[str, Any]]
) -> None:
    deployed = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment")
    }
    named = [one["metadata"]["name"] for one in objects]
    maps = [v["configMap"]["name"] for v in deployed["stoker-collector"]["volumes"] if "configMap" in v]
    mounts = [m["mountPath"] for m in deployed["stoker-collector"]["containers"][0]["volumeMounts"]]
    by_operator, fleet = "stoker-operator" in deployed, settings_in(objects).get(FLEET_FILE)
    assert by_operator == (overlay == "custom-resources")
    if by_operator:
        assert fleet is None and maps == [] and "/etc/stoker" not in mounts
        assert not [name for name in named if name.startswith("stoker-fleet")]
        assert len(of_kind(objects, "CustomResourceDefinition")) == len(KINDS)
    else:
        assert fleet == "/etc/stoker/fleet.yaml" and "/etc/stoker" in mounts
        assert len(maps) == 1 and maps[0] in named
        assert not [name for name in named if "operator" in name or name.endswith("inferno.platform.ai")]


def test_every_object_is_what_a_current_cluster_takes_strictly(objects: list[dict[str, Any]]) -> None:
    checked = [one for one in objects if one["kind"] not in OF_THE_PROMETHEUS_OPERATOR]
    for one in checked:
        kubernetes_validate.validate(one, CLUSTER, strict=True)
    assert len(checked) > 30
    broken = next(one for one in checked if one["kind"] == "Deployment")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, CLUSTER, strict=True)


def test_every_service_has_a_deployment_a_budget_and_an_account_and_two_replicas(
    objects: list[dict[str, Any]], services: set[str]
) -> None:
    deployed = {d["metadata"]["name"]: d for d in of_kind(objects, "Deployment")}
    assert set(deployed) == {f"stoker-{service}" for service in services}
    accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
    budgets = [one["spec"] for one in of_kind(objects, "PodDisruptionBudget")]
    for name, deployment in deployed.items():
        pod = deployment["spec"]["template"]
        assert pod["spec"]["serviceAccountName"] == name
        assert name in accounts
        assert deployment["spec"]["replicas"] == 2
        matching = [
            b for b in budgets if b["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        assert [b["maxUnavailable"] for b in matching] == [1]
        (container,) = pod["spec"]["containers"]
        assert container["args"] == ["run", name.removeprefix("stoker-")]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


def test_no_container_has_more_than_it_needs(objects: list[dict[str, Any]]) -> None:
    asks = {f"stoker-{service}" for service in ("collector", "actuator", "operator")}
    for one in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] == (one["metadata"]["name"] in asks)
        for container in pod["containers"]:
            held = container["securityContext"]
            assert held["readOnlyRootFilesystem"] is True
            assert held["allowPrivilegeEscalation"] is held["privileged"] is False
            assert held["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"]
        keys = [v for v in pod["volumes"] if v.get("secret", {}).get("secretName") == "stoker-nats-tls"]
        assert one["kind"] == "StatefulSet" or [v["secret"]["items"][0]["key"] for v in keys] == ["ca.crt"]


def test_each_process_has_the_secret_of_its_own_user_alone(
    objects: list[dict[str, Any]], services: set[str]
) -> None:
    found = {}
    for one in of_kind(objects, "Deployment", "Job"):
        volumes = one["spec"]["template"]["spec"]["volumes"]
        (secret,) = {
            n for v in volumes if (n := v.get("secret", {}).get("secretName", "")).startswith("stoker-bus")
        }
        found[one["metadata"]["name"]] = secret
    expected = {f"stoker-{s}": f"stoker-bus-{s}" for s in services}
    assert found == expected | {"stoker-bus-apply": f"stoker-bus-{OPERATOR}"}


def test_nobody_is_reached_unless_a_policy_says_so(objects: list[dict[str, Any]]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = policies["nats"]["ingress"]
    assert [peer["podSelector"] for peer in rule["from"]] == [
        {"matchLabels": {"app.kubernetes.io/part-of": "stoker"}}
    ]
    asking = [
        policy["podSelector"]
        for policy in policies.values()
        if any({"protocol": "TCP", "port": 6443} in rule["ports"] for rule in policy.get("egress", ()))
    ]
    for one in of_kind(objects, "Deployment"):
        pod = one["spec"]["template"]
        may_ask = any(selects(selector, pod["metadata"]["labels"]) for selector in asking)
        assert may_ask == pod["spec"]["automountServiceAccountToken"], one["metadata"]["name"]


def test_the_settings_are_settings_of_every_service(
    overlay: str, objects: list[dict[str, Any]], services: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = settings_in(objects)
    for name, value in held.items():
        monkeypatch.setenv(name, value)
    for service in services:
        assert load(settings_of(service)).bus.url == "tls://nats:4222"
    assert unknown_environment({"bus", "http", *services}) == []
    target = "kubernetes" if overlay == "active" else "dry-run"
    assert load(settings_of("actuator")).model_dump()["actuator"]["target"] == target
    assert (load(settings_of("collector")).model_dump()["collector"]["fleet"] is None) == (
        FLEET_FILE not in held
    )


def test_the_server_takes_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = trustme.CA().issue_cert("nats")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    issued.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    for path in (DEPLOY / "nats").glob("*.conf"):
        text = path.read_text().replace("/etc/nats-tls", str(tmp_path)).replace("/data", str(tmp_path))
        (tmp_path / path.name).write_text(text)
    command = [str(find_nats()), "-t", "-c", str(tmp_path / "nats.conf")]
    without = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert without.returncode != 0, "users without keys are no users"
    for number, user in enumerate(users()):
        pair = nkeys.from_seed(nkeys.encode_seed(bytes([number]) * 32, nkeys.PREFIX_BYTE_USER))
        monkeypatch.setenv(f"STOKER_NKEY_{user.upper()}", pair.public_key.decode())
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
