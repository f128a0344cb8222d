"""Whether a step draws random numbers that torch knows nothing of."""

import random
import sys
from typing import Any


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
