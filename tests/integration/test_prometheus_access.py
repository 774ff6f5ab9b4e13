"""Tokens and certificates of the Prometheus source: from files that are rotated, read anew at every poll."""

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.collector.sources.prometheus import PrometheusSettings, PrometheusSource

EMPTY = {"status": "success", "data": {"resultType": "vector", "result": []}}


@asynccontextmanager
async def answering(certificate: Path, key: Path, seen: list[str]) -> AsyncIterator[str]:
    """An empty query interface over TLS that notes who asks."""

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.json_response(
            EMPTY if request.path.endswith("query") else {"status": "success", "data": []}
        )

    app = web.Application()
    app.router.add_route("*", "/api/v1/{rest:.*}", answer)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for this machine that is its own authority, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH to make certificates with")
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_a_rotated_token_and_authority_are_taken_up_at_the_next_poll(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "ours")
    other, _ = self_signed(tmp_path, "other")
    token, authority, seen = tmp_path / "token", tmp_path / "ca.crt", list[str]()
    token.write_text("first\n")
    authority.write_bytes(certificate.read_bytes())
    async with answering(certificate, key, seen) as url:
        source = PrometheusSource(
            PrometheusSettings(url=url, token_file=token, ca_file=authority), to_clock_s=lambda wall_s: wall_s
        )
        assert not (await source.poll(0)).failed
        token.write_text("second\n")
        assert not (await source.poll(0)).failed
        assert set(seen) == {"Bearer first", "Bearer second"} and seen[-1] == "Bearer second"

        # A new connection is made with what the file holds then.
        await source.close()
        asked = len(seen)
        authority.write_bytes(other.read_bytes())
        refused = await source.poll(0)
        assert refused.failed and "certificate" in refused.problems[0].message.lower()
        assert len(seen) == asked
        authority.write_bytes(certificate.read_bytes())
        assert not (await source.poll(0)).failed
        token.unlink()
        gone = await source.poll(0)
        assert gone.failed and str(token) in gone.problems[0].message
        await source.close()
