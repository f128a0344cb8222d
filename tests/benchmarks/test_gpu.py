"""The script that measures on a card, with Triton's interpreter in the place of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_every_row_is_checked_and_timed() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    size = ("--size", "2,3,16", "--dtypes", "bfloat16")
    ran = run("--interpret", "--no-loop", "--cells", "gru,layernorm", *size)
    lines = [line for line in ran.stdout.splitlines() if "bfloat16" in line]
    assert len(lines) == 2, ran.stdout + ran.stderr
    assert all("forward: flexrnn" in line and "training: flexrnn" in line for line in lines), lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so() -> None:
    ran = run()
    assert ran.returncode == 2
    assert "there is no CUDA card" in ran.stderr
