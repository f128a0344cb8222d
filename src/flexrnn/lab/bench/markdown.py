"""Tables of a bench for pages: each stands between two lines, and is written anew by command.

    <!-- bench:ratios lstm gru -->
    | B × T × I × H | LSTM | GRU |
    ...
    <!-- bench:end -->

The first line names one of `TABLES` and, where not all are wanted, the layers.
"""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from flexrnn.lab.bench.cases import Size
from flexrnn.lab.bench.show import duration
from flexrnn.lab.errors import UsageError
from flexrnn.lab.results import write
from flexrnn.lab.terminal import number

REGION = re.compile(
    r"(?P<start>^<!-- bench:(?P<name>[\w-]+)(?P<keys>(?: [\w.:-]+)*) -->\n)"
    r"(?P<body>.*?)(?P<end>^<!-- bench:end -->$)",
    re.MULTILINE | re.DOTALL,
)
START = re.compile(r"^<!-- bench:(?!end)", re.MULTILINE)
Found = dict[str, Any]


def machine(found: Found, keys: list[str]) -> str:
    """One sentence: what was measured where, and when."""
    m, options = found["machine"], found["options"]
    threads, cores = (f"{n} {word}{'s' if n != 1 else ''}" for n, word in
                      ((m["threads"], "thread"), (m["cores"], "core")))  # fmt: skip
    day = date.fromisoformat(m["date"])
    return (
        f"{options['dtype']}, medians of runs in turn, {threads} of an {m['processor']} with "
        f"{cores} ({m['isa'] or 'no engine'}), PyTorch {m['torch']}, FlexRNN {m['flexrnn']}, "
        f"{m['compiler']}, {day.day} {day:%B %Y}."
    )


def ratios(found: Found, keys: list[str], rival: int = 0) -> str:
    """Inference and training of every layer, by the time of the first rival."""
    heads, columns = [], []
    for key in keys:
        rows = [row for row in found["rows"] if row["key"] == key]
        theirs = next((row["rivals"] for row in rows if row["rivals"]), [])
        if rival and len(theirs) <= rival:
            continue
        name = rows[0]["label"].removeprefix("flexrnn.")
        heads.append(f"{name} / {theirs[rival]['label']}" if rival else name)
        columns.append({size: _pair(rows, size, rival) for size in _sizes(rows)})
    return _by_size(heads, columns)


def second(found: Found, keys: list[str]) -> str:
    """As `ratios`, by the second rival, for the layers that have one."""
    return ratios(found, keys, rival=1)


def memory(found: Found, keys: list[str]) -> str:
    """What a training step takes, by what torch's does."""
    heads, columns = [], []
    for key in keys:
        rows = [r for r in found["rows"] if r["key"] == key and r["mode"] == "training"]
        if rows and rows[0]["per"] == "call":
            heads.append(rows[0]["label"].removeprefix("flexrnn."))
            said = {Size(**row["size"]): (row["memory"] or {}).get("ratio") for row in rows}
            columns.append({size: number(value, ".2f") for size, value in said.items()})
    return _by_size(heads, columns)


def first_use(found: Found, keys: list[str]) -> str:
    """Seconds that the first call of a process takes more than the next."""
    lines = [
        [
            row["label"].removeprefix("flexrnn."),
            *(f"{number(row.get(cache), '.2f')} s" for cache in ("empty", "full")),
        ]
        for row in found["first_use"]
        if row["key"] in keys
    ]
    return _table(["Layer", "nothing compiled yet", "compiled by another process"], lines)


def numbers(found: Found, keys: list[str]) -> str:
    """Everything about every layer."""
    lines = []
    for row in found["rows"]:
        if row["key"] in keys and row["ours"]:
            ours, theirs = row["ours"], row["rivals"][0]
            faults = [number(each["page_faults"], ",.0f") for each in (ours, theirs)]
            lines.append(
                [
                    row["label"].removeprefix("flexrnn."),
                    _spaced(Size(**row["size"])),
                    row["mode"],
                    duration(ours["median_ms"]),
                    duration(theirs["median_ms"]),
                    number(theirs["ratio"], ".2f"),
                    number(row["of_peak"], ".0%"),
                    " / ".join(faults),
                    number((row["memory"] or {}).get("ratio"), ".2f"),
                ]
            )
    heads = [
        "Layer",
        "B × T × I × H",
        "",
        "time",
        "torch's",
        "ratio",
        "of peak",
        "faults",
        "memory",
    ]
    return _table(heads, lines)


TABLES: dict[str, Callable[[Found, list[str]], str]] = {
    "machine": machine,
    "ratios": ratios,
    "second": second,
    "memory": memory,
    "first-use": first_use,
    "numbers": numbers,
}


def check(path: Path) -> None:
    """Refuse, before anything is measured, a page that cannot be written.

    Raises:
        UsageError: it has no such lines, or names a table that there is none of.
    """
    if path.exists():
        _regions(path)


def update(path: Path, found: Found) -> None:
    """Write the tables between a page's lines anew, or a page that has all tables.

    Raises:
        UsageError: as `check`; or a layer that the page names was not measured.
    """
    if not path.exists():
        names = [name for name in TABLES if name != "machine"]
        keys = _keys(found)
        said = [f"<!-- bench:{n} -->\n{TABLES[n](found, keys)}\n<!-- bench:end -->" for n in names]
        top = f"<!-- bench:machine -->\n{machine(found, keys)}\n<!-- bench:end -->"
        write(path, "\n\n".join([top, *said]) + "\n")
        return

    def anew(region: re.Match[str]) -> str:
        name, keys = region["name"], region["keys"].split() or _keys(found)
        if missing := [key for key in keys if key not in _keys(found)]:
            raise UsageError(
                f"--markdown {path}: bench:{name} wants {', '.join(missing)}, not measured"
            )
        return f"{region['start']}{TABLES[name](found, keys)}\n{region['end']}"

    write(path, REGION.sub(anew, _regions(path)))


def _regions(path: Path) -> str:
    """The text of a page whose regions are sound."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"--markdown {path}: {said}") from None
    found = list(REGION.finditer(text))
    if not found or len(found) != len(START.findall(text)):
        raise UsageError(
            f"--markdown {path}: expected lines <!-- bench:TABLE --> and, below each, "
            f"<!-- bench:end -->, got {len(START.findall(text))} of the one and "
            f"{len(found)} whole pairs"
        )
    for region in found:
        if region["name"] not in TABLES:
            raise UsageError(
                f"--markdown {path}: expected bench:TABLE among {', '.join(TABLES)}, "
                f"got {region['name']!r}"
            )
    return text


def _keys(found: Found) -> list[str]:
    return list(dict.fromkeys(row["key"] for row in found["rows"]))


def _sizes(rows: list[dict[str, Any]]) -> list[Size]:
    return list(dict.fromkeys(Size(**row["size"]) for row in rows))


def _pair(rows: list[dict[str, Any]], size: Size, rival: int) -> str:
    own = [row for row in rows if Size(**row["size"]) == size]
    if any(row["why_not"] for row in own):
        return "not right"
    return ", ".join(number(row["rivals"][rival]["ratio"], ".2f") for row in own)


def _by_size(heads: list[str], columns: list[dict[Size, str]]) -> str:
    sizes = dict.fromkeys(size for column in columns for size in column)
    lines = [[_spaced(size), *(column.get(size, "–") for column in columns)] for size in sizes]
    return _table(["B × T × I × H", *heads], lines)


def _spaced(size: Size) -> str:
    return " × ".join(map(str, size))


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("|  |", "| |")
