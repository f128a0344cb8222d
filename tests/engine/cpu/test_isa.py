# pyright: reportPrivateUsage=false
# What a process has compiled is nobody else's business.
"""What is compiled for is what the machine has, or less where somebody says so."""

import re
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.engine.cpu import cpp, plan
from flexrnn.engine.cpu.build import isa as instructions
from flexrnn.engine.cpu.build.isa import ISAS, Isa, machine, runnable
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.cpp import prologue
from flexrnn.engine.step import CannotRunError

ASK = """
extern "C" __attribute__((visibility("default"))) int has() {
    return (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) * 2
        + (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
}
"""


def test_the_widest_is_taken() -> None:
    assert machine() == runnable()[0]
    assert runnable()[-1].name == "plain"


@pytest.mark.parametrize("k", range(len(ISAS)))
def test_a_set_with_a_missing_instruction_is_not_taken(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ISAS[k].needs:
        has = frozenset(ISAS[0].needs) - {missing}
        monkeypatch.setattr("flexrnn.engine.cpu.build.isa.features", lambda has=has: has)
        assert all(missing not in isa.needs for isa in runnable())
        assert runnable()[-1] == ISAS[-1]


def test_the_compilers_own_question_has_the_same_answer() -> None:
    names = {isa.name for isa in runnable()}
    assert library(ASK).has() == 2 * ("avx512" in names) + ("avx2" in names)


def test_it_can_be_asked_for_less_but_not_for_more(
    isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXRNN_ISA", isa.name)
    assert machine() == isa
    monkeypatch.setattr("flexrnn.engine.cpu.build.isa.runnable", lambda: ISAS[-1:])
    if isa.name != "plain":
        message = f"FLEXRNN_ISA: expected one of plain on this machine, got '{isa.name}'"
        with pytest.raises(CannotRunError, match=f"^{re.escape(message)}$"):
            machine()


@pytest.mark.parametrize(("real", "size"), [("float", 4), ("double", 8)])
def test_a_vector_fills_a_register_and_no_more(real: str, size: int, isa: Isa) -> None:
    ask = 'extern "C" __attribute__((visibility("default"))) int bytes() { return sizeof(vec); }'
    text = prologue(real, isa)
    assert library(text + ask, isa).bytes() == isa.vector_bytes
    assert f"#define VL {isa.vector_bytes // size}\n" in text
    largest = {"avx512": "64", "avx2": "32", "plain": "16"}[isa.name]
    macro = "__AVX512F__" if largest == "64" else "__AVX2__" if largest == "32" else "REAL"
    check = f"#ifndef {macro}\n#error the flags do not give what the vectors need\n#endif\n"
    library(text + check + ask, isa)


@pytest.fixture
def anew() -> Iterator[None]:
    """What the machine is said to be is asked again."""
    asked = (instructions.features, instructions.is_intel, cpp.prologue)
    for function in asked:
        function.cache_clear()
    yield
    for function in asked:
        function.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "expected"), [("GenuineIntel", True), ("AuthenticAMD", False), ("", False)]
)
def test_only_some_processors_are_asked_for_memory_early(
    vendor: str, expected: bool, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu avx2 fma bmi2 sse\n" * 2
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert instructions.hints() is expected
    assert instructions.features() == {"avx2", "fma", "bmi2"}
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    instructions.features.cache_clear()
    instructions.is_intel.cache_clear()
    assert not instructions.hints()
    assert not instructions.features()


@pytest.mark.parametrize(
    ("vendor", "flag", "named", "expected"),
    [
        ("AuthenticAMD", "avx512_bf16", "", True),
        ("AuthenticAMD", "avx512_bf16", "avx512", True),
        ("AuthenticAMD", "avx512_bf16", "avx2", False),
        ("AuthenticAMD", "avx512_vnni", "", False),
        ("GenuineIntel", "avx512_bf16", "", False),
    ],
)
@pytest.mark.usefixtures("anew")
def test_who_multiplies_bfloat16(
    monkeypatch: pytest.MonkeyPatch, vendor: str, flag: str, named: str, expected: bool
) -> None:
    flags = " ".join((*instructions._AVX512, flag))
    text = f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("FLEXRNN_ISA", named)
    assert instructions.has_bfloat16() is expected


def test_asking_early_changes_no_bit(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = flexrnn.LSTM(5, 35, bidirectional=True, backend="cpu"), torch.randn(3, 19, 5)
    found: list[list[Tensor]] = []
    for asks in (False, True):
        monkeypatch.setattr(cpp, "hints", lambda asks=asks: asks)
        monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
        prologue.cache_clear()
        assert f"#define HINTS {int(asks)}\n" in prologue("float", machine())
        output, _ = layer(x)
        found.append([output, *torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(found[0], found[1], rtol=0, atol=0)
