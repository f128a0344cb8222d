# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# Torch has no public name for the transforms of torch.func that are at work.
"""Random numbers that a step draws: drawn by the layer, for all steps, before an engine runs.

As masks of zoneout are, so are they: one step is run to see what it draws (`trials`), all of it is
drawn from torch's generator, and at every step the cell gets its share. So a step with dropout,
noise or a sample in it is a function of its inputs, which a program can say and `checkpoint_every`
can compute anew; and the numbers are the same whatever the engine, but for a reference that
`torch.compile` follows, where a step draws itself.
"""

from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from flexrnn.engine.compiler.refusal import frames
from flexrnn.laws import DRAWING


class Draw(NamedTuple):
    """What a step draws at once: independent numbers `(B, *widths)`, of the standard kind."""

    law: str  # "normal", "uniform", "exponential", or "kept": true with a probability
    probability: float
    widths: tuple[int, ...]
    dtype: torch.dtype
    joined: bool  # the step wants them as `(B * widths[0], *widths[1:])`

    def sequence(self, steps: int, batch: int, device: torch.device) -> Tensor:
        """Draw for all steps, `(T, B, *widths)`."""
        size = (steps, batch, *self.widths)
        if self.law == "normal":
            return torch.randn(size, dtype=self.dtype, device=device)
        if self.law == "uniform":
            return torch.rand(size, dtype=self.dtype, device=device)
        empty = torch.empty(size, dtype=self.dtype, device=device)
        if self.law == "exponential":
            return empty.exponential_()
        return empty.bernoulli_(self.probability)


class Answering(TorchFunctionMode):
    """Answers what is drawn inside of it; where it has no answer, torch draws."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = _transforms()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        spelt = DRAWING.get(func)
        if spelt is None or _transforms() > self._depth or _is_checkpointed():
            return func(*args, **kwargs)
        found = spelt(self.answer, *args, **kwargs)
        return self.unanswered(func, args, kwargs) if found is None else found

    def answer(
        self, law: str, size: Any, dtype: torch.dtype, device: Any, probability: float = 1.0
    ) -> Tensor | None:
        """Numbers of a size, or nothing."""
        raise NotImplementedError

    def unanswered(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What torch draws."""
        return func(*args, **kwargs)


def _transforms() -> int:
    """How many transforms of `torch.func` are at work: the rows of a vmap differ, too."""
    return len(torch._C._functorch.get_interpreter_stack() or ())


def _is_checkpointed() -> bool:
    """Whether the step itself calls `checkpoint`, which computes anew where nobody answers."""
    files = (frame.f_code.co_filename for frame, _ in frames())
    inside = dropwhile(__file__.__eq__, files)
    return checkpoint.__file__ in takewhile(lambda file: file not in _RUN_STEPS, inside)


_RUN_STEPS = tuple(str(Path(__file__).with_name(name)) for name in ("compose.py", "trials.py"))


class Given(Answering):
    """Answers a step's draws one after another by what was drawn before.

    Args:
        draws: what the numbers are.
        numbers: of this step, each `(B, *widths)`.
    """

    def __init__(self, draws: tuple[Draw, ...], numbers: tuple[Tensor, ...]):
        super().__init__()
        self._left = list(zip(draws, numbers, strict=True))

    def answer(
        self, law: str, size: Any, dtype: torch.dtype, device: Any, probability: float = 1.0
    ) -> Tensor | None:
        """The next numbers, if they are the ones; the step may write into them."""
        if not self._left:
            return None
        draw, numbers = self._left[0]
        if (draw.law, draw.probability) != (law, probability):
            return None
        if numbers.device.type != torch.device(device).type:
            return None
        if draw.joined:
            numbers = numbers.flatten(0, 1)
        if tuple(size[1:]) != tuple(numbers.shape[1:]) or size[0] != numbers.shape[0]:
            return None
        del self._left[0]
        # Under autocast an engine casts what comes with the inputs, and the state.
        return numbers.clone() if numbers.dtype == dtype else numbers.to(dtype)
