"""What is measured: a layer of the library, or a person's own, and what of torch's it is beside."""

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import flexrnn
from flexrnn.lab.errors import UsageError

BOTH = ("inference", "training")


class Size(NamedTuple):
    """Rows, steps, features of the input, hidden units."""

    batch: int
    steps: int
    input: int
    hidden: int

    def __str__(self) -> str:
        return "×".join(str(number) for number in self)


class Given(NamedTuple):
    """What a layer reads: `x` `(T, B, I)`, or the data of a PackedSequence with its batch sizes."""

    x: Tensor
    batch_sizes: Tensor | None = None


Run = Callable[[Any, Given], tuple[list[Tensor], Any]]  # layer, input -> outputs, final state


class Contestant(NamedTuple):
    """One layer of a comparison.

    Args:
        label: what tables call it.
        build: `(input_size, hidden_size)` -> the layer.
        run: one call, or for single steps all of them.
    """

    label: str
    build: Callable[[int, int], nn.Module]
    run: Run


class Case(NamedTuple):
    """One comparison.

    Args:
        key: what `--cells` calls it.
        ours: what is measured.
        rivals: what it is measured beside; the first one's ratio is the one that counts.
        modes: those in which the comparison makes sense.
        packed: whether the input is a PackedSequence.
        stepwise: whether a run is one call a step, so that times are those of one step.
    """

    key: str
    ours: Contestant
    rivals: tuple[Contestant, ...]
    modes: tuple[str, ...] = BOTH
    packed: bool = False
    stepwise: bool = False

    def given(self, size: Size, dtype: torch.dtype, seed: int = 0) -> Given:
        """An input of this size; packed ones have lengths from T down to T/2."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size.steps, size.batch, size.input, generator=generator).to(dtype)
        if not self.packed:
            return Given(x)
        packed = pack_padded_sequence(x, lengths(size))
        return Given(packed.data, packed.batch_sizes)

    def build(self, who: Contestant, size: Size, dtype: torch.dtype, seed: int = 0) -> nn.Module:
        """A layer with weights drawn from the seed, which is used up for nobody else."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return who.build(size.input, size.hidden).to(dtype)


def lengths(size: Size) -> Tensor:
    """Of packed sequences, `(B,)`: evenly from T down to T/2, and at least 1.

    Example:
        >>> from flexrnn.lab.bench.cases import Size, lengths
        >>> lengths(Size(3, 8, 1, 1)).tolist()
        [8, 6, 4]
    """
    return torch.linspace(size.steps, size.steps // 2, size.batch).long().clamp_min(1)


def whole(layer: Any, given: Given) -> tuple[list[Tensor], Any]:
    """The sequence in one call."""
    if given.batch_sizes is None:
        output, state = layer(given.x)
        return [output], state
    output, state = layer(PackedSequence(given.x, given.batch_sizes))
    return [output.data], state


def by_step(layer: Any, given: Given) -> tuple[list[Tensor], Any]:
    """The sequence by `layer.step`."""
    outputs, state = [], None
    for x in given.x:
        output, state = layer.step(x, state)
        outputs.append(output)
    return outputs, state


def by_short_sequences(layer: Any, given: Given) -> tuple[list[Tensor], Any]:
    """The sequence by calls with one step each, which is how torch's layers stream."""
    outputs, state = [], None
    for x in given.x:
        output, state = layer(x.unsqueeze(0), state)
        outputs.append(output)
    return outputs, state


def by_cell(cell: Any, given: Given) -> tuple[list[Tensor], Any]:
    """The sequence by torch's cell."""
    outputs, state = [], None
    for x in given.x:
        state = cell(x, state)
        outputs.append(state[0])
    return outputs, state


def _half(cls: Callable[..., nn.Module]) -> Callable[[int, int], nn.Module]:
    return lambda wide, hidden: cls(wide, hidden, proj_size=hidden // 2)


TORCH = {
    kind: Contestant(f"torch.nn.{cls.__name__}", cls, whole)
    for kind, cls in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN))
}
OURS = Contestant("flexrnn.LSTM", flexrnn.LSTM, whole)
_PROJECTED = "LSTM, proj_size=H/2"


def _layer(key: str, name: str, *rivals: Contestant) -> Case:
    ours = Contestant(f"flexrnn.{name}", getattr(flexrnn, name), whole)
    return Case(key, ours, rivals or (TORCH["lstm"],))


# The names of layers are those of `flexrnn compare`.
TABLE: tuple[Case, ...] = (
    _layer("lstm", "LSTM"),
    _layer("naive-lstm", "NaiveLSTM", TORCH["lstm"], OURS),
    _layer("peephole-lstm", "PeepholeLSTM"),
    _layer("layer-norm-lstm", "LayerNormLSTM", TORCH["lstm"], OURS),
    _layer("gru", "GRU", TORCH["gru"]),
    _layer("rnn", "RNN", TORCH["rnn"]),
    Case(
        "projection-lstm",
        Contestant(f"flexrnn.{_PROJECTED}", _half(flexrnn.LSTM), whole),
        (Contestant(f"torch.nn.{_PROJECTED}", _half(nn.LSTM), whole),),
    ),
    Case(
        "packed-lstm",
        Contestant("flexrnn.LSTM, packed", flexrnn.LSTM, whole),
        (Contestant("torch.nn.LSTM, packed", nn.LSTM, whole),),
        packed=True,
    ),
    Case(
        "lstm-step",
        Contestant("flexrnn.LSTM.step", flexrnn.LSTM, by_step),
        (
            Contestant("torch.nn.LSTM, one step", nn.LSTM, by_short_sequences),
            Contestant("torch.nn.LSTMCell", nn.LSTMCell, by_cell),
        ),
        modes=("inference",),
        stepwise=True,
    ),
)
# Those that take part only where `--cells` names them.
MORE: tuple[Case, ...] = (_layer("article-peephole-lstm", "ArticlePeepholeLSTM"),)


def names() -> list[str]:
    """Those that `--cells` knows."""
    return [case.key for case in (*TABLE, *MORE)]


def choose(wanted: Iterable[str] = ()) -> list[Case]:
    """The cases of these names, each once, in their order; where none is named, the table.

    Args:
        wanted: names, or `module:Class` of a `Cell`; one string may hold several, with commas.

    Raises:
        UsageError: there is no such case, module or cell.

    Example:
        >>> from flexrnn.lab.bench.cases import choose
        >>> [case.key for case in choose(["gru,lstm", "flexrnn.cells:RNNCell"])]
        ['gru', 'lstm', 'flexrnn.cells:RNNCell']
    """
    given = list(wanted)
    keys = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if given and not keys:
        raise UsageError(f"--cells: expected names among {', '.join(names())}, got nothing")
    return [find(key) for key in dict.fromkeys(keys)] if keys else list(TABLE)


def find(key: str) -> Case:
    """The case of one name.

    Raises:
        UsageError: as `choose`.
    """
    for case in (*TABLE, *MORE):
        if case.key == key:
            return case
    if ":" not in key:
        raise UsageError(
            f"--cells: expected names among {', '.join(names())}, or module:Class of a Cell, "
            f"got {key!r}"
        )
    return of_cell(key, _load(key))


def of_cell(key: str, cell: type[flexrnn.Cell]) -> Case:
    """The case of any cell: beside torch's class of the same function, or else `torch.nn.LSTM`."""

    def build(input_size: int, hidden_size: int) -> nn.Module:
        return flexrnn.FlexRNN(cell, input_size, hidden_size)

    rival = TORCH[cell.torch_equivalent or "lstm"]
    return Case(key, Contestant(cell.__name__, build, whole), (rival,))


def _load(key: str) -> type[flexrnn.Cell]:
    """The class `module:Class`, also from the folder in which the command was typed."""
    if not re.fullmatch(r"[\w.]+:\w+", key):
        raise UsageError(f"--cells: expected module:Class, as in my_cells:MyCell, got {key!r}")
    module, name = key.split(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script lacks it, `python -m` has it
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UsageError(f"--cells {key}: {error}") from None
    except AttributeError:
        raise UsageError(f"--cells {key}: module {module!r} has no {name!r}") from None
    except Exception as error:
        raise UsageError(
            f"--cells {key}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, flexrnn.Cell)):
        raise UsageError(f"--cells {key}: expected a subclass of flexrnn.Cell, got {found!r}")
    return found
