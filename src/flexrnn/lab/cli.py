"""The command line: `flexrnn compare` and `flexrnn bench`."""

import io
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flexrnn.lab.bench import cases
from flexrnn.lab.errors import UsageError
from flexrnn.lab.table import BASELINE, TABLE

INTERRUPTED = 130  # what a shell gives a process that Ctrl-C ended

OTHERS = ", ".join(entry.key for entry in TABLE if entry.key != BASELINE)
UNASKED = ", ".join(entry.key for entry in TABLE if entry.unasked and entry.key != BASELINE)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flexrnn {installed_version('flexrnn')}")
        raise typer.Exit


@app.callback()
def flexrnn(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """FlexRNN's laboratory: see what recurrent layers compute, cost and learn."""


@app.command()
def compare(
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text to learn, UTF-8. Without it: Python's own language reference.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps for each cell.")] = 800,
    hidden: Annotated[int, typer.Option(help="Hidden units, in training and for speed.")] = 128,
    seq: Annotated[int, typer.Option(help="Time steps: characters in one window.")] = 64,
    batch: Annotated[int, typer.Option(help="Windows in one batch.")] = 32,
    threads: Annotated[
        int,
        typer.Option(
            help="CPU threads. At these sizes more gain little, and wait for one another on a "
            "busy machine."
        ),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of weights, batches and samples.")] = 0,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Cells to set beside torch.nn.LSTM, which is always there: {OTHERS}. "
            f"Comma-separated or repeated; {UNASKED} by default.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART,...",
            help="Run these parts alone: same (function), speed, learning. "
            "Comma-separated or repeated; all by default.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.html and results.json.")
    ] = Path("runs/compare"),
) -> None:
    """Put hand-written LSTMs beside torch.nn.LSTM: same function? how fast? what do they learn?

    Writes report.html, one page that opens offline, and results.json with every number.

    Ctrl-C ends it early and writes what there is by then.
    """
    console = Console()
    try:
        # Imported here: Ctrl-C must end the imports, too, in one line; and --help needs none.
        from flexrnn.lab.compare import Options, run

        options = Options(
            text=text,
            seed=seed,
            steps=steps,
            hidden=hidden,
            seq=seq,
            batch=batch,
            threads=threads,
            cells=tuple(cells or ()),
            only=tuple(only or ()),
            out=out,
        )
        results = run(options, console)
    except UsageError as error:
        typer.echo(f"flexrnn: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("flexrnn: interrupted before anything was computed", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if results.state == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command()
def bench(
    cells: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help=f"What to measure: {', '.join(cases.names())}; or module:Class, a Cell of your "
            "own. Comma-separated or repeated; all but article-peephole-lstm by default.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B,T,I,H",
            help="Rows, steps, features of the input, hidden units. Repeatable; eight sizes by "
            "default.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; as many as torch has by default.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For each layer, size and mode, with what it is beside.")
    ] = 2.0,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="inference, or training: forward and backward. Both by default.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(help="The engine of our layers: auto, cpu, torch, interpreter or reference."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the JSON and the chart.")
    ] = Path("runs/bench"),
    markdown: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write the tables between a page's lines <!-- bench:... --> anew; a file that is "
            "not there gets all tables. Repeatable.",
            show_default=False,
        ),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure nothing: show and write what the JSON of another run has.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure how fast layers are on this machine, beside torch's: a ratio, if they are right.

    Every layer's outputs and gradients are checked first; one that is wrong gets no ratio, and the
    exit code is 1.

    Ctrl-C ends it early and writes what there is by then.
    """
    console = Console()
    try:
        from flexrnn.lab.bench.markdown import check, update
        from flexrnn.lab.bench.run import Options, reload, run

        for page in markdown or ():
            check(page)
        if load is None:
            options = Options(
                cells=tuple(cells or ()),
                sizes=tuple(size or ()),
                dtype=dtype,
                threads=threads,
                seconds=seconds,
                only=only,
                backend=backend,
                seed=seed,
                out=out,
            )
            found = run(options, console)
        else:
            found = reload(load, console)
        if found["state"] == "finished":
            for page in markdown or ():
                update(page, found)
    except UsageError as error:
        typer.echo(f"flexrnn: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("flexrnn: interrupted before anything was measured", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if found["state"] == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if any(row["why_not"] for row in found["rows"]):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A sample may hold a letter that this terminal's encoding lacks: better a "?" than an end.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
