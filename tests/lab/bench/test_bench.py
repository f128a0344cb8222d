"""`flexrnn bench` as a person meets it: refusals, its JSON, its options, exit codes, Ctrl-C."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from flexrnn.lab.bench import apart, measure, run
from flexrnn.lab.bench.cases import TABLE
from flexrnn.lab.cli import app

Invoke = Callable[..., Result]
Found = Callable[..., dict[str, Any]]
Plant = Callable[..., None]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("forward", "the final state"),
        ("x0", "the gradient of x"),
        ("param.weight_hh", "the gradient of weight_hh_l0"),
        ("param.bias_ih", "the gradient of bias_ih_l0"),
    ],
)
def test_a_wrong_layer_gets_no_ratio_and_exit_code_1(
    tmp_path: Path, invoke: Invoke, wrong: Plant, where: str, said: str
):
    wrong(where)
    result = invoke("--cells", "gru", "--out", tmp_path)
    assert result.exit_code == 1
    assert f"no ratio: {said} is wrong by" in " ".join(result.stdout.split())
    assert "torch.nn.GRU" not in result.stdout  # no table
    (path,) = tmp_path.glob("*.json")
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]  # and no chart
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ours"] is None
    assert row["rivals"] == []
    assert row["why_not"].startswith(said)
    assert row["check"]["error"] > row["check"]["allowed"]


def test_not_a_number_is_wrong(found: Found, wrong: Plant):
    wrong("forward", by=float("nan"))
    (row,) = found("--cells", "lstm", exit_code=1)["rows"]
    assert row["why_not"].startswith("the final state is wrong by nan")


def test_others_are_measured_beside_one_that_does_not_run(found: Found, cells: Path):
    rows = found("--cells", "my_cells:Broken,my_cells:Leaky", exit_code=1)["rows"]
    assert [bool(row["ours"]) for row in rows] == [False, True, True]
    assert rows[0]["why_not"].startswith("CannotCompileError: ")
    assert "no such step, at " in rows[0]["why_not"]
    assert rows[0]["label"] == "Broken"


def test_every_comparison_has_its_numbers(found: Found, tmp_path: Path):
    r = found()
    assert r["state"] == "finished"
    assert r["peak_gflops"] > 0
    assert list(dict.fromkeys(row["key"] for row in r["rows"])) == [case.key for case in TABLE]
    assert len(r["rows"]) == sum(len(case.modes) for case in TABLE)
    for row in r["rows"]:
        assert row["why_not"] == ""
        assert row["engine"] == "interpreter"
        assert row["size"] == {"batch": 2, "steps": 3, "input": 4, "hidden": 5}
        assert 0 <= row["check"]["error"] <= row["check"]["allowed"]
        assert row["gflops"] == pytest.approx(row["of_peak"] * r["peak_gflops"])
        for times in (row["ours"], *row["rivals"]):
            assert times["runs"] >= 5
            low, high = times["quartiles_ms"]
            assert 0 < low <= times["median_ms"] <= high
            assert times["page_faults"] >= 0
        for rival in row["rivals"]:
            ratio = row["ours"]["median_ms"] / rival["median_ms"]
            assert rival["ratio"] == pytest.approx(ratio)
        assert (row["memory"] is not None) == (row["mode"] == "training")
    beside = {row["key"]: [rival["label"] for rival in row["rivals"]] for row in r["rows"]}
    assert beside["naive-lstm"] == beside["layer-norm-lstm"] == ["torch.nn.LSTM", "flexrnn.LSTM"]
    assert beside["gru"] == ["torch.nn.GRU"]
    assert beside["lstm-step"] == ["torch.nn.LSTM, one step", "torch.nn.LSTMCell"]
    assert [row["per"] for row in r["rows"] if row["key"] == "lstm-step"] == ["step"]
    assert [row["empty"] for row in r["first_use"]] == [2.0] * len(TABLE)
    machine = r["machine"]
    assert machine["torch"] == torch.__version__
    assert {"processor", "cores", "threads", "flexrnn", "compiler", "isa", "date"} <= set(machine)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    stem = next(iter(names)).rsplit(".", 1)[0]
    assert names == {f"{stem}.json", f"{stem}.svg"}
    assert stem.endswith(f"-{machine['threads']}")


def test_rows_whose_threads_had_no_core_each_are_counted(
    found: Found, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
):
    assert all(row["side_by_side"] for row in found("--cells", "lstm")["rows"])
    asked = iter([True, False, False, True, True])  # one that is not before is not asked after
    monkeypatch.setattr(apart, "side_by_side", lambda *_: next(asked))
    result = invoke("--cells", "lstm,lstm-step")
    assert "Threads did not have a core each in 2 of 3 rows" in result.stdout


def test_small_memories_have_no_ratio(found: Found, monkeypatch: pytest.MonkeyPatch):
    memory = found("--cells", "lstm", "--only", "training")["rows"][0]["memory"]
    assert memory == {"ours": 1 << 20, "theirs": 3 << 20, "ratio": None}
    monkeypatch.setattr(measure, "TELLING_BYTES", 3 << 20)
    memory = found("--cells", "lstm", "--only", "training")["rows"][0]["memory"]
    assert memory["ratio"] == pytest.approx(1 / 3)


def test_the_tables_fit_80_columns(invoke: Invoke, tmp_path: Path):
    sizes = ("--size", "2,3,4,5", "--size", "1,2,3,4")
    result = invoke("--cells", "naive-lstm,lstm-step", *sizes, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("Done in")  # the paths in it stay whole, to be copied
    assert max(map(len, lines[:-1])) <= 80
    assert "…" not in result.stdout
    assert "\x1b" not in result.stdout
    for said in ("2×3×4×5", "1×2×3×4", "inference", "training", "First call of a process: 2.00 s"):
        assert said in result.stdout


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_only_one_mode(found: Found, mode: str):
    r = found("--only", mode, "--cells", "rnn,gru")
    assert [row["mode"] for row in r["rows"]] == [mode, mode]
    assert r["options"]["modes"] == [mode]


def test_options_reach_what_is_measured(found: Found, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    times = apart.times

    def noted(case: Any, size: Any, mode: str, *how: Any) -> Any:
        asked.append((tuple(size), mode, *how, torch.get_num_threads()))
        return times(case, size, mode, *how)

    monkeypatch.setattr(apart, "times", noted)
    before = torch.get_num_threads()
    r = found(
        "--cells", "lstm", "--size", "1,2,3,4", "--size", "5,1,2,1", "--dtype", "float64",
        "--threads", 2, "--seconds", 0.01, "--only", "inference", "--seed", 7,
    )  # fmt: skip
    how = ("inference", torch.float64, "interpreter", 0.01, 7, 2)
    assert asked == [(size, *how) for size in ((1, 2, 3, 4), (5, 1, 2, 1))]
    assert torch.get_num_threads() == before
    assert r["machine"]["threads"] == 2
    assert r["options"]["dtype"] == "float64"


def test_times_that_cannot_be_taken_are_told(found: Found, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apart, "times", lambda *_: {"why_not": "exit status -9"})
    (row,) = found("--cells", "rnn", "--only", "training", exit_code=1)["rows"]
    assert (row["ours"], row["rivals"], row["why_not"]) == (None, [], "exit status -9")


def test_a_half_type_is_for_the_cpu_engine_too(found: Found):
    rows = found("--cells", "gru", "--dtype", "bfloat16", "--backend", "auto")["rows"]
    assert {(row["engine"], *row["causes"]) for row in rows} == {("cpu",)}


def test_a_cell_of_ones_own(found: Found, cells: Path, invoke: Invoke, tmp_path: Path):
    rows = found("--cells", "my_cells:Leaky")["rows"]
    assert [row["label"] for row in rows] == ["Leaky", "Leaky"]
    assert rows[0]["rivals"][0]["label"] == "torch.nn.LSTM"
    same = found("--cells", "my_cells:LSTMCell,my_cells:RNNCell", "--only", "inference")["rows"]
    assert [row["rivals"][0]["label"] for row in same] == ["torch.nn.LSTM", "torch.nn.RNN"]


def test_a_cell_that_is_no_program_says_so(invoke: Invoke, cells: Path, tmp_path: Path):
    call = ["--cells", "my_cells:Branching", "--only", "inference", "--out", tmp_path]
    result = invoke(*call, "--backend", "auto")
    assert result.exit_code == 0, result.output
    assert "Branching (reference)" in result.stdout
    assert "my_cells.py" in "".join(result.stdout.split())
    result = invoke(*call, "--backend", "interpreter")  # named, it must run
    assert result.exit_code == 1
    assert "no ratio: CannotCompileError" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cells", "nave"], ["--cells", "lstm, naive-lstm", "module:Class", "'nave'"]),
        (["--cells", ","], ["--cells", "nothing"]),
        (["--cells", "no_such:Cell"], ["no_such:Cell", "No module named"]),
        (["--cells", "my_cells:Cell"], ["'my_cells' has no 'Cell'"]),
        (["--cells", "my_cells:number"], ["expected a subclass of flexrnn.Cell, got 3"]),
        (["--cells", "my cells:X"], ["module:Class", "'my cells:X'"]),
        (["--size", "1,2,3"], ["--size", "B,T,I,H", "'1,2,3'"]),
        (["--size", "1,2,3,x"], ["--size", "B,T,I,H"]),
        (["--size", "1,2,3,0"], ["--size", "at least 1", "'1,2,3,0'"]),
        (["--dtype", "int8"], ["--dtype", "float32, float64, bfloat16", "'int8'"]),
        (["--threads", 0], ["--threads", "at least 1", "0"]),
        (["--seconds", "-1"], ["--seconds", "-1"]),
        (["--seconds", "nan"], ["--seconds", "nan"]),
        (["--only", "speed"], ["--only", "inference or training", "'speed'"]),
        (["--only", "training", "--cells", "lstm-step"], ["--only training", "none of the cells"]),
        (["--backend", "gpu"], ["--backend", "'cpu'", "'gpu'"]),
        (["--backend", "cuda"], ["--backend", "for the CPU", "'cuda'"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--out", "my_cells.py"], ["--out", "exists"]),
        (["--markdown", "my_cells.py"], ["--markdown my_cells.py", "bench:"]),
        (["--load", "gone.json"], ["--load gone.json", "No such file"]),
        (["--load", "my_cells.py"], ["--load my_cells.py", "the JSON of flexrnn bench"]),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    invoke: Invoke, cells: Path, arguments: list[Any], said: list[str]
):
    before = sorted(cells.iterdir())
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("flexrnn: ")
    assert len(result.stderr.splitlines()) == 1
    for words in said:
        assert words in result.stderr
    assert [path for path in sorted(cells.iterdir()) if path.name != "__pycache__"] == before


def test_help_names_every_option_and_every_layer():
    result = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    options = ("cells", "size", "dtype", "threads", "seconds", "only", "backend", "out")
    for word in [
        *(f"--{name}" for name in (*options, "markdown", "load")),
        *(c.key for c in TABLE),
    ]:
        assert word in result.stdout


def test_ctrl_c_writes_what_there_is(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
):
    rows = run.Measure.rows

    def press(self: Any, case: Any, size: Any) -> Any:
        if case.key == "gru":
            raise KeyboardInterrupt
        return rows(self, case, size)

    monkeypatch.setattr(run.Measure, "rows", press)
    page = tmp_path / "page.md"
    result = invoke("--cells", "lstm,gru", "--out", tmp_path, "--markdown", page)
    assert result.exit_code == 130
    assert not page.exists()  # half of a table is none
    assert "Interrupted after" in result.stdout
    (path,) = tmp_path.glob("*.json")
    r = json.loads(path.read_text())
    assert r["state"] == "interrupted"
    assert {row["key"] for row in r["rows"]} == {"lstm"}


def test_numbers_of_another_run_are_shown_again(invoke: Invoke, tmp_path: Path):
    first = invoke("--cells", "lstm,naive-lstm", "--out", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    before = path.read_text()
    again = invoke("--load", path, "--out", tmp_path / "unused")
    assert again.exit_code == 0
    tables = [line for line in first.stdout.splitlines() if line[:1] in "┃│"]
    assert tables == [line for line in again.stdout.splitlines() if line[:1] in "┃│"]
    assert path.read_text() == before
    assert not (tmp_path / "unused").exists()
