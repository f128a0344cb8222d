"""Both plain classes are `torch.nn.LSTM`: outputs, states and every gradient, float64, to 1e-12.

The weights are carried twice: by `flexrnn.fromscratch`'s own functions, and by a mapping written
here by hand from torch's documentation, so that a convert function cannot excuse a wrong layer.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM, from_torch, to_torch

Layer = NaiveCustomLSTM | CustomLSTM
Pair = tuple[nn.LSTM, Layer]

# (B, T, I, H): odd sizes, and each of them 1 in turn
SIZES = [(3, 7, 5, 11), (1, 9, 4, 3), (4, 1, 3, 5), (2, 6, 1, 7), (3, 5, 2, 1), (1, 1, 1, 1)]

# torch documents the rows of weight_ih_l0 (4H, I) as (W_ii | W_if | W_ig | W_io)
TORCH_ROWS = {"i": 0, "f": 1, "c": 2, "o": 3}


def rows(stacked: Tensor, gate: str) -> Tensor:
    """The rows of one gate, transposed where ours multiplies from the other side."""
    H = stacked.shape[0] // 4
    block = stacked[TORCH_ROWS[gate] * H : (TORCH_ROWS[gate] + 1) * H]
    return block.T if block.ndim == 2 else block


def in_our_layout(cls: type[Layer], w_ih: Tensor, w_hh: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Torch's three tensors under our names and in our layout, block by block."""
    if cls is CustomLSTM:
        return {"W": w_ih.T, "U": w_hh.T, "bias": b}
    ours = {}
    for gate in "ifco":
        ours[f"U_{gate}"] = rows(w_ih, gate)
        ours[f"V_{gate}"] = rows(w_hh, gate)
        ours[f"b_{gate}"] = rows(b, gate)
    return ours


def pair_by_hand(cls: type[Layer], I: int, H: int) -> Pair:
    theirs = nn.LSTM(I, H, batch_first=True, dtype=torch.float64)
    ours = cls(I, H).double()
    w_ih, w_hh, b_ih, b_hh = theirs.parameters()
    mapped = in_our_layout(cls, w_ih, w_hh, b_ih + b_hh)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(mapped.pop(name))
    assert not mapped
    return theirs, ours


def pair_by_from_torch(cls: type[Layer], I: int, H: int) -> Pair:
    theirs = nn.LSTM(I, H, batch_first=True, dtype=torch.float64)
    return theirs, from_torch(theirs, cls)


def pair_by_to_torch(cls: type[Layer], I: int, H: int) -> Pair:
    ours = cls(I, H).double()
    return to_torch(ours), ours


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def close(ours: Tensor | None, theirs: Tensor | None) -> None:
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cls", [NaiveCustomLSTM, CustomLSTM])
@pytest.mark.parametrize("make", [pair_by_hand, pair_by_from_torch, pair_by_to_torch])
@pytest.mark.parametrize("with_states", [True, False], ids=["states", "zeros"])
def test_same_function_and_gradients(
    make: Callable[..., Pair], cls: type[Layer], sizes: tuple[int, ...], with_states: bool
) -> None:
    B, T, I, H = sizes
    theirs, ours = make(cls, I, H)
    x, h_0, c_0 = (torch.randn(shape, dtype=torch.float64) for shape in [(B, T, I), (B, H), (B, H)])
    # The loss weighs every entry of all three results differently, so that none can hide.
    v_seq, v_h, v_c = (
        torch.randn(shape, dtype=torch.float64) for shape in [(B, T, H), (B, H), (B, H)]
    )

    x1, h1, c1 = (t.clone().requires_grad_() for t in (x, h_0, c_0))
    seq1, (h_T1, c_T1) = ours(x1, (h1, c1)) if with_states else ours(x1)
    ((seq1 * v_seq).sum() + (h_T1 * v_h).sum() + (c_T1 * v_c).sum()).backward()

    x2, h2, c2 = (t.clone().requires_grad_() for t in (x, h_0, c_0))
    seq2, (h_T2, c_T2) = theirs(x2, (h2[None], c2[None])) if with_states else theirs(x2)
    ((seq2 * v_seq).sum() + (h_T2[0] * v_h).sum() + (c_T2[0] * v_c).sum()).backward()

    close(seq1, seq2)
    close(h_T1, h_T2[0])
    close(c_T1, c_T2[0])
    close(x1.grad, x2.grad)
    if with_states:
        close(h1.grad, h2.grad)
        close(c1.grad, c2.grad)
    # Only the sum of torch's two biases matters, so each has the gradient of our one.
    weight_ih, weight_hh, bias_ih, bias_hh = map(gradient, theirs.parameters())
    close(bias_ih, bias_hh)
    gradients = in_our_layout(cls, weight_ih, weight_hh, bias_ih)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients.pop(name))
    assert not gradients


@pytest.mark.parametrize("cls", [NaiveCustomLSTM, CustomLSTM])
def test_long_sequence_stays_the_same_function(cls: type[Layer]) -> None:
    theirs, ours = pair_by_hand(cls, 3, 8)
    x = torch.randn(2, 300, 3, dtype=torch.float64)
    close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("cls", [NaiveCustomLSTM, CustomLSTM])
def test_saturated_gates_stay_finite_and_the_same(cls: type[Layer]) -> None:
    theirs, ours = pair_by_hand(cls, 3, 8)
    x = 1e4 * torch.randn(2, 6, 3, dtype=torch.float64)
    close(ours(x)[0], theirs(x)[0])
    assert ours(x)[0].isfinite().all()


def test_naive_and_vectorised_are_one_function() -> None:
    theirs, naive = pair_by_hand(NaiveCustomLSTM, 4, 6)
    vectorised = from_torch(theirs, CustomLSTM)
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    for a, b in zip(
        (naive(x)[0], *naive(x)[1]), (vectorised(x)[0], *vectorised(x)[1]), strict=True
    ):
        close(a, b)
