# pyright: reportPrivateUsage=false
# What is kept between calls has no public names.
"""Loops that are compiled in a third of the time, for tests of what steps and calls mean: many.

With the options of users, loops are compiled and judged in `tests/engine/cpu`.
"""

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from flexrnn.engine.cpu import engine, kernel, outer, plan
from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.toolchain import Toolchain

OPTIONS = tuple(option for option in compiler.OPTIONS if option != "-O2")
_LIBRARY = Toolchain().library
_PLANS: Any = WeakKeyDictionary()
_OUTER = cache(outer._run.__wrapped__)


def compile_quickly(patch: pytest.MonkeyPatch) -> None:
    """For one test nothing is optimised; tests of users' loops see nothing of its loops."""
    patch.setattr(compiler, "OPTIONS", OPTIONS)
    for module in (kernel, outer, engine):
        patch.setattr(module, "library", _LIBRARY)
    patch.setattr(plan, "_known", _PLANS)
    patch.setattr(outer, "_run", _OUTER)
