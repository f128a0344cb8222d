"""Makes pytest run the Python blocks of README.md and of the pages in docs/, in order, per page."""

import gc
import importlib
import os
import warnings
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

if not torch.cuda.is_available():  # before anything imports Triton, which looks at it then
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Collections pass over what libraries and tests have made before the first one runs.

    And they come less often, for a trace makes many objects that are soon gone.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_sessionfinish() -> None:
    """At its end a library looks for objects that nobody has collected."""
    gc.unfreeze()


def one_thread(namespace: dict[str, Any]) -> None:
    """The pages compute little; several threads would wait for one another on a busy machine."""
    namespace["threads before"] = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # Forward mode loads this at its first use, which warns that torch uses torch.jit.script.
        warnings.filterwarnings("ignore", ".*torch.jit.script")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def threads_as_before(namespace: dict[str, Any]) -> None:
    """Leave the other tests what they had."""
    torch.set_num_threads(namespace["threads before"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    setup=one_thread,
    teardown=threads_as_before,
).pytest()
