# pyright: reportPrivateUsage=false
# How many hold a storage has no public name.
"""Memory that is used again: getting fresh pages from the system takes as long as filling them.

A block is handed out again only when nobody holds a tensor of it any more, so that what somebody
keeps (a graph that is retained, two that are alive) is never written to.
"""

import os
import sys
import threading

import torch
from torch import Tensor

LIMIT = 256 << 20  # bytes that are kept for later in all; a larger block is not kept at all
_MOST = 64  # blocks, through which every call looks
_LEAST = 1024  # numbers of a block


class Pool:
    """Blocks of memory, each lent to one at a time."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._lock = threading.Lock()
        # Each with who holds it while it is free.
        self._blocks: list[tuple[Tensor, tuple[int, int]]] = []

    def take(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """Memory for so many numbers, one-dimensional; nobody else has it while it lives."""
        numbers = max(_LEAST, numbers)
        with self._lock:
            for k, (block, idle) in enumerate(self._blocks):
                fits = block.dtype == dtype and numbers <= block.shape[0] <= 2 * numbers
                if fits and _holders(block) == idle:
                    self._blocks.append(self._blocks.pop(k))  # the last ones are the last to go
                    return _unwritten(block[:])
            with torch.inference_mode(False):  # else autograd could never save it
                # Somewhat more, for the next may want more.
                block = torch.empty(numbers + numbers // 8, dtype=dtype, device="cpu")
            if block.nbytes > self.limit:
                return block
            self._blocks.append((block, _holders(block)))
            total = sum(block.nbytes for block, _ in self._blocks)
            while total > self.limit or len(self._blocks) > _MOST:
                total -= self._blocks.pop(0)[0].nbytes
            return block[:]

    def clear(self) -> None:
        """Give back everything that is free."""
        with self._lock:
            self._blocks = []

    def reset(self) -> None:
        """Begin anew in a process that was forked off while another thread was taking memory."""
        self._lock = threading.Lock()


def _holders(block: Tensor) -> tuple[int, int]:
    """How many tensors hold a block, and how many in Python hold its storage."""
    storage = block.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _unwritten(block: Tensor) -> Tensor:
    """As `torch.empty` gives it."""
    fills = getattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    if fills and torch.are_deterministic_algorithms_enabled():
        block.fill_(float("nan"))
    return block


POOL = Pool()
os.register_at_fork(after_in_child=POOL.reset)
