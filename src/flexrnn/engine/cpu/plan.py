# pyright: reportPrivateUsage=false
# Whether a tensor is one of zeros that has no memory has no public name.
"""A program, divided and compiled for one kind of call, and its calls that are laid out."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu import outer
from flexrnn.engine.cpu.build.isa import has_bfloat16, last_cache
from flexrnn.engine.cpu.build.side import side_by_side
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.emit import ROWS_IN_PLACE, Shape
from flexrnn.engine.cpu.kernel import STARTS, Kernel
from flexrnn.engine.cpu.precision import allows_bfloat16
from flexrnn.engine.lowering.extract import Extract, extract
from flexrnn.engine.step import CannotRunError, NotAgainError
from flexrnn.engine.tables import trim

# Rows over all steps up to which laying out weights costs more than it saves; and how often weights
# are read as they lie, once for a few rows of a step, until it does: over several steps, or in one.
_FEW, _READ, _READ_IN_ONE = 8, 4, 16
_SMALL = 64 << 10  # numbers of weights that a core's cache holds beside everything else
MANY_ROWS = 24  # of a thread: they make up for reading weights that lie far away
_DOT = 'extern "C" void dot() { asm volatile("vdpbf16ps %zmm0, %zmm0, %zmm0"); }'  # see narrow.h
_KEPT = 64  # calls of a program, each of its own T, B and strides, that stay laid out


class Sizes(NamedTuple):
    """What of a call its layout depends on, beside strides."""

    steps: int
    batch: int
    reverse: bool
    threads: int
    fewer: bool = False  # rows from step to step; what there is at every step is `(N, ...)` then
    narrow: bool = False  # products of float32 may round what they multiply to bfloat16

    def lead(self, given: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The axes in front of what there is at every step: `(T, B)`, or `(N,)`."""
        return given["x0"].shape[:1] if self.fewer else (self.steps, self.batch)


class Plan(NamedTuple):
    """A program, compiled for one kind of call."""

    parts: Extract
    forward: Kernel
    backward: Kernel | None


class _Known(NamedTuple):
    plans: dict[Hashable, Plan]
    failed: dict[Hashable, str]  # why one could not be compiled, which is not tried again
    calls: dict[Hashable, Any]
    weights: int  # numbers in right operands of the forward pass's products


_known: WeakKeyDictionary[Graph, _Known] = WeakKeyDictionary()


class Kind(NamedTuple):
    """Which of the loops that a program can be compiled to serves a call."""

    shape: Shape
    hoist: bool  # the input is multiplied before the loop, which reads fewer weights at every step
    dtype: torch.dtype
    narrow: bool = False  # what products multiply is rounded to bfloat16


def kind_of(program: Program, sizes: Sizes, dtype: torch.dtype) -> Kind:
    """The loop for a call.

    Where weights are read no more than a few times, they are read as they lie.
    The input's product before the loop is the dearer one where weights come from a cache: that of
    a core for a single row, for more rows half of the last one, for others are in it, too. It is
    the dearer one for many rows, which make up for reading weights.
    """
    read = sizes.steps * -(-sizes.batch // ROWS_IN_PLACE)
    enough = read > (_READ if sizes.steps > 1 else _READ_IN_ONE)
    if sizes.steps * sizes.batch <= _FEW or not enough:
        return Kind(Shape.FEW, hoist=False, dtype=dtype)
    narrow = is_narrow(sizes.narrow or program.graph.narrow, dtype)
    weights = weights_of(program)
    if sizes.batch == 1 and weights > _SMALL:
        return Kind(Shape.ROW, hoist=True, dtype=dtype, narrow=narrow)
    few, size = sizes.batch < MANY_ROWS * sizes.threads, 2 if narrow else dtype.itemsize
    return Kind(Shape.ROWS, hoist=few and is_far(weights * size), dtype=dtype, narrow=narrow)


def is_narrow(may: bool, dtype: torch.dtype) -> bool:
    """Whether products round what they multiply to bfloat16: where they may, and that is faster."""
    return may and dtype == torch.float32 and has_bfloat16() and _is_assembled()


def _is_assembled() -> bool:
    """Whether the compiler can say these products: some systems' assemblers are older than they."""
    try:
        library(_DOT)
    except CannotRunError:
        return False
    return True


def is_far(weights: int) -> bool:
    """Whether so many bytes of weights come from memory at every step."""
    return 0 < last_cache() < 2 * weights


def plan_of(program: Program, keep: Sequence[str], kind: Kind) -> Plan:
    """Compile a program, or find it compiled."""
    plans, failed, *_ = _of(program)
    key = (tuple(keep), kind)
    if key in failed:
        raise NotAgainError(failed[key])
    if key not in plans:
        try:
            plans[key] = _compiled(program, keep, kind)
        except NotAgainError as error:
            failed[key] = str(error)
            raise
    return plans[key]


def _compiled(program: Program, keep: Sequence[str], kind: Kind) -> Plan:
    if program.graph.has_empty():
        raise CannotRunError("the cpu engine wants every tensor to have a number in a row")
    parts = extract(program, hoist=kind.hoist, keep=keep)
    made: Any = partial(Kernel, shape=kind.shape, dtype=kind.dtype, narrow=kind.narrow)

    def forward() -> Kernel:
        kernel = made(parts.forward.graph, backward=False)
        if kind.hoist or parts.backward is not None:
            outer.prepare(kind.dtype, narrow=kind.narrow)
        return kernel

    if parts.backward is None:
        return Plan(parts, forward(), None)
    there, (back,) = side_by_side(forward, [partial(made, parts.backward.graph, backward=True)])
    return Plan(parts, there, back)


def is_known(program: Program) -> bool:
    """Whether the program has been compiled for some kind of call."""
    return program.graph in _known and bool(_known[program.graph].plans)


Call = TypeVar("Call")


def laid_out(
    kind: Callable[..., Call],
    program: Program,
    keep: tuple[str, ...],
    sizes: Sizes,
    given: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Call:
    """The call of a loop with these operands, laid out now or before.

    Args:
        kind: what to make: `kind(program, plan, keep, sizes, given)`.
        program: the program.
        keep: fields of the state that are wanted at every step.
        sizes: of the call.
        given: the loop's operands by name.
        dtype: of the states.
    """
    calls = _of(program).calls
    key = (kind, keep, sizes, dtype, *[tensor.stride() for tensor in given.values()])
    call = calls.get(key)
    if call is None:
        plan = plan_of(program, keep, kind_of(program, sizes, dtype))
        call = calls[key] = kind(program, plan, keep, sizes, given)
        trim(calls, _KEPT)
    return call


def _of(program: Program) -> _Known:
    known = _known.get(program.graph)
    if known is None:
        known = _known[program.graph] = _Known({}, {}, {}, _weights(program))
    return known


def weights_of(program: Program) -> int:
    """How many numbers the right operands of a program's products have."""
    return _of(program).weights


def _weights(program: Program) -> int:
    nodes, plan = program.graph.nodes, program.schedule
    products = (nodes[i] for i in (*plan.hoisted, *plan.loop) if nodes[i].op == "product")
    return sum(math.prod(int(s) for s in nodes[node.args[1]].shape) for node in products)


def sizes_of_call(
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    reverse: bool,
    threads: int,
    batch_sizes: Tensor | None,
) -> Sizes:
    """The sizes of a call with these operands."""
    narrow = allows_bfloat16()
    if batch_sizes is None:
        return Sizes(xs[0].shape[0], xs[0].shape[1], reverse, threads, narrow=narrow)
    steps, batch = batch_sizes.shape[0], state[0].shape[0]
    return Sizes(steps, batch, reverse, threads, fewer=True, narrow=narrow)


def operands(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    batch_sizes: Tensor | None = None,
) -> dict[str, Tensor]:
    """The operands of a call by the names of the program's inputs, as loops can read them.

    What had to be cast, such as truth values, is there as it came, too, as `original.NAME`.
    """
    dtype = state[0].dtype
    given = {f"x{k}": x for k, x in enumerate(xs)}
    given |= {f"param.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in list(given.items()):
        if (there := materialized(tensor)) is not tensor:
            given[name] = there
        if there.dtype is not dtype and not there.is_complex():  # which is only read ahead
            given[f"original.{name}"] = there
            given[name] = there.to(dtype)
    for k in range(len(xs)):
        given[f"x{k}"] = dense(given[f"x{k}"], fewer=batch_sizes is not None)
    for field, first in zip(program.fields, state, strict=True):
        given[f"state.{field}"] = materialized(first).to(dtype).contiguous()
    if batch_sizes is not None:
        given[STARTS] = nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    return given


def materialized(tensor: Tensor) -> Tensor:
    """A tensor whose memory holds its numbers: not their negatives, and not nothing for zeros."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def dense(tensor: Tensor, *, fewer: bool = False) -> Tensor:
    """A tensor `(T, B, ...)` with the numbers of a row side by side; `(N, ...)` with `fewer`."""
    if fewer:
        return dense(tensor[:, None])[:, 0]
    if tensor.is_contiguous() or tensor.shape[1] == 0 or (row := tensor[0, 0]).is_contiguous():
        return tensor
    if tensor.stride(0) == tensor.stride(1) == 0:  # one row everywhere, as of the gradient of a sum
        return row.contiguous().expand(tensor.shape)
    return tensor.contiguous()
