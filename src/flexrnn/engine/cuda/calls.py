"""What a tier is told of a call."""

from typing import Any, NamedTuple

ROWS = 16  # of a program's tile; the fewest that a product has


class Call(NamedTuple):
    """A call of a loop."""

    steps: int
    batch: int
    reverse: bool
    precision: str  # of products of float32: `ieee`, or `tf32`
    itemsize: int  # bytes of a weight's number
    processors: int  # of the device

    @property
    def rows(self) -> int:
        """Tiles of rows."""
        return -(-self.batch // ROWS)

    @property
    def fixed(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        return {"REVERSE": self.reverse, "M": ROWS, "PRECISION": self.precision}
