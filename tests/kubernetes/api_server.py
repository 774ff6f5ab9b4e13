"""A real Kubernetes API server for tests: one that is named, one built from Debian's source, or K3s in a container.

The order of finding: the cluster of STOKER_TEST_KUBECONFIG; the binaries in the folder that
STOKER_TEST_KUBERNETES names or where `build.sh` leaves them; K3s where a container engine runs. None of them has a
kubelet that matters here: `kubelet.py` plays it.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from services.runtime.child import end, last_lines, spawn

READY_S = 120.0
ADMIN_TOKEN = "admin-of-the-test-cluster"
VERSION = "1.20.2"
MERGE = "application/merge-patch+json"


class Refusal(Exception):
    """The API server's answer to a request that it did not take."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:500]}")
        self.status = status


class Admin:
    """Plain requests with all rights, by a library that the code under test does not use for its own."""

    def __init__(self, url: str, headers: dict[str, str], pool: urllib3.PoolManager) -> None:
        self.url, self._headers, self.pool = url, headers, pool

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The answer's JSON; raises Refusal."""
        answer = self.pool.request(
            method,
            self.url + path,
            body=None if body is None else json.dumps(body),
            headers=self._headers | {"Content-Type": kind},
            retries=False,
            timeout=20.0,
        )
        text = answer.data.decode()
        if answer.status >= 300:
            raise Refusal(answer.status, text)
        return json.loads(text) if text.startswith("{") else text

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.call("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body, MERGE)

    def delete(self, path: str, grace_s: int | None = None) -> Any:
        options = None if grace_s is None else {"gracePeriodSeconds": grace_s}
        return self.call("DELETE", path, options)

    def gone(self, path: str) -> None:
        """Delete what may not be there."""
        try:
            self.delete(path, 0)
        except Refusal as refusal:
            if refusal.status != 404:
                raise

    def create(self, manifest: dict[str, Any]) -> Any:
        """Make an object from a manifest, of a kind whose plural ends in s."""
        group, plural = manifest["apiVersion"], manifest["kind"].lower() + "s"
        base = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        namespace = manifest["metadata"].get("namespace")
        return self.post(
            f"{base}/namespaces/{namespace}/{plural}" if namespace else f"{base}/{plural}", manifest
        )


class ApiServer:
    """A cluster that tests may write to; `restarts` when its server is a child of ours."""

    def __init__(
        self, kubeconfig: dict[str, Any], folder: Path, processes: "Processes | None" = None
    ) -> None:
        self.kubeconfig, self.folder, self._processes = kubeconfig, folder, processes
        self.admin = _admin(kubeconfig, folder)

    @property
    def restarts(self) -> bool:
        return self._processes is not None

    def stop(self) -> None:
        """End the API server; its data stay."""
        assert self._processes is not None
        self._processes.stop_server()

    def start(self) -> None:
        """Start it again on the same port and wait until it answers."""
        assert self._processes is not None
        self._processes.start_server()
        wait_ready(self.admin)

    def kubeconfig_file(self, name: str, token: str | None = None, url: str | None = None) -> Path:
        """A kubeconfig of the administrator, or of whom a token speaks for; `url` replaces the address."""
        cluster = dict(self.kubeconfig["clusters"][0]["cluster"])
        if url is not None:
            cluster["server"] = url
        user = self.kubeconfig["users"][0]["user"] if token is None else {"token": token}
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(_kubeconfig(cluster, user)))
        return path

    def as_bearer(self, token: str) -> Admin:
        """Requests with another's token."""
        return Admin(self.admin.url, {"Authorization": f"Bearer {token}"}, self.admin.pool)

    def token(self, namespace: str, account: str) -> str:
        """A token of a service account, as a pod would be given."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self.admin.post(path, request)["status"]["token"])


class Processes:
    """etcd, the API server and, where wanted, the controller manager on free ports of the loopback address."""

    def __init__(self, binaries: Path, etcd: str, folder: Path, controllers: bool = True) -> None:
        self.binaries, self.etcd, self.folder, self._controls = binaries, etcd, folder, controllers
        self.port, self._etcd_port = free_port(), free_port()
        self._children: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Start all; returns the administrator's kubeconfig."""
        folder, peer = self.folder, f"http://127.0.0.1:{free_port()}"
        client = f"http://127.0.0.1:{self._etcd_port}"
        etcd = [self.etcd, "--unsafe-no-fsync", "--name=test", f"--data-dir={folder / 'etcd'}"]
        etcd += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        etcd += [
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
        ]
        self._children.append(spawn(etcd, folder / "etcd.log"))
        key = folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        (folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
        self.start_server()
        certificate = folder / "certificates" / "apiserver.crt"
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(certificate)}
        config = _kubeconfig(cluster, {"token": ADMIN_TOKEN})
        until(certificate.is_file, "the API server's certificate", lambda: last_lines(folder / "server.log"))
        wait_ready(_admin(config, folder), lambda: last_lines(folder / "server.log"))
        if self._controls:
            self._start_controllers(config)
        return config

    def _start_controllers(self, config: dict[str, Any]) -> None:
        folder, key = self.folder, self.folder / "service-accounts.key"
        path = folder / "controllers.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        controllers = [
            str(self.binaries / "kube-controller-manager"),
            f"--kubeconfig={path}",
            "--leader-elect=false",
        ]
        controllers += ["--port=0", "--secure-port=0", f"--service-account-private-key-file={key}"]
        # Nodes that nobody's kubelet speaks for stay ready.
        controllers += ["--controllers=*,-nodelifecycle"]
        # A quota or a budget is looked at again within seconds, where a cluster would take minutes.
        controllers += ["--resource-quota-sync-period=2s", "--kube-api-qps=500", "--kube-api-burst=1000"]
        self._children.append(spawn(controllers, folder / "controllers.log"))

    def start_server(self) -> None:
        folder, key = self.folder, self.folder / "service-accounts.key"
        server = [str(self.binaries / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{self._etcd_port}"]
        server += [
            f"--cert-dir={folder / 'certificates'}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
        ]
        server += [f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"]
        server += [
            "--service-account-issuer=https://test.invalid",
            f"--token-auth-file={folder / 'tokens.csv'}",
        ]
        server += ["--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24", "--insecure-port=0"]
        # Nobody here gives pods the token that this plug-in would mount.
        server += ["--disable-admission-plugins=ServiceAccount"]
        server += ["--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"]
        self._server = spawn(server, folder / "server.log")

    def stop_server(self) -> None:
        assert self._server is not None
        # It would wait for watches to end; what ends a real one does not ask.
        end(self._server, 1.0)
        self._server = None

    def stop(self) -> None:
        for child in [*reversed(self._children), self._server]:
            if child is not None and child is not self._children[0]:
                end(child, 10.0)
        if self._children:
            end(self._children[0], 10.0)


def until(good: Any, what: str, detail: Any = lambda: "") -> Any:
    """What `good` returns as soon as it is true; fails after the deadline."""
    deadline_s = time.monotonic() + READY_S
    while not (found := good()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"{what} did not come about within {READY_S:g} s: {detail()}")
        time.sleep(0.05)
    return found


def wait_ready(admin: Admin, detail: Any = lambda: "") -> None:
    """Wait until the server answers that it is ready."""

    def ready() -> bool:
        try:
            return bool(admin.get("/readyz") == "ok")
        except (Refusal, urllib3.exceptions.HTTPError):
            return False

    until(ready, "the API server's readiness", detail)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def binaries() -> tuple[Path, str] | None:
    """The folder of the two Kubernetes programs and the path of etcd."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("STOKER_TEST_KUBERNETES", cache / "stoker" / f"kubernetes-{VERSION}"))
    etcd = shutil.which("etcd")
    found = all((folder / name).is_file() for name in ("kube-apiserver", "kube-controller-manager"))
    return (folder, etcd) if found and etcd else None


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """The first cluster that can be had; skips with the reason when there is none."""
    if named := os.environ.get("STOKER_TEST_KUBECONFIG"):
        yield ApiServer(yaml.safe_load(Path(named).read_text()), folder)
    elif found := binaries():
        processes = Processes(*found, folder)
        try:
            yield ApiServer(processes.start(), folder, processes)
        finally:
            processes.stop()
    elif _container_engine():
        with _k3s() as kubeconfig:
            yield ApiServer(kubeconfig, folder)
    else:
        pytest.skip(
            "no Kubernetes API server: set STOKER_TEST_KUBECONFIG, run tests/kubernetes/build.sh, or start a "
            "container engine"
        )


def _container_engine() -> bool:
    import docker

    try:
        return bool(docker.from_env(timeout=2).ping())
    except docker.errors.DockerException:
        return False


@contextmanager
def _k3s() -> Iterator[dict[str, Any]]:
    """K3s without the agent and the scheduler, whose parts the tests play."""
    from testcontainers.community.k3s import K3SContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    class Server(K3SContainer):  # type: ignore[misc]
        def _connect(self) -> None:
            # The library waits for a node, and there is none.
            wait_for_logs(self, "k3s is up and running", timeout=READY_S)

    container = Server("rancher/k3s:v1.34.1-k3s1", enable_cgroup_mount=False)
    container.with_command(
        "server --disable-agent --disable-scheduler --disable=traefik "
        f"--tls-san={container.get_container_host_ip()} "
        "--kube-controller-manager-arg=controllers=*,-nodelifecycle"
    )
    with container:
        yield yaml.safe_load(container.config_yaml())


def _kubeconfig(cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def _admin(kubeconfig: dict[str, Any], folder: Path) -> Admin:
    from kubernetes.config import new_client_from_config_dict

    # The official loader knows every way of naming a credential; requests are made without it.
    configuration = new_client_from_config_dict(kubeconfig, temp_file_path=str(folder)).configuration
    pool = urllib3.PoolManager(
        maxsize=8,
        ca_certs=configuration.ssl_ca_cert,
        cert_file=configuration.cert_file,
        key_file=configuration.key_file,
    )
    token = configuration.get_api_key_with_prefix("BearerToken") or configuration.get_api_key_with_prefix(
        "authorization"
    )
    return Admin(configuration.host, {"Authorization": token} if token else {}, pool)


def wait_for(cluster: ApiServer, path: str, good: Any) -> Any:
    """The object at a path as soon as it is there and good."""
    found: Any = None

    def look() -> Any:
        nonlocal found
        try:
            found = cluster.admin.get(path)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            return None
        return found if good(found) else None

    return until(look, f"{path} as expected", lambda: json.dumps(found)[:2000])


def names_of(items: Sequence[Any]) -> list[str]:
    return [item["metadata"]["name"] for item in items]
