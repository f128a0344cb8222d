# pyright: reportPrivateUsage=false
# Whether a tensor is one of zeros that has no memory has no public name.
"""A program, divided and compiled for one kind of call; and what forward and backward share."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.emit import Packed, Shape
from flexrnn.engine.cpu.kernel import Area, Kernel, Launch, Rows
from flexrnn.engine.cpu.lowering.extract import Extract, Part, extract
from flexrnn.engine.cpu.pieces import Box, Piece, pieces
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim

_CACHED_WEIGHTS = 4 << 20  # bytes of weights above which threads share units instead of rows
_FEW = 8  # rows over all steps, up to which laying out weights costs more than it saves
_SMALL = 64 << 10  # numbers of weights that a core's cache holds beside everything else
_LITTLE = 256 << 10  # bytes of weights that are read, for which a second thread comes too late
_BRIEF = 48 << 10  # bytes of weights a stage, for which threads wait longer than they work
_KEPT = 64  # calls of a program, each of its own T, B and strides, that stay laid out


class Sizes(NamedTuple):
    """What of a call its layout depends on, beside strides."""

    steps: int
    batch: int
    reverse: bool
    threads: int


class Plan(NamedTuple):
    """A program, compiled for one kind of call."""

    parts: Extract
    forward: Kernel
    backward: Kernel | None


class _Known(NamedTuple):
    plans: dict[Hashable, Plan]
    calls: dict[Hashable, Any]
    weights: int  # numbers in right operands of the forward pass's products


_known: WeakKeyDictionary[Graph, _Known] = WeakKeyDictionary()


def shape_of(program: Program, sizes: Sizes) -> Shape:
    """Which of the loops that a program can be compiled to serves a call.

    The loop for a single row leaves the input's product to torch, so as to read fewer weights at
    every step. Where all of them stay in the cache anyway, it is the dearer one.
    """
    if sizes.steps * sizes.batch <= _FEW:
        return Shape.FEW
    single = sizes.batch == 1 and _of(program).weights > _SMALL
    return Shape.ROW if single else Shape.ROWS


def plan_of(program: Program, keep: Sequence[str], shape: Shape, dtype: torch.dtype) -> Plan:
    """Compile a program, or find it compiled."""
    plans = _of(program).plans
    key = (tuple(keep), shape, dtype)
    if key not in plans:
        if any(0 in node.shape for node in program.graph.nodes):
            raise CannotRunError("the cpu engine wants every tensor to have a number in a row")
        parts = extract(program, hoist=shape is Shape.ROW, keep=keep)
        forward = Kernel(parts.forward.graph, backward=False, shape=shape, dtype=dtype)
        backward = None
        if parts.backward is not None:
            backward = Kernel(parts.backward.graph, backward=True, shape=shape, dtype=dtype)
        plans[key] = Plan(parts, forward, backward)
    return plans[key]


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
    like: Tensor,
) -> Call:
    """The call of a loop with these operands, laid out now or before.

    Args:
        kind: what to make: `kind(program, plan, keep, sizes, given, like)`.
        program: the program.
        keep: fields of the state that are wanted at every step.
        sizes: of the call.
        given: the loop's operands by name.
        like: a state.
    """
    calls = _of(program).calls
    key = (kind, keep, sizes, like.dtype, *[tensor.stride() for tensor in given.values()])
    call = calls.get(key)
    if call is None:
        plan = plan_of(program, keep, shape_of(program, sizes), like.dtype)
        call = calls[key] = kind(program, plan, keep, sizes, given, like)
        trim(calls, _KEPT)
    return call


def _of(program: Program) -> _Known:
    known = _known.get(program.graph)
    if known is None:
        known = _known[program.graph] = _Known({}, {}, _weights(program))
    return known


def _weights(program: Program) -> int:
    nodes, plan = program.graph.nodes, program.schedule
    products = (nodes[i] for i in (*plan.hoisted, *plan.loop) if nodes[i].op == "product")
    return sum(math.prod(int(s) for s in nodes[node.args[1]].shape) for node in products)


def operands(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The operands of a call by the names of the program's inputs, as loops can read them.

    What had to be cast, such as truth values, is there as it came, too, as `original.NAME`.
    """
    dtype = state[0].dtype
    given = {f"x{k}": x for k, x in enumerate(xs)}
    given |= {f"param.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in list(given.items()):
        if tensor.is_neg() or tensor._is_zerotensor():
            tensor = given[name] = materialized(tensor)
        if tensor.dtype != dtype:
            given[f"original.{name}"] = tensor
            given[name] = tensor.to(dtype)
    for k in range(len(xs)):
        given[f"x{k}"] = dense(given[f"x{k}"])
    for field, first in zip(program.fields, state, strict=True):
        given[f"state.{field}"] = materialized(first).contiguous()
    return given


def materialized(tensor: Tensor) -> Tensor:
    """A tensor whose memory holds its numbers: not their negatives, and not nothing for zeros."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return tensor.resolve_neg()


def values_of(program: Program, given: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Inputs and parameters as torch computes with them, by their nodes."""
    return {
        index: given.get(f"original.{name}", given[name])
        for name, index in program.graph.inputs.items()
        if name in given and not name.startswith("state.")
    }


def dense(tensor: Tensor) -> Tensor:
    """A tensor `(T, B, ...)` with the numbers of a row side by side."""
    if tensor.is_contiguous() or tensor.shape[1] == 0 or tensor[0, 0].is_contiguous():
        return tensor
    if tensor.stride(0) == tensor.stride(1) == 0:  # one row everywhere, as of the gradient of a sum
        return tensor[0, 0].contiguous().expand(tensor.shape)
    return tensor.contiguous()


def timed(name: str, tensor: Tensor) -> Rows:
    """A tensor `(T, B, ...)` whose rows lie in one piece."""
    return Rows(name, tensor.stride(0), tensor.stride(1))


def width(tensor: Tensor) -> int:
    """Numbers in a row of a state `(B, ...)`."""
    return math.prod(tensor.shape[1:])


def truth(graph: Graph, index: int, numbers: Tensor) -> Tensor:
    """Truth values as torch has them; in a loop's memory they are 1 and 0."""
    return numbers != 0 if graph.nodes[index].boolean else numbers


class OfProgram:
    """Something that is known of a program, and does not keep it alive."""

    def __init__(self, program: Program):
        self._graph, self._schedule = ref(program.graph), program.schedule

    @property
    def program(self) -> Program:
        """The program, which who calls holds."""
        graph = self._graph()
        assert graph is not None
        return Program(graph, self._schedule)


class Loop(OfProgram):
    """A loop in the making: where its buffers lie, and what torch computes before it.

    Args:
        program: the program.
        part: the loop of it.
        kernel: the same, compiled.
        given: its operands.
    """

    def __init__(self, program: Program, part: Part, kernel: Kernel, given: Mapping[str, Tensor]):
        super().__init__(program)
        self.part, self.kernel, self.given = part, kernel, given
        self.rows: dict[str, Rows] = {}
        self.area = Area(kernel.itemsize)
        self._computed: set[int] = set()

    def launch(self, sizes: Sizes) -> Launch:
        """Lay out what is left: parameters, inputs, and what is made of them."""
        weights = [self._weight(packed) for packed in self.kernel.source.weights]
        for name in self.kernel.source.buffers:
            if name not in self.rows and not name.startswith(("temporary", "partial")):
                self.rows[name] = self._input(name, sizes)
        read, threads = self.kernel.weight_bytes, sizes.threads
        if self.kernel.shape is Shape.FEW and sizes.steps * sizes.batch * read < _LITTLE:
            threads = 1
        if sizes.batch == 1 and read < _BRIEF * len(self.kernel.loop.stages):
            threads = 1
        across = threads > 1 and (sizes.batch < threads or read > _CACHED_WEIGHTS)
        self.given = {}  # the call that is laid out outlives this one, and its operands must not
        return self.kernel.launch(
            self.rows,
            weights,
            self.area,
            steps=sizes.steps,
            batch=sizes.batch,
            reverse=sizes.reverse,
            across=across,
            threads=threads,
        )

    def before(self) -> tuple[int, ...]:
        """Nodes that torch computes before the loop, in their order; known after `launch`."""
        graph = self.program.graph
        needed = graph.ancestors(self._computed)
        return tuple(i for i in sorted(needed) if graph.nodes[i].op != "input")

    def computed(self) -> dict[str, int]:
        """Names of the memory that holds what torch has computed, and the nodes."""
        return {f"node.{index}": index for index in self._computed}

    def _input(self, name: str, sizes: Sizes) -> Rows:
        kind, _, rest = name.partition(".")
        if kind == "hoisted":
            self._computed.add(int(rest))
            row = math.prod(int(s) for s in self.program.graph.nodes[int(rest)].shape[1:])
            return Rows(f"node.{rest}", sizes.batch * row, row)
        if kind == "once":
            self._computed.add(int(rest))
            return Rows(f"node.{rest}")
        if kind == "param":
            if self.given[name].is_contiguous():
                return Rows(name)
            index = self.program.graph.inputs[name]
            self._computed.add(index)
            return Rows(f"node.{index}")
        return timed(name, self.given[name])

    def _weight(self, packed: Packed) -> list[Piece]:
        """Where the blocks of a weight lie; where they lie nowhere, torch computes it."""
        graph = self.program.graph
        kind, _, rest = packed.weight.partition(".")
        index = int(rest) if kind == "once" else graph.inputs[packed.weight]
        shape = tuple(int(s) for s in graph.nodes[index].shape)
        outer = tuple((0, size) for size in shape[:-1])
        units = packed.shape[-1]
        boxes = [(*outer, (b * units, (b + 1) * units)) for b in packed.blocks]
        found: list[Piece] = []
        for box in boxes:
            parts = pieces(graph, index, box, self.given) or []
            if not parts or not all(self._can_read(piece, box) for piece in parts):
                break
            found += parts
        else:
            return found
        self._computed.add(index)
        strides = torch.empty(shape, device="meta").stride()
        return [Piece(f"node.{index}", box[-1][0], box, strides) for box in boxes]

    def _can_read(self, piece: Piece, box: Box) -> bool:
        """Whether a loop can read a piece, which must be of all heads and columns of a box."""
        whole = (*piece.box[:-2], piece.box[-1]) == (*box[:-2], box[-1])
        # In place, rows or columns are read by vectors.
        return whole and (self.kernel.shape is not Shape.FEW or 1 in piece.strides[-2:])
