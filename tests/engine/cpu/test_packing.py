"""Weights laid out anew: however they lie in memory, at every size, by every compiler there is."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.cpp import definitions, prologue

from .sanitized import MEMORY, SANITIZERS

DRIVER = """
// One tile of a weight of two blocks, each in two pieces: as `pack` lays it out, and as it lies.
static bool is_right(long K, long units, long unit, int width, long row, long column) {
    Memory memory;
    const int blocks = 2;
    const long cut = K / 3, panel = blocks * width;
    void* p[2 * blocks];
    Piece pieces[2 * blocks];
    REAL* out = memory.piece(K * panel);
    for (long i = 0; i < K * panel; i++) out[i] = -7;
    for (int b = 0; b < blocks; b++) {
        for (int half = 0; half < 2; half++) {
            const long first = half ? cut : 0, last = half ? K : cut, deep = most(last - first, 1);
            const long r = row ? row : units * column + 1, c = column ? column : K * row + 2;
            p[2 * b + half] = memory.piece((deep - 1) * r + (units - 1) * c + 1);
            pieces[2 * b + half] = {2 * b + half, b, first, last, 0, r, c};
        }
    }
    pack(out, p, pieces, 2 * blocks, 0, blocks, unit, units, width);
    for (long k = 0; k < K; k++)
        for (long n = 0; n < panel; n++) {
            const Piece& piece = pieces[2 * (n / width) + (k >= cut)];
            const REAL* w = (const REAL*)p[piece.pointer] + (k - piece.first) * piece.row;
            const long at = unit + n % width;
            if (out[k * panel + n] != (at < units ? w[at * piece.column] : 0)) return false;
        }
    return true;
}

int main() {
    // Rows in one piece, columns in one piece, neither: how far rows and columns are apart.
    const long apart[][2] = {{0, 1}, {1, 0}, {0, 3}, {2, 0}};
    for (long vectors = 1; vectors < 3; vectors++)
        for (long K = 1; K < 2 * VL + 2; K++)
            for (long units = 1; units < 2 * vectors * VL + 2; units += units % 3 + 1)
                for (long unit = 0; unit < units; unit += vectors * VL)
                    for (auto& by : apart)
                        if (!is_right(K, units, unit, int(vectors * VL), by[0], by[1])) {
                            printf("K %ld, units %ld from %ld, apart %ld, %ld\\n", K, units, unit,
                                   by[0], by[1]);
                            return 1;
                        }
    puts("well");
}
"""


@pytest.mark.parametrize("command", ["g++", "clang++"])
@pytest.mark.parametrize("flags", [(), SANITIZERS["both"]], ids=["bare", "sanitized"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    real: str,
    flags: tuple[str, ...],
    command: str,
    isa: Isa,
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"no {command} here")
    monkeypatch.setenv("CXX", command)
    source = prologue(real, isa) + definitions() + MEMORY + DRIVER
    driver = compiler.compile_program(compiler.find(), isa, source, tmp_path, *flags)
    ran = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("well\n", "", 0)
