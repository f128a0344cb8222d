"""What happens when an engine cannot run a step: an error, or the reference and one warning."""

import inspect
import warnings

from flexrnn.engine.compiler.refusal import is_users

_warned: set[str] = set()


class FallbackWarning(UserWarning):
    """A layer runs by the reference, an eager loop, because no faster engine can run its step.

    Given once for each cause. The message names the operation and the line of the step, or what is
    missing on the machine. To have an error instead, name the engine: `backend="..."`; to accept
    the reference without a word, `backend="reference"`.
    """


def warn(cause: str) -> None:
    """Warn of a cause, the first time that it comes up."""
    if cause not in _warned:
        _warned.add(cause)
        level, frame = 1, inspect.currentframe()
        while frame is not None and not is_users(frame):
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"{cause}. The reference, an eager loop, runs it instead, and is slow. Change what is "
            'named here, or accept it: backend="reference". flexrnn.explain(layer, x) says more',
            FallbackWarning,
            stacklevel=level,
        )
