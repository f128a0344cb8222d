"""The command around the recurrent actor-critic: files, refusals, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recurrent_actor_critic as rl
import recurrent_actor_critic_command as command
import torch
from typer.testing import CliRunner, Result

from flexrnn.engine.scan import in_force

SMALL = ["--steps", "200", "--envs", "2", "--rollout", "25", "--hidden", "3"]
EXAMPLE = Path(rl.__file__)


def invoke(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command.app, [*SMALL, "--out", str(out), *arguments])


def found(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_all_of_it_on_tiny_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "ROUNDS", 2)
    threads = torch.get_num_threads()
    result = invoke(tmp_path)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    r = found(tmp_path)
    assert r["state"] == "finished"
    assert r["machine"]["threads"] == 1
    assert [row["label"] for row in r["learning"]] == ["with memory", "without memory"]
    for row in r["learning"]:
        assert row["steps"] == 200
        assert row["curve"][-1][0] == 200
        assert row["score"] > 0
        assert row["acting"] > 0 < row["learning"]
    assert [row["size"] for row in r["speed"]] == [
        {"T": 25, "B": 2, "H": 3},
        {"T": 50, "B": 4, "H": 6},
    ]
    for row in r["speed"]:
        assert row["resets"] > 0
        assert row["difference"] < 1e-12
        assert len(row["ms"]) == 3
        assert all(len(times) == command.ROUNDS for times in row["ms"].values())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("with memory", "without memory", "torch.nn.GRU, step by step", 'id="curve"'):
        assert words in page
    assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="?(?:https?:)?//', page)
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    agent = rl.Agent(2, 2, 3)
    agent.load_state_dict(torch.load(tmp_path / "agent.pt"))


def test_the_engine_is_the_one_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = list[str]()

    def look(options: rl.Options, forgetful: bool) -> Iterator[rl.Run]:
        seen.append(in_force("auto"))
        yield from rl.learn(options, forgetful)

    monkeypatch.setattr(command, "learn", look)
    assert invoke(tmp_path, "--only", "learning", "--backend", "interpreter").exit_code == 0
    assert seen == ["interpreter"] * 2
    assert found(tmp_path)["options"]["backend"] == "interpreter"


@pytest.mark.parametrize("part", ["speed", "learning"])
def test_one_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    monkeypatch.setattr(command, "ROUNDS", 1)
    assert invoke(tmp_path, "--only", part).exit_code == 0
    r = found(tmp_path)
    assert [name for name in ("speed", "learning") if r[name]] == [part]
    assert (tmp_path / "agent.pt").exists() == (part == "learning")
    assert ("Plotly" in (tmp_path / "report.html").read_text("utf-8")) == (part == "learning")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--envs", "0"], "--envs: expected at least 1, got 0"),
        (["--rollout", "1"], "--rollout: expected at least 2, got 1"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--backend", "x"], "--backend: expected one of 'auto', ..., got 'x'"),
        (["--only", "fun"], "--only: expected names among speed, learning, got 'fun'"),
        (["--out", f"{EXAMPLE}/x"], f"--out {EXAMPLE}/x: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], message: str
):
    result = invoke(tmp_path, *arguments)
    assert result.exit_code == 2
    pattern = re.escape(message).replace(re.escape("..."), ".*")
    assert re.fullmatch(f"recurrent_actor_critic: {pattern}\n", result.stderr)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(options: rl.Options, forgetful: bool) -> Iterator[rl.Run]:
        run = rl.learn(options, forgetful)
        yield from (next(run), next(run))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "learn", interrupted)
    result = invoke(tmp_path, "--only", "learning")
    assert result.exit_code == 130
    r = found(tmp_path)
    assert r["state"] == "interrupted"
    assert [(row["steps"], row["score"]) for row in r["learning"]] == [(100, None)]
    assert "This run is interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")
    weights = torch.load(tmp_path / "agent.pt")
    torch.manual_seed(0)
    assert not torch.equal(weights["policy.weight"], rl.Agent(2, 2, 3).policy.weight)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_the_file_runs_as_a_program_and_ctrl_c_ends_it(tmp_path: Path):
    call = [sys.executable, str(EXAMPLE), *SMALL, "--steps", "1000000", "--out", str(tmp_path)]
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any("Resets in the middle" in line for line in process.stdout)  # now it learns
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # if it did not end, as where whoever runs the tests ignores SIGINT
    assert (process.returncode, errors) == (130, "")
    assert str(tmp_path / "report.html") in rest
    assert found(tmp_path)["speed"]
