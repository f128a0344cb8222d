"""What a person has hung on a tensor, or knows it by: no program has it, so who asks is refused.

`w.scale = 2.0` is on the parameter, and not on what stands in for it while a step is traced, nor is
that the one whose `id` somebody has kept. Torch intercepts none of these questions. So what they
all come by is exchanged meanwhile; of any other tensor it says what it said before.
"""

import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor

from flexrnn.engine.compiler.refusal import NOWHERE, CannotCompileError, is_users, refused
from flexrnn.engine.standins import MARKS


class Attached(dict[str, Any]):
    """The `__dict__` of a tensor that stands in for another's: Python finds in it what is set."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise _hung("__dict__")


def _looks(name: str) -> Callable[..., Any]:
    def look(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise _hung("__dict__")

    look.__name__ = name
    return look


for _name in ("__contains__", "__getitem__", "__iter__", "__len__", "__eq__", "__ne__", "__or__",
              "__ror__", "__repr__", "__reversed__", "copy", "get", "items", "keys", "pop",
              "popitem", "setdefault", "values"):  # fmt: skip
    setattr(Attached, _name, _looks(_name))


@contextmanager
def attached() -> Iterator[None]:
    """Within, questions about what stands in for another tensor are refused."""
    own_hash, own_id = Tensor.__hash__, builtins.id
    setattr(Tensor, "__getattr__", _missing)  # noqa: B010  # which the class has not
    setattr(Tensor, "__hash__", _hash)  # noqa: B010
    builtins.id = _id
    try:
        yield
    finally:
        builtins.id = own_id
        setattr(Tensor, "__hash__", own_hash)  # noqa: B010
        delattr(Tensor, "__getattr__")


def stand_in(tensors: Iterable[Tensor]) -> None:
    """Let these be asked for nothing that they have not been given."""
    for tensor in tensors:
        setattr(tensor, "__dict__", Attached(tensor.__dict__))  # noqa: B010  # typed otherwise


def check_unset(tensors: Iterable[Tensor], place: str) -> None:
    """Refuse a step that has set attributes of these, which would be there when it has ended.

    Args:
        tensors: what stands in for parameters and buffers.
        place: of the step's last operation.

    Raises:
        CannotCompileError: it has set some.
    """
    for tensor in tensors:
        for name in sorted({*dict.keys(_own(tensor))} - {*MARKS}):
            raise CannotCompileError(
                f"{name} cannot be compiled: it is an attribute that the step sets, of a parameter "
                f"or a buffer; the step's last operation is {place or NOWHERE}"
            )


def _stands_in(value: Any) -> bool:
    return isinstance(value, Tensor) and type(_own(value)) is Attached


def _own(tensor: Tensor) -> Any:
    return object.__getattribute__(tensor, "__dict__")


def _missing(self: Tensor, name: str) -> Any:
    """What a class says of an attribute that is not there."""
    if not name.startswith("__") and _stands_in(self) and _is_persons(_asker(), name):
        raise _hung(name)
    raise AttributeError(
        f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
    )


def _asker() -> FrameType | None:
    """Who has called what calls this."""
    frame = inspect.currentframe()
    called = frame and frame.f_back
    return called and called.f_back


def _is_persons(frame: FrameType | None, name: str) -> bool:
    """Whether a person asks, also by an `isinstance` that asks for a mark.

    Whether something is a parameter its class says, and programs for other classes are others.
    """
    if name == "_is_buffer" and frame is not None and frame.f_code.co_name == "__instancecheck__":
        frame = frame.f_back
    return frame is not None and is_users(frame)


def _hash(self: Tensor) -> int:
    asks = _asker()
    if asks and is_users(asks) and _stands_in(self):
        raise refused("hash", "others stand in for the cell's tensors, which no set or dict finds")
    return _ID(self)


def _id(value: Any, /) -> int:
    asks = _asker() if _stands_in(value) else None
    if asks and is_users(asks):
        raise refused("id", "another tensor stands in for the cell's")
    return _ID(value)


def _hung(name: str) -> CannotCompileError:
    return refused(
        name, "what is hung on a tensor is no part of a program; an attribute of the cell is one"
    )


_ID = builtins.id
