"""Carry weights between the naive LSTM, the vectorised one and `torch.nn.LSTM`.

Ours multiply from the right (`x @ W`, W `(I, 4H)`) and have one bias; torch's multiplies by the
transpose (`weight_ih_l0` `(4H, I)`) and has two biases, of which only the sum matters. All three
order the blocks i, f, g, o, so that carrying is transposing, slicing and one addition.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from flexrnn.fromscratch.naive import NaiveCustomLSTM
from flexrnn.fromscratch.vectorized import CustomLSTM

FromScratch = TypeVar("FromScratch", bound=NaiveCustomLSTM | CustomLSTM)
M = TypeVar("M", bound=nn.Module)

BLOCKS = ("i", "f", "c", "o")  # the naive names of the column blocks i, f, g, o


def to_torch(layer: NaiveCustomLSTM | CustomLSTM) -> nn.LSTM:
    """Return the `torch.nn.LSTM` (`batch_first=True`) that computes the same function.

    Our bias becomes `bias_ih_l0`; `bias_hh_l0` is zero.

    Args:
        layer: a `NaiveCustomLSTM`, or a `CustomLSTM` without peephole.

    Raises:
        ValueError: `layer` has peepholes, which `nn.LSTM` cannot express.
        TypeError: `layer` is neither of the two classes.

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import CustomLSTM, to_torch
        >>> ours, x = CustomLSTM(3, 5), torch.randn(2, 7, 3)
        >>> theirs = to_torch(ours)
        >>> torch.testing.assert_close(theirs(x)[0], ours(x)[0])
    """
    W, U, bias = _stacked(layer)
    lstm = _empty_like(W, lambda: nn.LSTM(layer.input_sz, layer.hidden_sz, batch_first=True))
    carried = {
        "weight_ih": W.T,
        "weight_hh": U.T,
        "bias_ih": bias,
        "bias_hh": torch.zeros_like(bias),
    }
    for name, value in carried.items():
        _fill(getattr(lstm, f"{name}_l0"), value)
    return lstm.train(layer.training)


def from_torch(lstm: nn.LSTM, cls: type[FromScratch] = CustomLSTM) -> FromScratch:
    """Return the layer from scratch that computes the function of a `torch.nn.LSTM`.

    Our one bias is the sum of torch's two (zero where it has none). The result reads
    `(batch, sequence, feature)`, whatever `lstm.batch_first` says.

    Args:
        lstm: one layer, one direction, no projection.
        cls: `CustomLSTM` or `NaiveCustomLSTM`, the class to build.

    Raises:
        ValueError: `lstm` has several layers, two directions or a projection.
        TypeError: `lstm` is not an `nn.LSTM`, or `cls` not one of the two classes.

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import NaiveCustomLSTM, from_torch
        >>> theirs, x = torch.nn.LSTM(3, 5, batch_first=True), torch.randn(2, 7, 3)
        >>> ours = from_torch(theirs, NaiveCustomLSTM)
        >>> torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    """
    if not isinstance(lstm, nn.LSTM):
        raise TypeError(f"lstm: expected a torch.nn.LSTM, got {type(lstm).__name__}")
    for name, expected in (("num_layers", 1), ("bidirectional", False), ("proj_size", 0)):
        if getattr(lstm, name) != expected:
            raise ValueError(
                f"lstm: expected {name}={expected}, the only form a layer from scratch has, "
                f"got {name}={getattr(lstm, name)}"
            )
    W, U = _weight(lstm, "weight_ih_l0").T, _weight(lstm, "weight_hh_l0").T
    bias = W.new_zeros(W.shape[1])
    if lstm.bias:
        bias = _weight(lstm, "bias_ih_l0") + _weight(lstm, "bias_hh_l0")
    return _build(cls, W, U, bias).train(lstm.training)


def to_vectorized(layer: NaiveCustomLSTM) -> CustomLSTM:
    """Return the `CustomLSTM` that computes the function of a `NaiveCustomLSTM`.

    Raises:
        TypeError: `layer` is not a `NaiveCustomLSTM`.

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import NaiveCustomLSTM, to_vectorized
        >>> naive, x = NaiveCustomLSTM(3, 5), torch.randn(2, 7, 3)
        >>> torch.testing.assert_close(to_vectorized(naive)(x)[0], naive(x)[0])
    """
    if not isinstance(layer, NaiveCustomLSTM):
        raise TypeError(f"layer: expected a NaiveCustomLSTM, got {type(layer).__name__}")
    return _build(CustomLSTM, *_stacked(layer)).train(layer.training)


def to_naive(layer: CustomLSTM) -> NaiveCustomLSTM:
    """Return the `NaiveCustomLSTM` that computes the function of a `CustomLSTM`.

    Raises:
        ValueError: `layer` has peepholes, which the naive class does not have.
        TypeError: `layer` is not a `CustomLSTM`.

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import CustomLSTM, to_naive
        >>> layer, x = CustomLSTM(3, 5), torch.randn(2, 7, 3)
        >>> torch.testing.assert_close(to_naive(layer)(x)[0], layer(x)[0])
    """
    if not isinstance(layer, CustomLSTM):
        raise TypeError(f"layer: expected a CustomLSTM, got {type(layer).__name__}")
    return _build(NaiveCustomLSTM, *_stacked(layer)).train(layer.training)


def _stacked(layer: NaiveCustomLSTM | CustomLSTM) -> tuple[Tensor, Tensor, Tensor]:
    """W `(I, 4H)`, U `(H, 4H)` and bias `(4H,)` of either class, blocks i, f, g, o."""
    if isinstance(layer, NaiveCustomLSTM):
        W, U, bias = (
            torch.cat([getattr(layer, f"{kind}_{block}") for block in BLOCKS], dim=-1)
            for kind in "UVb"
        )
        return W, U, bias
    if not isinstance(layer, CustomLSTM):
        raise TypeError(
            f"layer: expected a NaiveCustomLSTM or a CustomLSTM, got {type(layer).__name__}"
        )
    if layer.peephole:
        raise ValueError(
            "layer: expected peephole=False; the peephole form is another function, "
            "which no weights of a plain LSTM can express"
        )
    return layer.W, layer.U, layer.bias


def _build(cls: type[FromScratch], W: Tensor, U: Tensor, bias: Tensor) -> FromScratch:
    """A new layer of class `cls` with these stacked weights (copied), on their device and dtype."""
    if cls not in (CustomLSTM, NaiveCustomLSTM):
        raise TypeError(f"cls: expected CustomLSTM or NaiveCustomLSTM, got {cls!r}")
    layer = _empty_like(W, lambda: cls(W.shape[0], U.shape[0]))
    if isinstance(layer, CustomLSTM):
        _fill(layer.W, W)
        _fill(layer.U, U)
        _fill(layer.bias, bias)
        return layer
    for kind, stacked in (("U", W), ("V", U), ("b", bias)):
        for block, columns in zip(BLOCKS, stacked.chunk(4, dim=-1), strict=True):
            _fill(getattr(layer, f"{kind}_{block}"), columns)
    return layer


def _empty_like(like: Tensor, make: Callable[[], M]) -> M:
    """Build a module on no device, then give it storage: drawing nothing leaves the seed alone."""
    with torch.device("meta"):
        module = make()
    return module.to(dtype=like.dtype).to_empty(device=like.device)


def _weight(lstm: nn.LSTM, name: str) -> Tensor:
    """A weight of torch's layer by its name, also where a parametrization computes it."""
    return cast(Tensor, getattr(lstm, name))


def _fill(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
