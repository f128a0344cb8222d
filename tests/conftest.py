"""For every test: a seed, and NaN in memory that nobody wrote, so that reading it is noticed."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # switches torch's fill_uninitialized_memory on
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
