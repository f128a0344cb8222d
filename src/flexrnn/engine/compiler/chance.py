"""Whether a step draws random numbers that torch knows nothing of."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Chance:
    """The state of Python's generator and of NumPy's, where somebody has imported that."""

    def __init__(self) -> None:
        self._numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
        self._before = self._states()

    def _states(self) -> tuple[Any, ...]:
        if self._numpy is None:
            return (random.getstate(),)
        name, keys, *rest = self._numpy.get_state()
        return random.getstate(), name, keys.tobytes(), *rest

    def drawn(self) -> bool:
        """Whether anything was drawn since; the generators are put back, as if nothing was."""
        if self._states() == self._before:
            return False
        random.setstate(self._before[0])
        if self._numpy is not None:
            name, keys, *rest = self._before[1:]
            self._numpy.set_state((name, memoryview(keys).cast("I"), *rest))
        return True


@contextmanager
def generators_as_before(device: torch.device) -> Iterator[None]:
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
