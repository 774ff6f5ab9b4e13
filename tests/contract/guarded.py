"""A NATS server with the users and permissions that are deployed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from nacl.utils import random as random_bytes

from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.permissions import OPERATOR, users
from services.runtime.settings import BusSettings
from services.runtime.topology import topology

DEPLOYED = Path(__file__).parents[2] / "deploy" / "nats"


class Guarded(EmbeddedServer):
    """Knows how each user connects: its settings of the bus by the user's name."""

    credentials: dict[str, dict[str, Any]]

    def settings(self, user: str, **more: Any) -> BusSettings:
        return BusSettings.model_validate(
            {"url": self.url, "connect_timeout_s": 5, **self.credentials[user], **more}
        )


@asynccontextmanager
async def guarded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, by: str = "password", extra_config: str = ""
) -> AsyncIterator[Guarded]:
    """A server whose users prove themselves by nkey or by password; it has the streams of the topic table."""
    await asyncio.to_thread(folder.mkdir)
    (folder / "permissions.conf").write_text((DEPLOYED / "permissions.conf").read_text())
    (folder / "users.conf").write_text((DEPLOYED / f"users-by-{by}.conf").read_text())
    server = Guarded(folder, extra_config=f"include users.conf\n{extra_config}")
    server.credentials = {}
    for user in users():
        if by == "password":
            known, server.credentials[user] = f"word-of-{user}", {"user": user, "password": f"word-of-{user}"}
        else:
            seed = folder / f"{user}.nk"
            known, server.credentials[user] = new_key(seed), {"nkey_seed_file": seed}
        monkeypatch.setenv(f"STOKER_{by.upper()}_{user.upper()}", known)
    async with server:
        if not extra_config:
            await apply(server)
        yield server


async def apply(server: Guarded, **settings: Any) -> None:
    """As an operator does before services start."""
    bus = await Bus.connect(server.settings(OPERATOR, **settings), OPERATOR)
    await bus.apply(topology())
    assert bus.refusals == ()
    await bus.close()


async def denied(server: Guarded, user: str, lines: list[str]) -> list[bool]:
    """For each line of the protocol, whether the server denies it to a user; nothing of the library is used."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    greeting = {"verbose": False, "pedantic": False, "headers": True, "protocol": 1}
    greeting |= {"user": user, "pass": server.credentials[user]["password"]}
    await reader.readline()
    writer.write(f"CONNECT {json.dumps(greeting)}\r\n".encode())
    found = []
    for line in lines:
        writer.write(line.encode() + b"PING\r\n")
        refused = False
        while (said := await asyncio.wait_for(reader.readline(), 60)) != b"PONG\r\n":
            assert said, f"the connection was ended at {line!r}"
            refused |= said.startswith(b"-ERR 'Permissions Violation")
            assert refused or not said.startswith(b"-ERR"), said
            if said.startswith((b"MSG", b"HMSG")):
                await reader.readexactly(int(said.split()[-1]) + 2)
        found.append(refused)
    writer.close()
    return found


def trusting(ca: Any, folder: Path) -> Path:
    """The certificate of an authority as a file."""
    path = folder / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


def new_key(seed_file: Path) -> str:
    """Write the seed of a new key; returns the public half."""
    pair = nkeys.from_seed(nkeys.encode_seed(random_bytes(32), nkeys.PREFIX_BYTE_USER))
    seed_file.write_bytes(bytes(pair.seed))
    return pair.public_key.decode()


async def kept(bus: Bus, stream: str, subject: str, within_s: float = 60.0) -> None:
    """Wait until a stream has kept something."""
    deadline = time.monotonic() + within_s
    while not await bus.newest(stream, [subject]):
        assert time.monotonic() < deadline, f"nothing of {subject}"
        await asyncio.sleep(0.1)
