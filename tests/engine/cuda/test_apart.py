"""The tests in `apart`, in a process of their own.

Triton's interpreter puts its own functions in the place of the compiler's, and those that an inner
call has put there stay. So no process can interpret kernels and then compile some.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_what_wants_the_compiler() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON"))}
    environment |= {"FLEXRNN_TESTS_APART": "1", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parent / "apart"
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    print(ran.stdout[-4000:])
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
