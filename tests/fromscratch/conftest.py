"""The three layers, and one thread for all of this folder."""

from collections.abc import Callable, Iterator

import pytest
import torch

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

LAYERS: dict[str, Callable[[int, int], NaiveCustomLSTM | CustomLSTM]] = {
    "naive": NaiveCustomLSTM,
    "vectorised": CustomLSTM,
    "peephole": lambda input_sz, hidden_sz: CustomLSTM(input_sz, hidden_sz, peephole=True),
}


@pytest.fixture(scope="module", params=LAYERS)
def make(request: pytest.FixtureRequest) -> Callable[[int, int], NaiveCustomLSTM | CustomLSTM]:
    """Each of the three layers in turn, as a function of input_sz and hidden_sz."""
    return LAYERS[request.param]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """At these sizes several threads only wait for one another, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
