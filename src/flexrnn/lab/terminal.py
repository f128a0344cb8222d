"""What the terminal shows: tables, bars, samples. Fits 80 columns; plain text where it is piped."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flexrnn.lab.results import Learning, Results, summaries


def progress(console: Console, noted: str = "") -> Progress:
    """Bars with what is done, a note and the time that is still to come.

    Where nobody watches (a pipe, a file) there are none.

    Args:
        console: where they go.
        noted: the unit of the tasks' field `note`, where it shall be shown.
    """
    note = f"[cyan]{{task.fields[note]}}[/] {noted}" if noted else ""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        *([TextColumn(note)] if note else []),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        disable=not console.is_terminal,
    )


def size_name(size: dict[str, int]) -> str:
    """A size in the fewest letters.

    Example:
        >>> from flexrnn.lab.terminal import size_name
        >>> size_name({"batch": 32, "seq": 64, "hidden": 128})
        'B 32 T 64 H 128'
    """
    return f"B {size['batch']} T {size['seq']} H {size['hidden']}"


def printable(text: str) -> str:
    r"""The text without characters that a terminal would obey instead of showing.

    Example:
        >>> from flexrnn.lab.terminal import printable
        >>> printable("red: \x1b[31m")
        'red: ?[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)


def show_start(console: Console, results: Results) -> None:
    """Where this runs and on what text."""
    m, text = results.machine, results.text
    console.print(
        f"FlexRNN {m['flexrnn']}, torch {m['torch']}, Python {m['python']}, {m['threads']} of "
        f"{m['cores']} cores, {m['processor']}",
        highlight=False,
        markup=False,
    )
    if text is not None:
        console.print(
            f"Text: {text['source']}, {text['characters']:,} characters after removing "
            f"{text['repeated_paragraphs']:,} repeated paragraphs; "
            f"{text['train']:,} to learn from, {text['held_back']:,} held back",
            highlight=False,
            markup=False,
        )


def show_agreement(console: Console, results: Results) -> None:
    """The largest differences to `nn.LSTM`."""
    table = _table(
        "Same function: largest difference to torch.nn.LSTM with the same weights",
        ["Cell", "dtype"],
        ["outputs", "states", "grad of x", "grad of weights"],
    )
    notes = {}
    for row in results.agreement:
        if row.why_not:
            notes[row.label] = row.why_not
            continue
        weights = max(value for name, value in row.gradients.items() if name != "x")
        numbers = [row.output, row.states, row.gradients["x"], weights]
        table.add_row(row.label, row.dtype, *(f"{number:.1e}" for number in numbers))
    console.print(table)
    for label, reason in notes.items():
        console.print(f"{label}: {reason}.", highlight=False, markup=False)


def show_speed(console: Console, results: Results) -> None:
    """Medians and ratios."""
    table = _table(
        "Speed: median milliseconds, all cells in turn",
        ["B×T×H", "Cell"],
        ["products", "forward", "x", "fwd+bwd", "x"],
    )
    last: Any = None
    for row in summaries(results.speed):
        first = row["size"] != last
        if first and last is not None:
            table.add_section()
        last = row["size"]
        sizes = "×".join(str(last[name]) for name in ("batch", "seq", "hidden"))
        cells = [sizes if first else "", row["label"], products(row)]
        for kind in ("forward", "training"):
            cells += [milliseconds(row[kind]["median_ms"]), times(row[kind]["ratio"])]
        table.add_row(*cells)
    console.print(table)
    if said := headline(results.as_dict()):
        console.print(said, highlight=False, style="bold")
    console.print(
        "B batch, T steps, H hidden = input width; x: times as long as torch.nn.LSTM. Compiled: "
        "flexrnn.NaiveLSTM, flexrnn.LSTM, ... are those loop bodies as FlexRNN runs them. "
        "Products: matrix products a step, counted; 1/T: one more for the inputs of all steps "
        "together (torch.nn.LSTM's with oneDNN off, which would hide them in one kernel).",
        highlight=False,
        style="dim",
    )


def times(ratio: float | None) -> str:
    """A ratio, in four characters.

    Example:
        >>> from flexrnn.lab.terminal import times
        >>> times(1.234), times(12.34)
        ('1.23', '12.3')
    """
    return number(ratio, ".2f" if ratio is None or ratio < 10 else ".1f")


def headline(found: dict[str, Any]) -> str:
    """What compiling does for the naive loop body in training, at the size trained."""
    size = {name: found["options"][name] for name in ("batch", "seq", "hidden")}
    ratios = {
        row["key"]: times(row["training"]["ratio"]) for row in found["speed"] if row["size"] == size
    }
    if not {"naive", "naive-lstm"} <= set(ratios):
        return ""
    return (
        f"The article's naive loop body, forward and backward at {size_name(size)}: "
        f"{ratios['naive']} times as long as torch.nn.LSTM by hand; unchanged and compiled, "
        f"{ratios['naive-lstm']} times."
    )


def products(row: dict[str, Any]) -> str:
    """`8`, or `1 + 1/T`: products in every step, and those once for the whole sequence.

    Example:
        >>> from flexrnn.lab.terminal import products
        >>> products({"products_per_step": 1, "products_once": 1})
        '1 + 1/T'
    """
    once = row["products_once"]
    return f"{row['products_per_step']} + {once}/T" if once else str(row["products_per_step"])


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none.

    Example:
        >>> from flexrnn.lab.terminal import number
        >>> number(1234.5, ",.0f"), number(None, ".2f")
        ('1,234', '–')
    """
    return "–" if value is None else format(value, form)


def milliseconds(value: float | None) -> str:
    """As many digits as say something.

    Example:
        >>> from flexrnn.lab.terminal import milliseconds
        >>> milliseconds(1.234), milliseconds(123.4), milliseconds(1234.5)
        ('1.23', '123', '1234')
    """
    return number(value, ".2f" if value is None or value < 10 else ".1f" if value < 100 else ".0f")


def show_learned(console: Console, row: Learning) -> None:
    """One line when a cell is done, where no bar says so."""
    if not console.is_terminal:
        said = number(row.bits_per_character, ".3f")
        console.print(f"{row.label}: {said} bits/char after {row.seconds:.1f} s", highlight=False)


def show_learning(console: Console, results: Results) -> None:
    """Scores and speeds of the language models."""
    table = _table(
        "Learning: a character language model each, from the same seed",
        ["Cell"],
        ["parameters", "bits/char", "chars/s", "x", "seconds"],
    )
    speeds = {row.key: row.characters_per_second for row in results.learning}
    for row in results.learning:
        own, best = row.characters_per_second, speeds.get("torch")
        table.add_row(
            row.label,
            f"{row.parameters:,}",
            number(row.bits_per_character, ".3f"),
            number(own, ",.0f"),
            number(best / own if own and best else None, ".2f"),
            f"{row.seconds:.1f}",
        )
    console.print(table)
    if results.text is not None:
        console.print(
            f"Bits per character on the held-back text; by letter frequencies alone it takes "
            f"{results.text['unigram_bits']:.3f}. x: training takes so many times as long as with "
            "torch.nn.LSTM.",
            highlight=False,
            style="dim",
        )


def show_samples(console: Console, results: Results) -> None:
    """What each model writes."""
    for row in results.learning:
        if row.sample:
            console.print(Text(f"\n{row.label} writes:", style="bold"))
            console.print(Text(printable(row.sample)))


def show_end(console: Console, results: Results, out: Path) -> None:
    """Where everything is."""
    if results.state == "interrupted":
        # The part that was under way has not shown its table yet.
        parts = {"same": results.agreement, "speed": results.speed, "learning": results.learning}
        done = ", ".join(part for part, rows in parts.items() if rows) or "nothing"
        start = f"\nInterrupted after {results.seconds:.0f} s; begun or done so far: {done}."
    else:
        start = f"\nDone in {results.seconds:.0f} s."
    console.print(
        f"{start} The report: {out / 'report.html'}; all numbers: {out / 'results.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, no_wrap=name != "Cell")
    for name in right:
        table.add_column(name, justify="right")
    return table
