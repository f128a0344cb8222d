"""`flexrnn compare` as a person meets it: options, refusals, exit codes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from flexrnn.lab import compare, results, table
from flexrnn.lab.cli import app
from flexrnn.lab.table import Entry

from .conftest import CHARACTERS

Invoke = Callable[..., Result]
Found = Callable[..., dict[str, Any]]

SEEN = {"same", "speed"}
DEMO = {  # without `--cells`
    "naive": SEEN | {"learning"},
    "vectorized": SEEN | {"learning"},
    "peephole": SEEN | {"learning"},
    "naive-lstm": SEEN | {"learning"},
    "lstm": SEEN,
    "article-peephole-lstm": SEEN,
    "torch": {"speed", "learning"},
}


def test_help_names_every_option_and_every_cell():
    result = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    options = ["text", "seed", "steps", "hidden", "seq", "batch", "cells", "only", "out"]
    for word in [
        *(f"--{name}" for name in options),
        "--threads",
        "naive",
        "vectorized",
        "peephole",
    ]:
        assert word in result.stdout


def test_the_parts_appear_at_80_columns_without_escapes(whole: tuple[str, dict[str, Any], str]):
    printed, _, _ = whole
    assert "\x1b" not in printed
    for title in ("Same function", "Speed", "Learning", "Naive writes", "torch.nn.LSTM writes"):
        assert title in printed
    assert "text.txt" in printed
    assert "7 repeated paragraphs" in printed
    assert "Python 3." in printed
    lines = printed.splitlines()
    assert lines[-1].startswith("Done in")  # the paths in it stay whole, to be copied
    assert max(map(len, lines[:-1])) <= 80
    assert "…" not in printed  # no column of a table is cut


def test_the_json_has_all_numbers(whole: tuple[str, dict[str, Any], str]):
    _, found, _ = whole
    keys = list(DEMO)
    learned = [key for key, parts in DEMO.items() if "learning" in parts]
    assert found["state"] == "finished"
    assert found["options"]["steps"] == 4
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    assert [(row["key"], row["dtype"]) for row in found["agreement"]] == [
        (key, dtype) for key in keys[:-1] for dtype in ("float64", "float32")
    ]
    exact = [r for r in found["agreement"] if r["dtype"] == "float64" and not r["why_not"]]
    assert [row["key"] for row in exact] == ["naive", "vectorized", "naive-lstm", "lstm"]
    assert all(row["output"] < 1e-12 for row in exact)
    assert [row["key"] for row in found["speed"]] == keys * 4
    assert [row["products_per_step"] for row in found["speed"][:7]] == [8, 2, 2, 1, 1, 1, 1]
    assert all(row["training"]["median_ms"] > 0 for row in found["speed"])
    assert [row["key"] for row in found["learning"]] == learned
    for row in found["learning"]:
        assert row["steps"] == 4
        assert len(row["curve"]) == 5
        assert row["bits_per_character"] > 0
        assert row["characters_per_second"] > 0
        assert len(row["sample"]) == CHARACTERS
    assert [cell["key"] for cell in found["gates"]["cells"]] == ["vectorized", "peephole"]
    for cell in found["gates"]["cells"]:
        assert sorted(cell["units"]) == list(range(5))
        for rows in cell["values"].values():
            assert [len(row) for row in rows] == [len(found["gates"]["sentence"])] * 5


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, found: Found):
    def numbers(name: str, seed: int) -> Any:
        r = found(
            tmp_path / name, "--only", "same,learning", "--cells", "vectorized", "--seed", seed
        )
        curves = [[p["held_back"] for p in row["curve"]] for row in r["learning"]]
        return r["agreement"], curves, [row["sample"] for row in r["learning"]], r["gates"]

    first, again, other = numbers("a", 1), numbers("b", 1), numbers("c", 2)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_cells_and_steps(tmp_path: Path, found: Found):
    r = found(
        tmp_path, "--only", "learning", "--cells", "peephole", "--cells", "naive", "--steps", 2
    )
    assert [row["key"] for row in r["learning"]] == ["naive", "peephole", "torch"]
    assert {row["steps"] for row in r["learning"]} == {2}
    assert not r["speed"]
    assert not r["agreement"]


def test_sizes_reach_what_is_trained_and_timed(tmp_path: Path, found: Found):
    sizes = ("--hidden", 6, "--seq", 7, "--batch", 2, "--cells", "vectorized")
    r = found(tmp_path, "--only", "speed,learning", *sizes)
    assert {"batch": 2, "seq": 7, "hidden": 6} in [row["size"] for row in r["speed"]]
    vectorized = r["learning"][0]
    assert vectorized["parameters"] == 4 * (6 * 6 + 6 * 6 + 6)
    trained = vectorized["characters_per_second"] * vectorized["seconds"]
    assert trained == pytest.approx(4 * 2 * 7)


def test_the_text_is_the_one_that_was_named(tmp_path: Path, found: Found):
    path = tmp_path / "digits.txt"
    path.write_text("0123456789" * 100)
    r = found(tmp_path, "--only", "learning", "--cells", "vectorized", "--text", path)
    assert r["text"]["source"] == str(path)
    assert r["text"]["alphabet"] == 10
    assert r["text"]["characters"] == 1000
    assert set(r["learning"][0]["sample"]) <= set("0123456789")


def test_without_a_file_the_text_is_pythons_reference(tmp_path: Path):
    call = ["compare", "--only", "learning", "--cells", "torch", "--steps", "1", "--hidden", "4"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path)])
    assert result.exit_code == 0
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"the language reference of Python {version}" in result.stdout
    text = json.loads((tmp_path / "results.json").read_text())["text"]
    assert f"{text['characters']:,} characters" in " ".join(result.stdout.split())


def test_threads_are_used_and_given_back(tmp_path: Path, found: Found):
    before = torch.get_num_threads()
    r = found(tmp_path, "--only", "same", "--threads", 2)
    assert r["machine"]["threads"] == 2
    assert torch.get_num_threads() == before


def test_speed_alone_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "python_reference", lambda: pytest.fail("read a text"))
    call = ["compare", "--only", "speed", "--hidden", "4", "--seq", "3", "--batch", "2"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "results.json").read_text())["text"] is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"a\0b" * 1000, "binary"),
        (b"\xff\xfe" * 1000, "UTF-8"),
        (b"too short", "too short"),
    ],
)
def test_a_bad_text_is_one_line_and_exit_code_2(
    tmp_path: Path, invoke: Invoke, data: bytes, said: str
):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    refused(invoke("--text", path, "--out", tmp_path / "out"), said, str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "missing.txt"], ["missing.txt", "No such file"]),
        (["--text", "."], ["directory"]),
        (
            ["--cells", "naive,nave"],
            ["--cells", "naive, vectorized, peephole, naive-lstm", "'nave'"],
        ),
        (["--cells", ","], ["--cells", "nothing"]),
        (["--only", "sped"], ["--only", "same, speed, learning", "'sped'"]),
        (["--steps", 0], ["--steps", "at least 1", "0"]),
        (["--hidden", -3], ["--hidden", "at least 1", "-3"]),
        (["--seq", 0], ["--seq", "at least 1"]),
        (["--batch", 0], ["--batch", "at least 1"]),
        (["--threads", 0], ["--threads", "at least 1"]),
        (["--seed", -1], ["--seed", "-1"]),
        (["--seed", 2**63], ["--seed", str(2**63)]),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    invoke: Invoke,
    arguments: list[Any],
    said: list[str],
):
    monkeypatch.chdir(tmp_path)
    refused(invoke(*arguments), *said)
    assert not list(tmp_path.iterdir())


def test_an_unusable_folder_is_refused_before_the_work(tmp_path: Path, invoke: Invoke):
    (tmp_path / "file").write_text("")
    refused(invoke("--out", tmp_path / "file"), "--out", "exists")
    refused(invoke("--out", tmp_path / "file" / "folder"), "--out", "directory")


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("flexrnn: ")
    assert len(result.stderr.splitlines()) == 1
    for words in said:
        assert words in result.stderr


def test_a_new_line_in_the_table_appears_in_all_parts(
    tmp_path: Path, found: Found, monkeypatch: pytest.MonkeyPatch
):
    new = Entry(
        "new", "A GRU", "#777", lambda i, h: nn.GRU(i, h, batch_first=True), why_not="a GRU"
    )
    monkeypatch.setattr(table, "TABLE", [*table.TABLE, new])
    r = found(tmp_path, "--cells", "new")
    assert [row["why_not"] for row in r["agreement"]] == ["a GRU", "a GRU"]
    assert [row["key"] for row in r["speed"][:2]] == ["torch", "new"]
    assert [row["key"] for row in r["learning"]] == ["torch", "new"]
    assert r["gates"] is None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A GRU" in page
    assert "no pictures of its inside" in page


def test_every_cell_of_the_table_runs_through_all_parts(tmp_path: Path, invoke: Invoke):
    keys = [entry.key for entry in table.TABLE]
    result = invoke("--cells", ",".join(keys), "--out", tmp_path)
    assert result.exit_code == 0, result.output
    r = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    for part, times in (("agreement", 2), ("speed", 4), ("learning", 1)):
        others = [key for key in keys if part != "agreement" or key != "torch"]
        assert sorted(row["key"] for row in r[part]) == sorted(others * times)
    for row in r["agreement"]:
        assert (row["output"] is None) == bool(row["why_not"])
    assert all(row["sample"] for row in r["learning"])
    table_lines = [line for line in result.stdout.splitlines() if line[:1] in "┃│"]
    assert table_lines
    assert not any("…" in line for line in table_lines)  # no column is cut
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(entry.label in page for entry in table.TABLE)


@pytest.mark.parametrize("part", ["same", "speed", "learning"])
def test_without_names_the_bodies_of_the_article_take_part(found: Found, tmp_path: Path, part: str):
    r = found(tmp_path, "--only", part)
    assert r["options"]["cells"] == list(DEMO)
    rows = r["agreement" if part == "same" else part]
    wanted = [key for key, parts in DEMO.items() if part in parts]
    assert list(dict.fromkeys(row["key"] for row in rows)) == wanted


def test_a_cell_that_is_named_takes_part_in_everything(found: Found, tmp_path: Path):
    r = found(tmp_path, "--cells", "lstm", "--only", "speed,learning")
    assert [row["key"] for row in r["learning"]] == ["lstm", "torch"]
    assert [row["key"] for row in r["speed"][:2]] == ["lstm", "torch"]


@pytest.mark.parametrize("part", ["_same", "_speed", "_learning"])
def test_ctrl_c_in_any_part_writes_the_parts_before_it(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, part: str
):
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, part, press)
    result = invoke("--out", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == ""
    r = json.loads((tmp_path / "results.json").read_text())
    assert r["state"] == "interrupted"
    done = {"_same": [], "_speed": ["agreement"], "_learning": ["agreement", "speed"]}[part]
    assert [name for name in ("agreement", "speed", "learning") if r[name]] == done
    assert "This run is interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path / "report.html") in result.stdout


def test_an_error_keeps_what_was_done_before(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(compare, "_speed", fail)
    assert isinstance(invoke("--out", tmp_path).exception, MemoryError)
    r = json.loads((tmp_path / "results.json").read_text())
    assert r["state"] == "failed"
    assert r["agreement"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    results.write(path, "before")

    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", press)
    with pytest.raises(KeyboardInterrupt):
        results.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["typer", "plotly"])  # at once, and by the command
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import flexrnn.lab; flexrnn.lab.main()"
    command = [sys.executable, "-c", code, "compare", "--only", "same"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert missing in line
    assert line.endswith("the command needs pip install 'flexrnn[lab]'")


def start(out: Path, text: Path, *arguments: str) -> subprocess.Popen[str]:
    code = "from flexrnn.lab import main; main()"
    sizes = ["--steps", "1000", "--hidden", "4", "--seq", "8", "--batch", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", code, "compare", *sizes, "--text", text, "--out", out, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def interrupt_after(process: subprocess.Popen[str], said: str) -> tuple[str, str]:
    """Wait for a line that begins so, then press Ctrl-C; the rest of the output and the errors."""
    assert process.stdout is not None
    assert any(line.startswith(said) for line in process.stdout)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_ctrl_c_while_training_keeps_whole_and_half_trained_cells(tmp_path: Path, text: Path):
    process = start(tmp_path, text, "--only", "same,learning", "--steps", "300")
    rest, errors = interrupt_after(process, "Naive: ")
    assert process.returncode == 130
    assert errors == ""
    assert str(tmp_path / "report.html") in rest
    r = json.loads((tmp_path / "results.json").read_text())
    assert r["state"] == "interrupted"
    assert r["agreement"]
    assert r["learning"][0]["steps"] == 300
    assert r["learning"][0]["sample"]
    assert len(r["learning"]) < 4 or r["learning"][-1]["steps"] < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_ctrl_c_at_the_beginning(tmp_path: Path, text: Path):
    process = start(tmp_path, text)
    _, errors = interrupt_after(process, "FlexRNN")
    assert process.returncode == 130
    assert errors == ""
    assert json.loads((tmp_path / "results.json").read_text())["state"] == "interrupted"
