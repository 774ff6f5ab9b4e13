"""Child processes for local runs: they end with their parent, whatever ends it."""

import ctypes
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork, in which loading could wait for a lock that nobody holds any more."""


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, its output appended to a file; Ctrl-C does not reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end(child: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """Terminate a child, and kill it when it has not gone in time."""
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a child's output, on one line."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-count:]) if log.is_file() else ""
