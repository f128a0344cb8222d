"""The machine's C++ compiler: which one it is, and one run of it."""

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flexrnn.engine.cpu.build import openmp
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.step import CannotRunError

NAMES = ("g++", "clang++", "c++")
OPTIONS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    # No errno and no floating-point traps: nobody reads them. NaN, infinities and the order of
    # operations stay as written; a product and a sum may become one instruction.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-exceptions",
    "-w",  # nobody reads warnings about generated code
)
# Nothing of the library of C++ is called, and to read it takes a tenth of the time of compiling.
LIBRARIES = ("-nostdlib", "-Wl,--as-needed", "-lm", "-lc", "-lgcc")
SECONDS = 60.0  # an LSTM takes less than 2 s on an idle machine


class UnusableError(CannotRunError):
    """The compiler is missing, does not start or does not end, whatever it is to compile."""


class Compiler(NamedTuple):
    """A compiler that answers."""

    command: tuple[str, ...]
    version: str  # what it says of itself

    @property
    def is_clang(self) -> bool:
        """Clang calls another interface of OpenMP than GCC does."""
        return "clang" in self.version


def find() -> Compiler:
    """The compiler that $CXX names, else the first of g++, clang++ and c++ on the path.

    Raises:
        UnusableError: there is none, or it does not say its version.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in NAMES]:
        if path := shutil.which(command[0]):
            return asked((path, *command[1:]))
    if named:
        raise UnusableError(f"CXX: expected a C++ compiler, got {named[0]!r}, which is not found")
    raise UnusableError(
        f"no C++ compiler: none of {', '.join(NAMES)} is on the path; install one (Debian and "
        "Ubuntu: apt install g++), or name one in the environment variable CXX"
    )


@cache
def asked(command: tuple[str, ...]) -> Compiler:
    """A compiler, with what it says of itself; it is asked once."""
    try:
        return Compiler(command, _run((*command, "--version"), Path("/")).strip())
    except CannotRunError as error:
        raise UnusableError(str(error)) from None


def options(compiler: Compiler, isa: Isa) -> tuple[str, ...]:
    """What a library is compiled with, threads included where torch's runtime serves them."""
    return (*OPTIONS, *isa.options, *(("-fopenmp",) if _runtime(compiler) else ()))


def _runtime(compiler: Compiler) -> Path | None:
    runtime = openmp.runtime()
    if runtime is not None and compiler.is_clang and runtime.name.startswith("libgomp"):
        return None  # it has not what clang calls
    return runtime


def compile_object(compiler: Compiler, isa: Isa, source: str, folder: Path, name: str) -> Path:
    """An object of C++ text, to be linked, in a folder where nothing else has its name.

    Raises:
        CannotRunError: the compiler fails, or does not come to an end.
        OSError: the folder cannot be written to.
    """
    text, made = (folder / f"{name}.{ending}" for ending in ("cpp", "o"))
    text.write_text(source, encoding="utf-8")
    _run((*compiler.command, *options(compiler, isa), "-c", text.name, "-o", made.name), folder)
    return made


def link(compiler: Compiler, objects: Sequence[Path], folder: Path) -> Path:
    """A shared library of objects, in a folder of its own.

    It is made by itself, without -fopenmp, which would name the compiler's own runtime.

    Raises:
        CannotRunError, OSError: as `compile_object`.
    """
    runtime, library = _runtime(compiler), folder / "step.so"
    linked = (*map(str, objects), *([str(runtime)] if runtime else []))
    command = (*compiler.command, "-shared", "-o", library.name, *linked)
    # A function that is nowhere is noticed here, but for those of a runtime that is not linked.
    whole = ("-Wl,-z,defs",) if runtime else ()
    try:
        _run((*command, *whole, *LIBRARIES), folder)
    except UnusableError:
        raise
    except CannotRunError:  # $CXX has an option that wants a library of its own, say
        _run(command, folder)
    return library


def compile_program(compiler: Compiler, isa: Isa, source: str, folder: Path, *more: str) -> Path:
    """A program that stands alone, for a sanitizer: `more` is "-fsanitize=address", say.

    Raises:
        CannotRunError, OSError: as `compile_object`.
    """
    text, program = folder / "driver.cpp", folder / "driver"
    text.write_text(source, encoding="utf-8")
    command = (*compiler.command, *OPTIONS, *isa.options, *more)
    _run((*command, text.name, "-o", program.name), folder)
    return program


def _run(command: tuple[str, ...], folder: Path) -> str:
    """What a command prints; it and all that it has started are ended after `SECONDS`."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise UnusableError(f"{command[0]} does not start: {error}") from None
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise UnusableError(f"{command[0]} has not ended after {SECONDS:g} s") from None
        raise
    if process.returncode:
        shown = "\n".join(printed.strip().splitlines()[:12]) or "without a word"
        raise CannotRunError(f"{command[0]} fails with exit status {process.returncode}: {shown}")
    return printed
