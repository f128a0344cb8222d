"""`torch.export`: strict and not, saved, loaded and run where nothing but FlexRNN was imported."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close

import flexrnn

from ..lru import LRUCell
from .gated import GatedCell
from .rotated import RotatedCell

T, B, I, H = 5, 3, 2, 4
pytestmark = [
    pytest.mark.usefixtures("by_program"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # torch's own decompositions
]


LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": flexrnn.LSTM,
    "two layers, two directions": partial(flexrnn.LSTM, num_layers=2, bidirectional=True),
    "GRU": flexrnn.GRU,
    "layer norm": flexrnn.LayerNormLSTM,
    "made ahead": partial(flexrnn.FlexRNN, RotatedCell),
    "a complex state": partial(flexrnn.FlexRNN, LRUCell),
    "a module `gates`": partial(flexrnn.FlexRNN, GatedCell),
}


def sequence(steps: int = T, batch: int = B) -> Tensor:
    return torch.randn(steps, batch, I)


def export(layer: nn.Module, *, strict: bool, dynamic: bool = True) -> Any:
    shapes = ({0: Dim("T", min=2, max=512), 1: Dim("B", min=2, max=64)},) if dynamic else None
    return torch.export.export(layer, (sequence(),), dynamic_shapes=shapes, strict=strict)


def scans(program: Any) -> int:
    return sum("flexrnn.scan" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_one_node_a_direction_for_any_length_and_batch(name: str, strict: bool) -> None:
    layer = LAYERS[name](I, H).eval()
    program = export(layer, strict=strict)
    assert scans(program) == layer.num_layers * layer.num_directions
    for steps, batch in ((T, B), (9, 4), (2, 2)):
        x = sequence(steps, batch)
        assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_the_number_of_nodes_does_not_depend_on_the_length(strict: bool) -> None:
    layer = flexrnn.LSTM(I, H).eval()
    sizes = {
        len(torch.export.export(layer, (sequence(t),), strict=strict).graph.nodes) for t in (2, 40)
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_layer_learns(strict: bool) -> None:
    layer, x = flexrnn.LSTM(I, H), sequence().requires_grad_()
    module = export(layer, strict=strict).module()
    module(x)[0].square().sum().backward()
    got = [x.grad, *(p.grad for p in module.parameters())]
    right = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    assert_close(got, list(right), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_that_holds_a_module_twice_is_exported(strict: bool) -> None:
    """`torch.export` puts proxies in the place of all its modules then."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = flexrnn.LayerNormLSTM(I, H)
            self.there = self.back = nn.Linear(H, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.back(self.there(self.rnn(x)[0]))

    model, x = Tied(), sequence()
    exported = torch.export.export(model, (x,), strict=strict)
    assert_close(exported.module()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_without_gradients_nothing_is_saved(strict: bool) -> None:
    with torch.no_grad():
        program = export(flexrnn.LSTM(I, H).eval(), strict=strict)
    (node,) = [n for n in program.graph.nodes if "flexrnn.scan" in str(n.target)]
    assert len(node.meta["val"]) == 3  # history, h, c
    assert "output grad." not in node.args[0]


def test_the_program_can_be_decomposed_to_core_operations() -> None:
    layer, x = flexrnn.GRU(I, H).eval(), sequence()
    program = export(layer, strict=False).run_decompositions()
    assert scans(program) == 1
    assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-6)


SCRIPT = """
import sys, torch, flexrnn
module = torch.export.load(sys.argv[1]).module()
x, expected = torch.load(sys.argv[2])
output, (h, c) = module(x)
torch.testing.assert_close((output, h, c), expected, rtol=1e-5, atol=1e-6)
output.sum().backward()
assert all(p.grad is not None for p in module.parameters())
print("same")
"""


@pytest.mark.parametrize("strict", [True, False])
def test_saved_and_run_in_a_fresh_process(strict: bool, tmp_path: Path) -> None:
    layer, x = flexrnn.LSTM(I, H, num_layers=2, bidirectional=True).eval(), sequence(7, 2)
    torch.export.save(export(layer, strict=strict), tmp_path / "layer.pt2")
    output, state = layer(x)
    torch.save((x, tuple(t.detach() for t in (output, *state))), tmp_path / "numbers.pt")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "layer.pt2"), str(tmp_path / "numbers.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "same\n", run.stderr
