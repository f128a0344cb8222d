"""A process that is forked off while another thread compiles."""

import os
import signal
import threading
import warnings
from typing import Any

import torch

import flexrnn
from flexrnn import cells


def test_a_fork_while_another_thread_compiles_does_not_wait_for_it() -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Waiting(cells.RNNCell):
        def step(self, x: torch.Tensor, state: Any) -> Any:
            begun.set()
            assert may_end.wait(30)
            return super().step(x, state)

    def compiles(cell: type[flexrnn.Cell]) -> None:
        flexrnn.FlexRNN(cell, 3, 5, backend="interpreter")(torch.zeros(4, 2, 3))

    thread = threading.Thread(target=compiles, args=(Waiting,))
    thread.start()
    assert begun.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread
        child = os.fork()
    if child == 0:
        signal.alarm(30)  # instead of waiting for a thread that is not there
        try:
            compiles(cells.GRUCell)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    may_end.set()
    thread.join()
    assert status == 0
