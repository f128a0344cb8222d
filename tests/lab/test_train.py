"""The language model: seeds, learning, the diary of a training, and the sample."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flexrnn.lab.results import Learning
from flexrnn.lab.table import TABLE
from flexrnn.lab.train import CharModel, sample, score, train

TEXT = torch.arange(600) % 4  # abcdabcd…: one look back tells all
HELD_BACK = torch.arange(100) % 4


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning must leave nothing behind where it runs."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def trained(key: str = "torch", steps: int = 30, seed: int = 0) -> tuple[CharModel, Learning]:
    entry = next(entry for entry in TABLE if entry.key == key)
    model, found = CharModel(entry, 4, 8, seed), Learning(key, key, 0)
    train(model, TEXT, HELD_BACK, found, steps=steps, batch=4, seq=6, seed=seed)
    return model, found


@pytest.mark.parametrize("key", [entry.key for entry in TABLE])
def test_every_cell_learns(key: str):
    _, found = trained(key, steps=60)
    first, last = found.curve[0]["held_back"], found.curve[-1]["held_back"]
    assert first is not None
    assert last is not None
    assert first > 1.5  # two bits: four letters, nothing known
    assert last < 0.5
    assert found.bits_per_character == last


def test_the_diary():
    _, found = trained(steps=30)
    assert found.steps == 30
    assert [point["step"] for point in found.curve] == list(range(31))
    seconds = [point["seconds"] for point in found.curve]
    assert seconds == sorted(seconds, key=lambda s: s or 0)
    assert seconds[-1] == found.seconds > 0
    assert found.characters_per_second == pytest.approx(30 * 4 * 6 / found.seconds)
    assert found.curve[0]["train"] is None
    assert all(point["train"] is not None for point in found.curve[1:])


def test_long_trainings_have_a_curve_of_21_points_at_the_same_distance():
    _, found = trained(steps=40)
    assert [point["step"] for point in found.curve] == list(range(0, 41, 2))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    def curve(seed: int) -> list[float | None]:
        return [point["held_back"] for point in trained(steps=5, seed=seed)[1].curve]

    first = curve(1)
    torch.manual_seed(99)  # what happened before must not matter
    assert curve(1) == first
    assert curve(2) != first


def test_embedding_and_readout_are_the_same_whatever_the_cell():
    one, other = (CharModel(entry, 4, 8, seed=3) for entry in TABLE[:2])
    assert torch.equal(one.embed.weight, other.embed.weight)
    assert torch.equal(one.readout.weight, other.readout.weight)


def test_building_a_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    CharModel(TABLE[0], 4, 8, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_ctrl_c_keeps_what_there_is_and_the_handler():
    import signal

    def press(found: Learning) -> None:
        if found.steps == 3:
            raise KeyboardInterrupt

    found = Learning("torch", "", 0)
    model = CharModel(TABLE[-1], 4, 8, 0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(
            model, TEXT, HELD_BACK, found, steps=9, batch=4, seq=6, seed=0, on_step=press
        )  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is before
    assert [point["step"] for point in found.curve] == [0, 1, 2, 3]
    assert found.steps == 3


class Known(nn.Module):
    """Forecasts the letter after this one with certainty `sure`; counts how far it has read."""

    def __init__(self, sure: float):
        super().__init__()
        self.sure, self.longest = sure, 0

    def forward(self, x: torch.Tensor, state: int | None = None) -> tuple[torch.Tensor, int]:
        read = (state or 0) + x.shape[1]
        self.longest = max(self.longest, read)
        others = torch.full((*x.shape, 4), (1 - self.sure) / 3)
        return others.scatter(2, (x[..., None] + 1) % 4, self.sure).log(), read


def test_the_score_is_bits_per_character():
    assert_close(score(Known(0.5), HELD_BACK, seq=6), 1.0)
    assert_close(score(Known(0.25), HELD_BACK, seq=6), 2.0)


def test_a_sample_goes_on_from_its_prompt_in_windows_no_longer_than_trained():
    model = Known(1.0)
    text = sample(model, torch.tensor([0, 1]), 20, seq=6, seed=0)
    assert text.tolist() == [(2 + n) % 4 for n in range(20)]
    assert model.longest == 6


def test_samples_follow_their_seed():
    def drawn(seed: int) -> list[int]:
        return sample(Known(0.4), torch.tensor([0]), 50, seq=1, seed=seed).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
