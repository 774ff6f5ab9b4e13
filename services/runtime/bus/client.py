"""The library's client, kept from giving up on what anyone may publish.

Measured on nats-py 2.16: a subject or header line that is not UTF-8, or a header block that is cut short, ends
its reading for good while it still counts as connected; a vertical tab or form feed, which the server takes as
part of a subject, breaks its parser, and reconnecting only brings the message again.
"""

import asyncio
import re

import nats.protocol.parser
from nats.aio.client import Client
from nats.aio.msg import Msg

# The parser looks these up in its module; the server separates by blank and tab alone.
nats.protocol.parser.MSG_RE = re.compile(
    rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n"
)
nats.protocol.parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
)


_CLOSING_S = 2.0
_NAME = re.compile(rb"[!-9;-~]+")


class TolerantClient(Client):
    """Hands over every message: without headers that cannot be read, its subject's odd bytes as escapes."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """As the library reads them, in a third of its time, which is a fifth of receiving a message."""
        found = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.strip()
            if colon and _NAME.fullmatch(name):
                found[name.decode()] = value.strip().decode(errors="replace")
        return found

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=subject.decode(errors="backslashreplace"),
            reply=reply.decode(errors="backslashreplace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def leave(self) -> None:
        """Disconnect; where the library waits for ever, drop the connection with whatever is still to be sent.

        It does after a certificate that it did not trust. It also no longer reads by now, so a server that has
        much to say to it no longer takes anything from it, and its last write waits.
        """
        try:
            async with asyncio.timeout(_CLOSING_S):
                await self.close()
        except (OSError, TimeoutError):
            self._abandon()

    def _abandon(self) -> None:
        if self._transport is not None:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]
