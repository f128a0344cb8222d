"""From a step to a composed step: what a layer adds to the equations, by selection only.

Engines see the composed step and nothing of what it is made of. Selection is `where`, never a
product with a mask: 0 · inf is NaN. What differs from step to step (the input, marks, masks) comes
with the inputs; what is the same for a whole sequence (a mask, the state to which a reset returns)
travels as further fields of the state, which the step hands on as they are.
"""

from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from flexrnn.bind import copy_of, identity, tensors_of, with_tensors
from flexrnn.cell import LENT, Cell, changes, checked_step, warn_of_the_loss
from flexrnn.changes import are_computed_once, attributes_of, changed, watch
from flexrnn.draws import Draw, Given
from flexrnn.engine.compiler.refusal import CannotCompileError, definition
from flexrnn.engine.standins import alike, kinds
from flexrnn.engine.step import Native, object_at
from flexrnn.equivalent import native_of
from flexrnn.fields import field_names
from flexrnn.references import shared
from flexrnn.regularize import Drop

_OF_GRADIENTS = ("_backward_hooks", "_backward_pre_hooks")  # of a module of torch's


class CellStep:
    """The step that an engine runs for a layer: `(inputs_t, state) -> state`.

    `inputs_t` is x_t, then, where asked for, `valid_t`, `reset_t`, the masks of zoneout and what
    the cell's step draws. The state is the cell's, then the initial state, then the masks of
    recurrent dropout.

    Args:
        cell: bound to its parameters.
        ragged: sequences have lengths of their own: `valid_t` `(B, 1)` is false where row b's has
            ended. There the state stays what it was, whatever the step makes of the `x_t` that
            `Marks.fill` has put there.
        reset: `reset_t` `(B, 1)` is true where row b begins anew: from the initial state, which
            stands in the state behind the cell's own fields.
        zoned: of each field, whether a mask of zoneout `(B, width)` comes with the inputs, true
            where a unit keeps its old value.
        expected: of each field, the share of its old value in its new one; zoneout's expectation.
        masks: number of masks of recurrent dropout, each `(B, width)`.
        draws: what the cell's step draws, each of which comes with the inputs.
        origin: the layer's cell, of which `cell` is a copy made for this call.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        ragged: bool = False,
        reset: bool = False,
        zoned: tuple[bool, ...] = (),
        expected: tuple[float, ...] = (),
        masks: int = 0,
        draws: tuple[Draw, ...] = (),
        origin: Cell | None = None,
    ):
        self.cell = cell
        self.origin = origin
        self._tensors: dict[str, Tensor] | None = None
        self.options = {"ragged": ragged, "reset": reset, "zoned": zoned, "expected": expected,
                        "masks": masks, "draws": draws}  # fmt: skip
        self.ragged, self.reset, self.masks = ragged, reset, masks
        self.zoned, self.expected, self.draws = zoned, expected, draws
        self._running = copy_of(cell) if masks else cell  # whose drop_recurrent is ours

    def __call__(self, inputs: tuple[Tensor, ...], state: Any) -> Any:
        """The new state: a `State` of the cell's, or a tuple where more fields travel with it."""
        x, rest, fields = inputs[0], list(inputs[1:]), len(field_names(self.cell))
        held, rest_of_state = state[:fields], state[fields:]
        valid = rest.pop(0) if self.ragged else None
        old = held
        if self.reset:
            reset = rest.pop(0)
            old = tuple(map(torch.where, [reset] * fields, rest_of_state, held))
        drawn = tuple(rest[len(rest) - len(self.draws) :])
        # Dynamo cannot follow how draws are answered: before it, a step draws itself.
        is_given = bool(self.draws) and not torch.compiler.is_dynamo_compiling()
        with Given(self.draws, drawn) if is_given else nullcontext():
            new = self._stepped(x, self.cell.State(*old), rest_of_state[fields * self.reset :])
        new = self._zoned_out(new, old, rest)
        if valid is not None:
            new = tuple(map(torch.where, [valid] * fields, new, held))
        return (*new, *rest_of_state) if rest_of_state else self.cell.State(*new)

    def _stepped(self, x: Tensor, old: Any, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.masks:
            return checked_step(self.cell, x, old)
        drop = self._running.__dict__["drop_recurrent"] = Drop(type(self.cell).__name__, masks)
        new = checked_step(self._running, x, old)
        drop.finish()
        return new

    def _zoned_out(self, new: Any, old: Any, masks: list[Tensor]) -> tuple[Tensor, ...]:
        if any(self.zoned):
            left = iter(masks)
            return tuple(
                torch.where(next(left), o, n) if zoned else n
                for zoned, n, o in zip(self.zoned, new, old, strict=True)
            )
        if any(self.expected):
            return tuple(
                {0: n, 1: o}[p] if p in (0, 1) else p * o + (1 - p) * n
                for p, n, o in zip(self.expected, new, old, strict=True)
            )
        return new

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters, buffers and tensor attributes of the cell, by their paths."""
        if self._tensors is None:  # the cell is bound for one call
            self._tensors = tensors_of(self.cell)
        return self._tensors

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's fields, those that the step only hands on included."""
        own = field_names(self.cell)
        initial = tuple(f"initial.{field}" for field in own) if self.reset else ()
        return (*own, *initial, *(f"mask.{k}" for k in range(self.masks)))

    @property
    def holder(self) -> Cell:
        """The layer's cell."""
        return self.origin or self.cell

    @property
    def native(self) -> Native | str:
        """The kernel of torch's own that is this step, or why there is none."""
        return native_of(self.cell, self.tensors, self.options)

    def pure(
        self,
        inputs: tuple[Tensor, ...],
        state: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """The same call with other tensors in the place of the cell's own.

        Raises:
            CannotCompileError: the step reads attributes of the cell that the step before has
                set, which would tell it what only the state may tell; or a module of the cell has
                a hook for its gradient, which nobody calls where no gradient is.
        """
        for name, module in self.cell.named_modules():
            if any(vars(module).get(hooks) for hooks in _OF_GRADIENTS):
                raise CannotCompileError(
                    f"{name or type(self.cell).__name__} has a hook for its gradient "
                    f"(register_full_backward_hook), which a program would not call, "
                    f"{definition(self.cell.step)}"
                )
        step = self._with(tensors)
        step._running.__dict__[LENT] = "trace"  # what is set is told at its line
        before = attributes_of(step._running)
        new = step(inputs, state)
        step._running.__dict__.pop("drop_recurrent", None)  # ours; a method may lead to it, too
        sets = changed(step._running, before)
        if sets and (self.draws or not are_computed_once(step._running, sets)):
            place = definition(self.cell.step)
            read = watch(step._running, sets, place)
            try:
                step(inputs, state)  # as all steps but the first, for what it reads
            finally:  # it may have gone on without
                if read:
                    raise read[0]
            step._running.__dict__.pop("drop_recurrent", None)
            for path in changed(step._running, before):
                if path not in sets:
                    raise changes(self.cell, path, place)
            for name in sets:
                if "." not in name:
                    warn_of_the_loss(type(self.cell).__name__, name, 2)
        return tuple(new)

    def rehearse(
        self,
        inputs: tuple[Tensor, ...],
        state: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
    ) -> Any:
        """The same, without a word about what the step sets."""
        return self._with(tensors)(inputs, state)

    def _with(self, tensors: Mapping[str, Tensor]) -> "CellStep":
        """The step with other tensors, of which it cannot tell that they are."""
        return CellStep(with_tensors(self.cell, alike(tensors, self.tensors)), **self.options)

    def key(self) -> Hashable:
        """Everything that the composed step can depend on; of tensors, their classes."""
        held = shared(self.cell, self.tensors)
        who = identity(self.holder)
        return (*self.options.values(), who, held, kinds(self.tensors.values()))

    def recipe(self) -> tuple[Any, ...]:
        """How the step is made from the layer's cell, by which Dynamo recognises it."""
        return (_from_origin, id(self.origin), *self.options.values())


def _from_origin(tensors: Mapping[str, Tensor], origin: int, *options: Any) -> CellStep:
    ragged, reset, zoned, expected, masks, draws = options
    return CellStep(
        with_tensors(object_at(origin), tensors),
        ragged=ragged,
        reset=reset,
        zoned=zoned,
        expected=expected,
        masks=masks,
        draws=draws,
    )
