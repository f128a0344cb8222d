"""Libraries of their own for these tests, and every set of instructions that this machine has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flexrnn.engine.cpu.isa import runnable


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_CACHE_DIR", str(folder))
        yield folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", runnable(), ids=lambda isa: isa.name, scope="module")
