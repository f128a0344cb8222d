"""The LSTM operator of ONNX, run by onnxruntime, against ours with the same random weights.

ONNX orders gates i, o, f, c and peepholes i, o, f; its bias is W's followed by R's. onnxruntime
computes in float32 only: judged by the relative norm error against ours in float64.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from flexrnn import LSTM, FlexRNN, PeepholeLSTM

T, B, I, H = 9, 4, 5, 7
TOLERANCE = 1e-6  # of float32: its unit roundoff is 6e-8, and T steps compound


def reordered(rows: Tensor, order: tuple[int, ...]) -> np.ndarray:
    """Blocks of H rows in ONNX's order, as float32."""
    blocks = rows.detach().reshape(-1, H, *rows.shape[1:])
    return blocks[list(order)].flatten(0, 1).float().numpy()


def operands(layer: FlexRNN) -> dict[str, np.ndarray]:
    """W, R, B and, where the layer has peepholes, P; one entry a direction."""
    suffixes = ("_l0", "_l0_reverse")[: layer.num_directions]
    iofc = (0, 3, 1, 2)  # from i, f, g, o
    stacked = {
        "W": [reordered(layer.get_parameter(f"weight_ih{s}"), iofc) for s in suffixes],
        "R": [reordered(layer.get_parameter(f"weight_hh{s}"), iofc) for s in suffixes],
        "B": [
            np.concatenate(
                [reordered(layer.get_parameter(f"bias_{k}{s}"), iofc) for k in ("ih", "hh")]
            )
            for s in suffixes
        ],
    }
    if isinstance(layer, PeepholeLSTM):
        iof = (0, 2, 1)  # from i, f, o
        stacked["P"] = [
            reordered(layer.get_parameter(f"weight_ch{s}").flatten(), iof) for s in suffixes
        ]
    return {name: np.stack(value) for name, value in stacked.items()}


def run_onnx(layer: FlexRNN, feeds: dict[str, np.ndarray]) -> list[Tensor]:
    """Y `(T, D, B, H)`, Y_h and Y_c `(D, B, H)`; feeds: X, initial_h, initial_c, sequence_lens."""
    D = layer.num_directions
    results = {"Y": (T, D, B, H), "Y_h": (D, B, H), "Y_c": (D, B, H)}
    feeds = {**feeds, **operands(layer)}
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    direction = "bidirectional" if layer.bidirectional else "forward"
    node = helper.make_node(
        "LSTM",
        [name if name in feeds else "" for name in names],
        list(results),
        hidden_size=H,
        direction=direction,
    )
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info(k, kinds[v.dtype], v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in results.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, feeds)]


def assert_near(theirs: Tensor, ours: Tensor) -> None:
    error = (theirs.double() - ours).norm() / ours.norm()
    assert error <= TOLERANCE, f"relative norm error {error:.1e}"


def side_by_side(Y: Tensor) -> Tensor:
    return Y.transpose(1, 2).flatten(2)  # (T, D, B, H) -> (T, B, D·H)


def layer_of(cls: type[LSTM] | type[PeepholeLSTM], **options: Any) -> FlexRNN:
    """A layer in float64 whose weights float32 holds exactly, three times torch's draw."""
    layer = cls(I, H, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)
    return layer.double()


def inputs(layer: FlexRNN) -> tuple[Tensor, Tensor, Tensor]:
    D = layer.num_directions
    return torch.randn(T, B, I), torch.randn(D, B, H), torch.randn(D, B, H)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("cls", [LSTM, PeepholeLSTM])
@pytest.mark.parametrize("seed", range(3))
def test_equals_onnxruntime(
    cls: type[LSTM] | type[PeepholeLSTM], bidirectional: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = layer_of(cls, bidirectional=bidirectional)
    x, h, c = inputs(layer)
    feeds = {"X": x.numpy(), "initial_h": h.numpy(), "initial_c": c.numpy()}
    Y, Y_h, Y_c = run_onnx(layer, feeds)
    with torch.no_grad():
        output, (h_n, c_n) = layer(x.double(), (h.double(), c.double()))
    assert_near(side_by_side(Y), output)
    assert_near(Y_h, h_n)
    assert_near(Y_c, c_n)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("cls", [LSTM, PeepholeLSTM])
def test_sequence_lens_of_onnxruntime_are_a_packed_sequence(
    cls: type[LSTM] | type[PeepholeLSTM], bidirectional: bool
) -> None:
    layer = layer_of(cls, bidirectional=bidirectional)
    x, h, c = inputs(layer)
    lengths = [4, T, 1, 6]
    feeds = {"X": x.numpy(), "initial_h": h.numpy(), "initial_c": c.numpy()}
    feeds |= {"sequence_lens": np.array(lengths, dtype=np.int32)}
    Y, Y_h, Y_c = run_onnx(layer, feeds)
    packed = pack_padded_sequence(x.double(), torch.tensor(lengths), enforce_sorted=False)
    with torch.no_grad():
        output, (h_n, c_n) = layer(packed, (h.double(), c.double()))
    assert_near(side_by_side(Y), pad_packed_sequence(output)[0])
    assert_near(Y_h, h_n)
    assert_near(Y_c, c_n)


def test_a_peephole_in_the_wrong_place_would_be_noticed() -> None:
    """Of each of the three peepholes: without it the two differ by far more than rounding."""
    layer = layer_of(PeepholeLSTM)
    x, h, c = inputs(layer)
    Y = run_onnx(layer, {"X": x.numpy(), "initial_h": h.numpy(), "initial_c": c.numpy()})[0]
    for row in range(3):
        lacking = layer_of(PeepholeLSTM)
        lacking.load_state_dict(layer.state_dict())
        with torch.no_grad():
            lacking.get_parameter("weight_ch_l0")[row] = 0
            output = lacking(x.double(), (h.double(), c.double()))[0]
        assert (side_by_side(Y).double() - output).norm() / output.norm() > 1e-3
