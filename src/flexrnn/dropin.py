"""Drop-ins for `torch.nn.LSTM`, `GRU` and `RNN`, and layers of the other cells by name."""

from typing import Any, ClassVar

from flexrnn.cell import Cell
from flexrnn.cells import (
    ArticlePeepholeLSTMCell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    NaiveLSTMCell,
    PeepholeLSTMCell,
    RNNCell,
)
from flexrnn.layer import FlexRNN


class LSTM(FlexRNN):
    """`torch.nn.LSTM` on FlexRNN's engines: same signature, numbers, parameter names and errors.

    Arguments, shapes and errors as in `FlexRNN`; parameters as in `cells.LSTMCell`.

    Example:
        >>> import torch, flexrnn
        >>> layer, theirs = flexrnn.LSTM(3, 5, num_layers=2), torch.nn.LSTM(3, 5, num_layers=2)
        >>> layer.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(7, 2, 3)
        >>> torch.testing.assert_close(layer(x), theirs(x))
    """

    mode = "LSTM"  # as torch names the kind of layer

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ):
        super().__init__(
            LSTMCell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            **options,
        )


class RNN(FlexRNN):
    """`torch.nn.RNN` on FlexRNN's engines: same signature, numbers, parameter names and errors.

    Arguments, shapes and errors as in `FlexRNN`; parameters as in `cells.RNNCell`.

    Args:
        nonlinearity: `"tanh"` or `"relu"`.

    Example:
        >>> import torch, flexrnn
        >>> output, h_n = flexrnn.RNN(3, 5, nonlinearity="relu")(torch.randn(7, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ):
        super().__init__(
            RNNCell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            nonlinearity=nonlinearity,
            **options,
        )
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"


class _Named(FlexRNN):
    """`FlexRNN` of one cell class, for cells without a projection."""

    cell_class: ClassVar[type[Cell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ):
        super().__init__(
            self.cell_class,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **options,
        )


class GRU(_Named):
    """`torch.nn.GRU` on FlexRNN's engines: same signature, numbers, parameter names and errors.

    Arguments, shapes and errors as in `FlexRNN`; parameters as in `cells.GRUCell`.

    Example:
        >>> import torch, flexrnn
        >>> output, h_n = flexrnn.GRU(3, 5, bidirectional=True)(torch.randn(7, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([7, 2, 10]), torch.Size([2, 2, 5]))
    """

    cell_class = GRUCell
    mode = "GRU"


class PeepholeLSTM(_Named):
    """`FlexRNN(cells.PeepholeLSTMCell, ...)`: see both for arguments and equations."""

    cell_class = PeepholeLSTMCell


class ArticlePeepholeLSTM(_Named):
    """`FlexRNN(cells.ArticlePeepholeLSTMCell, ...)`: see both for arguments and equations."""

    cell_class = ArticlePeepholeLSTMCell


class NaiveLSTM(_Named):
    """`FlexRNN(cells.NaiveLSTMCell, ...)`: see both for arguments and equations."""

    cell_class = NaiveLSTMCell


class LayerNormLSTM(_Named):
    """`FlexRNN(cells.LayerNormLSTMCell, ...)`: see both for arguments and equations."""

    cell_class = LayerNormLSTMCell
