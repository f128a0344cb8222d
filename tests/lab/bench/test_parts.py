"""What a bench is made of: operations, times, processes apart, chart, pages."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn.engine.engines import ENGINES
from flexrnn.engine.step import CannotRunError
from flexrnn.lab.bench import apart, chart, clock, cores, flops, markdown, measure
from flexrnn.lab.bench.cases import TABLE, Size, find, lengths
from flexrnn.lab.bench.results import file_name, machine

ROOT = Path(__file__).parents[3]
SIZE = Size(2, 3, 4, 5)
Found = Callable[..., dict[str, Any]]


def test_our_layers_are_torchs_functions_where_they_say_so():
    for key in ("lstm", "gru", "rnn", "projection-lstm", "packed-lstm", "lstm-step"):
        case = find(key)
        given = case.given(SIZE, torch.float64)
        layers = [case.build(who, SIZE, torch.float64) for who in (case.ours, *case.rivals)]
        ours, *others = (
            torch.cat([o.flatten() for o in who.run(layer, given)[0]])
            for who, layer in zip((case.ours, *case.rivals), layers, strict=True)
        )
        for theirs in others:  # the same seed, the same weights
            torch.testing.assert_close(ours, theirs)


def test_packed_sequences_have_half_to_whole_length():
    assert lengths(Size(3, 8, 1, 1)).tolist() == [8, 6, 4]
    assert lengths(Size(2, 1, 1, 1)).tolist() == [1, 1]
    given = find("packed-lstm").given(Size(3, 8, 2, 1), torch.float32)
    assert given.x.shape == (18, 2)
    assert given.batch_sizes is not None
    assert given.batch_sizes.tolist() == [3, 3, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("key", "of_x", "of_h", "others"),  # multiply-adds of a row and step
    [
        ("lstm", 4 * 4 * 5, 4 * 5 * 5, 0),
        ("naive-lstm", 4 * 4 * 5, 4 * 5 * 5, 0),
        ("gru", 3 * 4 * 5, 3 * 5 * 5, 0),
        ("projection-lstm", 4 * 4 * 5, 4 * 2 * 5, 2 * 5),
    ],
)
def test_operations_are_those_of_the_equations(key: str, of_x: int, of_h: int, others: int):
    case, size = find(key), Size(3, 7, 4, 5)
    found = flops.count(case, case.build(case.ours, size, torch.float32), size, torch.float32)
    assert found["inference"] == 2 * 3 * 7 * (of_x + of_h + others)
    # Each product has two more, but that nobody wants the gradient of the initial state.
    assert found["training"] == 3 * found["inference"] - 2 * 3 * of_h


def test_operations_of_packed_sequences_and_of_a_step():
    whole, packed, step = find("lstm"), find("packed-lstm"), find("lstm-step")
    size = Size(3, 8, 4, 5)
    layer = whole.build(whole.ours, size, torch.float32)
    of_sequence = flops.count(whole, layer, size, torch.float32)["inference"]
    assert flops.count(packed, layer, size, torch.float32)["inference"] == of_sequence * 18 / 24
    assert flops.count(step, layer, size, torch.float32) == {"inference": of_sequence / 8}
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_the_peak_is_that_of_the_largest_product_that_takes_no_time(
    monkeypatch: pytest.MonkeyPatch,
):
    seen, mm = [], torch.mm

    def slow(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        seen.append(len(a))
        time.sleep(0.02 if len(a) > 4 else 0)
        return mm(a, b, out=out)

    monkeypatch.setattr(flops, "EDGES", (2, 4, 8, 16))
    monkeypatch.setattr(flops, "PEAK_SECONDS", 0.1)
    monkeypatch.setattr(torch, "mm", slow)
    monkeypatch.setattr(flops, "is_faster", lambda: False)
    assert 0 < flops.peak(torch.float64) < 2e-9 * 8**3 / 0.02
    assert {*seen} == {2, 4, 8}  # the next would take eight times as long


@pytest.mark.skipif(not flops.is_faster(), reason="torch is faster on this processor")
def test_the_peak_is_our_own_product_where_that_is_faster(monkeypatch: pytest.MonkeyPatch):
    mm = torch.mm

    def slow(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        time.sleep(0.2)
        return mm(a, b, out=out)

    monkeypatch.setattr(flops, "EDGES", (64,))
    monkeypatch.setattr(flops, "PEAK_SECONDS", 0.1)
    monkeypatch.setattr(torch, "mm", slow)
    assert flops.peak(torch.float32) > 2e-9 * 64**3 / 0.2


def test_the_peak_is_torchs_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch):
    def multiply(*_: Any) -> None:
        raise CannotRunError("no compiler")

    monkeypatch.setattr(flops, "EDGES", (64,))
    monkeypatch.setattr(flops, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(flops, "is_faster", lambda: True)
    monkeypatch.setattr(flops, "multiply", multiply)
    assert 0 < flops.peak(torch.float32) < float("inf")


def test_layers_take_turns_and_training_has_every_gradient():
    case, ran = find("lstm"), []

    def noted(name: str) -> Any:
        def note(layer: Any, given: Any) -> Any:
            ran.append((name, torch.is_grad_enabled()))
            return case.ours.run(layer, given)

        return case.ours._replace(label=name, run=note)

    given = case.given(SIZE, torch.float32)
    layers = [case.build(case.ours, SIZE, torch.float32) for _ in range(2)]
    contestants = [(noted("a"), layers[0]), (noted("b"), layers[1])]
    times = clock.race(contestants, given, "training", 0)
    assert [len(each.seconds) for each in times] == [clock.FEWEST] * 2
    timed = [name for name, _ in ran[2 * clock.WARM_UP :]]
    rounds = [timed[k : k + 2] for k in range(0, len(timed), 2)]
    assert all(sorted(each) == ["a", "b"] for each in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds  # none always comes after the same one
    assert all(learns for _, learns in ran)
    for layer in layers:
        assert all(parameter.grad is not None for parameter in layer.parameters())
    ran.clear()
    clock.race(contestants, given, "inference", 0)
    assert not any(learns for _, learns in ran)


def test_times_are_taken_in_a_process_of_its_own():
    case = find("naive-lstm")
    how = (torch.float64, "interpreter", 0.0, 0)
    said = apart.times(case, SIZE, "training", *how)
    assert said["side_by_side"] in (True, False)
    found = said["times"]
    assert [each["label"] for each in found] == [w.label for w in (case.ours, *case.rivals)]
    assert [each["runs"] for each in found] == [clock.FEWEST] * 3


def test_threads_have_a_core_each_once_they_are_quicker_than_one(monkeypatch: pytest.MonkeyPatch):
    noted: list[int] = []

    def seconds_of(several: list[float]) -> Callable[[Any], float]:
        def seconds(_: Any) -> float:
            noted.append(torch.get_num_threads())
            return 1.0 if noted[-1] == 1 else several[len(noted) % len(several)]

        return seconds

    threads = torch.get_num_threads()
    try:
        for count, several, quick in (
            (2, [0.74], True),
            (2, [0.76], False),
            (4, [0.61], True),
            (4, [0.64], False),
            (2, [*[0.5] * 10, 2.0], False),  # never for long
            (1, [], True),
        ):
            torch.set_num_threads(count)
            monkeypatch.setattr(cores, "_seconds", seconds_of(several))
            assert cores.side_by_side(0.05) is quick
            assert torch.get_num_threads() == count
            assert set(noted) == ({1, count} if count > 1 else set())
            noted.clear()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("key", "ms"), [("lstm", 6.0), ("lstm-step", 2.0)])
def test_steps_one_by_one_are_timed_each(monkeypatch: pytest.MonkeyPatch, key: str, ms: float):
    monkeypatch.setattr(apart, "race", lambda *_: [clock.Times("a", [6e-3] * 5, [0] * 5)])
    (found,) = apart._timed(find(key), SIZE, "inference", torch.float32, 0.0, 0)["times"]  # pyright: ignore[reportPrivateUsage]
    assert found["median_ms"] == pytest.approx(ms)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_training_is_measured_in_a_process_of_its_own():
    size = Size(64, 60, 64, 256)
    least = 4 * 64 * 60 * 256 * 6  # the gates, c and h of every step
    for who in (0, 1):
        once, twice = (
            apart.memory(find("lstm"), who, s, torch.float32, "reference")["bytes"]
            for s in (size, size._replace(steps=120))
        )
        assert least < once < 10 * least
        assert 1.5 * once < twice < 2.5 * once


def test_a_first_call_is_timed_in_processes_of_their_own():
    found = apart.first_use(find("rnn"), torch.float32, "interpreter")
    assert found.keys() == {"empty", "full"}
    assert min(found.values()) >= 0  # how long is the machine's business


def test_what_fails_in_a_process_apart_is_told():
    found = apart.first_use(find("peephole-lstm"), torch.float32, "torch")
    assert set(found) == {"why_not"}
    assert "none of torch's" in found["why_not"]


def test_the_machine_says_what_compiles():
    found = machine()
    assert found["threads"] == torch.get_num_threads()
    assert found["flexrnn"] == flexrnn.__version__
    json.dumps(found)


def test_entries_are_called_by_machine():
    here = {"processor": "Intel(R) Xeon(R) @ 2.00GHz", "isa": "avx512", "threads": 8}
    assert file_name(here, "float32") == "cpu-intel-r-xeon-r-2-00ghz-avx512-8"
    assert file_name(here, "float64") == "cpu-intel-r-xeon-r-2-00ghz-avx512-8-float64"
    assert file_name({**here, "isa": None}, "float32") == "cpu-intel-r-xeon-r-2-00ghz-8"


def test_the_chart_has_a_panel_for_each_comparison(found: Found):
    r = found("--cells", "naive-lstm,gru", "--size", "2,3,4,5", "--size", "1,2,3,4")
    drawn = ElementTree.fromstring(chart.draw(r))
    svg = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in drawn.iter(f"{svg}text")]
    for said in ("NaiveLSTM", "GRU", "beside torch.nn.LSTM", "beside flexrnn.LSTM", "2×3×4×5", "1"):
        assert said in words
    circles, diamonds = list(drawn.iter(f"{svg}circle")), list(drawn.iter(f"{svg}path"))
    assert len(circles) == len(diamonds) == 1 + 3 * 2  # the legend, panels times sizes

    # Where a dot lies is its ratio.
    for row in r["rows"]:
        for rival in row["rivals"]:
            rival["ratio"] = 2.0 if row["mode"] == "inference" else 1.0
    drawn = ElementTree.fromstring(chart.draw(r))
    at = {mark: {t.get("x") for t in drawn.iter(f"{svg}text") if t.text == mark} for mark in "12"}
    assert {circle.get("cx") for circle in list(drawn.iter(f"{svg}circle"))[1:]} == at["2"]
    lines = {line.get("x1") for line in drawn.iter(f"{svg}line") if line.get("stroke") == chart.INK}
    assert lines == at["1"]  # the line that parts faster from slower


def test_a_layer_without_a_ratio_is_in_the_chart(found: Found):
    r = found("--cells", "gru,rnn")
    r["rows"][0] |= {"ours": None, "rivals": [], "why_not": "the output is wrong & <bad>"}
    drawn = chart.draw(r)
    ElementTree.fromstring(drawn)
    assert "no ratio" in drawn
    assert "wrong &amp; &lt;bad&gt;" in drawn


PAGE = """# A page

Before.

<!-- bench:ratios gru lstm -->
old
<!-- bench:end -->

<!-- bench:machine -->
<!-- bench:end -->

After.
"""


def test_a_page_is_written_anew_between_its_lines(found: Found, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    r = found("--cells", "lstm,gru,rnn", "--markdown", page)
    text = page.read_text()
    rows = {(row["key"], row["mode"]): row["rivals"][0]["ratio"] for row in r["rows"]}
    pairs = [
        ", ".join(f"{rows[key, mode]:.2f}" for mode in ("inference", "training"))
        for key in ("gru", "lstm")
    ]
    assert (
        f"| B × T × I × H | GRU | LSTM |\n| --- | --- | --- |\n| 2 × 3 × 4 × 5 | {pairs[0]} "
        in text
    )
    assert f"{pairs[0]} | {pairs[1]} |\n<!-- bench:end -->" in text
    assert "old" not in text
    assert r["machine"]["processor"] in text
    assert text.startswith("# A page\n\nBefore.\n\n<!-- bench:ratios gru lstm -->\n")
    assert text.endswith("<!-- bench:end -->\n\nAfter.\n")
    markdown.update(page, r)
    assert page.read_text() == text


def test_a_new_page_has_every_table(found: Found, tmp_path: Path):
    page = tmp_path / "new" / "page.md"
    r = found("--cells", "naive-lstm,lstm-step", "--markdown", page)
    text = page.read_text()
    assert re.findall(r"<!-- bench:(\S+) -->", text)[::2] == list(markdown.TABLES)
    assert "NaiveLSTM / flexrnn.LSTM" in text
    assert "LSTM.step / torch.nn.LSTMCell" in text
    assert "| NaiveLSTM | 2.00 s | 1.00 s |" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| ")]
    assert len(widths) > 10
    markdown.update(page, r)
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no such lines", "expected lines <!-- bench:TABLE -->"),
        ("<!-- bench:ratios -->\nnever ended\n", "got 1 of the one and 0 whole pairs"),
        (
            "<!-- bench:ratios -->\n<!-- bench:machine -->\n<!-- bench:end -->\n",
            "got 2 of the one and 1 whole pairs",
        ),
        ("<!-- bench:speeds -->\n<!-- bench:end -->\n", "'speeds'"),
        ("<!-- bench:ratios gru -->\n<!-- bench:end -->\n", "bench:ratios wants gru, not measured"),
    ],
)
def test_a_page_that_cannot_be_written_stays(invoke: Any, tmp_path: Path, text: str, said: str):
    page = tmp_path / "page.md"
    page.write_text(text)
    call = ("--cells", "rnn", "--only", "inference", "--out", tmp_path / "out")
    result = invoke(*call, "--markdown", page)
    assert result.exit_code == 2
    assert said in result.stderr
    assert page.read_text() == text
    assert (tmp_path / "out").exists() == ("not measured" in said)


def test_the_pages_of_the_documentation_can_be_written():
    pages = [page for page in (ROOT / "docs").glob("*.md") if "<!-- bench:" in page.read_text()]
    assert {page.name for page in pages} == {"coming-from-nn-lstm.md", "performance.md"}
    known = {case.key for case in TABLE}
    for page in pages:
        markdown.check(page)
        for region in markdown.REGION.finditer(page.read_text(encoding="utf-8")):
            assert set(region["keys"].split()) <= known


def test_the_engine_of_single_steps_is_the_one_that_ran():
    layer, x = flexrnn.LSTM(4, 5), torch.randn(3, 2, 4)
    with measure.ran() as engines, flexrnn.backend("interpreter"):
        layer(x)
    assert engines == ["interpreter"]
    with measure.ran() as engines, flexrnn.backend("reference"):
        layer(x)
    assert engines == []
    before = dict(ENGINES)
    how = measure.Measure(torch.float32, "auto", 0.0, 0, 1.0)
    case = find("lstm-step")
    (row,) = how.rows(case, SIZE)
    with torch.no_grad(), measure.ran() as engines:
        _, state = layer.step(x[0])
        layer.step(x[1], state)
    assert row.engine == (engines or ["reference"])[-1]
    (row,) = measure.Measure(torch.float32, "torch", 0.0, 0, 1.0).rows(case, SIZE)
    assert row.engine == "torch"
    assert before == ENGINES
