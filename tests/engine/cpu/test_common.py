"""Objects that several libraries have in common: made once, whole, and whoever comes first."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexrnn.engine.cpu.build.toolchain import Toolchain

from .written import GXX, SEVEN, become, calls, entries

NINE = "int nine() { return 9; }\n"  # what several libraries call
CALLS = "int nine();\n" + SEVEN.replace("7", "nine()")
pytestmark = pytest.mark.usefixtures("folder")


def test_what_libraries_have_in_common_is_compiled_once(
    folder: Path, compiler_script: Path
) -> None:
    become(compiler_script, GXX)
    toolchain = Toolchain()
    assert toolchain.library(CALLS, common=[NINE]).answer() == 9
    assert entries(folder) == [".o", ".so"]
    before = calls(compiler_script)
    assert toolchain.library(f"{CALLS}// another\n", common=[NINE]).answer() == 9
    assert calls(compiler_script) == before + 2  # compiled and linked
    assert toolchain.library(CALLS, common=[NINE.replace("9", "10")]).answer() == 10


def test_threads_compile_what_is_common_once(folder: Path, compiler_script: Path) -> None:
    become(compiler_script, GXX)
    toolchain = Toolchain()
    toolchain.library(SEVEN)  # the compiler has said its version
    before = calls(compiler_script)
    texts = [f"{CALLS}// {k}\n" for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda text: toolchain.library(text, common=[NINE]).answer(), texts)
    assert [*found] == [9] * 4
    assert calls(compiler_script) == before + 1 + 2 * 4
    assert entries(folder) == [".o"] + [".so"] * 5


def test_where_no_thread_starts_one_compiler_follows_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert Toolchain().library(CALLS, common=[NINE]).answer() == 9
    assert entries(folder) == [".o", ".so"]


def test_libraries_may_share_one_object_and_not_another(folder: Path) -> None:
    both = 'int eight(); extern "C" __attribute__((visibility("default"))) int answer() '
    both += "{ return 10 * eight() + nine(); }"
    eight = NINE.replace("nine", "eight").replace("9", "8")
    assert Toolchain().library(CALLS, common=[NINE]).answer() == 9
    assert Toolchain().library(f"int nine(); {both}", common=[eight, NINE]).answer() == 89
    assert entries(folder) == [".o", ".o", ".so", ".so"]


def test_what_is_common_may_go_while_it_is_linked(folder: Path, compiler_script: Path) -> None:
    become(compiler_script, GXX)
    Toolchain().library(CALLS, common=[NINE])
    become(compiler_script, f'case "$*" in *-shared*) rm {folder}/*.o;; esac\n{GXX}')
    assert Toolchain().library(f"{CALLS}// another\n", common=[NINE]).answer() == 9
    assert entries(folder) == [".so", ".so"]


def test_what_is_common_and_damaged_is_made_anew(folder: Path) -> None:
    Toolchain().library(CALLS, common=[NINE])
    (entry,) = folder.glob("*.o")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    assert Toolchain().library(f"{CALLS}// another\n", common=[NINE]).answer() == 9
    assert entry.read_bytes() != content
