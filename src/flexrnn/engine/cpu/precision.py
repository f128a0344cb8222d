# pyright: reportPrivateUsage=false
# The public name of the switch takes six times as long to read, which every call does.
"""In what layers of float32 may multiply: torch's switch for recurrent layers says so."""

import torch


def allows_bfloat16() -> bool:
    """Whether `torch.backends.mkldnn.rnn.fp32_precision` is `"bf16"`, by itself or for all."""
    return torch._C._get_fp32_precision_getter("mkldnn", "rnn") == "bf16"
