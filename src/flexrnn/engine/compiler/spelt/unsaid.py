"""Spellings of what no program says: refused here, before torch asks something for its own ends.

Some would read memory where a trace has none, and the process end there.
"""

from typing import Any

from torch import Tensor

from flexrnn.engine.compiler.refusal import TAKEN, refused


def _numpy(*args: Any, **kwargs: Any) -> Any:
    raise refused("numpy", TAKEN)


def _tolist(x: Tensor) -> Any:
    """Of what no number is in, torch need not read any."""
    if any(type(size) is int and not size for size in x.shape):
        return x.tolist()
    raise refused("tolist", TAKEN)


def _by_python(name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise refused(name, "it calls a function of Python's for each number")

    return call


SPELT: dict[Any, Any] = {
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    **{getattr(Tensor, name): _by_python(name) for name in ("apply_", "map_", "map2_")},
}
