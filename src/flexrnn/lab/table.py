"""The open table of cells that `flexrnn compare` sets side by side: a cell joins by one line."""

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import flexrnn
from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM, from_torch, to_torch
from flexrnn.lab.errors import UsageError
from flexrnn.lab.gates import Recording
from flexrnn.lab.gates import of_custom_lstm as recorded

BASELINE = "torch"
PARTS = ("same", "speed", "learning")


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
        unasked: the parts of a run in which it takes part where `--cells` names nobody.
        twin: the key of the entry that is written by hand what this one is compiled from.
    """

    key: str
    label: str
    colour: str
    build: Callable[[int, int], nn.Module]
    carry: Callable[[nn.LSTM], nn.Module] | None = None
    back: Callable[[Any], nn.LSTM] | None = None
    why_not: str = ""
    record: Callable[[Any, Tensor], Recording] | None = None
    unasked: tuple[str, ...] = PARTS
    twin: str = ""


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


def lstm_from_torch(lstm: nn.LSTM) -> flexrnn.LSTM:
    """A `flexrnn.LSTM` with the same weights."""
    return flexrnn.replace(copy.deepcopy(lstm))  # pyright: ignore[reportReturnType]  # another class


def lstm_to_torch(ours: flexrnn.LSTM) -> nn.LSTM:
    """The inverse of `lstm_from_torch`."""
    lstm = torch_lstm(ours.input_size, ours.hidden_size).to(next(ours.parameters()).dtype)
    lstm.load_state_dict(ours.state_dict())
    return lstm


def cell_from_torch(lstm: nn.LSTM) -> flexrnn.NaiveLSTM:
    """A `flexrnn.NaiveLSTM` that computes the function of `lstm`."""
    weights = {f"{name}_l0": value for name, value in naive_from_torch(lstm).state_dict().items()}
    ours = flexrnn.NaiveLSTM(lstm.input_size, lstm.hidden_size, batch_first=True)
    ours.to(weights["U_i_l0"].dtype).load_state_dict(weights)
    return ours


def cell_to_torch(ours: flexrnn.NaiveLSTM) -> nn.LSTM:
    """The inverse of `cell_from_torch`."""
    weights = {name.removesuffix("_l0"): value for name, value in ours.state_dict().items()}
    naive = NaiveCustomLSTM(ours.input_size, ours.hidden_size).to(weights["U_i"].dtype)
    naive.load_state_dict(weights)
    return to_torch(naive)


def of_library(key: str, name: str, colour: str, why_not: str = "", **more: Any) -> Entry:
    """The entry of `flexrnn.{name}`, which takes part only where `--cells` names it."""

    def build(input_size: int, hidden_size: int) -> nn.Module:
        return getattr(flexrnn, name)(input_size, hidden_size, batch_first=True)

    label = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # may break over lines
    more = {"label": label, "unasked": (), **more}
    return Entry(key=key, colour=colour, build=build, why_not=why_not, **more)


READS_C = "another function by design: the gates read the cell state c instead of the output h"
SEES_C = "another function by design: the gates see the cell state c beside the output h"
NORMS = "another function by design: products and cell state are normalised"
NO_LSTM = "another function by design: no LSTM"

SEEN = ("same", "speed")  # training them, too, would take the demo minutes more

# The order here is the order everywhere: what is written by hand, the same loop bodies compiled,
# other layers. The baseline is what all others are compared with.
TABLE: list[Entry] = [
    Entry("naive", "Naive", "#d1495b", NaiveCustomLSTM, naive_from_torch, to_torch),
    Entry("vectorized", "Vectorised", "#e08e1b", CustomLSTM, from_torch, to_torch, "", recorded),
    Entry("peephole", "Peephole", "#2a8f7b", peephole, None, None, READS_C, recorded),
    of_library(
        "naive-lstm", "NaiveLSTM", "#8c1c2f", label="Naive (compiled)", twin="naive",
        carry=cell_from_torch, back=cell_to_torch, unasked=PARTS,
    ),
    of_library(
        "lstm", "LSTM", "#96590a", label="LSTM (compiled)", twin="vectorized",
        carry=lstm_from_torch, back=lstm_to_torch, unasked=SEEN,
    ),
    of_library(
        "article-peephole-lstm", "ArticlePeepholeLSTM", "#14574a", READS_C,
        label="Peephole (compiled)", twin="peephole", unasked=SEEN,
    ),
    of_library("peephole-lstm", "PeepholeLSTM", "#4c9fc4", SEES_C),
    of_library("layer-norm-lstm", "LayerNormLSTM", "#b56576", NORMS),
    of_library("gru", "GRU", "#8a9a3b", NO_LSTM),
    of_library("rnn", "RNN", "#6b4f3a", NO_LSTM),
    Entry(BASELINE, "torch.nn.LSTM", "#3b5b92", torch_lstm, lambda lstm: lstm, lambda lstm: lstm),
]  # fmt: skip


def choose(names: Iterable[str] = (), part: str | None = None) -> list[Entry]:
    """The entries of these names in the table's order; where none is named, those of the demo.

    The baseline is always among them: without it there is nothing to compare with.

    Args:
        names: keys of the table; one string may hold several, separated by commas.
        part: one of `PARTS`: only those that take part in it.

    Raises:
        UsageError: a name is not in the table.

    Example:
        >>> from flexrnn.lab.table import choose
        >>> [entry.key for entry in choose(["vectorized"])]
        ['vectorized', 'torch']
    """
    known = [entry.key for entry in TABLE]
    unasked = [e.key for e in TABLE if (part in e.unasked if part else e.unasked)]
    wanted = split_names(names, known, "--cells") or unasked
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
