"""`replace`: torch's recurrent layers in a model become ours."""

import warnings
from typing import TypeVar

import torch
from torch import nn

from flexrnn.dropin import GRU, LSTM, RNN
from flexrnn.layer import FlexRNN

M = TypeVar("M", bound=nn.Module)

DROP_INS: dict[type[nn.Module], type[LSTM] | type[GRU] | type[RNN]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
}


def replace(model: M) -> M:
    """Swap every `torch.nn.LSTM`, `GRU` and `RNN` in a model for FlexRNN's.

    The parameters themselves are handed over (an optimizer that holds them stays right), and so are
    train or eval mode and hooks. A subclass of these classes (also a parametrized layer), or one
    whose parameters torch's old `weight_norm` renamed, may compute something else: it is left as
    it is, with a warning.

    Args:
        model: changed in place.

    Returns:
        The model, or the new layer where the model itself was one of the three.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> import torch, flexrnn
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 5), "head": torch.nn.Linear(5, 1)})
        >>> type(flexrnn.replace(model)["rnn"])
        <class 'flexrnn.dropin.LSTM'>
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    done: dict[
        nn.Module, nn.Module
    ] = {}  # a layer that a model holds twice is one layer afterwards
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.RNNBase):
            continue
        if module not in done:
            done[module] = _ours(module, path)
        if done[module] is module:
            continue
        if path == "":
            return done[module]  # pyright: ignore[reportReturnType]  # the model itself was swapped
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent).register_module(name, done[module])
    return model


def _ours(theirs: nn.RNNBase, path: str) -> nn.Module:
    cls = None if "forward" in vars(theirs) else DROP_INS.get(type(theirs))
    ours = None if cls is None else _like(theirs, cls)
    names = [name for name, _ in (*theirs.named_parameters(), *theirs.named_buffers())]
    if ours is None or [name for name, _ in ours.named_parameters()] != names:
        warnings.warn(
            f"replace: left {path or 'the model'} as it is: expected a plain torch.nn layer, got "
            f"{type(theirs).__name__} with parameters {', '.join(names)}",
            stacklevel=3,
        )
        return theirs
    for name, parameter in list(theirs.named_parameters()):
        ours.register_parameter(name, parameter)
    for name, value in vars(theirs).items():
        if "_hook" in name:  # also _is_full_backward_hook, without which they run as the old kind
            ours.__dict__[name] = value
    return ours.train(theirs.training)


def _like(theirs: nn.RNNBase, cls: type[LSTM] | type[GRU] | type[RNN]) -> FlexRNN:
    """A layer of ours with the same options, on no device."""
    options = {
        name: getattr(theirs, name)
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    }
    for name, owner in (("proj_size", LSTM), ("nonlinearity", RNN)):
        if cls is owner:
            options[name] = getattr(theirs, name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dropout in a single layer: torch has warned already
        return cls(theirs.input_size, theirs.hidden_size, **options)
