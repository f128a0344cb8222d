# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch has no public name for the switch of gradients, for what functionalisation notes, nor for
# the stack of its function transforms.
"""What is noted of a step while it is traced: whose line each operation is from, and its spelling.

Some of what a person writes torch would turn into what no longer says what was meant; it is spelt
otherwise first. What changes the world, or leaves the derivative out, is refused on the spot.
"""

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import utils as distributions
from torch.fx import traceback
from torch.nn.modules import batchnorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from flexrnn.engine.compiler import kept
from flexrnn.engine.compiler.called import Called
from flexrnn.engine.compiler.chance import Chance
from flexrnn.engine.compiler.known import Known
from flexrnn.engine.compiler.refusal import (
    BATCH_NORM,
    CannotCompileError,
    frames,
    is_users,
    users_line,
)
from flexrnn.engine.compiler.spelt import function, keeping, picked
from flexrnn.engine.compiler.spelt.rows import is_of_rows, writes_to
from flexrnn.engine.compiler.spelt.table import RESPELT

if TYPE_CHECKING:
    from flexrnn.engine.compiler.batch import BatchSize


class DrawnError(CannotCompileError):
    """A step draws random numbers, by Python or NumPy."""


class Spelling(TorchFunctionMode):
    """Note the line of the person's code, respell, and refuse."""

    def __init__(self, sizes: "BatchSize", *, watchful: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.watchful = watchful  # for every operation: has anybody drawn random numbers before it?
        self.given: tuple[Tensor, ...] = ()  # what the step may read and not write
        self.learns = torch.is_grad_enabled()
        self.infers = torch.is_inference_mode_enabled()
        self.stopped = False  # gradients are switched off where the step is now
        self.chance = Chance()
        self.called = Called()
        self.numbers = Known()
        self.flat: dict[int, Tensor] = {}  # of memory that no derivative passes, what lies there
        self.apart: list[Tensor] = []  # they share memory with what has a derivative of its own
        self.mapped: dict[int, Tensor] = {}  # by memory, such inside of `vmap`: it hands on others
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}  # of what the step has kept
        self.failed = ""  # the operation that an exception came from
        self.outside = users_line(frames())  # whose line calls what is traced
        self.last = ""  # place of the last operation; what asks a tensor for its shape is none
        self.asked = ""  # the operation that asked for the batch size

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTS:  # torch asks a hundred times; nothing can be wrong that stays unnoticed
            return func(*args)
        if func == _REQUIRES_GRAD and keeping.only_keeps(args[0], _asks()):
            return True
        if func is not Tensor.__setitem__ and picked.Picked in map(type, args):
            with self:
                return picked.call(func, args, kwargs or {})
        if kept.any_yet() and any(map(kept.is_kept, tree_leaves((args, kwargs)))):
            args, kwargs = tree_map_only(Tensor, self._constant, (args, kwargs or {}))
        place = users_line(frames())
        self.called.look(_of_step())
        call, marked = self.called.begins(place)
        traceback.set_stack_trace([marked])
        name, kwargs = getattr(func, "__name__", str(func)), kwargs or {}
        self.last = self.last if name == "__get__" or place == self.outside else place
        if func is torch._C._set_grad_enabled:
            self._switch(bool(args[0]), place)
            return func(*args)
        written = _written(func, name, args, kwargs)
        self._check(func, name, args, kwargs, written, place)
        told = self.numbers.asked(func, name, args, kwargs)
        if told is not None:
            return told[0]
        if name == "__getitem__":
            args = (args[0], self.numbers.index(args[1], args[0]))
        known, writes = self.sizes.question, self._writes((args, kwargs))
        given: Any = (args, kwargs)
        if self.stopped:
            given = tree_map_only(Tensor, lambda x: _cut(x, written), given)
        try:
            found = RESPELT.get(func, func)(*given[0], **given[1])
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            if self.sizes.question is not known:
                self.asked = name
        changed = torch._functionalize_has_data_mutation  # pyright: ignore[reportAttributeAccessIssue]
        if any(map(changed, self.given)):
            self.given = ()  # on its way out the error may come by here
            if any(
                f.f_code.co_filename == batchnorm.__file__ for f, _ in frames()
            ):  # counts its calls
                raise CannotCompileError(f"{BATCH_NORM}, {place}")
            raise CannotCompileError(
                f"{name} cannot be compiled: it writes into the input, the state, a parameter or "
                f"a buffer, {place}"
            )
        if any(changed(made) for _, made in self.constants.values()):
            raise CannotCompileError(
                f"{name} cannot be compiled: it writes into what the step has kept, {place}"
            )
        same = None
        if self.stopped:
            self._check_writes(name, written, self._writes((args, kwargs)) != writes, place)
            same = _given_back(found, given, (args, kwargs))
            if same is not None and same is not found and name not in _GIVES_BACK:
                raise CannotCompileError(
                    f"{name} cannot be compiled: it gives back what may have a derivative, while "
                    f"gradients are switched off, {place}"
                )
            found = found if same is None else same
        self._keep_flat(name, (args, kwargs), found, written)
        if (self.apart or self.stopped or func in _APART) and same is None:
            self._keep_apart((args, kwargs), found, cut=self.stopped or func in _APART)
        self.numbers.follow(func, name, args, kwargs, found, written)
        self.called.gave(call, found)
        return found

    def _constant(self, x: Tensor) -> Tensor:
        """What a step has kept, made anew of its numbers; any other tensor as it is."""
        if id(x) not in self.constants:
            numbers = kept.numbers_of(x)
            if numbers is None:
                return x
            made = torch.tensor(numbers, dtype=x.dtype, device=x.device)
            self.constants[id(x)] = x, made
            self.numbers.note(made, numbers)
        return self.constants[id(x)][1]

    def _switch(self, on: bool, place: str) -> None:
        # What a distribution computes once it does with gradients, whoever asks for it.
        by_torch = any(f.f_code.co_filename == distributions.__file__ for f, _ in frames())
        if on and not self.learns and not by_torch:
            raise CannotCompileError(f"gradients are switched on inside the step, {place}")
        self.stopped = self.learns and not on

    def _check(
        self, func: Any, name: str, args: Any, kwargs: Any, written: list[Tensor], place: str
    ) -> None:
        """Refuse what acts on, or asks for, what a program knows nothing of."""
        if self.watchful:
            self.check_chance(place)
        if torch.is_inference_mode_enabled() != self.infers:
            raise CannotCompileError(f"inference mode is switched inside the step, {place}")
        if name in _PRODUCTS and any(x.layout != torch.strided for x in _tensors(args)):
            name = name.strip("_")
            raise CannotCompileError(
                f"{name} cannot be compiled: a program has no sparse tensors, {place}"
            )
        name = _DIFFERENTIATES.get(func, name)
        if name in ("requires_grad_", "backward") or func in _DIFFERENTIATES:
            raise CannotCompileError(f"{name} cannot be compiled: the step differentiates, {place}")
        if func == _SET_DATA:
            raise CannotCompileError(
                f"data = cannot be compiled: it writes where no derivative passes, {place}"
            )
        flat = self.stopped and all(_memory(x) in self.flat for x in written)
        if not flat and self._apart_among(written):
            raise CannotCompileError(
                f"{name} cannot be compiled: it writes where no derivative passes, {place}"
            )
        if _differentiates():
            raise CannotCompileError(f"{name} cannot be compiled: the step differentiates, {place}")
        if function.returns() and _sums_rows(name, args, kwargs):
            raise CannotCompileError(
                f"{name} cannot be compiled: a Function's backward sums over the rows, for a "
                f"parameter; used outside of it the parameter has autograd's gradient, {place}"
            )
        if func in _OF_AUTOGRAD and _asked_by_the_person():
            raise CannotCompileError(
                f"{_OF_AUTOGRAD[func]} cannot be compiled: whether something is differentiated is "
                f"no part of a program, {place}"
            )
        if func in _OF_MEMORY and _asked_by_the_person():
            raise CannotCompileError(
                f"{_OF_MEMORY[func]} cannot be compiled: how something lies in memory is no part "
                f"of a program, {place}"
            )

    def _apart_among(self, given: Any) -> list[Tensor]:
        """Those of some operands that share memory with what has a derivative of its own.

        Inside of `vmap`, which makes other tensors of them, their memory tells, and behind it.
        """
        if not self.apart and not self.mapped:
            return []
        memories = {*map(_memory, self.apart)}

        def is_apart(x: Tensor) -> bool:
            inside = _FUNCTORCH.is_batchedtensor(x) and _memory(x) in memories
            return inside or _memory(x) in self.mapped or any(x is tensor for tensor in self.apart)

        return [x for x in _tensors(given) if is_apart(x)]

    def _keep_apart(self, given: Any, result: Any, *, cut: bool) -> None:
        """Remember results that share an operand's memory, and not its derivative.

        Args:
            given: the operands.
            result: of the operation.
            cut: it is the operation that no derivative passes.
        """
        operands = _tensors(given)
        apart = operands if cut else self._apart_among(operands)
        self.mapped |= {_memory(x): x for x in apart if _FUNCTORCH.is_batchedtensor(x)}
        numbers = {id(x) for x in apart}
        joined = {_memory(x) for x in operands if id(x) not in numbers}
        memories = {_memory(x) for x in apart} - joined
        self.apart += [x for x in _tensors(result) if _memory(x) in memories]

    def check_chance(self, place: str) -> None:
        """Refuse random numbers that torch does not draw: they would be the same at every step."""
        if self.chance.drawn():
            raise DrawnError(
                f"random cannot be compiled: it draws random numbers, by Python or NumPy, {place}"
            )

    def _check_writes(self, name: str, written: list[Tensor], writes: bool, place: str) -> None:
        """Refuse a write while gradients are switched off, where it would cut a derivative.

        Args:
            name: of the operation.
            written: the operands to which it writes, as far as its name tells.
            writes: whether it has written to any.
            place: of the person's line.
        """
        flat = bool(written) and all(_memory(x) in self.flat for x in written)
        if not flat and (written or writes):
            raise CannotCompileError(
                f"{name} cannot be compiled: it writes while gradients are switched off, to what "
                f"may have a derivative, {place}"
            )

    def _keep_flat(self, name: str, given: Any, found: Any, written: list[Tensor]) -> None:
        """Remember what has no derivative, and may be written to while gradients are switched off.

        Args:
            name: of the operation.
            given: its operands.
            found: its result.
            written: the operands to which it has written.
        """
        if not self.learns:
            return
        if not self.stopped:
            for x in written:
                self.flat.pop(_memory(x), None)
        if self.stopped or name in _FILLED:
            memories = {_memory(x) for x in _tensors(given)}
            fresh = (x for x in _tensors(found) if _memory(x) not in memories)
            self.flat |= {_memory(x): x for x in fresh}

    def _writes(self, given: Any) -> int:
        """How often somebody has written to the operands, where it is of interest."""
        if not self.stopped:
            return 0
        functional = torch._is_functional_tensor
        return sum(writes_to(x) for x in _tensors(given) if functional(x))


def _cut(x: Any, written: list[Tensor]) -> Any:
    """An operand without its derivative, unless it is written to."""
    if type(x) is picked.Picked:
        return x.detach()
    keeps = not (x.is_floating_point() or x.is_complex()) or any(x is w for w in written)
    return x if keeps else x.detach()


def _given_back(found: Any, cut: Any, given: Any) -> Tensor | None:
    """The operand that an operation gives back as its result, as `x.to(x.dtype)` does."""
    if not isinstance(found, Tensor):
        return None
    pairs = zip(_tensors(cut), _tensors(given), strict=True)
    return next((x for without, x in pairs if without is found), None)


def _sums_rows(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is `x.T @ g`, as the gradient of a weight is, or `g.sum(0)`, of a bias."""
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if first is None or not first.dim():
        return False
    if name in _PRODUCTS:
        return isinstance(first.shape[-1], torch.SymInt)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return name == "sum" and is_of_rows(first) and dim in (None, 0, (0,), [0])


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if issubclass(type(x), Tensor)]


def _memory(x: Tensor) -> int:
    """What views of one memory have in common while a step is traced."""
    while _FUNCTORCH.is_batchedtensor(x):  # inside of `vmap`
        x = _FUNCTORCH.get_unwrapped(x)
    return x.untyped_storage()._cdata


def _written(func: Any, name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """The operands to which an operation writes."""
    first = args[:1] or (*kwargs.values(),)[:1]
    if name.endswith("_") != name.endswith("__") or name in _WRITTEN:
        return _tensors([first, kwargs.get("out")])
    asks = inspect.isfunction(func) and "dropout" not in name  # where nothing is dropped
    names = func.__code__.co_varnames if asks else ()
    place = names.index("inplace") if "inplace" in names else len(args)
    in_place = args[place] if place < len(args) else asks and kwargs.get("inplace", False)
    if not in_place and "out" not in kwargs:
        return []
    return _tensors([first if in_place else (), kwargs.get("out")])


def _of_step() -> Iterator[FrameType]:
    """The person's frames inside the step that is traced."""
    for frame, _ in frames():
        if frame.f_globals.get("__name__") == _TRACER:
            return
        if is_users(frame):
            yield frame


def _asks() -> FrameType | None:
    """Who asks for the attribute that is asked for now."""
    frame = inspect.currentframe()
    while frame and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == _MODE):
        frame = frame.f_back
    return frame


def _asked_by_the_person() -> bool:
    """Whether it is no code of torch's."""
    frame = _asks()
    return frame is not None and is_users(frame)


def _differentiates() -> bool:
    """Whether the innermost transform of `torch.func` is one that differentiates."""
    inner = _FUNCTORCH.peek_interpreter_stack()  # None at the bottom
    kinds = _FUNCTORCH.TransformType
    return inner is not None and inner.key() in (kinds.Grad, kinds.Jvp)


_FUNCTORCH: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_FACTS = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "layout", "device", "is_quantized")
}
_REQUIRES_GRAD = vars(Tensor.__base__)["requires_grad"].__get__
_SET_DATA = vars(Tensor.__base__)["data"].__set__
_DIFFERENTIATES = {
    torch.autograd.grad: "grad",
    **{getattr(Tensor, name).__set__: f"{name} =" for name in ("requires_grad", "grad")},
}
_APART = (torch.detach, Tensor.detach, vars(Tensor.__base__)["data"].__get__)
_INTO = ("add", "and", "floordiv", "mod", "mul", "or", "pow", "sub", "truediv", "xor")
_WRITTEN = {"__setitem__", *(f"__i{name}__" for name in _INTO)}
_GIVES_BACK = ("dropout", "to", "type", "type_as", "float", "double", "cpu", "cuda")
_FILLED = {f"{new}{what}{like}" for new in ("", "new_") for like in ("", "_like")
           for what in ("zeros", "ones", "full", "empty")}  # fmt: skip
_PRODUCTS = ("_sparse_mm", "_sparse_addmm", "mm", "matmul", "__matmul__", "addmm", "mv", "bmm")
_TRACER = f"{__package__}.trace"
_MODE = "__torch_function__"  # torch has modes of its own around this one
_OF_AUTOGRAD = {
    getattr(Tensor, name).__get__: name
    for name in ("requires_grad", "is_leaf", "grad_fn", "grad", "retains_grad", "output_nr",
                 "_backward_hooks", "_post_accumulate_grad_hooks")
} | dict.fromkeys((Tensor.is_inference, torch.is_inference), "is_inference")  # fmt: skip
_OF_MEMORY = {
    **{getattr(Tensor, name).__get__: name for name in ("_base", "_version", "_cdata")},
    **{getattr(Tensor, name): name for name in (
        "_is_view", "storage_offset", "data_ptr", "is_pinned", "untyped_storage")},
}  # fmt: skip
