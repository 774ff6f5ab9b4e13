"""`stoker bus`: streams and consumers from the topic table, watching, parked messages."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.topics import ROOT, Stream, topic_of_subject
from services.live import as_json as line_of
from services.runtime.bus import Bus
from services.runtime.envelope import Raw, Wire
from services.runtime.permissions import files as permission_files
from services.runtime.settings import RuntimeSettings, load
from services.runtime.topology import topology
from services.tail import filters_of, is_about, messages, start_of, text_of

bus = typer.Typer(help="Streams, consumers, watching, parked messages.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_KEPT = ("ce-", "content-type")


def _with_bus(work: Callable[[Bus], Awaitable[int]]) -> None:
    async def connected() -> int:
        held = await Bus.connect(load(RuntimeSettings).bus, "cli")
        try:
            return await work(held)
        finally:
            await held.close()

    try:
        raise SystemExit(asyncio.run(connected()))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@bus.command("apply")
def apply() -> None:
    """Create or update streams, consumers and buckets; the second time changes nothing."""

    async def work(held: Bus) -> int:
        changed = await held.apply(topology())
        print("\n".join(changed) or "nothing to change")
        return 0

    _with_bus(work)


@bus.command("verify")
def verify() -> None:
    """Compare the server with the topic table; exit 1 when they differ."""

    async def work(held: Bus) -> int:
        drift = await held.verify(topology())
        print("\n".join(drift) or "as the topic table says")
        return 1 if drift else 0

    _with_bus(work)


@bus.command("permissions")
def permissions(
    folder: Annotated[Path, typer.Argument(help="Where the server's configuration is.")] = Path(
        "deploy/nats"
    ),
    check: Annotated[bool, typer.Option("--check", help="Only say what has drifted; exit 1 if any.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write what each user may do, and the users, as files that a NATS server's configuration includes."""
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not there: expected a folder")
    written = {folder / name: text for name, text in permission_files().items()}
    changed = [path for path, text in written.items() if not path.is_file() or path.read_text() != text]
    if not check:
        for path in changed:
            path.write_text(written[path])
    if as_json:
        print(json.dumps({"files": [str(path) for path in written], "changed": [str(p) for p in changed]}))
    else:
        print(
            "\n".join(f"{'drifted' if check else 'written'}: {p}" for p in changed)
            or "as the topic table says"
        )
    if check and changed:
        raise SystemExit(1)


@bus.command("tail")
def tail(
    subject: Annotated[str, typer.Argument(help="Subject or wildcard.")] = f"{ROOT}.>",
    server: Annotated[str | None, typer.Option(help="Only what is about this server.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="Begin with what is kept since then: 90s, 15m, 2h, 1d ago, or an ISO time."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Go on with what is published from now on.")] = True,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print messages as they are published, one a line; with --from also those kept since then."""
    try:
        start = None if since is None else start_of(since, datetime.now(UTC))
        filters = {} if start is None else filters_of(subject)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if start is None and not follow:
        raise typer.BadParameter("--no-follow needs --from: without both there is nothing to print")

    async def work(held: Bus) -> int:
        seen = 0
        async with aclosing(messages(held, subject, filters, start, follow)) as found:
            async for raw in found:
                if server is not None and not is_about(raw, server):
                    continue
                print(line_of(raw) if as_json else text_of(raw), flush=True)
                seen += 1
                if seen == count:
                    break
        return 0

    _with_bus(work)


@bus.command("dlq")
def dlq(
    redrive: Annotated[
        list[int] | None, typer.Option(help="Sequence in DLQ to publish again; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List parked messages with the reason, or publish some again under their own subjects."""

    async def work(held: Bus) -> int:
        parked = await held.everything(Stream.DLQ.value, [f"{ROOT}.dlq.>"])
        return await _redrive(held, parked, redrive) if redrive else _list(parked, as_json)

    _with_bus(work)


def _list(parked: list[Raw], as_json: bool) -> int:
    rows = [
        {
            "sequence": raw.sequence,
            "subject": raw.headers.get("stoker-subject", ""),
            "consumer": raw.headers.get("stoker-consumer", ""),
            "reason": raw.headers.get("stoker-reason", ""),
            "bytes": len(raw.data),
        }
        for raw in parked
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("sequence", "subject", "consumer", "bytes", "reason")
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("sequence", "subject", "consumer", "bytes", "reason")))
    Console().print(table if rows else "nothing is parked")
    return 0


async def _redrive(held: Bus, parked: list[Raw], sequences: list[int]) -> int:
    by_sequence = {raw.sequence: raw for raw in parked}
    code = 0
    for sequence in sequences:
        raw = by_sequence.get(sequence)
        subject = raw.headers.get("stoker-subject", "") if raw else ""
        topic = topic_of_subject(subject)
        if raw is None or topic is None:
            print(f"{sequence}: {'belongs to no topic' if raw else 'is not parked'}")
            code = 2
            continue
        headers = {k: v for k, v in raw.headers.items() if k.lower().startswith(_KEPT)}
        await held.publish(Wire(subject, raw.data, headers, "", topic.stream))
        print(f"{sequence}: published again to {subject}")
    return code
