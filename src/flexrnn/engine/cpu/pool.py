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
_FOR_LONG, _BRIEFLY = 2, 8  # times as many numbers as are wanted, that a block may have
_HUGE = 2 << 20  # bytes of a huge page; x86's, and the usual one of others
_LARGE = 8 * _HUGE  # bytes of a block from which on it lies in such, for few of them are in vain


class _About:
    """What is asked of a block at every call."""

    def __init__(self, block: Tensor, brief: bool):
        self.numbers, self.dtype, self.brief = block.shape[0], block.dtype, brief
        self.times = _BRIEFLY if brief else _FOR_LONG
        self.least = -(-self.numbers // self.times)  # who wants fewer gets another
        self.storage = block.untyped_storage()
        self.bytes = block.nbytes
        self.idle = self.holders()  # while it is free

    def makes_way(self, numbers: int, dtype: torch.dtype, brief: bool) -> bool:
        """Whether it is free, and a larger one of so many numbers will do in its place."""
        is_larger = self.numbers < numbers <= self.times * self.numbers
        return is_larger and self.dtype is dtype and self.brief is brief and self.is_free()

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

    def take(self, numbers: int, dtype: torch.dtype, *, brief: bool = False) -> Tensor:
        """Memory for so many numbers, one-dimensional; nobody else has it while it lives.

        Args:
            numbers: how many.
            dtype: theirs.
            brief: it is given back before long, so that it may lie in a far larger block, which
                will be free again when somebody wants all of it.
        """
        if is_watched():
            return handle_torch_function(self.take, (), numbers, dtype, brief=brief)
        numbers = max(_LEAST, numbers)
        with self._lock:
            place = self._free(numbers, dtype, brief)
            if place is not None:
                self._blocks.append(self._blocks.pop(place))  # the last ones are the last to go
                return _unwritten(self._blocks[-1][0][:numbers])
            whole = numbers + numbers // 8  # somewhat more, for the next may want more
            is_kept = whole * dtype.itemsize <= self.limit
            if is_kept:
                self._make_way(numbers, dtype, brief)
            with torch.inference_mode(False):  # else autograd could never save it
                block = torch.empty(whole, dtype=dtype, device="cpu")
            _in_huge_pages(block)
            if not is_kept:
                return block[:numbers]
            self._blocks.append((block, _About(block, brief)))
            total = sum(block.nbytes for block, _ in self._blocks)
            while total > self.limit or len(self._blocks) > _MOST:
                total -= self._blocks.pop(0)[0].nbytes
            return block[:numbers]

    def _free(self, numbers: int, dtype: torch.dtype, brief: bool) -> int | None:
        """Where the smallest free block is that will do."""
        free = [
            (about.numbers, k)
            for k, (_, about) in enumerate(self._blocks)
            # Asked often, it calls nothing for those that will not do.
            if about.least <= numbers <= about.numbers
            and about.dtype is dtype
            and about.brief is brief
            and about.is_free()
        ]
        return min(free)[1] if free else None

    def _make_way(self, numbers: int, dtype: torch.dtype, brief: bool) -> None:
        """Give back a block for a larger one about to come; behind this nothing holds it."""
        for k, (_, about) in enumerate(self._blocks):
            if about.makes_way(numbers, dtype, brief):
                del self._blocks[k]
                return

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
