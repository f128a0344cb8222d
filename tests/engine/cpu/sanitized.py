"""C++ in a program of its own, under a sanitizer, with memory in pieces of just the size told."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.step import CannotRunError

SANITIZERS = {
    # Unoptimised: that compiles in a third of the time and leaves every access as it is written.
    "address": ("-O0", "-fsanitize=address"),
    "both": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-fsanitize=thread"),
}
CLEAN = ("", "done\n", 0)  # what a run without a fault says

MEMORY = """
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

extern "C" int omp_get_thread_num() { return 0; }  // asked for by what nobody calls here
extern "C" int omp_get_num_threads() { return 1; }
extern "C" double omp_get_wtime() { return 0; }

struct Memory {
    std::vector<void*> pieces;
    unsigned state = 1;
    REAL* piece(long numbers) {  // aligned as cache lines are, and not a number longer than told
        void* p = nullptr;
        if (posix_memalign(&p, 64, numbers * sizeof(REAL))) abort();
        for (long i = 0; i < numbers; i++) {
            state = state * 1664525u + 1013904223u;
            ((REAL*)p)[i] = REAL(state >> 8) / (1 << 23) - 1;
        }
        pieces.push_back(p);
        return (REAL*)p;
    }
    ~Memory() {
        for (void* p : pieces) free(p);
    }
};
"""


def skip_without(sanitizer: str, isa: Isa, folder: Path) -> None:
    """Skip a test where there is no such sanitizer."""
    try:
        empty = _compiled("int main() {}", sanitizer, isa, folder)
        subprocess.run([empty], check=True, capture_output=True)
    except (CannotRunError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"no sanitizer of this kind here: {cause}")


def run(
    text: Sequence[str], calls: Sequence[str], sanitizer: str, isa: Isa, folder: Path
) -> "subprocess.CompletedProcess[str]":
    """Run a program of these texts that makes the calls."""
    main = "\n".join([*text, "int main() {", *calls, '    puts("done");', "}", ""])
    program = _compiled(main, sanitizer, isa, folder)
    return subprocess.run([program], capture_output=True, text=True, timeout=120)


def _compiled(text: str, sanitizer: str, isa: Isa, folder: Path) -> Path:
    options = ("-g1", "-pthread", *SANITIZERS[sanitizer])  # of names, a report tells lines alone
    return compiler.compile_program(compiler.find(), isa, text, folder, *options)


def extent(tensor: Tensor) -> int:
    """Numbers from the first to the last that a tensor reaches."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
