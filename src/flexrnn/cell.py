"""`Cell`: the equations of one time step, and nothing else."""

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexrnn.dtypes import (
    check_state_kind,
    field_dtypes,
    first_weight,
    loop_dtypes,
    may_enter,
    may_meet,
    real_to,
)
from flexrnn.engine.compiler.refusal import CannotCompileError, frames, users_line
from flexrnn.engine.step import make_exportable
from flexrnn.fields import (
    complex_fields,
    described,
    field_names,
    field_sizes,
    spelled,
    unwrap,
    wrap,
)
from flexrnn.references import gave


class Cell(nn.Module):
    """The body of a recurrent layer's loop, written in plain PyTorch.

    A subclass says three things: which tensors travel from step to step (`State`), which
    parameters there are (`__init__`, which also draws them), and what one step computes (`step`).
    `flexrnn.FlexRNN` makes a complete layer of it. Calling a cell runs one step with validated
    shapes, like `torch.nn.LSTMCell`.

    A constructor takes `(input_size, hidden_size, bias=True, device=None, dtype=None)` and, by
    keyword, whatever options the cell has beside these.

    Class attributes:
        State: a `NamedTuple` class; its first field is the output. A field is `(..., H)`, or as
            wide as `state_sizes` says. A cell whose state has one field takes and returns the
            bare tensor outside `step`.
        complex_fields: names of the fields that hold complex numbers, complex64 beside float32 and
            complex128 beside float64. Such a cell takes real or complex input.
        gates: names of the row blocks that are stacked in `weight_ih`, `weight_hh` and the biases,
            in order; read by initialisers. May be left out, or be a submodule.
        torch_equivalent: `"lstm"`, `"gru"` or `"rnn"` where torch has a kernel of its own for
            exactly this function; lost by a subclass that overrides `step`.

    Args:
        input_size: I, the number of features of one time step.
        hidden_size: H, the number of hidden units.

    Raises:
        TypeError: a size is not an int, or the class lacks `State` or `step`.
        ValueError: a size is negative. Zero passes, as in `torch.nn.LSTMCell`; a layer refuses it.

    Example:
        >>> from typing import NamedTuple
        >>> import torch, flexrnn
        >>> class LeakyState(NamedTuple):
        ...     h: torch.Tensor  # (..., H)
        >>> class LeakyCell(flexrnn.Cell):
        ...     State = LeakyState
        ...     def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        ...         super().__init__(input_size, hidden_size)
        ...         options = {"bias": bias, "device": device, "dtype": dtype}
        ...         self.inner = torch.nn.Linear(input_size + hidden_size, hidden_size, **options)
        ...     def step(self, x, state):
        ...         new = torch.tanh(self.inner(torch.cat([x, state.h], -1)))
        ...         return LeakyState(h=0.9 * state.h + 0.1 * new)
        >>> LeakyCell(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])

        A memory that turns, in complex numbers:

        >>> class TurningCell(LeakyCell):
        ...     complex_fields = ("h",)
        ...     def step(self, x, state):
        ...         h = 1j * state.h
        ...         return LeakyState(h=0.9 * h + self.inner(torch.cat([x, h.real], -1)))
        >>> TurningCell(3, 5)(torch.randn(2, 3)).dtype
        torch.complex64
    """

    State: ClassVar[type[tuple[Tensor, ...]]]
    complex_fields: tuple[str, ...] = ()
    gates: ClassVar[tuple[str, ...]]  # without a value, which would hide a submodule of this name
    torch_equivalent: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__ and "torch_equivalent" not in cls.__dict__:
            cls.torch_equivalent = None  # another step is another function
        if hasattr(cls.__dict__.get("State"), "_fields"):
            make_exportable(cls.State)

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        _check_class(type(self))
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size < 0:
                raise ValueError(f"{name} must not be negative, got {size}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        complex_fields(self)  # refuses what are no names

    def step(self, x: Tensor, state: Any) -> Any:
        """The equations: from `x` `(..., I)` and the old `State` to the new `State`."""
        raise NotImplementedError  # _check_class has refused a class without it

    @property
    def state_sizes(self) -> Mapping[str, int]:
        """Widths of the state's fields that are not `hidden_size` wide."""
        return {}

    @property
    def output_size(self) -> int:
        """Width of the output, the state's first field."""
        return field_sizes(self)[0]

    def reset_parameters(self) -> None:
        """Draw every parameter from U(−1/√H, 1/√H), as `torch.nn` does; a cell may do otherwise."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def initial_state(
        self,
        batch_shape: tuple[int, ...] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Any:
        """The state before the first step, a `State` of `(*batch_shape, width)`: zeros.

        The dtype is that of the real fields.
        """
        dtypes = field_dtypes(self, dtype or torch.get_default_dtype())
        zeros = (
            torch.zeros(*batch_shape, size, dtype=own, device=device)
            for size, own in zip(field_sizes(self), dtypes, strict=True)
        )
        return self.State(*zeros)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one step, as `torch.nn.LSTMCell` does.

        Args:
            input: `(B, I)`, or `(I,)` without a batch.
            hx: the old state: a tuple of the fields, or the bare tensor where there is one field;
                each `(B, width)`, or `(width,)` without a batch. `initial_state` where `None`.

        Returns:
            The new state: a `State`, or the bare tensor where it has one field.

        Raises:
            ValueError: the number of dimensions is wrong.
            RuntimeError: a size, dtype or device does not fit.
            TypeError: the state has another structure, or `step` returned one.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor, got {type(input).__name__}")
        if input.is_nested:
            raise TypeError("input: expected an ordinary tensor, got a nested one")
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.shape[-1]} expected "
                f"{self.input_size} (input of shape {tuple(input.shape)})"
            )
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        # Sizes come before dtypes, as in torch's cells.
        given = None if hx is None else _check_cell_state(self, hx, x, batched)
        dtype, out_dtype = loop_dtypes(self, x)
        weight = first_weight(self)
        if weight is not None and weight.device != x.device:
            raise RuntimeError(
                f"input: expected it on the weights' device {weight.device}, got {x.device}"
            )
        if not may_enter(self, x, dtype):
            raise RuntimeError(f"input: expected dtype {dtype}, the weights', got {x.dtype}")
        if given is None:
            state = first_state(self, (x.shape[0],), dtype, x.device)
        else:
            check_state_kind(self, given, x)
            state = self.State(*(real_to(s, dtype) for s in given))
        new = checked_step(self, x, state)
        new = self.State(*(real_to(s, out_dtype) for s in new))
        return unwrap(new if batched else self.State(*(s.squeeze(0) for s in new)))

    def tap(self, **tensors: Tensor) -> None:
        """Name tensors inside `step` that a recorder may want, gates above all; free otherwise."""

    def drop_recurrent(self, h: Tensor) -> Tensor:
        """What a layer with recurrent dropout masks; the identity without it."""
        return h

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get(LENT) and not torch.compiler.is_compiling():
            _tell_of_the_loss(self, name)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Sizes, as `repr` shows them."""
        bias = self.__dict__.get("bias", True)  # a cell may also have a parameter of this name
        return f"{self.input_size}, {self.hidden_size}" + ("" if bias is True else f", bias={bias}")


LENT = "_lent"  # of a copy of a cell: made for a "call", for a "trace", or None: for neither


def _tell_of_the_loss(cell: Cell, name: str) -> None:
    """Warn that an attribute is set on a copy; refuse a trace to set what the copy shares."""
    shared = name in vars(cell)["_buffers"]
    if vars(cell)[LENT] == "call":
        if not shared:
            warn_of_the_loss(type(cell).__name__, name, 4)
    elif shared:
        raise changes(cell, name, users_line(frames()))


def changes(cell: Cell, path: str, place: str) -> CannotCompileError:
    """That a step changes what outlives it."""
    return CannotCompileError(f"{type(cell).__name__}.step changes the attribute {path}, {place}")


def warn_of_the_loss(cell: str, name: str, stacklevel: int) -> None:
    """Warn that nobody will see what a step sets."""
    warnings.warn(
        f"{cell} sets the attribute {name} of a copy of itself that lasts for one call; the "
        "next call does not see it. What travels from step to step belongs into State, what "
        "stays into a buffer (register_buffer), what is to be looked at into self.tap",
        stacklevel=stacklevel,
    )


def checked_step(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> Any:
    """Run `cell.step`; refuse a result whose structure, shapes or dtypes are not the state's."""
    try:
        new = cell.step(x, state)
    except AttributeError as error:
        told = None if torch.compiler.is_dynamo_compiling() else _past_the_cell(cell, error)
        if told is None:
            raise
        raise told from error
    if not isinstance(new, cell.State):
        raise TypeError(
            f"{type(cell).__name__}.step: expected {spelled(cell.State)}, got {described(new)}"
        )
    cast = False
    for field, before, after in zip(field_names(cell), state, new, strict=True):
        if not isinstance(after, Tensor):
            raise TypeError(
                f"{type(cell).__name__}.step: expected {field} to be a tensor, "
                f"got {type(after).__name__}"
            )
        if after.shape != before.shape:
            raise RuntimeError(
                f"{type(cell).__name__}.step: expected {field} to keep its shape "
                f"{tuple(before.shape)}, got {tuple(after.shape)}"
            )
        if after.device != before.device:
            raise RuntimeError(
                f"{type(cell).__name__}.step: expected {field} to stay on {before.device}, "
                f"got {after.device}"
            )
        if not may_meet(after, before.dtype):
            raise RuntimeError(
                f"{type(cell).__name__}.step: expected {field} to keep its dtype {before.dtype}, "
                f"got {after.dtype}{_undeclared(after, before.dtype)}"
            )
        cast = cast or after.dtype != before.dtype
    if cast:
        return cell.State(*(n.to(o.dtype) for n, o in zip(new, state, strict=True)))
    return new


def _past_the_cell(cell: Cell, error: AttributeError) -> AttributeError | None:
    """What to say where a step has found a module that has given its parameters to a layer."""
    found = error.obj
    if not (isinstance(found, nn.Module) and error.name and gave(found, error.name)):
        return None
    if any(found is module for module in cell.modules()):  # it is no layer that runs it
        return None
    return AttributeError(
        f"{type(cell).__name__}.step reaches a {type(found).__name__} whose {error.name} is the "
        "layer's, through something that is no module, list, tuple, dict, deque or derived from "
        "them, nor a method, function or functools.partial of the cell's; keep it as one of these, "
        "in an attribute set in __init__"
    )


def first_state(
    cell: Cell, batch_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Any:
    """The cell's `initial_state`, refused unless it is a `State` of what was asked for."""
    state = cell.initial_state(batch_shape, dtype, device)
    where = f"{type(cell).__name__}.initial_state"
    if not isinstance(state, cell.State):
        raise TypeError(f"{where}: expected {spelled(cell.State)}, got {described(state)}")
    kinds = zip(field_names(cell), field_sizes(cell), field_dtypes(cell, dtype), strict=True)
    for value, (field, size, own) in zip(state, kinds, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: expected {field} to be a tensor, got {type(value).__name__}")
        expected = (*batch_shape, size), own, device.type
        got = tuple(value.shape), value.dtype, value.device.type
        if got != expected:
            raise RuntimeError(
                f"{where}: expected {field} of {_told(*expected)}, got {_told(*got)}"
                f"{_undeclared(value, own)}"
            )
    return state


def _undeclared(value: Tensor, dtype: torch.dtype) -> str:
    """What helps where a field is complex, and the cell has not said so."""
    lacks = value.is_complex() and not dtype.is_complex
    return "; complex_fields names the fields that are complex" if lacks else ""


def _told(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> str:
    return f"shape {shape}, {dtype}, on {device}"


def _check_class(cls: type[Cell]) -> None:
    state = getattr(cls, "State", None)
    if not (isinstance(state, type) and issubclass(state, tuple) and getattr(state, "_fields", ())):
        raise TypeError(
            f"{cls.__name__}: expected a class attribute State, a NamedTuple class with at least "
            f"one field, got {state!r}"
        )
    if cls.step is Cell.step:
        raise TypeError(f"{cls.__name__}: expected a method step(self, x, state)")


def _check_cell_state(cell: Cell, hx: Any, x: Tensor, batched: bool) -> tuple[Tensor, ...]:
    """The fields of `hx`, each `(B, width)`; errors as torch's cells word them."""
    state = wrap(cell, hx)
    fields = field_names(cell)
    for k, value in enumerate(state):
        if value.dim() not in (1, 2):
            what = "hidden" if len(fields) == 1 else f"hx[{k}]"
            raise ValueError(
                f"{type(cell).__name__}: Expected {what} to be 1D or 2D, got {value.dim()}D instead"
            )
    for k, (value, size) in enumerate(zip(state, field_sizes(cell), strict=True)):
        if value.dim() != (2 if batched else 1):
            raise RuntimeError(
                f"hx: expected {fields[k]} to have as many dimensions as input, "
                f"{2 if batched else 1}, got shape {tuple(value.shape)}"
            )
        if batched and value.shape[0] != x.shape[0]:
            raise RuntimeError(
                f"Input batch size {x.shape[0]} doesn't match hidden{k} batch size {value.shape[0]}"
            )
        if value.shape[-1] != size:
            raise RuntimeError(
                f"hidden{k} has inconsistent hidden_size: got {value.shape[-1]}, expected {size}"
            )
    return tuple(value if batched else value.unsqueeze(0) for value in state)


def accepts(cls: type, argument: str) -> bool:
    """Whether a constructor takes this keyword argument."""
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_any or argument in parameters
