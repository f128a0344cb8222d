"""What products multiply: float32 as torch's switch says; and which warp which columns."""

import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import loop, plan, tiers
from flexrnn.engine.cuda.emit import names, resident

triton = pytest.importorskip("triton", reason="Triton is not installed")


def test_tf32_is_the_nearest_number_of_ten_bits(device: str) -> None:
    from flexrnn.engine.cuda import kernels

    run = kernels.module("""
@jit
def rounded(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, nearest_tf32(tl.load(x + i)))
""")["rounded"]
    x = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-30, 30, (500,)), torch.zeros(12)])
    x = x.to(device)
    y = torch.empty_like(x)
    run[(1,)](x, y, N=512)
    mantissa, exponent = torch.frexp(x.double())
    nearest = torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)  # one bit before the point
    torch.testing.assert_close(y.double(), nearest, rtol=0, atol=0)
    assert not torch.equal(x, y)
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001] + [0] * 509, dtype=torch.int32)
    run[(1,)](nan.view(torch.float32).to(device), y, N=512)
    assert y[:3].isnan().all()  # those of a card among them


@pytest.mark.parametrize(
    ("dtype", "hidden_size", "shares"),
    [(torch.float64, 60, "WARPS"), (torch.bfloat16, 40, "WARPS if WARPS <= 4 else 1")],
)
def test_columns_that_warps_share_out(
    dtype: torch.dtype,
    hidden_size: int,
    shares: str,
    judge: Callable[..., None],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the gates' gradients, of which the last piece is not full."""
    (grid,) = (tier for tier in tiers.TIERS if tier.name == "grid")
    seen: list[str] = []

    def launch(source: Any, memory: Any, call: Any) -> None:
        seen.append(source.grid.text)
        grid.launch(source, memory, call)

    monkeypatch.setattr(tiers, "TIERS", (grid._replace(launch=launch),))
    monkeypatch.setattr(tiers, "WIDTHS", (16,))
    layer = flexrnn.LSTM(5, hidden_size, dtype=dtype, device=device)
    judge(layer, torch.randn(3, 2, 5, dtype=dtype, device=device))
    forward, backward, *_ = seen
    assert "together(" not in forward
    (found,) = re.findall(r"shares0: tl.constexpr = (.*)", backward)
    assert found == shares


def buffers_of(cell: Any) -> dict[str, str]:
    """The types of what the loop there and the loop back of a bfloat16 layer are given."""
    layer = flexrnn.FlexRNN(cell, 5, 40)
    program = flexrnn.explain(layer, torch.randn(3, 2, 5)).steps[0].program
    assert program is not None
    made = plan.plan_of(program, program.fields[:1], torch.bfloat16)
    assert made.backward is not None
    there, back = made.forward.source().buffers, made.backward.source().buffers
    rings = {name: b for name, b in (there | back).items() if b.kind in ("old", "new")}
    return {name: b.element for name, b in (rings | there).items()}


def test_a_state_that_products_alone_read_travels_as_they_round_it() -> None:
    lstm, gru = buffers_of(flexrnn.cells.LSTMCell), buffers_of(flexrnn.cells.GRUCell)
    assert lstm["before.h"] == lstm["after.h"] == "tl.bfloat16"
    others = ("before.c", "after.c", "carry.h", "passed.h", "carry.c", "passed.c")
    assert {lstm[name] for name in others} == {"tl.float32"}
    assert gru["before.h"] == gru["after.h"] == "tl.float32"  # a part of it stays
    assert gru["before.h.rounded"] == gru["after.h.rounded"] == "tl.bfloat16"


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("hidden_size", [9, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", [flexrnn.cells.LSTMCell, flexrnn.cells.GRUCell])
def test_nobody_sees_that_it_was_rounded_before(
    cell: Any, dtype: torch.dtype, hidden_size: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 3, 5, dtype=dtype, device=device)
    states = torch.randn(2, 1, 3, hidden_size, dtype=dtype, device=device)
    state = tuple(states) if cell is flexrnn.cells.LSTMCell else states[0]
    lengths, found = torch.tensor([2, 4, 3]), list[list[torch.Tensor]]()
    for rounds in (True, False):
        torch.manual_seed(0)
        layer = flexrnn.FlexRNN(cell, 5, hidden_size, dtype=dtype, device=device, backend="cuda")
        with monkeypatch.context() as patch:
            patch.setattr(plan, "_plans", WeakKeyDictionary())  # layers alike share their kernels
            if not rounds:
                for module in (names, loop):
                    patch.setattr(module, "is_only_multiplied", lambda *_: False)
                patch.setattr(resident, "twins", lambda _: frozenset())
            output, last = layer(x, state, lengths=lengths)
            gradients = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
        found.append([output, *last, *gradients])
    torch.testing.assert_close(*found, rtol=0, atol=0)
