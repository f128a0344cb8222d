"""From C++ text to a loaded library: compiled once on a machine, then read from disk."""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from functools import cache as once
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from flexrnn.engine.cpu.build import cache, compiler, openmp
from flexrnn.engine.cpu.build.isa import Isa, features, machine
from flexrnn.engine.cpu.build.side import side_by_side
from flexrnn.engine.step import CannotRunError, NotAgainError


class Toolchain:
    """The libraries that this process has loaded, and what it has failed to compile."""

    def __init__(self) -> None:
        self._libraries: dict[tuple[str, ...], ctypes.CDLL] = {}
        self._failures: dict[tuple[str, ...], str] = {}
        self._unusable = ""  # why no compilation can succeed
        self._unlock()
        os.register_at_fork(after_in_child=self._unlock)  # a thread that is not copied may hold it

    def _unlock(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[tuple[str, ...], threading.Lock] = {}  # held while one is made

    def library(
        self, source: str, isa: Isa | None = None, common: Sequence[str] = ()
    ) -> ctypes.CDLL:
        """The shared library of C++ text; compiled where no process has done so before.

        Several threads may call it at once. What has failed is not tried again.

        Args:
            source: the whole text; it contains the graph and the dtype.
            isa: the instructions to compile for; those of this machine by default.
            common: texts of what it calls, and other libraries, too: each is an object that is
                compiled once for all of them.

        Raises:
            CannotRunError: this is not Linux, or the instructions are not known here.
            NotAgainError: there is no compiler, it fails or hangs, the folder of libraries is open
                to others, or there is no room for a library.
        """
        if sys.platform != "linux":
            raise CannotRunError(f"generated code: expected Linux, got {sys.platform}")
        isa = isa or machine()
        key = (source, *common, isa.name)
        with self._made(key):
            if key in self._libraries:
                return self._libraries[key]
            if failure := self._unusable or self._failures.get(key):
                raise NotAgainError(failure)
            try:
                self._libraries[key] = self._library(source, isa, common)
            except compiler.UnusableError as error:
                if self._libraries:  # it was of use before; this source takes it too long, say
                    self._failures[key] = str(error)
                else:
                    self._unusable = str(error)
                raise NotAgainError(str(error)) from error
            except CannotRunError as error:
                self._failures[key] = str(error)
                raise NotAgainError(str(error)) from error
            return self._libraries[key]

    def _library(self, source: str, isa: Isa, common: Sequence[str]) -> ctypes.CDLL:
        found = compiler.find()
        try:
            return self._from(cache.folder(), source, isa, found, common)
        except OSError as error:  # read-only, full, not to be loaded from, ...
            first = error
        try:
            return self._from(cache.temporary(), source, isa, found, common)
        except OSError as second:
            said = f"no folder for compiled libraries: {first}; {second}"
            raise CannotRunError(said) from None

    def _from(
        self, where: Path, source: str, isa: Isa, found: compiler.Compiler, common: Sequence[str]
    ) -> ctypes.CDLL:
        key = cache_key(source, isa, found, common)
        if entry := cache.get(where, key):
            try:
                return ctypes.CDLL(str(entry))
            except OSError:
                if entry.exists():
                    raise
        with cache.building(where) as folder:
            shared = [
                partial(self._object, where, text, isa, found, folder / f"common{k}.o")
                for k, text in enumerate(common)
            ]
            own = partial(compiler.compile_object, found, isa, source, folder, "step")
            try:
                step, common_ones = side_by_side(own, shared)
                made = compiler.link(found, [step, *common_ones], folder)
            except CannotRunError:
                cache.check_room(folder)  # the compiler's own words about a full disk differ
                raise
            entry = cache.put(where, key, made)
        return ctypes.CDLL(str(entry))

    def _object(
        self, where: Path, text: str, isa: Isa, found: compiler.Compiler, copy: Path
    ) -> Path:
        """An object that several libraries have in common, in the folder in which one is made.

        Others may remove what is kept at any time, so that it is copied.
        """
        key = cache_key(text, isa, found)
        with self._made(("object", key)):
            if entry := cache.get(where, key, ".o"):
                with contextlib.suppress(FileNotFoundError):
                    return Path(shutil.copyfile(entry, copy))
            made = compiler.compile_object(found, isa, text, copy.parent, f"made_{copy.stem}")
            shutil.copyfile(made, copy)
            cache.put(where, key, made)
        return copy

    def _made(self, key: tuple[str, ...]) -> threading.Lock:
        """What a thread holds while it makes something, so that others wait for it."""
        with self._lock:
            return self._making.setdefault(key, threading.Lock())


library = Toolchain().library


def cache_key(source: str, isa: Isa, found: compiler.Compiler, common: Sequence[str] = ()) -> str:
    """Everything that the bytes of a library and its fitness for this machine depend on."""
    parts = (
        source,
        tuple(common),
        found,
        compiler.options(found, isa),
        compiler.LIBRARIES,
        str(openmp.runtime()),
        sorted(features().intersection(isa.needs)),
        version(),
        torch.__version__,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@once
def version() -> str:
    """FlexRNN's version."""
    try:
        return metadata.version("flexrnn")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return ""
