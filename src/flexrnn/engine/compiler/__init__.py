"""The compiler: from the body of a loop to a program, one idea a file.

    trace -> merge -> split -> autodiff -> schedule

Each of these turns a graph (`graph.py`) into a graph; `passes.py` runs them in this order, and
`program.py` holds what comes out.
"""
