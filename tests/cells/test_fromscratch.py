"""The article's two cells against the article's two classes, with carried weights."""

import pytest
import torch
from torch import Tensor, nn

from flexrnn import LSTM, ArticlePeepholeLSTM, NaiveLSTM
from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

I, H, B, T = 3, 5, 4, 6


def load(layer: nn.Module, weights: dict[str, Tensor]) -> None:
    layer.load_state_dict({name: value.detach().clone() for name, value in weights.items()})


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(B, T, I, dtype=torch.float64, requires_grad=True)
    h, c = (torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return x, h, c


def loss(output: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """Of every result, each with weights of its own, so that no two gradients are alike."""
    torch.manual_seed(1)
    return sum(((r * torch.randn(r.shape)).sum() for r in (output, h, c)), torch.zeros(()))


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_article_peephole_is_the_articles(bias: bool) -> None:
    theirs = CustomLSTM(I, H, peephole=True).double()
    ours = ArticlePeepholeLSTM(I, H, batch_first=True, bias=bias, dtype=torch.float64)
    if not bias:
        nn.init.zeros_(theirs.bias)
    carried = {"weight_ih_l0": theirs.W.T, "weight_ch_l0": theirs.U.T, "bias_ih_l0": theirs.bias}
    load(ours, carried if bias else {k: v for k, v in carried.items() if "bias" not in k})

    x, h, c = leaves()
    output, (h_n, c_n) = ours(x, (h[None], c[None]))
    expected, (h_T, c_T) = theirs(x, (h, c))
    close((output, h_n[0], c_n[0]), (expected, h_T, c_T))

    mine = torch.autograd.grad(loss(output, h_n[0], c_n[0]), (x, c, *ours.parameters()))
    reference = (x, c, theirs.W, theirs.U, theirs.bias)
    dx, dc, dW, dU, db = torch.autograd.grad(loss(expected, h_T, c_T), reference)
    close(mine, (dx, dc, dW.T, dU.T, db) if bias else (dx, dc, dW.T, dU.T))


def test_the_article_peepholes_g_rows_and_initial_h_are_unused() -> None:
    layer = ArticlePeepholeLSTM(I, H, dtype=torch.float64)
    x, (h, c) = torch.randn(T, B, I, dtype=torch.float64), torch.randn(2, 1, B, H).double()
    output = layer(x, (h, c))[0]
    with torch.no_grad():
        layer.weight_ch_l0[2 * H : 3 * H] = 1e3  # pyright: ignore[reportIndexIssue]
    assert torch.equal(layer(x, (torch.full_like(h, 1e3), c))[0], output)
    assert not torch.equal(layer(x, (h, h))[0], output)


def test_naive_is_the_articles() -> None:
    theirs = NaiveCustomLSTM(I, H).double()
    ours = NaiveLSTM(I, H, batch_first=True, dtype=torch.float64)
    load(ours, {f"{name}_l0": value for name, value in theirs.named_parameters()})

    x, h, c = leaves()
    output, (h_n, c_n) = ours(x, (h[None], c[None]))
    expected, (h_T, c_T) = theirs(x, (h, c))
    close((output, h_n[0], c_n[0]), (expected, h_T, c_T))
    close(
        torch.autograd.grad(loss(output, h_n[0], c_n[0]), (x, h, c, *ours.parameters())),
        torch.autograd.grad(loss(expected, h_T, c_T), (x, h, c, *theirs.parameters())),
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_naive_weights_carried_to_lstm_give_the_same_function(bias: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "bias": bias, "dtype": torch.float64}
    naive, lstm = NaiveLSTM(I, H, **options), LSTM(I, H, **options)

    def stacked(prefix: str, suffix: str) -> Tensor:
        return torch.cat([getattr(naive, f"{prefix}_{k}{suffix}").T for k in "ifco"])

    carried = {}
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        carried |= {f"weight_ih{suffix}": stacked("U", suffix)}
        carried |= {f"weight_hh{suffix}": stacked("V", suffix)}
        if bias:
            blocks = [getattr(naive, f"b_{k}{suffix}") for k in "ifco"]
            carried |= {f"bias_ih{suffix}": torch.cat(blocks)}
            carried |= {f"bias_hh{suffix}": torch.zeros(4 * H, dtype=torch.float64)}
    load(lstm, carried)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = tuple(torch.randn(2, 4, B, H, dtype=torch.float64))
    close(naive(x, hx), lstm(x, hx))
