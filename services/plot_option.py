"""`--plot` of the commands: what cannot be drawn is refused before the work for it is done."""

import sys
from pathlib import Path


def require_plots(plot: Path | None) -> None:
    """End with exit code 2 where a picture is asked for that cannot be written there as PNG, or not drawn at all."""
    if plot is None:
        return
    if plot.suffix.lower() != ".png" or not plot.parent.is_dir():
        fault = f"{str(plot)!r}, expected a file that ends with .png in a folder that exists"
    else:
        try:
            import matplotlib.figure  # noqa: F401

            return
        except ImportError:
            fault = "matplotlib is not installed; install it with: pip install 'stoker[plots]'"
    print(f"--plot: {fault}", file=sys.stderr)
    raise SystemExit(2)
