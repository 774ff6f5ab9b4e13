"""Reads a benchmark file of any format that is known, told apart by what is in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.tuner.sweeps import guidellm_csv, guidellm_html, guidellm_json, vllm
from services.tuner.sweeps.sweep import Sweep, SweepRefused, checked

FORMATS = "GuideLLM JSON, CSV or HTML, or vLLM benchmark_serving JSON"


def read(file: Path) -> Sweep:
    """The load points of a file, rows with impossible values named in `Sweep.rejected`.

    Raises SweepRefused naming the file, and where known the row, the field, the value and what was expected.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SweepRefused(f"{file}: does not exist, expected a benchmark file") from None
    except IsADirectoryError:
        raise SweepRefused(f"{file}: is a folder, expected a benchmark file") from None
    except UnicodeDecodeError as error:
        raise SweepRefused(f"{file}: byte {error.start} is not UTF-8 text, expected {FORMATS}") from None
    except OSError as error:
        raise SweepRefused(f"{file}: cannot be read: {error.strerror}") from None
    begins = text.lstrip()[:1]
    if not begins:
        raise SweepRefused(f"{file}: is empty, expected {FORMATS}")
    if begins == "<" or guidellm_html.MARK in text:
        return checked(file, guidellm_html.points(file, text))
    if begins in "[{":
        return checked(file, _json_points(file, _parsed(file, text)))
    return checked(file, guidellm_csv.points(file, text))


def _json_points(file: Path, document: Any) -> Sequence[Any]:
    if isinstance(document, Mapping) and "benchmarks" in document:
        return guidellm_json.points(file, document["benchmarks"])
    records = document if isinstance(document, list) else [document]
    if not records or not all(isinstance(record, Mapping) for record in records):
        raise SweepRefused(f"{file}: holds {str(document)[:60]!r}, expected {FORMATS}")
    if vllm.MARK in records[0]:
        return vllm.points(file, records)
    if guidellm_json.TABLE_MARK in records[0]:
        return guidellm_json.table_points(file, records)
    raise SweepRefused(f"{file}: row 1 has the fields {_some(records[0])}, expected {FORMATS}")


def _some(record: Mapping[str, Any]) -> str:
    return ", ".join(list(record)[:5]) or "none"


def _parsed(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        # vLLM appends results as one object per line.
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) < 2:
                raise whole
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError:
            where = f"line {whole.lineno}, column {whole.colno}"
            raise SweepRefused(f"{file}: {where}: {whole.msg}, expected valid JSON") from None
    except RecursionError:
        raise SweepRefused(f"{file}: is nested too deeply, expected {FORMATS}") from None
    except ValueError as error:
        # Whole numbers of thousands of digits, which Python refuses to read.
        raise SweepRefused(f"{file}: {error}, expected {FORMATS}") from None
