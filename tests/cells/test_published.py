"""Numbers that others published for their implementations, recomputed by ours in float64.

They were printed by float32 programs: seven digits, the last of them rounding.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexrnn import GRU, LSTM, RNN, FlexRNN, LayerNormLSTM, PeepholeLSTM

# tensorflow/addons, tensorflow_addons/rnn/tests/peephole_lstm_cell_test.py
PEEPHOLE_H = 0.417551
# tensorflow/addons, tensorflow_addons/rnn/tests/layer_norm_lstm_cell_test.py
LAYER_NORM_H = [[-0.47406167, 0.47406143]]
LAYER_NORM_C = [[-1.0, 1.0]]


def float64(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def fill(layer: FlexRNN, weight: float, recurrent: float, bias: float) -> None:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            value = bias if "bias" in name else recurrent if "weight_hh" in name else weight
            parameter.fill_(value)


def forget_bias(layer: LSTM | LayerNormLSTM, name: str) -> None:
    """TensorFlow's `unit_forget_bias`: 1 in the place of what the initialiser says."""
    with torch.no_grad():
        for k in range(layer.num_layers):
            _, f, _, _ = layer.get_parameter(f"{name}_l{k}").chunk(4)
            f.fill_(1.0)


def test_peephole_of_tensorflow_addons() -> None:
    """Inputs one-hot but for the last row, all weights and peepholes 1, no bias that matters.

    The output gate reads the new c: with the old one, h would be σ(1)·tanh(c) = 0.3696.
    """
    layer = PeepholeLSTM(4, 5, dtype=torch.float64)
    fill(layer, weight=1.0, recurrent=1.0, bias=0.0)  # the recurrent ones meet h = 0
    x = torch.eye(5, dtype=torch.float64)[1:, :4]  # one_hot([1, 2, 3, 4], 4): the last row is zero
    h = layer(x[None])[0][0]
    expected = float64([[PEEPHOLE_H] * 5] * 3 + [[0.0] * 5])
    torch.testing.assert_close(h, expected, rtol=0, atol=5e-7)


def layer_norm(I: int, num_layers: int, carry_raw: bool) -> LayerNormLSTM:
    layer = LayerNormLSTM(
        I, 2, num_layers, dtype=torch.float64, carry_raw=carry_raw, eps=1e-12
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("norm"):
                parameter.fill_(0.5)
    forget_bias(layer, "bias")
    return layer


def test_layer_norm_of_tensorflow_addons() -> None:
    h_0 = float64([[[0.2, 0.3]], [[0.6, 0.7]]])
    c_0 = float64([[[0.0, 0.1]], [[0.4, 0.5]]])
    layer = layer_norm(2, 2, carry_raw=False)
    output, (h_n, c_n) = layer(torch.ones(1, 1, 2, dtype=torch.float64), (h_0, c_0))
    expected_h, expected_c = float64(LAYER_NORM_H), float64(LAYER_NORM_C)
    torch.testing.assert_close(output[0], expected_h, rtol=1e-6, atol=0)
    for k in range(2):
        torch.testing.assert_close(h_n[k], expected_h, rtol=1e-6, atol=0)
        torch.testing.assert_close(c_n[k], expected_c, rtol=1e-6, atol=0)


def test_layer_norm_of_tensorflow_addons_with_three_inputs() -> None:
    hx = (float64([[[0.2, 0.3]]]), float64([[[0.0, 0.1]]]))
    x = torch.ones(1, 1, 3, dtype=torch.float64)
    output, (_, c_n) = layer_norm(3, 1, carry_raw=False)(x, hx)
    torch.testing.assert_close(output[0], float64(LAYER_NORM_H), rtol=1e-6, atol=0)
    torch.testing.assert_close(c_n[0], float64(LAYER_NORM_C), rtol=1e-6, atol=0)

    raw_output, (_, raw_c) = layer_norm(3, 1, carry_raw=True)(x, hx)
    torch.testing.assert_close(raw_output, output, rtol=0, atol=0)
    i, f, g = (torch.sigmoid(float64(0.5)), torch.sigmoid(float64(1.0)), torch.tanh(float64(0.5)))
    torch.testing.assert_close(raw_c[0], f * hx[1][0] + i * g, rtol=1e-12, atol=0)


def keras(layer: FlexRNN, bias: float = 0.03) -> FlexRNN:
    """The initialisers that all of Keras's tests take: input 0.01, recurrent 0.02, bias 0.03."""
    fill(layer, 0.01, 0.02, bias)
    return layer


def count(B: int, T: int, I: int) -> Tensor:
    return torch.arange(B * T * I, dtype=torch.float64).reshape(B, T, I)


def one_bias(layer: LSTM | RNN) -> None:
    """Keras's LSTM and SimpleRNN have one bias; ours becomes the input's."""
    with torch.no_grad():
        layer.get_parameter("bias_hh_l0").zero_()


def keras_lstm(I: int, H: int, unit_forget_bias: bool = True) -> LSTM:
    layer = LSTM(I, H, batch_first=True, dtype=torch.float64)
    keras(layer)
    one_bias(layer)
    if unit_forget_bias:
        forget_bias(layer, "bias_ih")
    return layer


def keras_gru(I: int, H: int) -> GRU:
    """`reset_after=True`, Keras's default, has two biases, both of them 0.03."""
    layer = GRU(I, H, batch_first=True, dtype=torch.float64)
    keras(layer)
    return layer


def keras_rnn(I: int, H: int) -> RNN:
    layer = RNN(I, H, batch_first=True, dtype=torch.float64)
    keras(layer)
    one_bias(layer)
    return layer


# keras-team/keras, keras/src/layers/rnn/{lstm,gru,simple_rnn}_test.py, test_correctness: the last
# output of each sequence, forward and with `go_backwards`; all units are alike.
KERAS = {
    "LSTM": (keras_lstm, (3, 6, 4), 3, [0.6288687, 0.86899155, 0.9460773]),
    "LSTM backwards": (keras_lstm, (3, 6, 4), 3, [0.35622165, 0.74789524, 0.8872726]),
    "GRU": (keras_gru, (3, 6, 4), 3, [0.5217289, 0.6371659, 0.39384964]),
    "GRU backwards": (keras_gru, (3, 6, 4), 3, [0.24406259, 0.611516, 0.3928808]),
    "SimpleRNN": (keras_rnn, (2, 3, 4), 4, [0.405432, 0.73605347]),
    "SimpleRNN backwards": (keras_rnn, (2, 3, 4), 4, [0.11144729, 0.5528889]),
}


@pytest.mark.parametrize("name", KERAS)
def test_correctness_of_keras(name: str) -> None:
    make, shape, H, expected = KERAS[name]
    x = count(*shape)
    output = make(shape[2], H)(x.flip(1) if "backwards" in name else x)[0][:, -1]
    torch.testing.assert_close(
        output, float64(expected)[:, None].expand(-1, H), rtol=1e-6, atol=0
    )  # fmt: skip


def test_keras_lstm_without_a_forget_bias_and_without_any_bias() -> None:
    x = count(3, 6, 4)
    output = keras_lstm(4, 3, unit_forget_bias=False)(x)[0][:, -1, 0]
    torch.testing.assert_close(
        output, float64([0.57019705, 0.8661914, 0.9459622]), rtol=1e-6, atol=0
    )  # fmt: skip
    layer = LSTM(4, 3, bias=False, batch_first=True, dtype=torch.float64)
    output = keras(layer)(x)[0][:, -1, 0]
    torch.testing.assert_close(
        output, float64([0.54986924, 0.86226785, 0.9443936]), rtol=1e-6, atol=0
    )  # fmt: skip


def test_keras_gru_without_bias() -> None:
    layer = keras(GRU(4, 3, bias=False, batch_first=True, dtype=torch.float64))
    expected = float64([0.49988455, 0.64701194, 0.4103359])
    torch.testing.assert_close(layer(count(3, 6, 4))[0][:, -1, 0], expected, rtol=1e-6, atol=0)


# The same files' test_pass_initial_state (forward) and test_statefulness: the sequence twice.
INITIAL = {
    "LSTM": (keras_lstm, 2, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
    "GRU": (keras_gru, 2, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
    "SimpleRNN": (keras_rnn, 4, [[0.33621645] * 4, [0.6262637] * 4]),
}
TWICE = {
    "LSTM": (keras_lstm, [0.3124785, 0.6863672]),
    "GRU": (keras_gru, [0.29542392, 0.5885018]),
    "SimpleRNN": (keras_rnn, [0.40559256, 0.7361247]),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_state_of_keras(name: str) -> None:
    make, H, expected = INITIAL[name]
    h = torch.arange(2 * H, dtype=torch.float64).reshape(1, 2, H)
    output = make(3, H)(count(2, 4, 3), (h, h) if name == "LSTM" else h)[0][:, -1]
    torch.testing.assert_close(output, float64(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TWICE)
def test_statefulness_of_keras(name: str) -> None:
    make, expected = TWICE[name]
    layer: Callable = make(4, 4)
    _, state = layer(count(2, 3, 4))
    output = layer(count(2, 3, 4), state)[0][:, -1]
    torch.testing.assert_close(
        output, float64(expected)[:, None].expand(-1, 4), rtol=1e-6, atol=0
    )  # fmt: skip
