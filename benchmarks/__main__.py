"""`python -m benchmarks [NAME …] [--json]`: run benchmarks and print their numbers."""

import argparse
import importlib
import json
import sys

from benchmarks.report import Progress, Table, machine
from services.runtime import logs
from services.runtime.settings import LogSettings

NAMES = (
    "perfmodel",
    "model_accuracy",
    "engines",
    "optimizer",
    "control_cycle",
    "gate",
    "forecasts",
    "throughput",
    "kubernetes_inventory",
    "tuner",
    "soak",
)


def main() -> int:
    """Run what is asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of Stoker.")
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON object per benchmark and line")
    asked = parser.parse_args()
    logs.configure(LogSettings(level="warning", format="text"))
    names = [name.replace("-", "_") for name in asked.name] or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"{', '.join(unknown)} unknown; there are {', '.join(NAMES)}")
    for name in names:
        progress, about = Progress(), machine()
        tables: list[Table] = importlib.import_module(f"benchmarks.{name}").run(progress)
        progress.clear()
        if asked.json:
            print(json.dumps({"benchmark": name, "machine": about, "tables": [t.as_json() for t in tables]}))
        else:
            print(f"\n# {name}: {', '.join(f'{k} {v}' for k, v in about.items())}\n", flush=True)
            print("\n\n".join(table.as_text() for table in tables))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
