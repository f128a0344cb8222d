"""Distances above 2³¹ numbers: in memory that is only reserved, so that rows may lie far apart."""

import mmap
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.cpu import plan
from flexrnn.engine.cpu.emit import Shape

FAR = 2**31 + 7  # numbers
MAP_NORESERVE = 0x4000  # Linux's; Python has the name from 3.13 on
T, B, I, H = 9, 2, 4, 5  # steps enough that no loop for few is taken


@pytest.fixture
def far() -> Callable[[Tensor], Tensor]:
    """Copies a tensor to where its rows, of one number or a few, lie `FAR` numbers apart."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        memory = mmap.mmap(-1, 4 * (T * B + 1) * FAR, flags=flags)  # 152 GiB of addresses
    except OSError as cause:
        pytest.skip(f"no room for so many addresses: {cause}")

    def copied(near: Tensor) -> Tensor:
        *lead, row = near.shape
        steps = [FAR * torch.Size(lead[k + 1 :]).numel() for k in range(len(lead))]
        reserved = torch.frombuffer(memory, dtype=torch.float32)
        return reserved.as_strided((*lead, row), (*steps, 1)).copy_(near)

    return copied


def gradients(
    layer: flexrnn.FlexRNN, x: Tensor, weights: dict[str, Tensor], cotangent: Tensor | None = None
) -> list[Tensor]:
    """The output, and the gradients of the input and the weights, by the cpu engine."""
    with flexrnn.backend("cpu"):
        output, _ = functional_call(layer, weights, (x,))
    cotangent = torch.ones_like(output) if cotangent is None else cotangent
    return [output, *torch.autograd.grad(output, [x, *weights.values()], cotangent)]


def leaves(layer: flexrnn.FlexRNN) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}


@pytest.mark.parametrize("batch", [1, B])
def test_inputs_whose_rows_are_far_apart(far: Callable[[Tensor], Tensor], batch: int) -> None:
    layer, x = flexrnn.LSTM(I, H), torch.randn(T, batch, I)
    right = gradients(layer, x.clone().requires_grad_(), leaves(layer))
    found = gradients(layer, far(x).requires_grad_(), leaves(layer))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("batch", [1, B])
def test_gradients_whose_rows_are_far_apart(far: Callable[[Tensor], Tensor], batch: int) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, batch, I, requires_grad=True)
    cotangent = torch.randn(T, batch, H)
    right = gradients(layer, x, leaves(layer), cotangent)
    found = gradients(layer, x, leaves(layer), far(cotangent))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("turned", [False, True])
def test_weights_whose_rows_are_far_apart(
    far: Callable[[Tensor], Tensor], batch: int, turned: bool
) -> None:
    layer, x = flexrnn.RNN(I, H), torch.randn(T, batch, I, requires_grad=True)
    weights = leaves(layer)
    right = gradients(layer, x, weights)
    name = "weight_hh_l0"
    near = weights[name].detach()
    placed = far(near.T).T if turned else far(near)
    found = gradients(layer, x, {**weights, name: placed.requires_grad_()})
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("shape", Shape)
def test_what_is_counted_in_int_is_small(shape: Shape) -> None:
    """Rows of a tile, vectors, lanes, chains, threads, turns of waiting; all else is `long`."""
    cell = cells.LayerNormLSTMCell(I, H)
    step, state = CellStep(cell), tuple(cell.initial_state((B,)))
    wanted = ("x0", *(f"param.{name}" for name in step.tensors))
    program = compile_step(step, (torch.randn(T, B, I),), state, wanted)
    compiled = plan.plan_of(program, ("h",), plan.Kind(shape, hoist=False, dtype=torch.float32))
    for loop in (compiled.forward, compiled.backward):
        assert loop is not None
        text = "\n".join((*loop.source.functions, loop.source.text))
        assert set(re.findall(r"\bint (\w+)", text)) <= {
            "C",
            "R",
            "c",
            "i",
            "j",
            "n",
            "patience",
            "threads",
            "units",
            "sums",
        }
        assert not re.search(r"\b(unsigned|short|int[0-9]+_t|auto)\b", text)
