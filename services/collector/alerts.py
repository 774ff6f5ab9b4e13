"""Facts that an operator should know of, and the alerts where they begin and end."""

from collections.abc import Iterable, Mapping

from schemas.alert import AlertKind, AlertRaised
from schemas.fleet import FleetDeclared
from services.collector.poll import Facts, Poll, subject_of
from services.collector.series import listed
from services.collector.settings import CollectorSettings
from services.collector.source import (
    Provides,
)
from services.collector.windows import Window


def facts_of(
    poll: Poll,
    fleet: FleetDeclared,
    windows: Mapping[str, Window],
    standing: Mapping[tuple[AlertKind, str], str],
    now_s: float,
    settings: CollectorSettings,
) -> Facts:
    """Everything that an operator should know of at this moment.

    Parameters: standing, the facts of the step before, which stay for a server that got no window; now_s,
    control time, Unix seconds.
    """
    facts = dict(poll.facts)
    declared = {server.name for server in fleet.servers}
    if poll.inventory and not any(v.ready for i in poll.inventory.values() for v in i.variants):
        # Nothing runs, so nothing can match.
        facts = {key: message for key, message in facts.items() if key[0] is not AlertKind.NO_SERIES}
    for name in sorted((poll.replicas.keys() | poll.gateways.keys() | poll.inventory.keys()) - declared):
        facts[AlertKind.UNKNOWN_SERVER, subject_of(name)] = (
            f"series or inventory of server {name!r} match no declared server and are ignored; "
            f"declared: {listed(sorted(declared))}"
        )
    for name, window in windows.items():
        facts.update(_server_facts(name, window, poll, now_s, settings))
    unchanged = declared - windows.keys()
    return facts | {key: message for key, message in standing.items() if key[1] in unchanged}


def _server_facts(
    name: str, window: Window, poll: Poll, now_s: float, settings: CollectorSettings
) -> Iterable[tuple[tuple[AlertKind, str], str]]:
    if window.newest_s is None:
        has = poll.inventory.get(name)
        idle = has is not None and not any(variant.ready for variant in has.variants)
        if not idle and Provides.METRICS not in poll.failed:
            known = sorted(poll.replicas.keys() | poll.gateways.keys())
            yield (
                (AlertKind.NO_SERIES, name),
                f"no series of server {name!r}; servers that series exist of: {listed(known)}",
            )
    elif now_s - window.newest_s > settings.stale_after_s:
        yield (
            (AlertKind.STALE_DATA, name),
            f"the newest sample of server {name!r} is {now_s - window.newest_s:.0f} s old; "
            f"expected at most {settings.stale_after_s:g} s",
        )
    elif window.silent:
        yield (
            (AlertKind.PARTIAL_DATA, name),
            f"{len(window.silent)} replicas of server {name!r} are ready but have not reported for more than "
            f"{settings.stale_after_s:g} s: {listed(list(window.silent))}",
        )


def edges(standing: Mapping[tuple[AlertKind, str], str], facts: Facts, now_s: float) -> Iterable[AlertRaised]:
    """An alert where a fact begins, and its resolution where it ends."""
    for (kind, subject), message in facts.items():
        if (kind, subject) not in standing:
            yield AlertRaised(kind=kind, subject=subject, message=message[:4000], raised_at_s=now_s)
    for (kind, subject), message in standing.items():
        if (kind, subject) not in facts:
            yield AlertRaised(
                kind=kind,
                subject=subject,
                resolved=True,
                message=f"ended: {message}"[:4000],
                raised_at_s=now_s,
            )
