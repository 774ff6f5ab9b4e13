"""`stoker analyze`, `size` and `concurrency`: questions to the performance models, one problem or a list.

Exit codes: 0 when at least one problem was answered, else 3 when one of them is infeasible, else 2.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from services.perfmodel.problems.answering import Answer, Asking, Question

QUESTIONS = {
    "analyze": "Throughput, waiting, TTFT, ITL and occupancy of a server at a request rate.",
    "size": "The largest request rate that a server carries within its targets.",
    "concurrency": "The smallest batch limit that carries nearly the best rate, up to the problem's own.",
}
COMPAT_MODEL = "birth-death-compat"
# On a terminal, problems between two steps of the progress bar.
PROBLEMS_PER_STEP = 32

File = Annotated[str, typer.Argument(help="JSON file with one problem or a list; - reads standard input.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Queueing model, instead of what problems name (birth-death).")
]
LawName = Annotated[
    str | None, typer.Option("--law", help="Iteration law, instead of what problems name (three-parameter).")
]
Compat = Annotated[bool, typer.Option("--compat", help=f"The reference's numbers: --model {COMPAT_MODEL}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, in the form of the problems.")]
Curve = Annotated[bool, typer.Option("--curve", help="Metrics at rates from 5 to 100 % of the capacity too.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the curves into this PNG file.")]


def register(app: typer.Typer) -> None:
    """Add a command for each question."""
    for question, summary in QUESTIONS.items():
        app.command(question, help=summary)(_asking(question))


def _asking(question: str) -> Callable[..., None]:
    """The command of one question; all three are typed alike."""

    def ask(
        file: File,
        model: ModelName = None,
        law: LawName = None,
        compat: Compat = False,
        as_json: AsJson = False,
        curve: Curve = False,
        plot: Plot = None,
    ) -> None:
        _command(question, file, model, law, compat, as_json, curve, plot)

    return ask


def _command(
    name: str,
    file: str,
    model: str | None,
    law: str | None,
    compat: bool,
    as_json: bool,
    curve: bool,
    plot: Path | None,
) -> NoReturn:
    from services.perfmodel.problems.answering import Asking, Outcome, Question

    if compat and model not in (None, COMPAT_MODEL):
        _fail(f"--compat: answers with {COMPAT_MODEL}, got --model {model} too")
    if plot is not None and plot.suffix.lower() != ".png":
        _fail(f"--plot: expected a file that ends in .png, got {plot}")
    source = "standard input" if file == "-" else file
    content = _content(file, source)
    many = isinstance(content, list)
    asking = Asking(law=law, model=COMPAT_MODEL if compat else model, curve=curve or plot is not None)
    answers = _answered(Question(name), content if many else [content], asking)

    bodies = [one.body for one in answers]
    if plot is not None:
        _draw(plot, bodies)
        if not curve:
            bodies = [{key: value for key, value in body.items() if key != "curve"} for body in bodies]
    for place, body in enumerate(bodies):
        if "error" in body:
            where = f"problem {place}: " if many else ""
            print(f"{source}: {where}{body['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps(bodies if many else bodies[0], indent=2))
    else:
        _show(bodies)
    best_first = {Outcome.ANSWERED: 0, Outcome.INFEASIBLE: 3, Outcome.REFUSED: 2}
    reached = {one.outcome for one in answers}
    raise SystemExit(next((code for outcome, code in best_first.items() if outcome in reached), 0))


def _answered(question: "Question", raws: Sequence[object], asking: "Asking") -> list["Answer"]:
    """The answers, with a progress bar on a terminal."""
    from dataclasses import replace
    from functools import cache, partial

    from services.perfmodel.problems.answering import Models, answer
    from services.runtime import plugins

    build = {group: cache(partial(plugins.build, f"stoker.{group}")) for group in ("laws", "queueing")}
    try:
        for group, name in (("laws", asking.law), ("queueing", asking.model)):
            if name is not None:
                build[group](name)
    except plugins.PluginRefused as error:
        _fail(str(error))
    models = Models(build["laws"], build["queueing"])
    if not sys.stderr.isatty():
        return answer(question, raws, models, asking)

    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{question.value} with {asking.model or 'each its model'}", total=len(raws))
        watched = replace(
            asking,
            problems_per_call=PROBLEMS_PER_STEP,
            progress=lambda count: progress.advance(task, count),
        )
        return answer(question, raws, models, watched)


def _content(file: str, name: str) -> Any:
    """What a JSON file or standard input holds; exits with 2 where it is none."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        _fail(f"{name}: line {error.lineno}, column {error.colno}: expected JSON, {error.msg}")
    except OSError as error:
        _fail(f"{name}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        _fail(f"{name}: expected JSON, {error}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"got {text}, which is no number")


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _draw(plot: Path, bodies: Sequence[Mapping[str, Any]]) -> None:
    try:
        from services.curve_plot import draw
    except ModuleNotFoundError as error:
        _fail(f"--plot: needs the extra stoker[plots]: {error}")
    try:
        draw(plot, bodies)
    except OSError as error:
        _fail(f"--plot: {plot} cannot be written: {error.strerror}")


def _show(bodies: Sequence[Mapping[str, Any]]) -> None:
    """One answer figure by figure, or a table of several; then a table of each curve."""
    from rich.console import Console

    from services.perfmodel.problems.figures import name_of

    console = Console()
    good = [(place, body) for place, body in enumerate(bodies) if "error" not in body]
    if len(bodies) == 1:
        for _, body in good:
            console.print(_sheet(body))
    elif good:
        console.print(_table([(name_of(body, place), body) for place, body in good]))
    for place, body in enumerate(bodies):
        if points := body.get("curve"):
            table = _table([("", point) for point in points])
            table.title = name_of(body, place)
            console.print(table)


def _sheet(body: Mapping[str, Any]) -> "Table":
    """Every figure of one answer under its own key."""
    from rich.table import Table

    table = Table("figure", "value")

    def add(figures: Mapping[str, Any], head: str) -> None:
        for key, value in figures.items():
            if isinstance(value, Mapping):
                add(value, f"{head}{key}.")
            elif key != "curve":
                table.add_row(f"{head}{key}", _text(value))

    add(body, "")
    return table


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> "Table":
    """One row for each answer, or point of a curve, in milliseconds and requests per second."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from services.perfmodel.problems.figures import BATCH_LIMIT, FIGURES, ITL, TTFT, metrics_of

    columns: dict[str, list[str]] = {"problem": [name for name, _ in rows]}
    columns[BATCH_LIMIT.title] = [_text(BATCH_LIMIT.of(body)) for _, body in rows]
    for figure in FIGURES:
        columns[figure.title] = [_text(figure.of(metrics_of(body))) for _, body in rows]
    for figure in (TTFT, ITL):
        columns[f"p95 {figure.title}"] = [_text(figure.of(metrics_of(body), "p95")) for _, body in rows]
    columns["stopped by"] = [str(body.get("binding", "")) for _, body in rows]
    shown = {title: values for title, values in columns.items() if any(values)}
    table = Table(*shown, box=SIMPLE_HEAD, padding=(0, 0))
    for values in zip(*shown.values(), strict=True):
        table.add_row(*values)
    return table


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
