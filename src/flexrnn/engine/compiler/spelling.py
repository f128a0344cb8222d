# pyright: reportPrivateUsage=false
# torch has no public name for the switch of gradients, nor for what functionalisation notes.
"""What is noted of a step while it is traced: whose line each operation is from, and its spelling.

Some of what a person writes torch would turn into what no longer says what was meant; it is spelt
otherwise first. What changes the world, or leaves the derivative out, is refused on the spot.
"""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.fx import traceback
from torch.nn import functional as F  # noqa: N812
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


class CannotCompileError(RuntimeError):
    """A step does something that no program can say; the message names operation, file and line."""


class Spelling(TorchFunctionMode):
    """Note the line of the person's code, respell, and refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.given: tuple[Tensor, ...] = ()  # what the step may read and not write

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = users_line(frames())
        traceback.set_stack_trace([place])
        name = getattr(func, "__name__", str(func))
        if func is torch._C._set_grad_enabled:
            raise CannotCompileError(f"gradients are switched off and on inside the step, {place}")
        result = RESPELT.get(func, func)(*args, **(kwargs or {}))
        written = torch._functionalize_has_data_mutation  # pyright: ignore[reportAttributeAccessIssue]
        if any(map(written, self.given)):
            self.given = ()  # on its way out the error may come by here
            raise CannotCompileError(
                f"{name} cannot be compiled: it writes into the input, the state or a parameter, "
                f"{place}"
            )
        return result


def _where(condition: Tensor, *values: Any) -> Any:
    """A number would come as a tensor from nowhere."""
    if len(values) != 2:
        return torch.where(condition, *values)
    dtype = torch.result_type(*values)
    return torch.where(
        condition,
        *(v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype) for v in values),
    )


def _matmul(a: Tensor, w: Tensor) -> Tensor:
    """A product head by head, of `(B, G, 1, K)` and `(G, K, N)`: w would be copied for each row."""
    if a.dim() == 4 and a.shape[-2] == 1 and w.dim() == 3:
        return torch.bmm(a.squeeze(-2).transpose(0, 1), w).transpose(0, 1).unsqueeze(-2)
    return torch.matmul(a, w)


def _rms_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    norms = [x.norm(dim=dim, keepdim=True).clamp(min=eps) for x in (a, b)]
    return (a / norms[0] * (b / norms[1])).sum(dim)


def _set_item(tensor: Tensor, index: Any, value: Any) -> None:
    """A number would come as a tensor from nowhere, and a mask as places without a number."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=tensor.dtype)
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape:
        tensor.copy_(torch.where(index, value, tensor))
    else:
        tensor[index] = value


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Torch asks for the number of elements, which has no value here."""
    return x * torch.empty_like(x).bernoulli_(1 - p) / (1 - p) if training and p else x


def _lstm_cell(x: Tensor, state: Any, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Any:
    """Torch's cells ask for the batch size, which has no value here."""
    h, c = state
    i, f, g, o = (linear(x, w, b) + linear(h, u, d)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
    x_r, x_z, x_n = linear(x, w, b).chunk(3, -1)
    h_r, h_z, h_n = linear(h, u, d).chunk(3, -1)
    z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return n + z * (h - n)


def _rnn_cell(activation: Any) -> Any:
    def cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
        return activation(linear(x, w, b) + linear(h, u, d))

    return cell


def _tensor(data: Any, **options: Any) -> Tensor:
    """A number that is made a tensor inside the step; any other would be a tensor from nowhere."""
    if isinstance(data, (bool, int, float)):
        dtype = options.pop("dtype", None)
        kind = torch.result_type(data, data) if dtype is None else dtype
        return torch.full((), data, dtype=kind, **options)
    return torch.tensor(data, **options)


RESPELT: dict[Any, Any] = {
    torch.where: _where,
    Tensor.where: lambda x, condition, other: _where(condition, x, other),
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.__setitem__: _set_item,
    torch.rms_norm: _rms_norm,
    F.rms_norm: _rms_norm,
    torch.cosine_similarity: _cosine_similarity,
    torch.tensor: _tensor,
    torch.dropout: lambda x, p, train: _dropout(x, p, train),
    F.dropout: _dropout,
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
}


_PACKAGE = Path(__file__).parents[2]
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(_PACKAGE / "engine"),
    *(str(_PACKAGE / f"{name}.py") for name in ("compose", "cell", "bind", "layer")),
    "<",  # code that was made at run time
)


def is_users(file: str) -> bool:
    """Whether a file is neither torch's nor one of FlexRNN's that run every step."""
    return not file.startswith(_NOT_THE_USERS)


def users_line(places: Iterable[tuple[str, int | None]]) -> str:
    """`at FILE:LINE` of the innermost frame that is neither torch's nor FlexRNN's own."""
    for file, line in places:
        if is_users(file):
            return f"at {file}:{line}"
    return "at a place that is not known"


def frames() -> Iterator[tuple[str, int]]:
    """File and line of every caller, the innermost first."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def place_of(error: Exception) -> str:
    """`at FILE:LINE` of the person's code that an exception came from."""
    passed = [(t.tb_frame.f_code.co_filename, t.tb_lineno) for t in _chain(error.__traceback__)]
    return users_line(reversed(passed))


def _chain(last: TracebackType | None) -> Iterator[TracebackType]:
    while last is not None:
        yield last
        last = last.tb_next
