"""The open table of cells that `flexrnn compare` sets side by side: a cell joins by one line."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM, from_torch, to_torch
from flexrnn.lab.errors import UsageError
from flexrnn.lab.gates import Recording
from flexrnn.lab.gates import of_custom_lstm as recorded

BASELINE = "torch"


@dataclass(frozen=True)
class Entry:
    """One competitor.

    Args:
        key: what `--cells` calls it.
        label: what tables and pictures call it.
        colour: of its curves and bars, a CSS colour.
        build: `(input_size, hidden_size)` -> a module with `forward(x, state=None)`, x `(B, T, I)`,
            which returns the output `(B, T, H)` and a state to be handed back as it is.
        carry: build the competitor from an `nn.LSTM`, as the same function; `None` where no
            weights make it that.
        back: an `nn.LSTM` with this competitor's weights; the inverse of `carry`.
        why_not: where `carry` is `None`, the reason, a sentence for the report.
        record: the gates over one sequence, for the heat maps; `None` draws none.
    """

    key: str
    label: str
    colour: str
    build: Callable[[int, int], nn.Module]
    carry: Callable[[nn.LSTM], nn.Module] | None = None
    back: Callable[[Any], nn.LSTM] | None = None
    why_not: str = ""
    record: Callable[[Any, Tensor], Recording] | None = None


def torch_lstm(input_size: int, hidden_size: int) -> nn.LSTM:
    """`nn.LSTM` as the table wants it, `(batch, time, feature)`.

    Example:
        >>> from flexrnn.lab.table import torch_lstm
        >>> torch_lstm(3, 5)
        LSTM(3, 5, batch_first=True)
    """
    return nn.LSTM(input_size, hidden_size, batch_first=True)


def peephole(input_size: int, hidden_size: int) -> CustomLSTM:
    """The article's peephole LSTM."""
    return CustomLSTM(input_size, hidden_size, peephole=True)


def naive_from_torch(lstm: nn.LSTM) -> NaiveCustomLSTM:
    """A `NaiveCustomLSTM` that computes the function of `lstm`."""
    return from_torch(lstm, NaiveCustomLSTM)


OTHER = "another function by design: the gates read the cell state c instead of the output h"

# The order here is the order everywhere. The baseline is what all others are compared with.
TABLE: list[Entry] = [
    Entry("naive", "Naive", "#d1495b", NaiveCustomLSTM, naive_from_torch, to_torch),
    Entry("vectorized", "Vectorised", "#e08e1b", CustomLSTM, from_torch, to_torch, "", recorded),
    Entry("peephole", "Peephole", "#2a8f7b", peephole, None, None, OTHER, recorded),
    Entry(BASELINE, "torch.nn.LSTM", "#3b5b92", torch_lstm, lambda lstm: lstm, lambda lstm: lstm),
]  # fmt: skip


def choose(names: Iterable[str] = ()) -> list[Entry]:
    """The entries of these names in the table's order, all where none is named.

    The baseline is always among them: without it there is nothing to compare with.

    Args:
        names: keys of the table; one string may hold several, separated by commas.

    Raises:
        UsageError: a name is not in the table.

    Example:
        >>> from flexrnn.lab.table import choose
        >>> [entry.key for entry in choose(["vectorized"])]
        ['vectorized', 'torch']
    """
    known = [entry.key for entry in TABLE]
    wanted = split_names(names, known, "--cells") or known
    return [entry for entry in TABLE if entry.key in wanted or entry.key == BASELINE]


def split_names(names: Iterable[str], known: list[str], option: str) -> list[str]:
    """Cut comma-separated names apart and refuse those that are not known.

    Raises:
        UsageError: a name is unknown, or names were asked for and none came.

    Example:
        >>> from flexrnn.lab.table import split_names
        >>> split_names(["a,b", "c"], ["a", "b", "c", "d"], "--letters")
        ['a', 'b', 'c']
    """
    names = list(names)
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or (names and not wanted):
        got = ", ".join(repr(name) for name in unknown) or "nothing"
        raise UsageError(f"{option}: expected names among {', '.join(known)}, got {got}")
    return wanted
