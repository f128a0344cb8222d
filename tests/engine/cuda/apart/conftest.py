"""Tests that want a process of their own; `test_apart.py` starts it."""

import os

if "FLEXRNN_TESTS_APART" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
