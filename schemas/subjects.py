"""Identifiers as tokens of a message subject, and back.

Names such as ``meta-llama/Llama-3.1-8B`` hold characters that separate or match tokens of a subject, or that
keys of a key-value bucket refuse. Letters, digits, ``-`` and ``_`` stand for themselves; every other byte
of the UTF-8 form is written ``=XX`` in upper-case hexadecimal. The mapping is one to one.
"""

import re
from functools import lru_cache
from zlib import crc32

PARTITIONS = 64
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


@lru_cache(maxsize=16_384)
def encode_token(name: str) -> str:
    """Write a name as one subject token.

    Raises ValueError for an empty name, which no token can stand for.
    """
    if not name:
        raise ValueError("an empty name cannot be a subject token")
    return "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in name.encode())


def decode_token(token: str) -> str:
    """Read a name back from its token.

    Raises ValueError for anything that `encode_token` does not write.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is not a subject token: letters, digits, - _ and =XX are expected")
    raw = re.sub("=([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), token).encode("latin-1")
    name = raw.decode()
    if encode_token(name) != token:
        raise ValueError(f"{token!r} is not the token of {name!r}, which is {encode_token(name)!r}")
    return name


@lru_cache(maxsize=16_384)
def partition_of(model: str) -> str:
    """The partition that all telemetry of a model goes through, so that one tuner sees all of it."""
    return str(crc32(model.encode()) % PARTITIONS)
