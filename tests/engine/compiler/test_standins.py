"""What a step asks of its own tensors: their classes, which are the same, what hangs on them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState


class Tied(flexrnn.Cell):
    """`h ← function(cell, W x + U h, h)`; V is U, and so is what a list holds."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None,
                 function=None, tied=True):  # fmt: skip
        super().__init__(input_size, hidden_size)
        kwargs: Any = {"device": device, "dtype": dtype}
        self.function: Any = function
        self.W = nn.Parameter(torch.randn(input_size, hidden_size, **kwargs) / 2)
        self.U = nn.Parameter(torch.randn(hidden_size, hidden_size, **kwargs) / 2)
        self.V = self.U if tied else nn.Parameter(self.U.detach().clone())
        self.U.scale = 3.0  # pyright: ignore[reportAttributeAccessIssue]
        self.held = [self.U, torch.ones(hidden_size, **kwargs)]
        self.by_tensor, self.number = {self.U: 3.0}, id(self.U)
        self.marked = nn.Buffer(torch.ones(hidden_size, **kwargs))
        self.register_buffer("plain", torch.ones(hidden_size, **kwargs))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = x @ self.W + state.h @ self.U
        return HiddenState(torch.tanh(self.function(self, z, state.h)))


def weighed(question: Callable[..., Any]) -> Callable[..., Tensor]:
    """A function whose result tells what the answer was."""
    return lambda c, z, h: z * (2.0 if question(c, z, h) else 0.5)


WRITTEN: dict[str, Callable[..., Any]] = {
    "a parameter": lambda c, z, h: isinstance(c.U, nn.Parameter),
    "a buffer is no parameter": lambda c, z, h: isinstance(c.plain, nn.Parameter),
    "a computed one is none": lambda c, z, h: isinstance(c.U.T, nn.Parameter),
    "the class": lambda c, z, h: type(c.U) is nn.Parameter and type(h) is Tensor,
    "the class's name": lambda c, z, h: type(c.U).__name__ == "Parameter",
    "a buffer": lambda c, z, h: isinstance(c.marked, nn.Buffer),
    "in a list": lambda c, z, h: [isinstance(t, nn.Parameter) for t in c.held] == [True, False],
    "lazy": lambda c, z, h: nn.parameter.is_lazy(c.U),
    "a tensor": lambda c, z, h: torch.is_tensor(c.U) and torch.overrides.is_tensor_like(c.U),
    "tied": lambda c, z, h: c.U is c.V,
    "not tied": lambda c, z, h: c.U is c.W,
    "tied by a list": lambda c, z, h: c.V is c.held[0],
    "among all": lambda c, z, h: any(p is c.V for p in c.parameters()),
    "given back": lambda c, z, h: c.U.to(h.dtype) is c.U and c.U.contiguous() is c.V,
    "one's own": lambda c, z, h: setattr(z, "mine", 1) or getattr(z, "mine", 0) + z.mine == 2,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_step_is_told_what_the_loop_tells_it(
    name: str, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(Tied, 3, 4, dtype=torch.float64, function=weighed(WRITTEN[name]))
    same_by_program(layer, torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True))


HUNG = "what is hung on a tensor is no part of a program"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "an attribute": (lambda c, z, h: c.U.scale > 2, f"scale cannot be compiled: {HUNG}"),
    "getattr": (lambda c, z, h: getattr(c.U, "scale", 1.0) > 2, f"scale .*: {HUNG}"),
    "hasattr": (lambda c, z, h: hasattr(c.U, "scale"), f"scale .*: {HUNG}"),
    "of a list": (lambda c, z, h: hasattr(c.held[1], "scale"), f"scale .*: {HUNG}"),
    "of the state": (lambda c, z, h: hasattr(h, "age"), f"age .*: {HUNG}"),
    "__dict__": (lambda c, z, h: "scale" in c.U.__dict__, f"__dict__ .*: {HUNG}"),
    "vars": (lambda c, z, h: vars(c.U).get("scale"), f"__dict__ .*: {HUNG}"),
    "set": (lambda c, z, h: setattr(c.U, "seen", 1), "seen .*: it is an attribute that the step"),
    "a plain buffer": (lambda c, z, h: isinstance(c.plain, nn.Buffer), f"_is_buffer .*: {HUNG}"),
    "id": (lambda c, z, h: id(c.U) == c.number, "id cannot be compiled: another tensor stands"),
    "a dict": (lambda c, z, h: c.U in c.by_tensor, "hash cannot be compiled: others stand in"),
    "data_ptr": (lambda c, z, h: c.U.data_ptr(), "^data_ptr .*: how something lies in memory"),
    "storage": (lambda c, z, h: c.U.untyped_storage(), "^untyped_storage .*: how something lies"),
    "_version": (lambda c, z, h: c.U._version, "^_version .*: how something lies in memory"),
    "retains_grad": (lambda c, z, h: c.U.retains_grad, "^retains_grad .*: whether something is"),
    "hooks": (lambda c, z, h: c.U._backward_hooks, "^_backward_hooks .*: whether something is"),
    "grad set": (lambda c, z, h: setattr(c.U, "grad", None), "^grad = .*: the step differentiates"),
    "frozen": (lambda c, z, h: setattr(c.U, "requires_grad", False), "^requires_grad = cannot"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_be_told_is_refused(name: str) -> None:
    question, reason = REFUSED[name]
    layer = flexrnn.FlexRNN(Tied, 3, 4, function=weighed(question))
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason):
        layer(torch.randn(4, 2, 3))


def test_a_trace_leaves_what_it_has_exchanged_as_it_was() -> None:
    before = (Tensor.__hash__, id)
    layer = flexrnn.FlexRNN(Tied, 3, 4, function=weighed(WRITTEN["tied"]), backend="cpu")
    layer(torch.randn(4, 2, 3))
    assert (Tensor.__hash__, id) == before
    assert "__getattr__" not in vars(Tensor)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(layer.U_l0, "nothing")  # noqa: B009


@pytest.mark.parametrize("name", ["a parameter", "the class"])
def test_plain_tensors_in_the_place_of_parameters_are_told_apart(name: str) -> None:
    layer = flexrnn.FlexRNN(Tied, 3, 4, dtype=torch.float64, function=weighed(WRITTEN[name]))
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    plain = {name: p.detach().clone() for name, p in layer.named_parameters()}
    marked: dict[str, Tensor] = {name: nn.Buffer(p) for name, p in plain.items()}
    for _ in range(4):
        for given in (dict[str, Tensor](), plain, marked):
            with flexrnn.backend("cpu"):
                output = functional_call(layer, given, (x,))[0]
            with flexrnn.backend("reference"):
                assert_close(output, functional_call(layer, given, (x,))[0])


def test_tied_weights_are_told_apart_from_others() -> None:
    function = weighed(WRITTEN["tied"])
    layers = [flexrnn.FlexRNN(Tied, 3, 4, dtype=torch.float64, function=function, tied=tied)
              for tied in (True, False)]  # fmt: skip
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for layer in [*layers, *layers]:
        with flexrnn.backend("cpu"):
            output = layer(x)[0]
        with flexrnn.backend("reference"):
            assert_close(output, layer(x)[0])
    untied = layers[1]
    untied.V_l0 = untied.U_l0  # by the layer, later
    with flexrnn.backend("cpu"):
        output = untied(x)[0]
    with flexrnn.backend("reference"):
        assert_close(output, untied(x)[0])


@pytest.mark.parametrize("name", ["a parameter", "the class", "a buffer is no parameter", "tied"])
def test_so_they_are_under_torch_compile(name: str) -> None:
    torch.compiler.reset()
    layer = flexrnn.FlexRNN(Tied, 3, 4, dtype=torch.float64, function=weighed(WRITTEN[name]))
    del layer.cells[0].held  # to tensors in lists Dynamo is blind
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with flexrnn.backend("cpu"):
        output = torch.compile(layer, backend="aot_eager")(x)[0]
    with flexrnn.backend("reference"):
        assert_close(output, layer(x)[0])
