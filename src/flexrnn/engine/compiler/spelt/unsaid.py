"""Spellings of what no program says: refused here, before torch asks something for its own ends."""

from typing import Any

from torch import Tensor

from flexrnn.engine.compiler.refusal import TAKEN, refused


def _numpy(*args: Any, **kwargs: Any) -> Any:
    raise refused("numpy", TAKEN)


SPELT: dict[Any, Any] = {Tensor.numpy: _numpy, Tensor.__array__: _numpy}
