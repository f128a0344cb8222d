"""Linear maps of a row's places: interpolation, windows as columns, means of parts."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves


def image(c: Any, h: Tensor) -> Tensor:
    """Two channels of 2 by 2."""
    return (h @ c.wide).view(-1, 2, 2, 2)


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "interpolated": lambda c, x, h: (
        x @ c.W + F.interpolate(halves(h), scale_factor=2).flatten(1)[:, 2:6]
        + F.interpolate(h[:, None, :3], size=4)[:, 0]
        + F.interpolate(halves(h), scale_factor=2, mode="linear").sum(1)
        + F.interpolate(h[:, None, :2], size=4, mode="linear", align_corners=True).squeeze(1)
    ),
    "interpolated images": lambda c, x, h: (
        x @ c.W + F.interpolate(image(c, h), scale_factor=2)[:, :, 1].sum(1)
        + F.interpolate(image(c, h), size=(3, 4), mode="bilinear")[:, 1, 2]
        + F.interpolate(image(c, h), (4, 4), mode="bicubic", align_corners=False)[:, 0, 1]
        + F.interpolate(h.view(-1, 1, 1, 2, 2), (1, 1, 4)).flatten(1)
    ),
    "unfolded and folded": lambda c, x, h: (
        x @ c.W + F.unfold(image(c, h), (2, 1)).sum(1).repeat(1, 2)
        + F.unfold(image(c, h), 2, padding=1, stride=2).flatten(1)[:, 11:15]
        + F.fold(h.view(-1, 2, 2), (2, 2), (2, 1)).flatten(1)
        + F.fold(F.unfold(image(c, h), (1, 2), padding=(0, 1)), (2, 2), (1, 2), padding=(0, 1))
        .flatten(1)[:, 1:5]
    ),
    "means of parts": lambda c, x, h: (
        x @ c.W + F.adaptive_avg_pool1d((h @ c.wide)[:, None], 4).squeeze(1)
        + F.adaptive_avg_pool1d((h @ c.wide).view(-1, 2, 4), output_size=3).sum(1)[:, [0, 1, 2, 1]]
        + F.adaptive_avg_pool1d(halves(h), 1).flatten(1).repeat(1, 2)
        + F.adaptive_avg_pool2d((h @ c.wide).view(-1, 1, 2, 4), (1, 2)).flatten(1).repeat(1, 2)
        + F.adaptive_avg_pool2d(image(c, h), 1).flatten(1).repeat(1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a large map": (
        lambda c, z, h: h + F.interpolate(z.repeat(1, 64)[:, None], size=4000)[:, 0, :5],
        "interpolate cannot be compiled: .* a matrix, of 131072 numbers"),
    "along the batch": (lambda c, z, h: h + F.interpolate(z[None], size=5)[0], "the batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
