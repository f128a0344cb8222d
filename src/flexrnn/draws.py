# pyright: reportAttributeAccessIssue=false
# Torch has no public name for the transforms of torch.func that are at work.
"""Random numbers that a step draws: drawn by the layer, for all steps, before an engine runs.

As masks of zoneout are, so are they: one step is run to see what it draws, all of it is drawn from
torch's generator, and at every step the cell gets its share. So a step with dropout, noise or a
sample in it is a function of its inputs, which a program can say and `checkpoint_every` can compute
anew; and the numbers are the same whatever the engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from flexrnn.bind import identity, tensors_of, with_tensors
from flexrnn.cell import Cell
from flexrnn.engine import autocast
from flexrnn.engine.compiler.chance import Chance
from flexrnn.engine.compiler.refusal import frames
from flexrnn.engine.compiler.trace import alone
from flexrnn.engine.tables import trim
from flexrnn.laws import DRAWING
from flexrnn.signs import may_draw


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


class _Answering(TorchFunctionMode):
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
    return len(_functorch.get_interpreter_stack() or ())


def _is_checkpointed() -> bool:
    """Whether the step itself calls `checkpoint`, which computes anew where nobody answers."""
    files = (frame.f_code.co_filename for frame, _ in frames())
    inside = dropwhile(__file__.__eq__, files)
    step = takewhile(lambda file: file not in (__file__, _COMPOSE), inside)
    return checkpoint.__file__ in step


class Given(_Answering):
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


class _Asking(_Answering):
    """Notes what is drawn, and draws nothing.

    Args:
        rows: how many there are; what is drawn otherwise is not for each row.
        device: of the layer.
    """

    def __init__(self, rows: int, device: torch.device):
        super().__init__()
        self.rows, self.device, self.found = rows, device, list[Draw]()
        self._before = torch.get_rng_state()

    def answer(
        self, law: str, size: Any, dtype: torch.dtype, device: Any, probability: float = 1.0
    ) -> Tensor | None:
        """Ones; nothing behind what torch has drawn, or has been given a seed for."""
        size = tuple(size)
        times, rest = divmod(size[0] if size else 1, self.rows)
        if rest or not times or torch.device(device).type != self.device.type:
            return None
        if not torch.equal(self._before, torch.get_rng_state()):
            return None
        widths = size[1:] if times == 1 else (times, *size[1:])
        self.found.append(Draw(law, probability, widths, dtype, joined=times > 1))
        return torch.ones(size, dtype=dtype, device=device)

    def unanswered(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A generator of the person's stays what it was."""
        generator = kwargs.get("generator")
        before = None if generator is None else generator.get_state()
        result = func(*args, **kwargs)
        if generator is not None:
            generator.set_state(before)
        return result


_COMPOSE = str(Path(__file__).with_name("compose.py"))  # runs a step
_ROWS = (7, 11)  # of two trials: what is drawn for each row is seen by its size in both
_KEPT = 256
_may: dict[Any, bool] = {}
_known: dict[Any, tuple[Draw, ...]] = {}


def draws_of(cell: Cell, origin: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Draw, ...]:
    """What a cell's step draws, in this order; found by running one, once for steps of a kind.

    Only a cell that may draw is run: its step may leave traces in objects of the person's.

    Args:
        cell: bound to its parameters.
        origin: the layer's cell, of which it is a copy.
        x: `(..., I)`.
        state: each field `(B, width)`.
    """
    if torch.compiler.is_compiling():
        return ()
    who = identity(origin)
    may = _may.get(who)
    if may is None:
        may = _may[who] = may_draw(origin)
        trim(_may, _KEPT)
    if not may:
        return ()
    tensors = tensors_of(cell)
    if any(type(t) not in (Tensor, Parameter) for t in (x, *state, *tensors.values())):
        return ()
    key = (
        who,
        x.dtype,
        x.shape[-1],
        x.device,
        tuple((field.dtype, field.shape[1:]) for field in state),
        tuple((tensor.dtype, tensor.shape) for tensor in tensors.values()),
        torch.get_default_dtype(),
        autocast.is_on(x) and torch.get_autocast_dtype(x.device.type),
    )
    found = _known.get(key)
    if found is None:
        found = _known[key] = _asked(cell, x, state)
        trim(_known, _KEPT)
    return found


def _asked(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Draw, ...]:
    """What two trials, on zeros, find alike."""
    found: set[tuple[Draw, ...]] = set()
    with alone(), _generators_as_before(x.device), torch.no_grad():
        try:
            for rows in _ROWS:
                tensors = {name: t.clone() for name, t in tensors_of(cell).items()}
                copy = with_tensors(cell, tensors)
                with (asking := _Asking(rows, x.device)):
                    copy.step(
                        x.new_zeros((rows, x.shape[-1])),
                        cell.State(*(field.new_zeros((rows, *field.shape[1:])) for field in state)),
                    )
                found.add(tuple(asking.found))
        except Exception:  # it will come up again, where it can be told
            return ()
    return found.pop() if len(found) == 1 else ()


@contextmanager
def _generators_as_before(device: torch.device) -> Iterator[None]:
    """Put back torch's generators, Python's and NumPy's, if anything was drawn."""
    cards = [device.index] if device.type == "cuda" else []
    before, chance = torch.get_rng_state(), Chance()
    on_cards = [(card, torch.cuda.get_rng_state(card)) for card in cards]
    try:
        yield
    finally:
        chance.drawn()
        if not torch.equal(before, torch.get_rng_state()):  # another thread may be drawing
            torch.set_rng_state(before)
        for card, was in on_cards:
            torch.cuda.set_rng_state(was, card)
