"""The OpenMP runtime that torch has loaded: generated code shares its threads.

A second runtime in the process would start threads of its own, beside torch's, and would not know
of `torch.set_num_threads`.
"""

import ctypes
import os
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


class _Pool:
    """The runtime's threads, beside the one that calls it.

    Fork copies none of them, and GNU's runtime waits in the child for those that its parent had,
    in torch's operations as in loops. So a child of a process in which loops had threads has one.
    """

    def __init__(self) -> None:
        self.started = self.lost = False
        os.register_at_fork(after_in_child=self._lose)

    def _lose(self) -> None:
        if self.started:
            self.lost = True
            torch.set_num_threads(1)


_pool = _Pool()


def threads() -> int:
    """With how many threads a loop runs: as many as torch has; one where fork has lost them."""
    count = 1 if _pool.lost else torch.get_num_threads()
    _pool.started = _pool.started or count > 1
    return count
