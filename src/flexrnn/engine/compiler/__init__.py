"""The compiler: from the body of a loop to a program, one idea a file.

    trace -> merge -> split -> autodiff -> schedule

`trace` makes a graph (`graph.py`) of a step; the next three turn it into another; `schedule` says
when each node is computed. `passes.py` runs them in this order, `program.py` holds what comes out.
"""
