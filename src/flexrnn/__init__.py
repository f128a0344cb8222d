"""FlexRNN: write the body of a recurrent layer's loop in plain PyTorch; get a complete layer."""

__version__ = "0.1.0.dev0"
