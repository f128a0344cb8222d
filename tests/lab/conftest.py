"""A small text and the smallest run of `flexrnn compare` that does everything."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flexrnn.lab import compare, speed
from flexrnn.lab.cli import app

from ..quickly import compile_quickly

CHARACTERS = 20  # of what a trained model writes
SMALL = {"--steps": "4", "--hidden": "5", "--seq": "12", "--batch": "3"}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    said = [f"Paragraph {n} of many says <b>this</b> & that.\n\n" for n in range(60)]
    path.write_text("".join(said + said[:7]))
    return path


@pytest.fixture(scope="session")
def invoke(text: Path) -> Callable[..., Result]:
    """Run `flexrnn compare` in this process; `invoke("--steps", 9)` changes the small defaults."""

    def call(*arguments: Any) -> Result:
        given = [str(argument) for argument in arguments]
        defaults = {**SMALL, "--text": str(text)}
        for name, value in defaults.items():
            if name not in given:
                given += [name, value]
        with pytest.MonkeyPatch.context() as patch:  # nobody reads these times and texts
            patch.setattr(compare, "SAMPLE", CHARACTERS)
            patch.setattr(speed, "measure", partial(speed.measure, rounds=speed.FEWEST_ROUNDS))
            compile_quickly(patch)  # also for what lasts longer than a test
            return CliRunner().invoke(app, ["compare", *given])

    return call


@pytest.fixture(scope="session")
def found(invoke: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Run it and read results.json, which must be the strictest JSON."""

    def call(out: Path, *arguments: Any) -> dict[str, Any]:
        result = invoke("--out", out, *arguments)
        assert result.exit_code == 0, result.output
        return json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)

    return call


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Result]
) -> tuple[str, dict[str, Any], str]:
    """What a run of everything prints, its results.json and its report.html."""
    out = tmp_path_factory.mktemp("whole") / "deep" / "folder"
    result = invoke("--out", out)
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.json"]
    return result.stdout, json.loads((out / "results.json").read_text()), page
