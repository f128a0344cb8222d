# pyright: reportPrivateUsage=false
# The modes that are in force have no public names.
"""What is in force around a trace and is not to reach it: others' modes, and torch's log."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _python_dispatch


@contextmanager
def alone() -> Iterator[None]:
    """Without the modes of whoever calls: somebody may be tracing the layer that is traced here."""
    number = torch._C._len_torch_function_stack()
    functions = [torch._C._pop_torch_function_stack() for _ in range(number)]
    try:
        with _python_dispatch._disable_current_modes():
            yield
    finally:
        for mode in reversed(functions):
            torch._C._push_on_torch_function_stack(mode)


@contextmanager
def unlogged() -> Iterator[None]:
    """Without torch's log of what fails on tensors without values; the error says it once."""
    log, thread = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def is_anothers(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(is_anothers)
    try:
        yield
    finally:
        log.removeFilter(is_anothers)


@contextmanager
def as_written() -> Iterator[None]:
    """What the step has had compiled by `torch.compile` runs as it is written, and is seen."""
    with torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Nobody hears of what is saved here for derivatives.

    A checkpoint counts it, and when the layer is called again there is nothing to trace.
    """
    if torch._C._autograd._saved_tensors_hooks_is_enabled():  # pyright: ignore[reportAttributeAccessIssue]
        with saved_tensors_hooks(Tensor.detach, _as_it_is):  # a result would hold itself for good
            yield
    else:  # as inside `torch.func.grad`, where nobody can hear
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
