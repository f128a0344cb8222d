"""Every cell against its equations in NumPy: one gate a line, one batch row and one step at a time.

Written from the equations in the cells' docstrings, not from their code; W, U, b are a gate's rows
of the input weight, the recurrent weight and the bias.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from flexrnn import FlexRNN

Array = np.ndarray
Weights = dict[str, Array]
State = tuple[Array, ...]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def gates(p: Weights, names: tuple[str, ...], n: int) -> list[list[Array]]:
    """For each of n gates its rows of each named parameter; zeros for a bias that is off."""
    none = np.zeros(len(p["weight_ih"]))
    blocks = (np.split(p.get(name, none), n) for name in names)
    return [list(gate) for gate in zip(*blocks, strict=True)]


def lstm(p: Weights, x: Array, state: State) -> State:
    h, c = state
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    i, f, g, o = (W @ x + b + U @ h + d for W, U, b, d in gates(p, names, 4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (p["weight_hr"] @ h if "weight_hr" in p else h), c


def gru(p: Weights, x: Array, state: State) -> State:
    (h,) = state
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    (W_r, U_r, b_r, d_r), (W_z, U_z, b_z, d_z), (W_n, U_n, b_n, d_n) = gates(p, names, 3)
    r = sigmoid(W_r @ x + b_r + U_r @ h + d_r)
    z = sigmoid(W_z @ x + b_z + U_z @ h + d_z)
    n = np.tanh(W_n @ x + b_n + r * (U_n @ h + d_n))
    return ((1 - z) * n + z * h,)


def rnn(phi: Callable[[Array], Array]) -> Callable[[Weights, Array, State], State]:
    def step(p: Weights, x: Array, state: State) -> State:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ((W, U, b, d),) = gates(p, names, 1)
        return (phi(W @ x + b + U @ state[0] + d),)

    return step


def peephole(p: Weights, x: Array, state: State) -> State:
    h, c = state
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    i, f, g, o = (W @ x + b + U @ h + d for W, U, b, d in gates(p, names, 4))
    p_i, p_f, p_o = p["weight_ch"]
    i, f = sigmoid(i + p_i * c), sigmoid(f + p_f * c)
    new = f * c + i * np.tanh(g)
    return sigmoid(o + p_o * new) * np.tanh(new), new


def article_peephole(p: Weights, x: Array, state: State) -> State:
    _, c = state
    names = ("weight_ih", "weight_ch", "bias_ih")
    (W_i, U_i, b_i), (W_f, U_f, b_f), (W_g, _, b_g), (W_o, U_o, b_o) = gates(p, names, 4)
    i = sigmoid(W_i @ x + b_i + U_i @ c)
    f = sigmoid(W_f @ x + b_f + U_f @ c)
    o = sigmoid(W_o @ x + b_o + U_o @ c)
    new = f * c + i * sigmoid(W_g @ x + b_g)
    return np.tanh(o * new), new


def normalized(a: Array) -> Array:
    deviation = a - a.mean()
    return deviation / np.sqrt((deviation**2).mean() + 1e-5)


def layer_norm(carry_raw: bool) -> Callable[[Weights, Array, State], State]:
    def step(p: Weights, x: Array, state: State) -> State:
        h, c = state
        z = p["norm_ih.weight"] * normalized(p["weight_ih"] @ x)
        z = z + p["norm_hh.weight"] * normalized(p["weight_hh"] @ h)
        i, f, g, o = np.split(z + p.get("bias", 0), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        shown = p["norm_c.weight"] * normalized(c) + p.get("norm_c.bias", 0)
        return sigmoid(o) * np.tanh(shown), c if carry_raw else shown

    return step


def naive(p: Weights, x: Array, state: State) -> State:
    h, c = state
    i, f, g, o = (x @ p[f"U_{k}"] + h @ p[f"V_{k}"] + p.get(f"b_{k}", 0) for k in "ifco")
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


EQUATIONS: dict[str, Callable[[Weights, Array, State], State]] = {
    "lstm": lstm,
    "lstm projected": lstm,
    "gru": gru,
    "rnn tanh": rnn(np.tanh),
    "rnn relu": rnn(lambda a: np.maximum(a, 0)),
    "peephole": peephole,
    "article peephole": article_peephole,
    "layer norm": layer_norm(carry_raw=True),
    "layer norm, normalised carry": layer_norm(carry_raw=False),
    "naive": naive,
}


def weights(layer: FlexRNN, suffix: str) -> Weights:
    """The parameters of one layer and direction, by the names that they have in the cell."""
    options = {} if not layer.proj_size else {"proj_size": layer.proj_size}
    cell = type(layer.cells[0])(layer.input_size, layer.hidden_size, bias=layer.bias, **options)
    names = [name for name, _ in cell.named_parameters()]
    return {n: getattr(layer, n.replace(".", "_") + suffix).detach().numpy() for n in names}


def numpy_layer(
    step: Callable[[Weights, Array, State], State], layer: FlexRNN, x: Array, hx: State
) -> tuple[Array, State]:
    """All layers and directions; `x` `(T, B, I)`, each of `hx` `(L·D, B, ·)`, as is what comes."""
    T, B, _ = x.shape
    final = [np.zeros_like(field) for field in hx]
    for k in range(layer.num_layers):
        outputs = []
        for d in range(layer.num_directions):
            index = k * layer.num_directions + d
            p = weights(layer, f"_l{k}" + ("_reverse" if d else ""))
            output = np.zeros((T, B, hx[0].shape[-1]))
            for b in range(B):
                state = tuple(field[index, b] for field in hx)
                for t in range(T)[::-1] if d else range(T):
                    state = step(p, x[t, b], state)
                    output[t, b] = state[0]
                for field, value in zip(final, state, strict=True):
                    field[index, b] = value
            outputs.append(output)
        x = np.concatenate(outputs, -1)
    return x, tuple(final)


@pytest.mark.parametrize(
    ("T", "B", "I", "H", "options"),
    [
        (7, 3, 5, 11, {}),
        (6, 2, 4, 3, {"bias": False}),
        (5, 3, 4, 6, {"num_layers": 2, "bidirectional": True}),
        (1, 4, 3, 5, {"bidirectional": True}),
        (4, 1, 1, 7, {"num_layers": 3}),
        (3, 2, 2, 1, {}),
    ],
    ids=["plain", "no bias", "two layers, two directions", "T=1", "B=1, three layers", "H=1"],
)
def test_a_layer_computes_the_equations(
    make: Callable[..., FlexRNN],
    kind: str,
    T: int,
    B: int,
    I: int,
    H: int,
    options: dict[str, bool | int],
) -> None:
    layer = make(I, H, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    output, state = layer(x)
    fields = (state,) if isinstance(state, torch.Tensor) else state
    hx = tuple(torch.randn_like(field) for field in fields)
    output, state = layer(x, hx)

    ours = (output, state) if isinstance(state, torch.Tensor) else (output, *state)
    start = tuple(field.numpy() for field in hx)
    expected, final = numpy_layer(EQUATIONS[kind], layer, x.numpy(), start)
    for mine, theirs in zip(ours, (expected, *final), strict=True):
        torch.testing.assert_close(mine.detach(), torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


def test_the_initial_state_is_zero(make: Callable[..., FlexRNN], kind: str) -> None:
    layer = make(3, 5)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    output, state = layer(x)
    fields = (state,) if isinstance(state, torch.Tensor) else state
    zeros = tuple(np.zeros(tuple(field.shape)) for field in fields)
    expected, _ = numpy_layer(EQUATIONS[kind], layer, x.numpy(), zeros)
    torch.testing.assert_close(
        output.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12
    )  # fmt: skip
