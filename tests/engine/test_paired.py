# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# A tensor that is a negative by a mark has no public name.
"""States and inputs of complex numbers, which engines get as two real ones each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import fallback
from flexrnn.engine.paired import Paired, complex_of, real_of
from flexrnn.engine.step import CannotRunError

from ..graphs import compiled

T, B, H = 5, 3, 4
ENGINES = ["reference", "interpreter", "cpu"]


def drawn(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


class Mixed(NamedTuple):
    h: Tensor
    z: Tensor


def turned(x: Tensor, z: Tensor, lam: Tensor) -> Tensor:
    return lam * z + x.conj() * z.abs()


def mixed(x: tuple[Tensor, Tensor], state: Mixed, lam: Tensor) -> Mixed:
    u, gate = x
    z = lam * state.z + gate * u
    return Mixed(0.5 * state.h + z.abs() + gate, z.tanh() + state.h)


def outcome(step: Any, state: Any, xs: Any, lam: Tensor, leaves: Any) -> list[Tensor]:
    states, final = flexrnn.scan(step, state, xs, lam)
    outs = [t for part in (states, final) for t in ((part,) if isinstance(part, Tensor) else part)]
    loss = torch.stack([(o * torch.linspace(-1, 2, o.numel()).view_as(o) * (1 + 2j)).real.sum()
                        + o.abs().square().sum() for o in outs]).sum()  # fmt: skip
    return [*outs, *torch.autograd.grad(loss, leaves)]


def each_engine(*args: Any) -> None:
    found = []
    for engine in ENGINES:
        with flexrnn.backend(engine):
            found.append(outcome(*args))
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lies", ["as it is", "as a conjugate", "as a negative", "with steps"])
def test_a_scan_over_complex_states_and_inputs(lies: str) -> None:
    z, x, lam = drawn(B, H), drawn(T, B, H), drawn(H)
    state: Tensor = {
        "as it is": lambda: z,
        "as a conjugate": lambda: z.conj(),
        "as a negative": lambda: torch._neg_view(z),
        "with steps": lambda: torch.stack([z, z], -1)[..., 0],
    }[lies]()
    each_engine(turned, state, x, lam, (z, x, lam))


def test_real_ones_beside_them_stay_as_they_are() -> None:
    state = Mixed(drawn(B, H, dtype=torch.float64), drawn(B, H))
    xs, lam = (drawn(T, B, H), drawn(T, B, 1, dtype=torch.float64)), drawn(H)
    each_engine(mixed, state, xs, lam, (*state, *xs, lam))


def test_a_complex_input_of_a_real_state() -> None:
    def step(x: Tensor, h: Tensor, lam: Tensor) -> Tensor:
        return 0.5 * h + (lam * x).real

    h, x, lam = drawn(B, H, dtype=torch.float64), drawn(T, B, H), drawn(H)
    each_engine(step, h, x, lam, (h, x, lam))


def test_single_precision_stays() -> None:
    z, x, lam = (drawn(*shape, dtype=torch.complex64) for shape in ((B, H), (T, B, H), (H,)))
    with flexrnn.backend("cpu"):
        states, final = flexrnn.scan(turned, z, x, lam)
    assert states.dtype == final.dtype == torch.complex64


@pytest.mark.usefixtures("by_program")
def test_dynamo_sees_a_scan() -> None:
    z, x, lam = drawn(B, H), drawn(T, B, H), drawn(H)
    call, graphs = compiled(lambda z, x, lam: flexrnn.scan(turned, z, x, lam))
    assert_close(call(z, x, lam), flexrnn.scan(turned, z, x, lam), rtol=1e-12, atol=1e-12)
    assert graphs.scans == [1]


def sorted_by_size(x: Tensor, z: Tensor) -> Tensor:
    return z.prod(-1, keepdim=True) + x


def test_what_is_no_program_runs_by_the_reference_with_a_warning() -> None:
    z, x = drawn(B, H), drawn(T, B, H)
    why = r"aten\.prod\.dim_int cannot be compiled"
    with pytest.warns(fallback.FallbackWarning, match=why):
        found = flexrnn.scan(sorted_by_size, z, x)
    with flexrnn.backend("reference"):
        assert_close(found, flexrnn.scan(sorted_by_size, z, x), rtol=0, atol=0)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=why):
        flexrnn.scan(sorted_by_size, z, x)


def test_torchs_kernels_have_none(refused: Callable[..., None]) -> None:
    def call() -> None:
        with flexrnn.backend("torch"):
            flexrnn.scan(turned, drawn(B, H), drawn(T, B, H), drawn(H))

    refused(call, CannotRunError,
            "torch's own kernels have no complex states and inputs")  # fmt: skip


def test_fields_that_are_wanted_lie_where_their_parts_do() -> None:
    state = (torch.zeros(2, 3), torch.zeros(2, 1) + 0j, torch.zeros(2, 2), torch.zeros(2, 4) + 0j)

    class Step:
        fields = ("a", "b", "c", "d")

    paired = Paired(Step(), state, (torch.zeros(5, 2, 1),), (3, 0, 1))  # pyright: ignore[reportArgumentType]
    assert paired.step.fields == ("a", "b.real", "b.imag", "c", "d.real", "d.imag")
    assert paired.keep == (4, 5, 0, 1, 2)
    assert [tuple(part.shape) for part in paired.state] == [
        (2, 3), (2, 1), (2, 1), (2, 2), (2, 4), (2, 4)
    ]  # fmt: skip
    parts = [part + k for k, part in enumerate(paired.state)]
    history, final = paired.leave([parts[k] for k in paired.keep], parts)
    assert [field.is_complex() for field in final] == [False, True, False, True]
    assert_close(history, (final[3], final[0], final[1]))
    assert_close(final[3], torch.full((2, 4), 4 + 5j))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_belong_together(dtype: torch.dtype) -> None:
    assert complex_of(dtype) == dtype.to_complex()
    assert real_of(complex_of(dtype)) == dtype == real_of(dtype)
    assert complex_of(torch.bfloat16) == complex_of(torch.float16) == torch.complex64
