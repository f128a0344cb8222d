"""Initialisations that people ask for, in place, of every layer and direction."""

import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from flexrnn.bind import Slot
from flexrnn.cell import Cell
from flexrnn.regularize import is_recurrent

L = TypeVar("L", bound=nn.Module)


def orthogonal_(layer: L, gain: float = 1.0) -> L:
    """Make every recurrent weight orthogonal, gate by gate.

    Each block of H rows of every `weight_hh*` is drawn as by `torch.nn.init.orthogonal_`: its rows
    (or its columns, where it is higher than wide) are orthonormal, times `gain`. So it is with
    complex weights, whose blocks become unitary.

    Source: Saxe, McClelland & Ganguli 2014.

    Args:
        layer: a `FlexRNN` or a drop-in.
        gain: a factor.

    Returns:
        The layer.

    Raises:
        TypeError: `layer` is none of ours, or `gain` no number.
        ValueError: its cell has no `weight_hh*` made of blocks of H rows.

    Example:
        >>> import torch, flexrnn
        >>> layer = flexrnn.init.orthogonal_(flexrnn.GRU(3, 5))
        >>> reset, update, candidate = layer.weight_hh_l0.detach().chunk(3)
        >>> torch.testing.assert_close(update @ update.T, torch.eye(5))
    """
    _check_number("gain", gain)
    for place in list(_places("orthogonal_", layer)):
        H = place.cell.hidden_size
        names = [slot.flat for slot in place.slots if is_recurrent(slot)]
        if not names or any(getattr(layer, name).shape[0] % H for name in names):
            raise _refusal("orthogonal_", place, "parameters weight_hh* of blocks of H rows")
        for name in dict.fromkeys(names):
            _change(
                layer, name, lambda weight, H=H: [_orthogonal(w, gain) for w in weight.split(H)]
            )
    return layer


def forget_bias_(layer: L, value: float = 1.0) -> L:
    """Set the bias of the forget gate, so that a memory lasts before anything has been learned.

    Of several biases that are added the first is `value`, and the others are zero.

    Source: Gers, Schmidhuber & Cummins 2000; 1 by Jozefowicz, Zaremba & Sutskever 2015.

    Args:
        layer: a `FlexRNN` or a drop-in whose cell has a gate `"f"`.
        value: the bias.

    Returns:
        The layer.

    Raises:
        TypeError: `layer` is none of ours, or `value` no number.
        ValueError: its cell has no gate `"f"`, or no biases.

    Example:
        >>> import flexrnn
        >>> layer = flexrnn.init.forget_bias_(flexrnn.LSTM(3, 2))
        >>> i, f, g, o = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().chunk(4)
        >>> f
        tensor([1., 1.])
    """
    _check_number("value", value)
    for place in list(_places("forget_bias_", layer)):
        _set_biases("forget_bias_", layer, place, {"f": lambda bias: torch.full_like(bias, value)})
    return layer


def chrono_(layer: L, T_max: float) -> L:
    """Draw the gates' biases for memories that last up to `T_max` steps.

        b_f ~ log U(1, T_max − 1)        b_i = −b_f

    A unit with forget bias b keeps what it has for about 1 + exp(b) steps. A cell without a gate
    `"i"` gets b_f alone. Of several biases that are added the first is drawn, and the others are
    zero.

    Source: Tallec & Ollivier 2018. Its rule for gated units other than the LSTM is left out: what
    their one gate means differs from paper to paper.

    Args:
        layer: a `FlexRNN` or a drop-in whose cell has a gate `"f"`.
        T_max: steps that the longest dependence is expected to span, more than 2.

    Returns:
        The layer.

    Raises:
        TypeError: `layer` is none of ours, or `T_max` no number.
        ValueError: `T_max` is not above 2; the cell has no gate `"f"`, or no biases.

    Example:
        >>> import flexrnn
        >>> layer = flexrnn.init.chrono_(flexrnn.LSTM(3, 5), T_max=100)
        >>> i, f, g, o = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().chunk(4)
        >>> bool((f >= 0).all()), bool((i == -f).all())
        (True, True)
    """
    _check_number("T_max", T_max)
    if not 2 < T_max < float("inf"):
        raise ValueError(f"T_max: expected a finite number above 2, got {T_max}")
    for place in list(_places("chrono_", layer)):
        drawn: list[Tensor] = []

        def forget(bias: Tensor, drawn: list[Tensor] = drawn) -> Tensor:
            drawn.append(torch.empty_like(bias).uniform_(1, T_max - 1).log())
            return drawn[0]

        setters: dict[str, Callable[[Tensor], Tensor]] = {"f": forget}
        if "i" in _gates(place.cell):
            setters["i"] = lambda bias, drawn=drawn: -drawn[0]
        _set_biases("chrono_", layer, place, setters)
    return layer


class _Place(NamedTuple):
    cell: Cell
    slots: tuple[Slot, ...]


def _places(function: str, layer: Any) -> Iterator[_Place]:
    cells, slots = getattr(layer, "cells", None), getattr(layer, "_slots", None)
    if not isinstance(cells, nn.ModuleList) or slots is None:
        raise TypeError(f"{function}: expected a FlexRNN, got {type(layer).__name__}")
    for cell, own in zip(cells, slots, strict=True):
        assert isinstance(cell, Cell)
        yield _Place(cell, own)


def _gates(cell: Cell) -> tuple[str, ...]:
    """Their names; something else may be called so."""
    found = getattr(cell, "gates", ())
    return tuple(found) if isinstance(found, (tuple, list)) else ()


def _set_biases(
    function: str, layer: nn.Module, place: _Place, setters: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    """Set blocks of the cell's biases by the gates' names; of further biases to zero."""
    gates, H = _gates(place.cell), place.cell.hidden_size
    if "f" not in gates:
        raise _refusal(function, place, "a gate 'f'", gates)
    names = [
        slot.flat
        for slot in place.slots
        if slot.name.startswith("bias") and getattr(layer, slot.flat).shape == (len(gates) * H,)
    ]
    if not names:
        raise _refusal(function, place, "biases of its gates")
    for k, name in enumerate(dict.fromkeys(names)):

        def changed(bias: Tensor, k: int = k) -> list[Tensor]:
            blocks = dict(zip(gates, bias.split(H), strict=True))
            for gate, setter in setters.items():
                blocks[gate] = setter(blocks[gate]) if k == 0 else torch.zeros_like(blocks[gate])
            return list(blocks.values())

        _change(layer, name, changed)


def _change(layer: nn.Module, name: str, blocks: Callable[[Tensor], list[Tensor]]) -> None:
    """Put other numbers into a parameter; through its parametrization, if it has one."""
    with torch.no_grad():
        value = torch.cat(blocks(getattr(layer, name)))
        if is_parametrized(layer, name):
            setattr(layer, name, value)
        else:
            getattr(layer, name).copy_(value)


def _orthogonal(weight: Tensor, gain: float) -> Tensor:
    if not weight.is_complex():
        return nn.init.orthogonal_(torch.empty_like(weight), gain)
    rows, columns = weight.shape  # torch's own knows no complex signs
    size = max(rows, columns), min(rows, columns)
    q, r = torch.linalg.qr(torch.randn(size, dtype=weight.dtype, device=weight.device))
    q = gain * q * r.diagonal().sgn()  # no direction is preferred (Mezzadri 2007)
    return q if rows >= columns else q.mH


def _refusal(function: str, place: _Place, expected: str, gates: Any = None) -> ValueError:
    names = ", ".join(dict.fromkeys(slot.name for slot in place.slots))
    got = f"gates {gates}" if gates is not None else names
    return ValueError(
        f"{function}: expected a cell with {expected}, got {type(place.cell).__name__} with {got}"
    )


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
