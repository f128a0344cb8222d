"""The OpenMP runtime that torch has loaded: generated code shares its threads.

A second runtime in the process would start threads of its own, beside torch's, and would not know
of `torch.set_num_threads`.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch


@cache
def runtime() -> Path | None:
    """The file of the runtime that torch calls, or None where it calls none."""
    # The order in which the loader looks torch's symbols up: what the process has made known to
    # all (a preloaded runtime is there), then what torch was linked with.
    for name in (None, Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        try:
            library = ctypes.CDLL(name if name is None else str(name))
            function = library.omp_get_max_threads
        except (OSError, AttributeError):
            continue
        address = ctypes.cast(function, ctypes.c_void_p).value
        return None if address is None else _file_at(address)
    return None


def _file_at(address: int) -> Path | None:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, _, end = line.split(maxsplit=1)[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            path = Path(line.split(maxsplit=5)[-1])
            return path if path.is_file() else None
    return None


def mapped() -> set[Path]:
    """Every OpenMP runtime that this process has loaded."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return {f for f in files if f.name.startswith(("libgomp", "libomp", "libiomp"))}
