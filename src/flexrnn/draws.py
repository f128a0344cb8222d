"""Random numbers that a step draws: drawn by the layer, for all steps, before an engine runs.

As masks of zoneout are, so are they: one step is run to see what it draws, all of it is drawn from
torch's generator, and at every step the cell gets its share. So a step with dropout, noise or a
sample in it is a function of its inputs, which a program can say and `checkpoint_every` can compute
anew; and the numbers are the same whatever the engine.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flexrnn.bind import identity, tensors_of, with_tensors
from flexrnn.cell import Cell
from flexrnn.engine import autocast
from flexrnn.engine.compiler.chance import Chance
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim
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


class Drawn(NamedTuple):
    """What is known of a step."""

    draws: tuple[Draw, ...]  # in the order in which it draws them
    alone: bool  # it also draws what nobody can draw for it


class _Answering(TorchFunctionMode):
    """Answers what is drawn inside of it; where it has no answer, torch draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        spelt = DRAWING.get(func)
        found = None if spelt is None else spelt(self.answer, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found

    def answer(
        self, law: str, size: Any, dtype: torch.dtype, device: Any, probability: float = 1.0
    ) -> Tensor | None:
        """Numbers of a size, or nothing."""
        raise NotImplementedError


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
        """The next numbers, if they are the ones."""
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
        return numbers if numbers.dtype == dtype else numbers.to(dtype)


class _Asking(_Answering):
    """Notes what is drawn, and draws nothing.

    Args:
        rows: how many there are; what is drawn otherwise is not for each row.
        device: of the layer.
    """

    def __init__(self, rows: int, device: torch.device):
        super().__init__()
        self.rows, self.device, self.found = rows, device, list[Draw]()

    def answer(
        self, law: str, size: Any, dtype: torch.dtype, device: Any, probability: float = 1.0
    ) -> Tensor | None:
        """Ones."""
        size = tuple(size)
        times, rest = divmod(size[0] if size else 1, self.rows)
        if rest or not times or torch.device(device).type != self.device.type:
            return None
        widths = size[1:] if times == 1 else (times, *size[1:])
        self.found.append(Draw(law, probability, widths, dtype, joined=times > 1))
        return torch.ones(size, dtype=dtype, device=device)


_ROWS = (7, 11)  # of two trials: what is drawn for each row is seen by its size in both
_NOTHING = Drawn((), alone=False)
_known: dict[Any, Drawn] = {}
_KEPT = 256


def drawn_by(cell: Cell, origin: Cell, x: Tensor, state: tuple[Tensor, ...]) -> Drawn:
    """What a cell's step draws; found by running one, once for steps of a kind.

    Args:
        cell: bound to its parameters.
        origin: the layer's cell, of which it is a copy.
        x: `(..., I)`.
        state: each field `(B, width)`.
    """
    if torch.compiler.is_compiling():
        return _NOTHING
    try:
        if kind((x, *state, *tensors_of(cell).values())) is not Call.EAGER:
            return _NOTHING
    except CannotRunError:
        return _NOTHING
    key = (
        identity(origin),
        x.dtype,
        x.shape[-1],
        x.device,
        tuple((field.dtype, field.shape[1:]) for field in state),
        torch.get_default_dtype(),
        autocast.is_on(x) and torch.get_autocast_dtype(x.device.type),
    )
    if key not in _known:
        _known[key] = _asked(cell, x, state)
        trim(_known, _KEPT)
    return _known[key]


def _asked(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> Drawn:
    parameters = dict(cell.named_parameters(remove_duplicate=False))
    held = {name: t for name, t in tensors_of(cell).items() if name not in parameters}
    cards = [x.device.index] if x.device.type == "cuda" else []
    found: set[tuple[Draw, ...]] = set()
    with torch.random.fork_rng(cards), torch.no_grad():
        before, chance = _states(cards), Chance()
        try:
            for rows in _ROWS:
                copy = with_tensors(cell, {name: t.clone() for name, t in held.items()})
                with (asking := _Asking(rows, x.device)):
                    copy.step(
                        x.new_zeros((rows, x.shape[-1])),
                        cell.State(*(field.new_zeros((rows, *field.shape[1:])) for field in state)),
                    )
                found.add(tuple(asking.found))
        except Exception:  # it will come up again, where it can be told
            return _NOTHING
        finally:
            by_python = chance.drawn()  # and puts its generators back
        alone = by_python or not all(map(torch.equal, before, _states(cards)))
    return Drawn((), alone=True) if len(found) > 1 else Drawn(found.pop(), alone)


def _states(cards: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cards)]
