"""From generated source to kernels that Triton compiles when they are first launched."""

import hashlib
import linecache
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.cuda.calls import ROWS, Call
from flexrnn.engine.step import CannotRunError

_OLDEST = 7  # compute capability of devices that Triton compiles for

# How kernels are compiled. A sequence has a processor to itself: more warps have more registers. A
# whole loop holds sums and weights in them, and a pipeline would only copy weights; tiles read
# theirs in order.
_EXACT = {"enable_fp_fusion": True}  # a sum of products is rounded once
WHOLE = {"num_warps": 8, "num_stages": 1, **_EXACT}
TILED = {"num_warps": 8, "num_stages": 3, **_EXACT}
_FEW = 3  # stages that leave the registers of four warps room
_STEP = {"num_warps": 4, "num_stages": 3, **_EXACT}


@lru_cache(maxsize=1)
def triton() -> ModuleType:
    """Triton, which is imported where an engine is wanted that needs it.

    Raises:
        CannotRunError: it is not installed.
    """
    try:
        import triton as found
    except ImportError as cause:
        raise CannotRunError(
            f"the cuda engine needs Triton, which torch for CUDA brings on Linux: {cause}"
        ) from None
    return found


def keeps_doubles() -> bool:
    """Whether a product of float64 may take its left operand from registers.

    Triton 3.6, which torch 2.11 brings, fails on some of them; 3.9 does not.
    """
    return _is_new()


def least_columns(operand: str) -> int:
    """Columns of a left operand that a product multiplies at least.

    Of float32 a matrix unit wants 8, but Triton 3.6 wants 16; 3.9 does not.
    """
    return 8 if operand == "tl.float32" and _is_new() else 16


def _is_new() -> bool:
    return tuple(map(int, triton().__version__.split(".")[:2])) >= (3, 9)


def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on any device (TRITON_INTERPRET=1)."""
    return bool(triton().knobs.runtime.interpret)


def check(like: Tensor) -> None:
    """Refuse a device on which no kernel runs.

    Raises:
        CannotRunError: as it says.
    """
    triton()
    if like.device.type != "cuda" and not interpreted():
        raise CannotRunError(f"the cuda engine runs on CUDA, got tensors on {like.device}")
    if like.device.type == "cuda":
        _check_driver()
    if like.device.type == "cuda" and torch.version.hip is None:
        major, _ = torch.cuda.get_device_capability(like.device)
        if major < _OLDEST:
            raise CannotRunError(f"the cuda engine needs compute capability {_OLDEST}, got {major}")


@lru_cache(maxsize=1)
def _check_driver() -> None:
    """Let Triton make what it launches kernels with, for which it wants a C compiler."""
    try:
        triton().runtime.driver.active.get_current_device()
    except RuntimeError as cause:
        raise CannotRunError(f"Triton cannot launch kernels here: {cause}") from None


def does_not_fit(error: Exception) -> bool:
    """Whether a launch was refused since a kernel wants more than the card, or what is free, has.

    Nothing of it has run. A cooperative launch is refused where the card is shared with others.
    """
    from triton.runtime.errors import OutOfResources

    return isinstance(error, OutOfResources) or "cooperative launch" in str(error)


def of_step(itemsize: int) -> Mapping[str, Any]:
    """How kernels of one step are compiled; numbers of 8 bytes want the registers of more warps."""
    return TILED if itemsize == 8 else _STEP


def resident(call: Call, stages: int) -> Mapping[str, Any]:
    """How a kernel is compiled whose programs keep their weights: nothing is left to pipeline."""
    few = call.tall == ROWS[0] and call.itemsize < 8 and stages <= _FEW
    return {"num_warps": 4 if few else 8, "num_stages": 1, **_EXACT}


def processors(device: torch.device) -> int:
    """How many programs run at the same time; of an H100 where kernels are interpreted."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def shared(device: torch.device) -> int:
    """Bytes of memory that a program has on its processor; as `processors`."""
    if device.type != "cuda":
        return 227 << 10
    found = torch.cuda.get_device_properties(device)
    return getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)


@lru_cache(maxsize=256)
def module(text: str) -> Mapping[str, Any]:
    """The names that a generated source defines.

    Triton reads the source of a function again by the name of its file, so it is put where Python
    keeps lines of files that were read.
    """
    jit = triton().jit
    from flexrnn.engine.cuda import functions, runtime

    name = f"<flexrnn {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space = {**vars(functions), **vars(runtime), "__name__": name, "jit": jit}
    exec(compile(text, name, "exec"), space)
    return space
