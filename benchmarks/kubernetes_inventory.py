"""One inventory pass over a thousand servers on a real API server: time of the processor, and requests made."""

import asyncio
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import Progress, Table
from services.cluster.client import ClusterSettings
from services.collector.source import Readings
from services.collector.sources.kubernetes import KubernetesSettings, KubernetesSource

sys.path.append(str(Path(__file__).parents[1] / "tests" / "kubernetes"))

_SERVERS, _REPLICAS, _NODES = 1000, 2, 50
_PASSES, _CHANGED_SHARE = 10, 0.1
_CYCLE_S = 30.0


def run(progress: Progress) -> list[Table]:
    """Measure; without a server's binaries there is a note instead."""
    from api_server import Processes, binaries

    found = binaries()
    if found is None:
        note = "no API server: run tests/kubernetes/build.sh"
        return [Table("Kubernetes inventory", ("figure", "value"), (), (note,))]
    with tempfile.TemporaryDirectory() as folder:
        # Without the controllers: replica sets and pods are made here, and nothing else is in the way.
        processes = Processes(*found, Path(folder), controllers=False)
        try:
            return [_measure(processes.start(), Path(folder), progress)]
        finally:
            processes.stop()


def _measure(kubeconfig: dict[str, Any], folder: Path, progress: Progress) -> Table:
    from api_server import ApiServer

    cluster = ApiServer(kubeconfig, folder)
    with ThreadPoolExecutor(8) as pool:
        for number, _ in enumerate(pool.map(lambda n: _make(cluster.admin, n), range(_NODES + _SERVERS))):
            progress.say(f"making objects {number + 1}/{_NODES + _SERVERS}")
        path = cluster.kubeconfig_file("benchmark")
        return asyncio.run(_passes(cluster.admin, path, pool, progress))


def _make(admin: Any, number: int) -> None:
    """A node, or a server's Deployment with its pods, all ready."""
    from kubelet import node
    from manifests import variant

    if number < _NODES:
        made = node(f"node-{number}", "H100", 64)
        admin.create(made)
        admin.patch(f"/api/v1/nodes/{made['metadata']['name']}/status", {"status": made["status"]})
        return
    name = f"server-{number}"
    deployment = variant("default", name, "H100", replicas=_REPLICAS)
    admin.create(deployment)
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{name}-h100-1",
        "uid": "1",
        "controller": True,
    }
    for replica in range(_REPLICAS):
        meta = {
            "name": f"{name}-h100-1-{replica}",
            "namespace": "default",
            "labels": {"app": f"{name}-h100", "pod-template-hash": "1"},
            "ownerReferences": [owner],
        }
        spec = deployment["spec"]["template"]["spec"] | {"nodeName": f"node-{number % _NODES}"}
        admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        _say_ready(admin, meta["name"], True)


def _say_ready(admin: Any, pod: str, ready: bool) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at}
    status = {"phase": "Running", "conditions": [condition]}
    admin.patch(f"/api/v1/namespaces/default/pods/{pod}/status", {"status": status})


async def _passes(admin: Any, kubeconfig: Path, pool: ThreadPoolExecutor, progress: Progress) -> Table:
    settings = KubernetesSettings(cluster=ClusterSettings(kubeconfig=kubeconfig), first_list_s=120)
    source = KubernetesSource(settings, to_clock_s=lambda wall_s: wall_s)
    began_s, worked_s = time.perf_counter(), time.process_time()
    readings = await source.poll(time.time())
    first_s, first_worked_s = time.perf_counter() - began_s, time.process_time() - worked_s
    first_calls = sum(source.cluster.calls.values())
    still, wall, calls = [], [], []
    for number in range(_PASSES):
        progress.say(f"pass {number + 1}/{_PASSES}")
        before, began_s, worked_s = (
            sum(source.cluster.calls.values()),
            time.perf_counter(),
            time.process_time(),
        )
        readings = await source.poll(time.time())
        still.append(time.process_time() - worked_s)
        wall.append(time.perf_counter() - began_s)
        calls.append(sum(source.cluster.calls.values()) - before)
    following_s = await _follow_changes(admin, source, pool)
    await source.close()
    ready = sum(v.ready for one in readings.inventory for v in one.variants)
    assert (len(readings.inventory), ready) == (_SERVERS, _SERVERS * _REPLICAS), "not everything was read"
    # Watches are asked for again after so long; a resource that is not installed once a minute.
    watches = 6 * _CYCLE_S / settings.cluster.watch_s + _CYCLE_S / 60
    return Table(
        "Kubernetes inventory",
        ("figure", "value"),
        (
            ("servers", len(readings.inventory)),
            ("replicas ready", ready),
            ("first pass with its lists: processor s", round(first_worked_s, 3)),
            ("first pass with its lists: wall s", round(first_s, 3)),
            ("first pass: requests", first_calls),
            ("pass after warm-up: processor s, least", round(min(still), 4)),
            ("pass after warm-up: processor s, most", round(max(still), 4)),
            ("pass after warm-up: wall s, most", round(max(wall), 4)),
            ("pass after warm-up: requests, most", max(calls)),
            (
                f"requests of a {_CYCLE_S:.0f} s cycle, watches resumed included",
                round(max(calls) + watches, 2),
            ),
            (f"following {_CHANGED_SHARE:.0%} of replicas: processor s", round(following_s, 4)),
        ),
        ("processor time of this process, in which the collector runs alone",),
    )


async def _follow_changes(admin: Any, source: KubernetesSource, pool: ThreadPoolExecutor) -> float:
    """Processor time to take in changes of a share of the replicas, their making not counted."""
    changed = [
        f"server-{n}-h100-1-0" for n in range(_NODES, _NODES + int(_SERVERS * _REPLICAS * _CHANGED_SHARE))
    ]

    async def unready() -> int:
        readings: Readings = await source.poll(time.time())
        return sum(v.pending for one in readings.inventory for v in one.variants)

    list(pool.map(lambda pod: _say_ready(admin, pod, False), changed))
    worked_s = time.process_time()
    while await unready() < len(changed):
        pass
    worked_s = time.process_time() - worked_s
    list(pool.map(lambda pod: _say_ready(admin, pod, True), changed))
    while await unready():
        pass
    return worked_s
