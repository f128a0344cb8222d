# pyright: reportPrivateUsage=false
# How many hold a storage has no public name.
"""Memory that is used again: getting fresh pages from the system takes as long as filling them.

A block is handed out again only when nobody holds a tensor of it any more, so that what somebody
keeps (a graph that is retained, two that are alive) is never written to.
"""

import ctypes
import mmap
import os
import sys
import threading

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from flexrnn.engine.replay import is_watched

LIMIT = 256 << 20  # bytes that are kept for later in all; a larger block is not kept at all
_MOST = 64  # blocks, through which every call looks
_LEAST = 1024  # numbers of a block
_HUGE = 2 << 20  # bytes of a huge page; x86's, and the usual one of others
_LARGE = 8 * _HUGE  # bytes of a block from which on it lies in such, for few of them are in vain


class _About:
    """What is asked of a block at every call."""

    def __init__(self, block: Tensor):
        self.numbers, self.dtype = block.shape[0], block.dtype
        self.storage = block.untyped_storage()
        self.bytes = block.nbytes
        self.idle = self.holders()  # while it is free

    def is_free(self) -> bool:
        """Whether nobody holds the block, and nobody has given its memory back."""
        return self.holders() == self.idle and self.storage.nbytes() >= self.bytes

    def holders(self) -> tuple[int, int]:
        """How many tensors hold the block's storage, and how many in Python."""
        return torch._C._storage_Use_Count(self.storage._cdata), sys.getrefcount(self.storage)


class Pool:
    """Blocks of memory, each lent to one at a time."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._lock = threading.Lock()
        self._blocks: list[tuple[Tensor, _About]] = []

    def take(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """Memory for so many numbers, one-dimensional; nobody else has it while it lives."""
        if is_watched():
            return handle_torch_function(self.take, (), numbers, dtype)
        numbers = max(_LEAST, numbers)
        with self._lock:
            for k, (block, about) in enumerate(self._blocks):
                fits = numbers <= about.numbers <= 2 * numbers and about.dtype == dtype
                if fits and about.is_free():
                    self._blocks.append(self._blocks.pop(k))  # the last ones are the last to go
                    return _unwritten(block[:numbers])
            with torch.inference_mode(False):  # else autograd could never save it
                # Somewhat more, for the next may want more.
                block = torch.empty(numbers + numbers // 8, dtype=dtype, device="cpu")
            _in_huge_pages(block)
            if block.nbytes > self.limit:
                return block[:numbers]
            self._blocks.append((block, _About(block)))
            total = sum(block.nbytes for block, _ in self._blocks)
            while total > self.limit or len(self._blocks) > _MOST:
                total -= self._blocks.pop(0)[0].nbytes
            return block[:numbers]

    def clear(self) -> None:
        """Give back everything that is free."""
        with self._lock:
            self._blocks = []

    def reset(self) -> None:
        """Begin anew in a process that was forked off while another thread was taking memory."""
        self._lock = threading.Lock()


def _in_huge_pages(block: Tensor) -> None:
    """Ask the system for huge pages, where it gives them to who asks, as NumPy does.

    A page comes when it is first written to: 512 small ones take six times as long as a huge one.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only
    if advice is None or block.nbytes < _LARGE:
        return
    first = -(-block.data_ptr() // _HUGE) * _HUGE
    last = (block.data_ptr() + block.nbytes) // _HUGE * _HUGE
    # Whatever it answers, the memory is there.
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice)
    )


def _unwritten(block: Tensor) -> Tensor:
    """As `torch.empty` gives it."""
    fills = getattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    if fills and torch.are_deterministic_algorithms_enabled():
        block.fill_(float("nan"))
    return block


POOL = Pool()
os.register_at_fork(after_in_child=POOL.reset)
