"""The toolchain as a whole: once compiled, never again; and what happens where that is not so."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import torch

import flexrnn
from flexrnn.engine.cpu import kernel, plan
from flexrnn.engine.cpu.build import cache, compiler
from flexrnn.engine.cpu.build.isa import ISAS, machine
from flexrnn.engine.cpu.build.toolchain import Toolchain, cache_key
from flexrnn.engine.step import CannotRunError, NotAgainError

from .written import EIGHT, GXX, SEVEN, become, calls, entries

pytestmark = pytest.mark.usefixtures("folder")

PROGRAM = f"""
from flexrnn.engine.cpu.build.toolchain import library
print(library({SEVEN!r}).answer())
"""


def another_process(program: str = PROGRAM) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_a_text_is_compiled_once_also_over_processes(folder: Path, compiler_script: Path) -> None:
    become(compiler_script, GXX)
    first = Toolchain()
    assert first.library(SEVEN).answer() == 7
    assert entries(folder) == [".so"]  # and nothing that the compilation has left
    once = calls(compiler_script)
    assert first.library(SEVEN) is first.library(SEVEN)
    assert Toolchain().library(SEVEN).answer() == 7
    assert calls(compiler_script) == once
    process = another_process()
    assert process.communicate() == ("7\n", "")
    assert calls(compiler_script) == once + 1  # it has asked for the version
    assert first.library(EIGHT).answer() == 8
    assert calls(compiler_script) == once + 3  # compiled and linked


def test_two_processes_at_once_both_succeed(folder: Path) -> None:
    both = [another_process(), another_process()]
    assert [process.communicate() for process in both] == [("7\n", "")] * 2
    assert entries(folder) == [".so"]


def test_several_threads_compile_once(compiler_script: Path) -> None:
    become(compiler_script, GXX)
    toolchain = Toolchain()
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: toolchain.library(SEVEN), range(8)))
    assert {id(made) for made in libraries} == {id(libraries[0])}
    assert calls(compiler_script) == 3


def test_a_fork_while_another_thread_compiles_does_not_wait_for_it(
    compiler_script: Path,
) -> None:
    become(compiler_script, f"sleep 1\n{GXX}")
    toolchain = Toolchain()
    thread = threading.Thread(target=toolchain.library, args=(SEVEN,))
    thread.start()
    time.sleep(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if toolchain.library(EIGHT).answer() == 8 else 1)
        finally:
            os._exit(2)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_killed_compilation_leaves_nothing_that_loads(
    folder: Path, compiler_script: Path
) -> None:
    # It has written a part of the library when it is killed.
    become(compiler_script, f'case "$*" in *-shared*) printf ELF > step.so; sleep 30;; esac\n{GXX}')
    process = another_process()
    while not list(folder.glob("build-*/step.so")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not list(folder.glob("*.so"))
    become(compiler_script, GXX)
    assert Toolchain().library(SEVEN).answer() == 7
    (left,) = folder.glob("build-*")
    os.utime(left, (0, 0))
    assert Toolchain().library(EIGHT).answer() == 8  # and what it left is swept up in time
    assert not left.exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "one bit", "another's"])
def test_a_damaged_library_is_made_anew(folder: Path, damage: str) -> None:
    Toolchain().library(SEVEN)
    (entry,) = folder.iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "another's":
        Toolchain().library(EIGHT)
        (other,) = set(folder.iterdir()) - {entry}
        content = bytearray(other.read_bytes())
    new = {"cut": content[:5000], "emptied": b""}.get(damage, content)
    entry.unlink()  # this process has mapped the old one
    entry.write_bytes(new)
    assert Toolchain().library(SEVEN).answer() == 7
    assert entry.read_bytes() != new


def test_an_option_may_want_a_library_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -fsanitize=undefined")
    shift = SEVEN.replace("answer()", "answer(int n)").replace("7", "7 << n")
    assert Toolchain().library(shift).answer(1) == 14


def test_no_compiler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRunError, match=r"^no C\+\+ compiler: none of g\+\+, clang"):
        Toolchain().library(SEVEN)
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(CannotRunError, match=r"^CXX: expected .*got 'no-such-compiler', which is"):
        Toolchain().library(SEVEN)


def test_a_broken_compiler_is_tried_once_for_a_text(compiler_script: Path) -> None:
    become(
        compiler_script, 'case "$*" in *version*) echo 1;; *) echo "ouch: $LC_ALL"; exit 3;; esac'
    )
    toolchain = Toolchain()
    for _ in range(3):
        with pytest.raises(CannotRunError, match="compiler fails with exit status 3: ouch: C"):
            toolchain.library(SEVEN)
    assert calls(compiler_script) == 2
    with pytest.raises(CannotRunError):
        toolchain.library(EIGHT)
    assert calls(compiler_script) == 3


@pytest.mark.parametrize("body", ["exit 1", "sleep 60 & sleep 60"], ids=["fails", "hangs"])
def test_a_compiler_that_cannot_even_say_its_version_is_asked_once(
    compiler_script: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(compiler_script, body)
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    toolchain = Toolchain()
    for text in (SEVEN, EIGHT, SEVEN):
        with pytest.raises(CannotRunError, match=r"fails with exit|has not ended after 0\.5 s$"):
            toolchain.library(text)
    assert calls(compiler_script) == 1


def test_a_compiler_that_hangs_is_ended_with_its_children(
    compiler_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    body = f"(sleep 2; echo x > {alive}) & sleep 60"
    become(compiler_script, f'case "$*" in *version*) echo 1;; *) {body};; esac')
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    toolchain = Toolchain()
    for text in (SEVEN, EIGHT):
        with pytest.raises(CannotRunError, match=r"compiler has not ended after 0\.5 s$"):
            toolchain.library(text)
    assert calls(compiler_script) == 2
    time.sleep(2)
    assert not alive.exists()


def test_a_source_that_takes_a_compiler_too_long_keeps_nobody_from_others(
    compiler_script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = 'grep -qs 8 step.cpp && exec sleep 60; exec g++ "$@"'
    become(compiler_script, slow)
    toolchain = Toolchain()
    assert toolchain.library(SEVEN).answer() == 7
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    for _ in range(2):
        with pytest.raises(CannotRunError, match=r"compiler has not ended after 0\.5 s$"):
            toolchain.library(EIGHT)
    monkeypatch.setattr(compiler, "SECONDS", 60)
    other = SEVEN.replace("7", "6")
    assert toolchain.library(other).answer() == 6


def test_where_the_folder_cannot_be_had_a_temporary_one_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEXRNN_CACHE_DIR", "/proc/flexrnn")  # to which nobody can write
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = another_process(PROGRAM + "import os; print(*os.listdir(os.environ['TMPDIR']))")
    printed, error = process.communicate()
    assert error == ""
    answer, name = printed.split()
    assert answer == "7"
    assert name.startswith("flexrnn-")
    assert not list(temporary.iterdir())  # it goes with the process
    monkeypatch.setenv("TMPDIR", "/proc")
    shadowed = "import tempfile; tempfile.tempdir = '/proc'\n" + PROGRAM
    process = another_process(shadowed)
    assert "CannotRunError: no folder for compiled libraries" in process.communicate()[1]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="cannot mount a small disk")
def test_where_the_disk_is_full_a_temporary_folder_serves(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=8k,mode=700 none {small}"
    mounts = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mounts, mount], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk")
    environment = {**os.environ, "FLEXRNN_CACHE_DIR": str(small)}
    command = [*mounts, f'{mount} && exec "$0" -c "$1"', sys.executable, PROGRAM]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("7\n", "")


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(CannotRunError, match="closed to others"):
        Toolchain().library(SEVEN)
    assert not list(folder.iterdir())


def test_only_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CannotRunError, match=r"^generated code: expected Linux, got darwin$"):
        Toolchain().library(SEVEN)


def test_the_key_holds_all_that_a_library_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found, isa = compiler.find(), machine()
    keys = [cache_key(SEVEN, isa, found), cache_key(EIGHT, isa, found)]
    keys += [cache_key(SEVEN, other, found) for other in ISAS if other != isa]
    keys.append(cache_key(SEVEN, isa, found._replace(version="another")))
    keys.append(cache_key(SEVEN, isa, found._replace(command=("/another/g++",))))
    keys.append(cache_key(SEVEN, isa._replace(options=("-mavx",)), found))
    for changed in (
        ("flexrnn.engine.cpu.build.compiler.OPTIONS", ("-O2",)),
        ("torch.__version__", "another"),
        ("flexrnn.engine.cpu.build.toolchain.features", lambda: frozenset({"fma"})),
        ("flexrnn.engine.cpu.build.openmp.runtime", lambda: None),
        ("flexrnn.engine.cpu.build.toolchain.version", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            keys.append(cache_key(SEVEN, isa, found))
    assert len(set(keys)) == len(keys)
    assert cache_key(SEVEN, isa, found) == keys[0]


def test_a_library_that_does_not_load_is_no_reason_to_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a home from which nothing may be executed."""
    whole = cache.put

    def put(where: Path, key: str, library: Path) -> Path:
        if where == folder:
            library.write_bytes(b"not a library")
        return whole(where, key, library)

    monkeypatch.setattr(cache, "put", put)
    assert Toolchain().library(SEVEN).answer() == 7


def test_a_loop_that_failed_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `auto` every call would otherwise lower its program, only to be told the same."""
    asked: list[str] = []

    def library(text: str, **_: str) -> None:
        asked.append(text)
        raise NotAgainError("the compiler has not ended")

    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    monkeypatch.setattr(kernel, "library", library)
    layer, x = flexrnn.GRU(3, 4), torch.randn(5, 2, 3)
    with flexrnn.backend("cpu"):
        for _ in range(3):
            with torch.no_grad(), pytest.raises(CannotRunError, match="has not ended"):
                layer(x)
    assert len(asked) == 1


def test_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    layer, x = flexrnn.GRU(3, 4), torch.randn(5, 2, 3)
    with flexrnn.backend("cpu"):
        with monkeypatch.context() as patch:
            patch.setenv("FLEXRNN_ISA", "bogus")
            with pytest.raises(CannotRunError, match="bogus"):
                layer(x)
        layer(x)
