"""What stands for the names of gates in a class of cells that names none."""


class NoGates(tuple[str, ...]):
    """No names of gates. A cell has no such attribute, and may call a submodule or parameter so."""

    def __get__(self, cell: object, owner: type) -> "NoGates":
        if cell is not None:
            raise AttributeError(f"{owner.__name__!r} object has no attribute 'gates'")
        return self
