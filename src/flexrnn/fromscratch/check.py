"""What both layers refuse, by name, expectation and what came, before the mathematics begins."""

from typing import Any

import torch
from torch import Tensor


def check_sizes(input_sz: Any, hidden_sz: Any) -> None:
    """Refuse sizes that are not positive whole numbers."""
    for name, size in (("input_sz", input_sz), ("hidden_sz", hidden_sz)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: expected an int, got {size!r}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def check_input(x: Any, input_sz: int) -> None:
    """Refuse anything but a floating-point tensor `(B, T, I)` with T ≥ 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (batch, sequence, {input_sz}), got {_kind(x)}")
    shape = tuple(x.shape)
    if x.ndim != 3:
        raise ValueError(f"x: expected 3 dimensions (batch, sequence, {input_sz}), got {shape}")
    if x.shape[2] != input_sz:
        raise ValueError(
            f"x: expected last dimension {input_sz} (input_sz), got x of shape {shape}"
        )
    if x.shape[1] == 0:
        raise ValueError(f"x: expected at least one time step, got x of shape {shape}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")


def check_states(init_states: Any, x: Tensor, hidden_sz: int) -> tuple[Tensor, Tensor]:
    """Return `(h_0, c_0)`, zeros for `None`; refuse all but a pair of `(B, H)` tensors like x."""
    expected = (x.shape[0], hidden_sz)
    if init_states is None:
        zeros = torch.zeros(expected, dtype=x.dtype, device=x.device)
        return zeros, zeros
    if not isinstance(init_states, (tuple, list)) or len(init_states) != 2:
        raise TypeError(f"init_states: expected a pair (h_0, c_0), got {_kind(init_states)}")
    for name, state in zip(("h_0", "c_0"), init_states, strict=True):
        if not isinstance(state, Tensor):
            raise TypeError(f"init_states: expected {name} to be a tensor, got {_kind(state)}")
        if tuple(state.shape) != expected:
            raise ValueError(
                f"init_states: expected {name} of shape {expected} (batch, hidden_sz), "
                f"got {tuple(state.shape)}"
            )
        if state.dtype != x.dtype and not _autocast(x.device.type):
            # torch would promote c_0 in silence and answer in another dtype than x's.
            raise TypeError(f"init_states: expected {name} of dtype {x.dtype}, got {state.dtype}")
    h_0, c_0 = init_states
    return h_0, c_0


def _autocast(device_type: str) -> bool:
    """Whether autocast is choosing the dtypes now, so that unlike ones may meet."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _kind(value: Any) -> str:
    """`tuple of length 3`, `Tensor of shape (2, 5)`, `str`: what came, in a few words."""
    name = type(value).__name__
    if isinstance(value, Tensor):
        return f"{name} of shape {tuple(value.shape)}"
    return f"{name} of length {len(value)}" if isinstance(value, (tuple, list)) else name
