"""The article's peephole against a plain NumPy loop, one gate and one batch row at a time."""

import numpy as np
import pytest
import torch

from flexrnn.fromscratch import CustomLSTM


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def numpy_peephole(
    x: np.ndarray, c_0: np.ndarray, W: np.ndarray, U: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns hidden_seq `(B, T, H)`, h_T and c_T `(B, H)`; gates in the order i, f, g, o."""
    B, T, _ = x.shape
    H = U.shape[0]
    W_i, W_f, W_g, W_o = W[:, :H], W[:, H : 2 * H], W[:, 2 * H : 3 * H], W[:, 3 * H :]
    U_i, U_f, U_o = U[:, :H], U[:, H : 2 * H], U[:, 3 * H :]  # nothing reads the g block
    b_i, b_f, b_g, b_o = bias[:H], bias[H : 2 * H], bias[2 * H : 3 * H], bias[3 * H :]
    hidden_seq, c_T = np.zeros((B, T, H)), np.zeros((B, H))
    for b in range(B):
        c = c_0[b]
        for t in range(T):
            i = sigmoid(W_i.T @ x[b, t] + U_i.T @ c + b_i)
            f = sigmoid(W_f.T @ x[b, t] + U_f.T @ c + b_f)
            o = sigmoid(W_o.T @ x[b, t] + U_o.T @ c + b_o)
            candidate = sigmoid(W_g.T @ x[b, t] + b_g)
            c = f * c + i * candidate
            hidden_seq[b, t] = np.tanh(o * c)
        c_T[b] = c
    return hidden_seq, hidden_seq[:, -1], c_T


@pytest.mark.parametrize(
    ("B", "T", "I", "H"),
    [(3, 7, 5, 11), (1, 9, 4, 3), (4, 1, 3, 5), (2, 6, 1, 7), (3, 5, 2, 1), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("with_states", [True, False], ids=["states", "zeros"])
def test_equals_the_numpy_loop(B: int, T: int, I: int, H: int, with_states: bool) -> None:
    layer = CustomLSTM(I, H, peephole=True).double()
    x = torch.randn(B, T, I, dtype=torch.float64)
    h_0, c_0 = torch.randn(2, B, H, dtype=torch.float64)
    hidden_seq, (h_T, c_T) = layer(x, (h_0, c_0)) if with_states else layer(x)

    start = c_0.numpy() if with_states else np.zeros((B, H))
    weights = (w.detach().numpy() for w in (layer.W, layer.U, layer.bias))
    expected = numpy_peephole(x.numpy(), start, *weights)
    for ours, theirs in zip((hidden_seq, h_T, c_T), expected, strict=True):
        torch.testing.assert_close(ours.detach(), torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


def test_the_g_block_has_a_zero_gradient() -> None:
    layer = CustomLSTM(3, 5, peephole=True)
    layer(torch.randn(2, 7, 3))[0].sum().backward()
    assert layer.U.grad is not None
    i, f, g, o = layer.U.grad.chunk(4, dim=-1)
    assert torch.equal(g, torch.zeros(5, 5))
    for block in (i, f, o):
        assert block.count_nonzero() == block.numel()


def test_the_g_block_has_no_influence() -> None:
    layer = CustomLSTM(3, 5, peephole=True)
    x = torch.randn(2, 7, 3)
    before = layer(x)[0]
    with torch.no_grad():
        layer.U[:, 10:15] = 1e3
    assert torch.equal(layer(x)[0], before)


def test_h_0_has_no_influence_and_c_0_has() -> None:
    layer = CustomLSTM(3, 5, peephole=True)
    x = torch.randn(2, 7, 3)
    h_0, other, c_0 = torch.randn(3, 2, 5)
    assert torch.equal(layer(x, (h_0, c_0))[0], layer(x, (other, c_0))[0])
    assert not torch.equal(layer(x, (h_0, c_0))[0], layer(x, (h_0, other))[0])


def test_candidate_does_not_see_the_state() -> None:
    """With i = 1 and f = 0 the new memory is the candidate, whatever the old one was."""
    layer = CustomLSTM(3, 5, peephole=True).double()
    with torch.no_grad():
        layer.U.zero_()
        layer.bias[:5], layer.bias[5:10] = 1e3, -1e3
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    c_0 = torch.randn(2, 5, dtype=torch.float64)
    c_T = layer(x, (c_0, c_0))[1][1]
    candidate = torch.sigmoid(x[:, 0] @ layer.W[:, 10:15] + layer.bias[10:15])
    torch.testing.assert_close(c_T, candidate, rtol=1e-12, atol=1e-12)


def test_is_another_function_than_the_plain_form() -> None:
    plain, peephole = CustomLSTM(3, 5), CustomLSTM(3, 5, peephole=True)
    peephole.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 3)
    assert not torch.allclose(plain(x)[0], peephole(x)[0], atol=1e-3)
