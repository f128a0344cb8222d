"""The laboratory: compare cells with `torch.nn.LSTM`, for what they compute, cost and learn.

An optional part, installed by `pip install 'flexrnn[lab]'`; the library itself never imports it.
"""

import sys


def main() -> None:
    """Run the command line; where the extra is not installed, say so, for the command is."""
    try:
        from flexrnn.lab import cli

        cli.main()
    except ModuleNotFoundError as error:
        print(f"flexrnn: {error}; the command needs pip install 'flexrnn[lab]'", file=sys.stderr)
        sys.exit(2)
