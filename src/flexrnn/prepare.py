"""`compile`: what a layer needs of generated code, made before its first call."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flexrnn.engine import scan
from flexrnn.engine.cpu.plan import MANY_ROWS
from flexrnn.engine.paired import real_of
from flexrnn.layer import FlexRNN

M = TypeVar("M", bound=nn.Module)


def compile(  # noqa: A001  # as torch.compile
    model: M, *, lengths: bool = False, reset: bool = False, return_states: bool = False
) -> M:
    """Compile the loops of a layer for the CPU now, which else happens at its first calls.

    It calls every layer with zeros, of two steps and of more, of one row, of some and of many, in
    training and in evaluation mode, with gradients and without, under `backend("cpu")`. Generated
    code tells no other sizes apart: it serves every T and B, in this process and, from disk, in the
    next. That of a layer in a half type is the code for float32, which autocast takes, too.
    No hook runs; parameters, their `.grad`, buffers, modes and random generators stay as they are.

    Args:
        model: a `FlexRNN` or drop-in, or a module that holds some.
        lengths: prepare calls with `lengths`, or with a `PackedSequence`, too.
        reset: prepare calls with `reset`, too.
        return_states: prepare calls with `return_states=True`, too.

    Returns:
        The model itself.

    Raises:
        TypeError: `model` holds no `FlexRNN`, or another argument is no bool.
        RuntimeError: a step cannot be compiled, the message names operation, file and line; or
            nothing can be compiled here: parameters of a dtype that the engine does not serve, or
            not on the CPU, no C++ compiler.

    Example:
        >>> import torch, flexrnn
        >>> layer = flexrnn.compile(flexrnn.GRU(3, 5), lengths=True)
        >>> output, state = layer(torch.randn(7, 2, 3), lengths=torch.tensor([7, 4]))
    """
    asked = {"lengths": lengths, "reset": reset, "return_states": return_states}
    for name, value in asked.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    found = model.modules() if isinstance(model, nn.Module) else ()
    layers = [module for module in found if isinstance(module, FlexRNN)]
    if not layers:
        raise TypeError(f"model: expected a FlexRNN or a module with one, got {_told(model)}")
    names = [name for name, value in asked.items() if value]
    with (
        scan.backend("cpu"),
        torch.random.fork_rng(devices=()),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
    ):
        for layer, training in itertools.product(layers, (True, False)):
            with _mode(layer, training):
                for given in itertools.product((False, True), repeat=len(names)):
                    _call(layer, {n for n, is_given in zip(names, given, strict=True) if is_given})
    return model


def _told(model: Any) -> str:
    name = type(model).__name__
    return f"a {name} without" if isinstance(model, nn.Module) else name


class _Alone(nn.Module):
    """A layer without its hooks."""

    def __init__(self, layer: FlexRNN):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, hx: Any, **marks: Any) -> Any:
        """What the layer returns."""
        return FlexRNN.forward(self.layer, x, hx, **marks)


@contextmanager
def _mode(layer: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; where the layer is in it already, of each module its own."""
    before = [(module, module.training) for module in layer.modules()]
    try:
        for module, _ in before if layer.training != training else ():
            module.training = training
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _call(layer: FlexRNN, asked: set[str]) -> None:
    """Call a layer with these arguments, at sizes and with gradients of every kind."""
    example = next(layer.parameters(), torch.empty(0))
    kind: Any = {"dtype": real_of(example.dtype), "device": example.device}
    own = _Alone(layer)
    # Of segments the second begins from a result, and the last may be a short one.
    many = max(16, 2 * (layer.checkpoint_every or 0) + 1)
    crowd = MANY_ROWS * torch.get_num_threads()
    for steps, rows in ((2, 1), (many, 1), (many, 16), (2, crowd)):
        axes = (rows, steps) if layer.batch_first else (steps, rows)
        x = torch.zeros(*axes, layer.input_size, **kind)
        marks: dict[str, Any] = {}
        if "lengths" in asked:
            marks["lengths"] = torch.full((rows,), steps)
        if "reset" in asked:
            marks["reset"] = torch.zeros(axes, dtype=torch.bool)
        if "return_states" in asked:
            marks["return_states"] = True
        # Others of the same memory, so that neither hooks nor gradients of the layer's own are met.
        named = {n: p.detach().requires_grad_(p.requires_grad) for n, p in own.named_parameters()}
        with torch.no_grad():
            _, state, *_ = torch.func.functional_call(own, named, (x, None), marks)
        learning = [t.requires_grad_() for t in _tensors(state)]
        for given, hx in ((x, None), (x.clone().requires_grad_(), None), (x, state)):
            leaves = [t for t in (given, *named.values(), *learning) if t.requires_grad]
            with torch.enable_grad():
                results = torch.func.functional_call(own, named, (given, hx), marks)
                loss = torch.stack([t.sum().real for t in _tensors(results)]).sum()
            if loss.requires_grad:
                torch.autograd.grad(loss, leaves, allow_unused=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from _tensors(part)
