"""Spellings of what no program says: refused here, before torch asks something for its own ends."""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import TAKEN, refused
from flexrnn.engine.compiler.spelt.rows import has_rows


def _convolution(original: Any) -> Any:
    """Torch's asks for the batch size in some dtypes."""

    def spelt(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if any(isinstance(x, Tensor) and has_rows(x) for x in given):
            raise refused(original.__name__, "a program has no convolutions")
        return original(*args, **kwargs)

    return spelt


def _numpy(*args: Any, **kwargs: Any) -> Any:
    raise refused("numpy", TAKEN)


SPELT: dict[Any, Any] = {
    original: _convolution(original)
    for original in (
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_tbc, torch.convolution),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    )
} | {Tensor.numpy: _numpy, Tensor.__array__: _numpy}
