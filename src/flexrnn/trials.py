"""What a step draws at random, found by running it on zeros."""

from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from flexrnn.bind import identity, named_tensors, tensors_of, with_tensors
from flexrnn.cell import Cell
from flexrnn.draws import Answering, Draw
from flexrnn.engine import autocast, traced
from flexrnn.engine.compiler.chance import generators_as_before
from flexrnn.engine.compiler.kept import noted
from flexrnn.engine.compiler.surroundings import alone
from flexrnn.engine.standins import alike, kinds
from flexrnn.engine.step import object_at
from flexrnn.engine.tables import trim
from flexrnn.signs import may_draw


class _Asking(Answering):
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
        traced.specialize(True)  # to look for tensors is to look at every option
        named = tensors_of(cell)
        traced.specialize(False)
        return _aside(
            id(origin),
            _kind(x, x.shape[-1:]),
            tuple(_kind(field, field.shape[1:]) for field in state),
            tuple((name, *_kind(t, t.shape)) for name, t in named.items()),
        )
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
        kinds(tensors.values()),
        torch.get_default_dtype(),
        autocast.is_on(x) and torch.get_autocast_dtype(x.device.type),
    )
    found = _known.get(key)
    if found is None:
        found = _known[key] = _asked(cell, x, state)
        trim(_known, _KEPT)
    return found


def _kind(tensor: Tensor, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tuple(map(index, shape))


def _aside(
    origin: int, x: tuple[Any, ...], state: tuple[Any, ...], tensors: tuple[Any, ...]
) -> tuple[Draw, ...]:
    """What `draws_of` says inside of `torch.compile` and export, where it is a constant.

    Nothing has a value there: parameters are ones. A change of what the step reads, such as a
    dropout's probability, brings Dynamo back here: it follows the step where its program is made.

    Args:
        origin: id of the layer's cell.
        x: dtype, device and widths of the input.
        state: those of each field.
        tensors: name, dtype, device and shape of each.
    """
    cell = object_at(origin)
    if not may_draw(cell):
        return ()
    with alone():
        own = named_tensors(cell)
        given = {
            name: own.get(name, torch.ones(shape, dtype=dtype, device=device))
            for name, dtype, device, shape in tensors
        }
        rows = [torch.zeros((1, *widths), dtype=dtype, device=device)
                for dtype, device, widths in (x, *state)]  # fmt: skip
        return _asked(with_tensors(cell, given), rows[0], tuple(rows[1:]))


_aside._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _asked(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Draw, ...]:
    """What two trials, on zeros, find alike."""
    found: set[tuple[Draw, ...]] = set()
    with alone(), generators_as_before(x.device), torch.no_grad():
        try:
            for rows in _ROWS:
                own = tensors_of(cell)
                tensors = {name: t.clone() for name, t in own.items()}
                copy = with_tensors(cell, alike(tensors, own))
                given = x.new_zeros((rows, x.shape[-1]))  # no numbers that the step makes
                old = cell.State(*(field.new_zeros((rows, *field.shape[1:])) for field in state))
                with noted(), (asking := _Asking(rows, x.device)):
                    copy.step(given, old)
                found.add(tuple(asking.found))
        except Exception:  # it will come up again, where it can be told
            return ()
    return found.pop() if len(found) == 1 else ()
