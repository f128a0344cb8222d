"""What `repr` shows of a layer's options."""

from typing import Any

_DEFAULTS: dict[str, Any] = {
    "proj_size": 0,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0,
    "bidirectional": False,
    "zoneout": 0,
    "recurrent_dropout": 0,
    "weight_drop": 0,
    "learn_initial_state": False,
    "checkpoint_every": None,
    "backend": "auto",
}


def options(layer: Any) -> str:
    """Sizes, and the options that are not at their defaults, as `torch.nn.LSTM` shows them."""
    given = {name: getattr(layer, name) for name in _DEFAULTS}
    changed = [f"{name}={given[name]}" for name, default in _DEFAULTS.items()
               if given[name] != default]  # fmt: skip
    return ", ".join([f"{layer.input_size}, {layer.hidden_size}", *changed])
