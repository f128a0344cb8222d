"""A computation written down: what it asks torch for, without the Python in between.

What an engine asks for is settled by the kinds of its operands. Who has watched one call knows all
the others of its kind, and finds nothing out again: not which node comes next, nor how long a row
is, nor what lies in one piece already. What was asked is written as a Python function, a line a
question, and the next call is that function.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils.weak import WeakTensorKeyDictionary

Result = tuple[Tensor | None, ...]
Replay = Callable[..., Result]

# What may be asked of a tensor whose answer is no tensor: the kind decides it. An address, or a
# number that a tensor holds, is another one at the next call.
_DECIDED = frozenset({"shape", "size", "dim", "ndim", "numel", "stride", "dtype", "device",
                      "layout", "is_cpu", "is_contiguous", "is_neg", "is_nested", "is_complex",
                      "_is_zerotensor", "requires_grad"})  # fmt: skip
# What may give its operand back as it is; others have written to it.
_AS_IT_IS = frozenset({"contiguous", "to", "reshape", "expand", "sum_to_size", "resolve_neg"})
_MOST = 400  # lines: a longer computation is not kept from its work by Python
_LITERAL = (int, bool, type(None))
_CONSTANT = (*_LITERAL, float, str, slice, type(...), torch.dtype, torch.device, torch.layout)


class _Here(threading.local):
    watched = False


_here = _Here()


def written(
    function: Callable[[tuple[Tensor, ...]], Result], row: tuple[Tensor, ...]
) -> tuple[Result, Replay | None]:
    """Call a function of tensors and write down what it does.

    Args:
        function: it asks nothing of torch but by torch's functions and by those of its own that
            hand themselves over, see `is_watched`; and what it asks depends on kinds alone.
        row: its operands, no two of them one object. Nothing `is_overridden`.

    Returns:
        Its result, and a function of the operands that computes it again from others of these
        kinds; None in its place where some of it cannot be known.
    """
    notes = _Notes(row)
    _here.watched = True
    try:
        with notes:
            result = function(row)
    finally:
        _here.watched = False
    return result, notes.replay(result)


def is_watched() -> bool:
    """Whether what torch is asked is being written down, in this thread.

    A function that asks for what cannot be written down, such as an address, then calls itself by
    `torch.overrides.handle_torch_function`, and is written down as a whole.
    """
    return _here.watched and is_overridden()  # not within what is written down


def is_overridden() -> bool:
    """Whether a mode of torch's sees the functions that are called."""
    return has_torch_function((None,))


def addresses(*tensors: Tensor) -> list[int]:
    """Where tensors begin.

    Raises:
        RuntimeError: somebody has given the memory of one back.
    """
    found = [*map(Tensor.data_ptr, tensors)]
    if found and not min(found) >> 32:  # perhaps only some distance from nothing
        for tensor in tensors:
            if tensor.numel() and not tensor.untyped_storage().data_ptr():
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} has no memory any more: "
                    "it was given back by resizing its storage"
                )
    return found


class ByAddress:
    """A function of tensors that asks them for nothing but their addresses, and hands itself over.

    Written down, it is given the addresses, and no tensor is made of a part of another for it.

    Args:
        run: the function of the addresses.
    """

    def __init__(self, run: Callable[..., None]):
        self.run = run

    def __call__(self, *tensors: Tensor) -> None:
        """Call it."""
        if is_watched():
            handle_torch_function(self, tensors, *tensors)
        else:
            self.run(*addresses(*tensors))


class _Lies(NamedTuple):
    """How a tensor lies in its memory, and reads it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    reading: tuple[Any, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Lies":
        reading = (tensor.dtype, tensor.is_neg(), tensor.is_conj())
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), reading)


class _View(NamedTuple):
    """A part of another tensor; it is written where it is read."""

    base: str
    lies: _Lies


class _Notes(TorchFunctionMode):
    """What is asked while it is in force."""

    def __init__(self, row: Sequence[Tensor]):
        super().__init__()
        # Of tensors that live. None is held: what the computation lets go is free.
        self._names = WeakTensorKeyDictionary()  # -> str
        self._views = WeakTensorKeyDictionary()  # -> _View
        self._bases: dict[str, _Lies] = {}  # how those that have a name lie, or lay
        for k, tensor in enumerate(row):
            self._put(tensor, f"a{k}")
        self._operands = len(row)
        self._located = set[str]()  # operands whose addresses are asked for
        self._lines: list[str] = []
        self._read: list[set[str]] = []  # which results, by lines
        self._space: dict[str, Any] = {}
        self._is_known = True

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._is_known:
            self._is_known = self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
        """Write down a question; false where its answer cannot be known."""
        if isinstance(func, ByAddress):
            return self._note_by_address(func, args)
        name = _name(func)
        if result is not None and not isinstance(result, Tensor):
            return name in _DECIDED
        writes = result is None or name.endswith("_") or "out" in kwargs
        fresh = None if result is None or self._has(result) else result
        if fresh is None and not writes:
            return name in _AS_IT_IS
        if fresh is not None and (base := self._base_of(fresh, (*args, *kwargs.values()))):
            return self._see(fresh, base)
        read: set[str] = set()
        try:
            words = [self._word(value, read) for value in args]
            words += [f"{key}={self._word(value, read)}" for key, value in kwargs.items()]
        except KeyError:  # a tensor that comes from elsewhere, or nobody knows what
            return False
        line = f"{self._constant(func, name)}({', '.join(words)})"
        self._write(line if fresh is None else f"{self._named(fresh, read)} = {line}", read)
        return len(self._lines) <= _MOST

    def _note_by_address(self, func: ByAddress, tensors: Sequence[Tensor]) -> bool:
        if not all(map(self._has, tensors)):
            return False
        read: set[str] = set()
        words = ", ".join(self._address(tensor, read) for tensor in tensors)
        self._write(f"{self._constant(func.run, 'at')}({words})", read)
        return len(self._lines) <= _MOST

    def _address(self, tensor: Tensor, read: set[str]) -> str:
        """Where a tensor begins."""
        view = self._views.get(tensor)
        name = self._names[tensor] if view is None else view.base
        read.add(name)
        behind = 0 if view is None else view.lies.offset - self._bases[name].offset
        more = f" + {behind * tensor.itemsize}" if behind else ""
        if name[0] == "v":
            return f"{name}.data_ptr(){more}"
        self._located.add(name)
        return f"{name}_at{more}"

    def _has(self, tensor: Tensor) -> bool:
        return tensor in self._names or tensor in self._views

    def _base_of(self, tensor: Tensor, operands: Iterable[Any]) -> str:
        """The name of what a new tensor has the memory of, or nothing."""
        there = tensor.untyped_storage().data_ptr()
        for operand in _tensors(operands) if there else ():
            if self._has(operand) and operand.untyped_storage().data_ptr() == there:
                view = self._views.get(operand)
                return view.base if view else self._names[operand]
        return ""

    def _see(self, tensor: Tensor, base: str) -> bool:
        """Take a new tensor for a part of another; false where it reads the memory otherwise."""
        lies = _Lies.of(tensor)
        if lies.reading != self._bases[base].reading:
            return False
        self._views[tensor] = _View(base, lies)
        return True

    def _named(self, tensor: Tensor, read: set[str]) -> str:
        """A name for a tensor that has none."""
        name = f"v{len(self._bases)}"
        self._put(tensor, name)
        read.add(name)
        return name

    def _put(self, tensor: Tensor, name: str) -> None:
        self._names[tensor] = name
        self._bases[name] = _Lies.of(tensor)

    def _write(self, line: str, read: set[str]) -> None:
        self._lines.append(line)
        self._read.append(read)

    def _tensor(self, tensor: Tensor) -> str:
        """The name of a tensor, which is one from here on if it is a part of another."""
        if tensor in self._names:
            return self._names[tensor]
        view = self._views[tensor]
        return view.base if view.lies == self._bases[view.base] else self._part(tensor, view)

    def _part(self, tensor: Tensor, view: _View) -> str:
        lies, whole = view.lies, self._bases[view.base]
        words = [view.base, str(lies.size), str(lies.stride)]
        if view.base[0] == "v":  # what is new begins where it did
            words.append(str(lies.offset))
        elif lies.offset != whole.offset:
            words.append(f"{view.base}.storage_offset() + {lies.offset - whole.offset}")
        read = {view.base}
        name = self._named(tensor, read)
        self._write(
            f"{name} = {self._constant(Tensor.as_strided, 'part')}({', '.join(words)})", read
        )
        return name

    def _word(self, value: Any, read: set[str]) -> str:
        """How a value is written."""
        if isinstance(value, Tensor):
            read.add(name := self._tensor(value))
            return name
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return f"({', '.join(self._word(v, read) for v in value)},)"
        if not _is_constant(value):
            raise KeyError(value)
        return repr(value) if type(value) in _LITERAL else self._constant(value, "c")

    def _constant(self, value: Any, kind: str) -> str:
        name = f"{kind if kind.isidentifier() else 'c'}_{len(self._space)}"
        self._space[name] = value
        return name

    def replay(self, result: Sequence[Tensor | None]) -> Replay | None:
        """The function, whose result is this."""
        if not self._is_known or not all(t is None or self._has(t) for t in result):
            return None
        end: list[str] = []
        for tensor in result:
            if tensor is None:
                end.append("None")
            elif tensor in self._names:
                end.append(self._names[tensor])
            else:  # a tensor of its own, be it all of it
                end.append(self._part(tensor, self._views[tensor]))
        last: dict[str, int] = {}
        for k, read in enumerate(self._read):
            last |= dict.fromkeys(read, k)
        body: list[str] = []
        if self._located:
            names = sorted(self._located)
            begin = self._constant(addresses, "addresses")
            body.append(f"{''.join(f'{name}_at, ' for name in names)}= {begin}({', '.join(names)})")
        for k, line in enumerate(self._lines):
            body.append(line)
            gone = [n for n in self._read[k] if last[n] == k and n[0] == "v" and n not in end]
            body += [f"del {', '.join(sorted(gone))}"] if gone else []
        operands = ", ".join(f"a{k}" for k in range(self._operands))
        body.append(f"return ({''.join(f'{name}, ' for name in end)})")
        text = f"def replay({operands}):\n" + "".join(f"    {line}\n" for line in body)
        exec(compile(text, "<flexrnn: a call, written down>", "exec"), self._space)
        return self._space.pop("replay")


def _is_constant(value: Any) -> bool:
    """Whether a value is the same at every call: there is no tensor in it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_constant, value))
    if isinstance(value, slice):
        return all(map(_is_constant, (value.start, value.stop, value.step)))
    return isinstance(value, _CONSTANT)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _name(func: Any) -> str:
    """The name of a function of torch's, or of the attribute that it reads."""
    name: str = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", "") if name == "__get__" else name
