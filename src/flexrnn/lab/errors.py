"""The one error that a person at the terminal is meant to read."""


class UsageError(Exception):
    """Wrong input from outside: said in one line, without a traceback, with exit code 2."""
