"""What this machine and the configured bus have, and what they lack."""

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.actuator.settings import Settings as ActuatorProcess
from services.collector.settings import Settings as CollectorProcess
from services.collector.source import Source
from services.runtime import plugins
from services.runtime.bus import Bus
from services.runtime.embedded import find_nats, find_prometheus
from services.runtime.errors import Fatal
from services.runtime.settings import RuntimeSettings, load
from services.runtime.topology import topology

if TYPE_CHECKING:
    from services.actuator.targets.kubernetes import KubernetesTarget


@dataclass(frozen=True)
class Finding:
    """One thing examined; `needed` when nothing runs without it."""

    what: str
    ok: bool
    detail: str
    needed: bool = True


async def examine() -> list[Finding]:
    """Look at Python, the binaries, the plug-ins, the cluster where one is configured, and the bus."""
    cluster = [*await _kubernetes_source(), *await _kubernetes_target()]
    return [_python(), _nats(), _prometheus(), *_plugins(), *cluster, await _bus()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version)


def _nats() -> Finding:
    try:
        binary = str(find_nats())
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (Fatal, OSError, subprocess.SubprocessError) as error:
        return Finding("nats-server for `stoker up`", False, str(error), needed=False)
    return Finding("nats-server for `stoker up`", True, f"{said.stdout.strip()} at {binary}", needed=False)


def _prometheus() -> Finding:
    binary = find_prometheus()
    detail = str(binary) if binary else "not on PATH; `stoker up` reads the endpoints' text instead"
    return Finding("prometheus for `stoker up`", binary is not None, detail, needed=False)


def _plugins() -> list[Finding]:
    findings = []
    for one in plugins.listed():
        try:
            plugins.load(one.group, one.name)
        except plugins.PluginRefused as error:
            findings.append(Finding(f"{one.group} {one.name}", False, str(error)))
    if not findings:
        findings.append(Finding("plug-ins", True, f"{len(plugins.listed())} installed"))
    return findings


async def _kubernetes_source() -> list[Finding]:
    """What the collector's settings let it see of a cluster, with the rights that it needs."""
    settings = load(CollectorProcess).collector
    if "kubernetes" not in settings.sources:
        return []
    source: Source = plugins.build(
        "stoker.sources",
        "kubernetes",
        settings.source_settings.get("kubernetes"),
        to_clock_s=lambda wall_s: wall_s,
    )
    try:
        readings = await source.poll(time.time())
    finally:
        await source.close()
    cards = ", ".join(f"{one.free} of {one.total} {one.type} free" for one in readings.capacity)
    said = [problem.message for problem in readings.problems]
    said += [] if readings.failed else [f"{len(readings.inventory)} servers; cards: {cards or 'none'}"]
    return [Finding("kubernetes for the collector", not readings.failed, "; ".join(said))]


async def _kubernetes_target() -> list[Finding]:
    """Whether the actuator's settings reach a cluster and find servers' workloads there."""
    settings = load(ActuatorProcess).actuator
    if settings.target != "kubernetes":
        return []
    target: KubernetesTarget = plugins.build("stoker.targets", "kubernetes", settings.target_settings)
    try:
        problem = await target.trouble()
    finally:
        await target.close()
    return [Finding("kubernetes for the actuator", problem is None, problem or "workloads are found")]


async def _bus() -> Finding:
    settings = load(RuntimeSettings).bus.model_copy(update={"connect_timeout_s": 1.0})
    try:
        held = await Bus.connect(settings, "cli")
    except Fatal as error:
        return Finding("bus", False, f"{error}; set STOKER_BUS__URL", needed=False)
    try:
        drift = await held.verify(topology())
    except Fatal as error:
        return Finding("bus", False, str(error))
    finally:
        await held.close()
    return Finding("bus", not drift, "; ".join(drift) or f"{settings.url}, as the topic table says")
