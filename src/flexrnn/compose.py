"""From a step to a composed step: what a layer adds to the equations, by selection only.

Engines see the composed step and nothing of what it is made of. Selection is `where`, never a
product with a mask: 0 · inf is NaN.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from flexrnn.bind import fingerprint, tensors_of, with_tensors
from flexrnn.cell import Cell, checked_step, field_names
from flexrnn.engine.step import frozen


class CellStep:
    """The step that an engine runs for a layer: `(inputs_t, state) -> state`.

    Args:
        cell: bound to its parameters.
        ragged: sequences have lengths of their own; `inputs_t` is then `(x_t, valid_t)` with
            `valid_t` `(B, 1)`, false where row b's sequence has ended. There the state stays what
            it was, and nothing of `x_t`, not even its derivative, is touched.
        origin: the layer's cell, of which `cell` is a copy made for this call.
    """

    def __init__(self, cell: Cell, *, ragged: bool = False, origin: Cell | None = None):
        self.cell = cell
        self.origin = origin
        self.ragged = ragged

    def __call__(self, inputs: tuple[Tensor, ...], state: Any) -> Any:
        """The new state, a `State` of the cell's."""
        if not self.ragged:
            return checked_step(self.cell, inputs[0], state)
        x, valid = inputs
        new = checked_step(self.cell, torch.where(valid, x, 0), state)
        return self.cell.State(*(torch.where(valid, n, o) for n, o in zip(new, state, strict=True)))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters, buffers and tensor attributes of the cell, by their paths."""
        return tensors_of(self.cell)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's fields."""
        return field_names(self.cell)

    def pure(
        self,
        inputs: tuple[Tensor, ...],
        state: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """The same call with other tensors in the place of the cell's own.

        Raises:
            RuntimeError: the step changes attributes of the cell, by which it would tell the next
                step what only the state may tell.
        """
        cell = with_tensors(self.cell, tensors)
        before = _attributes(cell)
        new = CellStep(cell, ragged=self.ragged)(inputs, self.cell.State(*state))
        for name, value in _attributes(cell).items():
            if before.get(name) != value:
                raise RuntimeError(f"{type(cell).__name__}.step changes the attribute {name}")
        return tuple(new)

    def key(self) -> Hashable:
        """Everything but tensors that the cell's computation can depend on."""
        return (self.ragged, fingerprint(self.cell))

    def recipe(self) -> tuple[Any, ...]:
        """How the step is made from the layer's cell, by which Dynamo recognises it."""
        return (_from_origin, self.origin, self.ragged)


def _from_origin(tensors: Mapping[str, Tensor], origin: Cell, ragged: bool) -> CellStep:
    return CellStep(with_tensors(origin, tensors), ragged=ragged)


def _attributes(cell: Cell) -> dict[str, Hashable]:
    """Everything that a cell holds, by its path; a tensor counts as the object that it is."""
    found: dict[str, Hashable] = {name: id(tensor) for name, tensor in tensors_of(cell).items()}
    for prefix, module in cell.named_modules():
        for name, value in vars(module).items():
            path = f"{prefix}.{name}" if prefix else name
            if name not in ("_parameters", "_buffers", "_modules") and path not in found:
                found[path] = frozen(value)
    return found
