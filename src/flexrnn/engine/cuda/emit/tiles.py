"""Sizes of tiles: how many units, rows and inner columns a program of a kernel works on at once."""

from typing import NamedTuple

LEAST = 16  # of each side of a product
WIDTHS = (16, 32, 64, 128)  # units of a tile, at most; narrow ones keep more processors busy
_MANY = 32  # values of a stage, for which the registers hold half as many units
_SUMS = 256  # columns of all sums of products together, in the registers of a program
_INNER = 32  # columns of the left operand at a time; of half types twice as many


class Tile(NamedTuple):
    """The sizes of a stage's tiles."""

    units: int
    step: int

    def count(self, units: int) -> int:
        """Tiles of a head."""
        return -(-units // self.units)

    def inner(self, columns: int) -> int:
        """Columns of a left operand that are read at once."""
        return min(self.step, max(LEAST, power_above(columns)))


def power_above(number: int) -> int:
    """The least power of two that is not below."""
    return 1 << max(0, number - 1).bit_length()


def tile_of(units: int, sums: int, values: int, *, half: bool, widest: int) -> Tile:
    """The sizes for a stage.

    Args:
        units: of its domain.
        sums: of products that a unit has in registers at once.
        values: that are computed of a unit.
        half: operands of products are of 16 bits.
        widest: no tile has more units.
    """
    most = min(widest, WIDTHS[-1] if values <= _MANY else WIDTHS[-1] // 2)
    width = min(most, power_above(units))
    if sums:
        width = max(LEAST, min(width, _SUMS // power_above(sums)))
    # A narrow tile leaves registers for more columns.
    step = _INNER * (2 if half else 1) * (2 if width == LEAST else 1)
    return Tile(width, step)
