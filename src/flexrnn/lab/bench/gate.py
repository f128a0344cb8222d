"""Is it right? Nothing is timed whose numbers are not the reference's.

Per tensor, the error against the reference in float64 is at most four times (half types: twice)
that of the reference itself in the working dtype, and a few roundings; both are norms, relative to
the tensor's own. Tests of the engines ask for half of that, of small layers. The gradient of a
weight is a sum over all rows and steps, in whatever order an engine likes: so many numbers differ
by some √(B·T) roundings from one order to the next.

A cell may enlarge every rounding from step to step, as layer normalisation does: then both errors
are chance, and so is their ratio. What is beyond its limit is judged by the median of more draws;
and where the reference itself has hardly a digit right at the end of many steps, by fewer of them.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.lab.bench.cases import Case, Given, Size

FACTORS = {torch.float32: 4.0, torch.float64: 4.0, torch.bfloat16: 2.0}
ROUNDINGS = 4.0
DOUBLE = 1e-12  # allowed of float64, where there is nothing more exact to compare with
GRADIENT = "the gradient of "
DRAWS = 9  # of inputs, where the first is beyond its limit
LOST = 0.1  # the reference's own error, with which a tensor says nothing any more
STEPS = 16  # of a stream; each is a call of its own, so that more would say nothing more


class Verdict(NamedTuple):
    """The tensor that is nearest to its limit, or beyond it: error and limit are relative norms."""

    right: bool
    tensor: str
    error: float
    allowed: float
    own: float = 0.0  # the largest error of the reference, of any tensor

    @property
    def of_limit(self) -> float:
        """The error as part of what is allowed; NaN is beyond everything."""
        return math.inf if math.isnan(self.error) else self.error / self.allowed

    def __str__(self) -> str:
        return f"{self.tensor} is wrong by {self.error:.1e}; {self.allowed:.1e} is allowed"


def judge(
    case: Case, layer: nn.Module, size: Size, dtype: torch.dtype, backend: str, seed: int = 0
) -> Verdict:
    """Compare the outputs, the final state and every gradient of a layer with the reference's.

    Outputs without a gradient are judged, too: they are another program.

    Raises:
        Exception: whatever the layer raises.
    """
    if case.stepwise:
        size = size._replace(steps=min(size.steps, STEPS))
    verdict = _drawn(case, layer, size, dtype, backend, seed)
    while not verdict.right and verdict.own > LOST and size.steps > STEPS:
        size = size._replace(steps=size.steps // 2)
        verdict = _drawn(case, layer, size, dtype, backend, seed)
    if verdict.right or dtype == torch.float64 or math.isinf(verdict.of_limit):
        return verdict
    more = (_drawn(case, layer, size, dtype, backend, seed + k) for k in range(1, DRAWS))
    return sorted((verdict, *more), key=lambda v: v.of_limit)[DRAWS // 2]


def _drawn(
    case: Case, layer: nn.Module, size: Size, dtype: torch.dtype, backend: str, seed: int
) -> Verdict:
    """The verdict by one input."""
    given = case.given(size, dtype, seed)
    found = numbers(case, layer, given, backend)
    plain = numbers(case, layer, given, "reference")
    exact_given = given._replace(x=given.x.double())
    exact = numbers(case, copy.deepcopy(layer).double(), exact_given, "reference")
    verdicts, largest = list[Verdict](), 0.0
    for name, right in exact.items():
        scale = float(right.norm()) or 1.0  # a gradient may be zero; then so must ours be
        error, own = (float((n[name] - right).norm()) / scale for n in (found, plain))
        if dtype == torch.float64:
            allowed = DOUBLE
        else:
            summed = name.startswith(GRADIENT) and name != f"{GRADIENT}x"
            few = max(ROUNDINGS, math.sqrt(size.batch * size.steps)) if summed else ROUNDINGS
            allowed = FACTORS[dtype] * own + few * torch.finfo(dtype).eps
            largest = max(largest, own)
        verdicts.append(Verdict(error <= allowed, name, error, allowed))  # NaN is not
    wrong = [verdict for verdict in verdicts if not verdict.right]
    verdict = wrong[0] if wrong else max(verdicts, key=lambda v: v.of_limit)
    return verdict._replace(own=largest)


def numbers(case: Case, layer: nn.Module, given: Given, backend: str) -> dict[str, Tensor]:
    """Every number of a layer by a backend, in float64, by what a person would call it."""
    x = given.x.detach().clone().requires_grad_()
    with flexrnn.backend(backend):
        with torch.no_grad():
            alone, _ = case.ours.run(layer.eval(), given)
        outputs, state = case.ours.run(layer.train(), given._replace(x=x))
        learned = {"x": x, **dict(layer.named_parameters())}
        results = [*outputs, *_tensors(state)]
        # Weights of their own for every number, so that no two gradients can be mistaken.
        weights = [torch.linspace(-1, 2, r.numel(), dtype=torch.float64) for r in results]
        loss = sum((r.double() * w.view_as(r)).sum() for r, w in zip(results, weights, strict=True))
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, list(learned.values()), materialize_grads=True)
    named = {
        "the output without gradients": torch.cat([o.flatten() for o in alone]),
        "the output": torch.cat([o.flatten() for o in outputs]),
        "the final state": torch.cat([s.flatten() for s in _tensors(state)]),
    }
    for name, gradient in zip(learned, gradients, strict=True):
        named[f"{GRADIENT}{name}"] = gradient
    return {name: tensor.detach().double() for name, tensor in named.items()}


def _tensors(state: Any) -> Iterable[Tensor]:
    return (state,) if isinstance(state, Tensor) else state
