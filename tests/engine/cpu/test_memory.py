# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""What lies in memory otherwise than a loop reads it, and memory that is used again."""

import gc
import mmap
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.engine.compiler import passes
from flexrnn.engine.cpu import plan
from flexrnn.engine.cpu import pool as pool_module
from flexrnn.engine.cpu.pool import Pool
from flexrnn.engine.tables import trim


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def by_both(call: Callable[[], Any]) -> None:
    """The cpu engine gives what the reference gives."""
    found = []
    for engine in ("cpu", "reference"):
        torch.manual_seed(0)
        with flexrnn.backend(engine):
            found.append(call())
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)


SMAPS = Path("/proc/self/smaps")


def huge(tensor: Tensor) -> bool:
    """Whether huge pages have been asked for the middle of a tensor."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SMAPS.read_text(encoding="ascii").splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(each, 16) for each in found.groups())
            inside = first <= middle < last
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor lies nowhere")


@pytest.mark.skipif(not SMAPS.exists(), reason="the system says nothing of pages")
def test_large_blocks_lie_in_huge_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("the system has none")
    pool, large = Pool(), pool_module._LARGE // 4
    assert huge(pool.take(2 * large, torch.float32))
    assert not huge(pool.take(large // 8, torch.float32))


def test_blocks_are_there_where_nobody_asks_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    pool_module.Pool().take(pool_module._LARGE, torch.float32).fill_(1)


def test_a_block_is_lent_to_one_at_a_time() -> None:
    pool = Pool()
    first = pool.take(5000, torch.float32)
    place = first.data_ptr()
    assert pool.take(5000, torch.float32).data_ptr() != place
    view = first[7:9]
    del first
    assert pool.take(5000, torch.float32).data_ptr() != place
    storage = view.untyped_storage()  # as those who move saved tensors elsewhere hold it
    del view
    assert pool.take(5000, torch.float32).data_ptr() != place
    del storage
    assert pool.take(5000, torch.float32).data_ptr() == place


def test_a_block_whose_memory_somebody_gave_back_is_not_lent() -> None:
    pool = Pool()
    pool.take(5000, torch.float32).untyped_storage().resize_(0)  # as those who offload do
    block = pool.take(5000, torch.float32)
    assert block.untyped_storage().nbytes() >= block.nbytes > 0


def test_a_block_is_neither_of_another_dtype_nor_far_too_large() -> None:
    pool = Pool()
    place = pool.take(5000, torch.float32).data_ptr()
    assert pool.take(5000, torch.float64).data_ptr() != place
    assert pool.take(2000, torch.float32).data_ptr() != place
    assert pool.take(4000, torch.float32).data_ptr() == place


def test_a_block_for_a_while_may_be_far_too_large() -> None:
    pool = Pool()
    place = pool.take(5000, torch.float32, brief=True).data_ptr()
    assert pool.take(1200, torch.float32, brief=True).data_ptr() == place
    assert pool.take(5000, torch.float32).data_ptr() != place  # which is somebody's for long


def test_the_smallest_block_that_will_do_is_lent() -> None:
    pool = Pool()
    held = [pool.take(numbers, torch.float32, brief=True) for numbers in (9000, 4000, 20_000)]
    place = held[1].data_ptr()
    held.clear()
    assert pool.take(3000, torch.float32, brief=True).data_ptr() == place


@pytest.mark.parametrize("brief", [False, True])
def test_a_larger_block_takes_the_place_of_one_that_it_can_serve_for(brief: bool) -> None:
    pool = Pool()
    held = pool.take(4000, torch.float32, brief=brief)
    for numbers in (5000, 6000, 7000):
        pool.take(numbers, torch.float32, brief=brief)
    sizes = sorted(about.numbers for _, about in pool._blocks)
    assert len(sizes) == 2  # that which is held, and one for all others
    assert sizes[-1] >= 7000
    del held
    pool.take(100_000, torch.float32, brief=brief)  # of no use to who wants so few
    assert len(pool._blocks) == 3


def test_gradients_lie_in_memory_of_their_own() -> None:
    layer = flexrnn.GRU(4, 6, backend="cpu")
    layer(torch.randn(10, 3, 4))[0].sum().backward()
    memories = {
        p.grad.untyped_storage().data_ptr() for p in layer.parameters() if p.grad is not None
    }
    assert len(memories) == 4


def test_a_block_that_will_not_be_kept_takes_nobodys_place() -> None:
    pool = Pool(limit=100_000)
    place = pool.take(20_000, torch.float32).data_ptr()
    pool.take(30_000, torch.float32)
    assert pool.take(20_000, torch.float32).data_ptr() == place


def test_memory_is_given_back_before_more_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, empty = Pool(), torch.empty
    pool.take(4000, torch.float32)
    gone = weakref.ref(pool._blocks[0][1])

    def watched(*args: Any, **options: Any) -> Tensor:
        assert gone() is None
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", watched)
    pool.take(7000, torch.float32)
    assert gone() is None


def test_calls_that_take_turns_soon_find_all_their_blocks() -> None:
    pool, sizes = Pool(), (1100, 5000, 2100, 16_000, 3000, 9000, 1500)

    def step() -> set[int]:
        blocks = [
            pool.take(numbers, torch.float32, brief=True)[:0] if k % 2 else None
            for k, numbers in enumerate(sizes)
        ]
        for numbers in sizes:
            blocks.append(pool.take(numbers, torch.float32))
            pool.take(numbers, torch.float32, brief=True)
        return {about.storage.data_ptr() for _, about in pool._blocks}

    found = [step() for _ in range(5)]
    assert found[-1] == found[-2]


@pytest.mark.parametrize("cell", ["LSTM", "NaiveLSTM", "LayerNormLSTM"])
def test_a_training_step_there_and_back_lies_in_the_same_memory(cell: str) -> None:
    """The loops' own; what is saved in between; what large products lay out."""
    layer, x = getattr(flexrnn, cell)(64, 128, backend="cpu"), torch.randn(100, 1, 64)
    x.requires_grad_()
    pool_module.POOL.clear()
    for _ in range(3):
        layer(x)[0].sum().backward()
    lent = [about.brief for _, about in pool_module.POOL._blocks if about.dtype is torch.float32]
    assert lent.count(False) == 1
    assert lent.count(True) <= 2


def test_the_pool_keeps_to_its_limit() -> None:
    pool = Pool(limit=100_000)
    held = [pool.take(4000, torch.float32) for _ in range(20)]
    assert len({block.data_ptr() for block in held}) == 20
    assert sum(block.nbytes for block, _ in pool._blocks) <= 100_000
    assert pool.take(1 << 20, torch.float32).shape[0] >= 1 << 20  # larger than all that is kept
    pool.clear()
    assert not pool._blocks


def test_a_block_made_in_inference_mode_can_be_saved_later() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(17, 2, 3)
    with flexrnn.backend("cpu"):
        with torch.inference_mode():
            layer(x)
        layer(x)[0].sum().backward()


def test_another_default_device_is_not_the_loops() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4000, 2, 3)
    expected = layer(x)[0].detach()
    with torch.device("meta"):
        output = layer(x)[0]
        output.sum().backward()
    assert_close(output.detach(), expected)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "LayerNormLSTM"])
def test_an_empty_batch_learns_nothing(cell: str) -> None:
    layer = getattr(flexrnn, cell)(3, 5, dtype=torch.float64)
    x = randn(6, 0, 3).requires_grad_()
    by_both(lambda: torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()]))


def test_truth_values_that_torch_computes_or_that_lie_crosswise() -> None:
    mask = (randn(6) > 0)[::2]
    x, h = randn(20, 4, 3), randn(4, 3)
    by_both(lambda: flexrnn.scan(
        lambda x, s, m: torch.where(m, torch.tanh(s + x), s * 0.5), h, x, (mask,)))  # fmt: skip
    a, b = (randn(1, n) > 0 for n in (1, 2))
    by_both(lambda: flexrnn.scan(
        lambda x, s, a, b: torch.where(torch.cat([a, b], -1), torch.tanh(s + x), s * 0.5),
        h, x, (a, b)))  # fmt: skip


@pytest.mark.parametrize("steps", [1, 20])
def test_a_state_of_truth_values_that_torch_reads_behind_the_loop(steps: int) -> None:
    def step(x: Any, s: Any, w: Any) -> Any:
        h, m = s
        return torch.tanh(h + torch.where(m, x, x * x).cumsum(-1) @ w), m ^ (x > 0)

    x, w = randn(steps, 4, 3).requires_grad_(), randn(3, 3).requires_grad_()
    state = randn(4, 3), randn(4, 3) > 0

    def gradients() -> Any:
        (h, _), _ = flexrnn.scan(step, state, x, (w,))
        return torch.autograd.grad(h.sum(), [x, w])

    by_both(gradients)


def imaginary(*shape: int) -> Tensor:
    """Numbers whose memory holds their negatives."""
    tensor = torch.randn(shape, dtype=torch.complex128).conj().imag
    assert tensor.is_neg()
    return tensor


def test_memory_that_holds_negatives_or_nothing() -> None:
    def step(x: Any, s: Any, w: Any) -> Any:
        return torch.tanh(x + s @ w)

    x, h, w = imaginary(12, 2, 3), imaginary(2, 3), imaginary(3, 3)
    by_both(lambda: flexrnn.scan(step, h, x, (w,)))
    layer, x = flexrnn.RNN(3, 4, dtype=torch.float64), randn(12, 2, 3).requires_grad_()
    weight = imaginary(12, 2, 4)
    by_both(lambda: torch.autograd.grad(layer(x)[0], x, weight))
    zeros = torch._efficientzerotensor((12, 2, 4), dtype=torch.float64)
    by_both(lambda: torch.autograd.grad(layer(x)[0], x, zeros))


def test_a_state_that_never_changes_is_returned_as_a_copy() -> None:
    state = randn(2, 3)
    with flexrnn.backend("cpu"):
        states, final = flexrnn.scan(lambda x, s: (s[0], s[1] + x), (state, randn(2, 3)),
                                     randn(1, 2, 3))  # fmt: skip
    before = state.clone()
    states[0].mul_(5)
    final[0].mul_(5)
    assert torch.equal(state, before)


def test_tensors_without_numbers_are_the_references() -> None:
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="a number in a row"):
        flexrnn.scan(lambda x, s: s + x, randn(2, 0), randn(3, 2, 0))


class Idle(flexrnn.GRUCell):
    """Holds a parameter without numbers, which no step reads."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.idle = torch.nn.Parameter(torch.empty(0, dtype=self.weight_hh.dtype))


def test_a_parameter_without_numbers_that_no_step_reads() -> None:
    layer = flexrnn.FlexRNN(Idle, 2, 3)
    with flexrnn.backend("cpu"):
        output, _ = layer(torch.randn(4, 2, 2))
    output.sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert gradients["weight_hh_l0"] is not None
    assert gradients["idle_l0"] is None or gradients["idle_l0"].numel() == 0


def test_a_program_that_nobody_holds_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_programs", {})
    gc.collect()
    before = len(plan._known)
    with flexrnn.backend("cpu"):
        flexrnn.RNN(3, 7, dtype=torch.float64)(randn(12, 2, 3))
    assert len(plan._known) == before + 1
    passes._programs.clear()
    gc.collect()
    assert len(plan._known) == before


def test_a_table_that_several_threads_trim() -> None:
    table: dict[int, int] = {}

    def fill(first: int) -> None:
        for k in range(3000):
            table[first + k] = k
            trim(table, 8)

    threads = [threading.Thread(target=fill, args=(k * 10_000,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trim(table, 8)
    assert len(table) <= 8
