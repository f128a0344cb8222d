"""What `flexrnn bench` shows in the terminal: one table a layer. Fits 80 columns."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flexrnn.lab.bench.cases import Size
from flexrnn.lab.terminal import number

LEGEND = (
    "x, y: our time by theirs, so that less than 1 is faster; medians of runs in turn. peak: "
    "matrix products a second, as part of those of the fastest large product. faults: minor page "
    "faults of a run. mem: what a training step adds to the memory of a process, by what torch's "
    "layer adds, from 4 MiB up."
)


def start(console: Console, found: dict[str, Any]) -> None:
    """Where this runs."""
    m, options = found["machine"], found["options"]
    said = (
        f"FlexRNN {m['flexrnn']}, torch {m['torch']}, Python {m['python']}, {m['threads']} of "
        f"{m['cores']} cores, {m['processor']}, {m['isa'] or 'no engine'}, {m['compiler']}; "
        f"{options['dtype']}, peak {found['peak_gflops']:.0f} GFLOP/s"
    )
    if m["environment"]:
        said += "; " + ", ".join(f"{name}={value}" for name, value in m["environment"].items())
    plain(console, said)


def case(console: Console, found: dict[str, Any], key: str) -> None:
    """The rows of one layer."""
    rows = [row for row in found["rows"] if row["key"] == key]
    timed = [row for row in rows if row["ours"]]
    first = next((each for each in found["first_use"] if each["key"] == key), {})
    if timed:
        console.print(_table(timed))
    for row in timed:
        if row["memory"] and "why_not" in row["memory"]:
            plain(console, f"{size_of(row)}: no memory: {row['memory']['why_not']}")
    for cause in dict.fromkeys(cause for row in timed for cause in row["causes"]):
        plain(console, f"Not by {cause}")
    if "empty" in first:
        plain(
            console,
            f"First call of a process: {first['empty']:.2f} s more; {first['full']:.2f} s once it "
            "is compiled.",
        )
    elif "why_not" in first:
        plain(console, f"First call of a process: {first['why_not']}")
    for row in rows:
        if row["why_not"]:
            console.print(
                f"{row['label']}, {size_of(row)}: no ratio: {row['why_not']}",
                style="red",
                highlight=False,
                markup=False,
            )


def _table(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    engines = ", ".join(dict.fromkeys(row["engine"] for row in rows))
    beside = [rival["label"] for rival in first["rivals"]]
    said = f"{first['label']} ({engines}); x: {beside[0]}"
    said += f"; y: {beside[1]}" if len(beside) > 1 else ""
    table = Table(title=said, title_justify="left", title_style="bold")
    table.add_column("B×T×I×H", no_wrap=True)
    table.add_column("", no_wrap=True)
    names = ["a step" if first["per"] == "step" else "time", "x", "y", "peak", "faults", "mem"]
    if len(beside) == 1:
        names.remove("y")
    if not any(row["memory"] for row in rows):
        names.remove("mem")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    last: Any = None
    for row in rows:
        if last not in (None, row["size"]):
            table.add_section()
        cells = [
            size_of(row) if row["size"] != last else "",
            row["mode"],
            duration(row["ours"]["median_ms"]),
            *(number(rival["ratio"], ".2f") for rival in row["rivals"]),
            number(row["of_peak"], ".0%"),
            number(row["ours"]["page_faults"], ",.0f"),
        ]
        if "mem" in names:
            cells.append(number((row["memory"] or {}).get("ratio"), ".2f"))
        table.add_row(*cells)
        last = row["size"]
    return table


def end(console: Console, found: dict[str, Any], stem: Path) -> None:
    """Where everything is, and whether all was right."""
    timed = any(row["ours"] for row in found["rows"])
    if timed:
        console.print(LEGEND, highlight=False, style="dim")
    crowded(console, found)
    wrong = [row for row in found["rows"] if row["why_not"]]
    if wrong:
        names = ", ".join(dict.fromkeys(row["label"] for row in wrong))
        console.print(f"Not right, and so without a ratio: {names}.", style="red", highlight=False)
    ending = "Done in" if found["state"] == "finished" else "Interrupted after"
    chart = f"; the chart: {stem}.svg" if timed else ""
    console.print(
        f"{ending} {found['seconds']:.0f} s. All numbers: {stem}.json{chart}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def crowded(console: Console, found: dict[str, Any]) -> None:
    """In how many rows threads had no core each, if in any."""
    count = sum(row["side_by_side"] is False for row in found["rows"])
    if count:
        console.print(
            f"Threads did not have a core each in {count} of {len(found['rows'])} rows, "
            "whose times say little.",
            style="yellow",
            highlight=False,
        )


def plain(console: Console, said: str) -> None:
    """A line without colours."""
    console.print(said, highlight=False, markup=False)


def size_of(row: dict[str, Any]) -> str:
    """A row's size in the fewest letters."""
    return str(Size(**{name: row["size"][name] for name in Size._fields}))


def duration(ms: float) -> str:
    """Three digits and a unit.

    Example:
        >>> from flexrnn.lab.bench.show import duration
        >>> duration(0.01234), duration(1.234), duration(123.4), duration(1234)
        ('12.3 µs', '1.23 ms', '123 ms', '1.23 s')
    """
    value, unit = (ms, "ms") if 1 <= ms < 1000 else (1e3 * ms, "µs") if ms < 1 else (ms / 1e3, "s")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"
