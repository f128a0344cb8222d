# pyright: reportPrivateUsage=false
# Caches and settings of Dynamo have no public names.
"""Layers by programs, and what their numbers have to be."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import engines, fallback, interpreter


@pytest.fixture
def by_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Everything runs by the interpreter if it can; yields `forward` and `backward` as they ran."""
    ran: list[str] = []

    class Noted:
        prepare = staticmethod(interpreter.prepare)
        saved_like = staticmethod(interpreter.saved_like)

        @staticmethod
        def forward(*args: Any, **kwargs: Any) -> Any:
            ran.append("forward")
            return interpreter.forward(*args, **kwargs)

        @staticmethod
        def backward(*args: Any, **kwargs: Any) -> Any:
            ran.append("backward")
            return interpreter.backward(*args, **kwargs)

    monkeypatch.setitem(engines.ENGINES, "interpreter", Noted())
    monkeypatch.setattr(engines, "AUTO", ("interpreter", "reference"))
    monkeypatch.setattr(fallback, "_warned", set())
    yield ran
    torch._dynamo.reset()


@pytest.fixture
def same_as_reference() -> Callable[..., None]:
    """Assert that a call, and its gradients by all parameters and inputs, are the reference's."""

    def check(call: Callable[..., Any], layer: nn.Module, *inputs: Tensor) -> None:
        found = []
        for engine in ("auto", "reference"):
            leaves = [*layer.parameters(), *(x for x in inputs if x.requires_grad)]
            with flexrnn.backend(engine):
                torch.manual_seed(1)
                outs = [o for o in tensors(call(*inputs)) if o.is_floating_point()]
                loss = torch.stack([(o * o.detach().cos()).sum() for o in outs]).sum()
                grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            found.append([*outs, *grads])
        assert_close(*found, rtol=1e-10, atol=1e-12)

    return check


def tensors(value: Any) -> list[Tensor]:
    """The tensors inside nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for part in value for t in tensors(part)]
