# pyright: reportPrivateUsage=false
# Whether a tensor has been written to has no public name.
"""What a step keeps outside of itself: a dict of masks, a function with `lru_cache`.

A trace would leave tensors without numbers there, for whoever looks next. So the step is run once
on numbers before it is traced. What it has kept is from then on the same at every step, and a
constant of the program.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from flexrnn.engine.compiler.chance import Chance, generators_as_before
from flexrnn.engine.compiler.surroundings import alone, unheard

MOST = 65_536  # numbers that a program holds
_kept: Any = WeakIdKeyDictionary()  # of each tensor: how often it was written to, and its numbers
_held: Any = WeakIdKeyDictionary()  # of those that a program holds the numbers of, how often
_age = 0


class _Noting(TorchFunctionMode):
    """Remembers what is made of numbers alone, as long as somebody keeps it.

    What depends on a tensor is another in a cell that is alike, which has the same program.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        operands = [] if name.startswith("new_") or name.endswith("_like") else [args, kwargs]
        read = _tensors(args[:1] if name in ("to", "type_as") else operands)
        of_numbers = all(x in self.made for x in read)
        before = [] if of_numbers else [(x, x._version) for x in read if x in self.made]
        found = func(*args, **kwargs)
        for x, version in before:
            if x._version != version:
                del self.made[x]
        if of_numbers:
            self.made.update(dict.fromkeys(_tensors(found)))
        return found


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor) and not x.is_inference()]


@contextmanager
def noted() -> Iterator[list[Tensor]]:
    """Note what a step that is run inside keeps; nothing where it draws random numbers.

    Yields:
        A list that has it behind the block.
    """
    found: list[Tensor] = []
    before, chance = torch.get_rng_state(), Chance()
    with (noting := _Noting()):
        yield found
    if chance.drawn() or not torch.equal(torch.get_rng_state(), before):
        return
    for tensor in [*noting.made]:
        there = tensor.layout is torch.strided and not tensor.is_meta
        if there and tensor.numel() <= MOST and not tensor.requires_grad:
            _kept[tensor] = tensor._version, tensor.tolist()
            found.append(tensor)


def any_yet() -> bool:
    """Whether some step has kept anything."""
    return bool(_kept)


def is_kept(value: Any) -> bool:
    """Whether a value is a tensor that a step has kept."""
    return isinstance(value, Tensor) and value in _kept


def numbers_of(tensor: Tensor) -> Any:
    """The numbers of a tensor that a step has kept, as nested lists; else None.

    A program will hold them: see `age`.
    """
    if type(tensor) is not Tensor or tensor not in _kept:
        return None
    version, numbers = _kept[tensor]
    if version != tensor._version:
        return None
    _held[tensor] = version
    return numbers


def age() -> int:
    """How often something that programs hold the numbers of was written to.

    Those from before hold old numbers.
    """
    global _age
    if _held:
        written = [x for x, version in [*_held.items()] if x._version != version]
        for x in written:
            _held.pop(x, None)
        _age += len(written)
    return _age


def rehearse(
    step: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    tensors: Mapping[str, Tensor],
) -> bool:
    """Run a step once on zeros, if its tensors have numbers.

    Args:
        step: `step(inputs, state, tensors)`.
        inputs, state: of which only the kind counts.
        tensors: which the step reads; it writes to copies.

    Returns:
        Whether it was run, to its end.
    """
    transforms: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    without = any(type(t) is FakeTensor or t.is_meta for t in (*state, *tensors.values()))
    if transforms.peek_interpreter_stack() or without:
        return False

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros((2, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)

    with alone(), unheard(), generators_as_before(state[0].device), suppress(Exception):
        # Whatever it raises comes up again, where it can be told.
        for _ in range(2):
            # With their derivatives: what is kept of one leads to the step's own.
            own = {name: tensor.clone() for name, tensor in tensors.items()}
            given = tuple(map(zeros, inputs)), tuple(map(zeros, state))  # are no numbers of it
            with noted() as keeps:
                step(*given, own)
            if not keeps:
                break  # what is kept may be written to, or exchanged, at every step
        return True
    return False
