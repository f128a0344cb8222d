# pyright: reportMissingTypeStubs=false
# Torch has no public name for leaving its function transforms for a while.
"""What a step makes of numbers alone, such as `torch.arange(4)`: its numbers, while it is traced.

A trace has no values, so a step that asks for one is refused. These are the same whatever is given:
`for t in torch.linspace(0, 1, 5).tolist()` is a loop, and `torch.nonzero(mask)` a list of places.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._pytree import tree_leaves, tree_map_only

from flexrnn.engine.compiler.chance import generators_as_before
from flexrnn.engine.compiler.kept import MOST
from flexrnn.engine.compiler.surroundings import alone

_CPU = torch.device("cpu")


class Known:
    """Does what a step does to tensors that are made of numbers alone, on numbers, beside it."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Tensor, Tensor]] = {}  # of a tensor that is held, its twin

    def note(self, tensor: Tensor, numbers: Any) -> None:
        """Remember the numbers of a tensor, which are given as lists in one another."""
        self._note(tensor, self._computed(torch.tensor, (numbers,), {"dtype": tensor.dtype}))

    def _note(self, tensor: Tensor, numbers: Tensor) -> None:
        self._numbers[id(tensor)] = tensor, numbers

    def asked(self, func: Any, name: str, args: Any, kwargs: Any) -> tuple[Any] | None:
        """What asks for numbers is told, if they are known: the answer, in a tuple; else None."""
        if not self._numbers or not _asks(name, args, kwargs):
            return None
        if not all(id(x) in self._numbers for x in _tensors((args, kwargs))):
            return None
        found = self._computed(func, args, kwargs)
        return (tree_map_only(Tensor, self._made, found),)

    def index(self, index: Any, x: Tensor) -> Any:
        """An index of a tensor, with numbers where it has tensors of one, and places for a mask.

        The mask is of the units of every row: `h[:, mask]` or `h[..., mask]`.
        """
        if not self._numbers:
            return index
        if isinstance(index, slice):
            return slice(*map(self._number, (index.start, index.stop, index.step)))
        if not isinstance(index, tuple):
            return self._number(index)
        parts = [self.index(part, x) for part in index]
        if len(parts) == 2 and x.dim() > 1 and (parts[0] is ... or _is_all(parts[0])):
            parts[1] = self._places(parts[1], x.shape[-1 if parts[0] is ... else 1])
        return tuple(parts)

    def _places(self, part: Any, units: Any) -> Any:
        numbers = self._numbers_of(part)
        if numbers is None or numbers.dtype != torch.bool or numbers.shape != (units,):
            return part
        return [place for place, keeps in enumerate(self._told(part)) if keeps]

    def _number(self, x: Any) -> Any:
        numbers = self._numbers_of(x)
        whole = numbers is not None and not numbers.dim() and numbers.dtype not in _NO_PLACE
        return int(self._told(x)) if whole else x

    def _told(self, x: Tensor) -> Any:
        return _as_lists(self._numbers[id(x)][1])

    def _numbers_of(self, x: Any) -> Tensor | None:
        return self._numbers.get(id(x), (x, None))[1]

    def follow(
        self, func: Any, name: str, args: Any, kwargs: Any, found: Any, written: Any
    ) -> None:
        """Do what has been done, if it was done to such tensors, or has made one.

        Args:
            func, name, args, kwargs: the call.
            found: its result.
            written: operands to which it has written.
        """
        if not self._numbers and name not in _MAKES:
            return
        given, results = _tensors((args, kwargs)), _tensors(found)
        twins: list[Tensor] | None = None
        if self._may_follow(name, args, kwargs, given) and all(map(_is_small, results)):
            with suppress(Exception):  # as of a card that is not there: who asks is refused
                twins = _tensors(self._computed(func, args, kwargs))
        if twins is None:
            self._forget(written)
        for tensor, numbers in zip(results, twins or (), strict=False):
            self._note(tensor, numbers)

    def _may_follow(self, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> bool:
        """Whether the results of a call depend on known numbers alone."""
        if name in _UNSURE or any(isinstance(x, _OF_ROWS) for x in tree_leaves((args, kwargs))):
            return False
        if given and all(id(x) in self._numbers for x in given):
            return True
        like = given[:1] if name.startswith("new_") else []  # of which only the kind counts
        return name in _MAKES and len(given) == len(like)

    def _forget(self, written: list[Tensor]) -> None:
        """Something unknown was written there, or into what shares its memory."""
        twins = [self._numbers[id(x)][1] for x in written if id(x) in self._numbers]
        memories = {x.untyped_storage().data_ptr() for x in twins}
        self._numbers = {
            key: (tensor, numbers)
            for key, (tensor, numbers) in self._numbers.items()
            if numbers.untyped_storage().data_ptr() not in memories
        }

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        with _outside(), generators_as_before(_CPU), torch.no_grad():
            args, kwargs = tree_map_only(Tensor, self._twin, (args, kwargs))
            return func(*args, **kwargs)

    def _twin(self, x: Tensor) -> Tensor:
        if id(x) in self._numbers:
            return self._numbers[id(x)][1]
        return torch.empty(0, dtype=x.dtype, device=x.device)  # of which only the kind counts

    def _made(self, numbers: Tensor) -> Tensor:
        made = torch.tensor(_as_lists(numbers), dtype=numbers.dtype, device=numbers.device)
        made = made.reshape(numbers.shape)  # which a list does not say where there are no numbers
        self._note(made, numbers)
        return made


@contextmanager
def _outside() -> Iterator[None]:
    """Outside of the trace, where tensors have numbers."""
    with alone(), temporarily_clear_interpreter_stack():
        yield


def _as_lists(numbers: Tensor) -> Any:
    with _outside():
        return numbers.tolist()


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor)]


def _is_small(x: Tensor) -> bool:
    sizes = all(type(size) is int for size in x.shape)
    return sizes and x.layout is torch.strided and not x.requires_grad and x.numel() <= MOST


def _is_all(part: Any) -> bool:
    return isinstance(part, slice) and part == slice(None)


def _asks(name: str, args: Any, kwargs: Any) -> bool:
    """Whether what comes out, or its size, depends on numbers."""
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "__getitem__":
        parts: tuple[Any, ...] = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(p, Tensor) and p.dtype == torch.bool for p in parts)
    return name in _ASKS


_OF_ROWS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_NO_PLACE = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ASKS = {
    "__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "equal",
    "allclose", "is_nonzero", "nonzero", "argwhere", "unique", "unique_consecutive", "bincount",
    "masked_select", "combinations", "repeat_interleave",
}  # fmt: skip
_MAKES = {
    "tensor", "as_tensor", "scalar_tensor", "arange", "linspace", "logspace", "eye", "zeros",
    "ones", "full", "new_tensor", "new_zeros", "new_ones", "new_full", "hann_window",
    "hamming_window", "tril_indices", "triu_indices", "fftfreq", "rfftfreq",
}  # fmt: skip
# What has no numbers yet, and what draws some.
_UNSURE = {
    "empty_like", "new_empty", "rand_like", "randn_like", "randint_like", "normal_", "uniform_",
    "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_", "normal",
    "bernoulli", "multinomial", "poisson", "dropout", "dropout_", "set_", "resize_",
}  # fmt: skip
