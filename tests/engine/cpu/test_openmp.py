"""The runtime of threads is torch's own, and the only one."""

import subprocess
import sys

from flexrnn.engine.cpu.build import openmp

SOURCE = """
extern "C" int omp_get_max_threads();
extern "C" __attribute__((visibility("default"))) int most() { return omp_get_max_threads(); }
extern "C" __attribute__((visibility("default"))) int started(int n) {
    int count = 0;
    #pragma omp parallel num_threads(n) reduction(+ : count)
    count++;
    return count;
}
"""
PROGRAM = f"""
import torch
from flexrnn.engine.cpu.build import openmp
from flexrnn.engine.cpu.build.toolchain import library

torch.set_num_threads(3)
torch.randn(300, 300) @ torch.randn(300, 300)
lib = library({SOURCE!r})
assert lib.started(2) == 2, lib.started(2)
assert lib.most() == 3, lib.most()
torch.set_num_threads(1)
assert lib.most() == 1, lib.most()
assert openmp.mapped() == {{openmp.runtime()}}, openmp.mapped()
"""


def test_torch_has_a_runtime_here() -> None:
    assert openmp.runtime() in openmp.mapped()


def test_generated_code_shares_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
