"""What is no program, and the line of the person's code that it stands in."""

import inspect
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from flexrnn.engine.compiler.graph import BATCH


class CannotCompileError(RuntimeError):
    """A step does something that no program can say; the message names operation, file and line."""


_PACKAGE = Path(__file__).parents[2]
_RUN_EVERY_STEP = ("bind", "cell", "changes", "compose", "draws", "dtypes", "fields", "laws",
                   "layer", "record", "references", "regularize", "trials", "ways")  # fmt: skip
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent) + os.sep,
    *(str(_PACKAGE / name) + os.sep for name in ("engine", "call")),
    *(str(_PACKAGE / f"{name}.py") for name in _RUN_EVERY_STEP),
    "<frozen ",
    "<eval_with_key>",  # code that torch makes of a graph
)
_WRITERS = ("torch", "flexrnn", "collections")  # whose modules make code at run time, "<string>"


_SYMBOL = re.compile(r"\bs\d+\b")  # torch's name for a size
NOWHERE = "at a place that is not known"


def is_users(frame: FrameType) -> bool:
    """Whether code is neither torch's nor of FlexRNN's files that run every step.

    A person's own may have been read from a notebook, from standard input, or by `exec`.
    """
    file = frame.f_code.co_filename
    if file.startswith(_NOT_THE_USERS):
        return False
    module = str(frame.f_globals.get("__name__", ""))
    made = file.startswith("<") and module.partition(".")[0] in _WRITERS
    return not made and not module.startswith("namedtuple_")


def users_line(places: Iterable[tuple[FrameType, int | None]]) -> str:
    """`at FILE:LINE` of the innermost frame that is neither torch's nor FlexRNN's own."""
    for frame, line in places:
        if is_users(frame):
            return f"at {frame.f_code.co_filename}:{line}"
    return NOWHERE


def definition(function: Any) -> str:
    """`at FILE:LINE` where a function is defined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"at {code.co_filename}:{code.co_firstlineno}" if code else NOWHERE


def frames() -> Iterator[tuple[FrameType, int]]:
    """Every caller, the innermost first, and its line."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def place_of(error: Exception) -> str:
    """`at FILE:LINE` of the person's code that an exception came from."""
    passed = [(t.tb_frame, t.tb_lineno) for t in _chain(error.__traceback__)]
    return users_line(reversed(passed))


def _chain(last: TracebackType | None) -> Iterator[TracebackType]:
    while last is not None:
        yield last
        last = last.tb_next


def with_batch(text: str) -> str:
    """A text with our name for the batch size in the place of torch's."""
    return _SYMBOL.sub(BATCH, text)


def refused(operation: str, why: str) -> CannotCompileError:
    """That an operation cannot be compiled, at the person's line that is running."""
    return CannotCompileError(f"{operation} cannot be compiled: {why}, {users_line(frames())}")


def told(error: Exception, operation: str, last: str) -> str:
    """What an exception says of a step that was run on tensors without values, and where.

    Args:
        error: the exception.
        operation: the innermost one that it came from, or nothing.
        last: place of the step's last operation.
    """
    place = place_of(error)
    if place == NOWHERE and not operation and last:  # of what the step has returned
        return f"{with_batch(str(error))}; the step's last operation is {last}"
    return f"{_reason_of(error, operation)}, {place}"


def _reason_of(error: Exception, operation: str) -> str:
    if "convert all Tensors to FakeTensors" in str(error):
        return (
            "a tensor is used that is neither input, state nor an attribute of the cell, read by "
            "its name; register_buffer makes it one"
        )
    what = f"{operation} cannot be compiled" if operation else "the step cannot be traced"
    if operation == "__bool__":
        return f"{what}: {TAKEN}, as `if` and `assert` do; torch.where chooses row by row"
    if operation in _HOOKS:
        return f"{what}: nobody calls hooks in a backward pass that is compiled"
    if operation in _TAKES_OUT or _asks_for_a_value(error):
        return f"{what}: {TAKEN}"
    if "unhashable" in str(error) and "SymInt" in str(error):
        return f"{what}: the batch size has no number here, and no place in a set or a dict"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if any(part in first for part in _UNWRITTEN) or re.fullmatch(r"aten\.[\w.]+", first):
        return f"{what}: torch has no form of it for a batch that has no number"
    if first.startswith("Cannot view a tensor"):  # the strides may be none of the person's
        return f"{what}: what lies as this does, at least while it is traced, has no such view"
    return f"{what}: {with_batch(first)}"


def _asks_for_a_value(error: Exception) -> bool:
    from torch.fx.experimental.symbolic_shapes import (
        GuardOnDataDependentSymNode,
    )  # see `trace.make_ready`

    return isinstance(error, GuardOnDataDependentSymNode)


ACROSS = (
    "it works across the batch, but for running statistics in eval(); a norm of each row, such as "
    "layer_norm, would do"
)
BATCH_NORM = f"batch_norm cannot be compiled: {ACROSS}"
TAKEN = "it takes a number out of a tensor"
_TAKES_OUT = ("__float__", "__int__", "__index__", "item", "tolist", "numpy", "equal", "allclose")
_UNWRITTEN = (  # by torch, or by the oldest that FlexRNN takes
    "expected to contain only concrete integers",
    "INTERNAL ASSERT FAILED",
    "on tensor with symbolic sizes/strides",
)
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")
