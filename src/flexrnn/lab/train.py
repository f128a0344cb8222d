"""A character language model around any cell: train it, score it, let it write.

The loop is Lightning's; the model, the schedule and what is written down on the way are ours.
"""

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from flexrnn.lab.results import Learning
from flexrnn.lab.table import Entry
from flexrnn.lab.tasks import RandomWindows, windows

LEARNING_RATE = 0.02
WARM_UP = 0.05  # of all steps
POINTS = 20  # of each curve
SCORING_BATCH = 256


class CharModel(nn.Module):
    """Characters in, what may come next out: an embedding, the cell, a readout.

    Embedding and readout are drawn before the cell, so that the same seed gives them the same
    numbers whatever the cell.

    Args:
        entry: the cell.
        characters: A, how many different ones there are.
        hidden: H, the width of the cell and of the embedding.
        seed: of all weights.
    """

    def __init__(self, entry: Entry, characters: int, hidden: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(characters, hidden)
            self.readout = nn.Linear(hidden, characters)
            self.cell = entry.build(hidden, hidden)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x `(B, T)` int64 -> logits of each next character, `(B, T, A)`, and the cell's state."""
        carried = () if state is None else (state,)
        output, state = self.cell(self.embed(x), *carried)
        return self.readout(output), state


@torch.no_grad()
def score(model: nn.Module, data: Tensor, seq: int) -> float:
    """Bits per character, over windows of `seq` characters that begin without memory, as trained.

    Args:
        model: x `(B, T)` -> logits `(B, T, A)` and a state.
        data: the text as numbers; a rest shorter than a window is left out.
        seq: T.
    """
    read, follows = windows(data, seq)
    nats = 0.0
    for x, y in zip(read.split(SCORING_BATCH), follows.split(SCORING_BATCH), strict=True):
        nats += cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), reduction="sum").item()
    return nats / follows.numel() / math.log(2)


@torch.no_grad()
def sample(
    model: nn.Module, prompt: Tensor, length: int, seq: int, seed: int, temperature: float = 0.7
) -> Tensor:
    """Let the model write on after `prompt` `(P,)`: `length` numbers, each drawn from its forecast.

    A window is never longer than `seq`, the length it was trained on: then memory begins anew from
    the last half of a window.
    """
    generator = torch.Generator().manual_seed(seed)
    half = max(1, seq // 2)
    text = prompt.tolist()
    state, unread = None, text[-half:]
    age = 0
    for _ in range(length):
        if age + len(unread) > seq:
            state, unread, age = None, text[-half:], 0
        logits, state = model(torch.tensor([unread]), state)
        age += len(unread)
        chances = torch.softmax(logits[0, -1] / temperature, dim=-1)
        unread = [int(torch.multinomial(chances, 1, generator=generator))]
        text += unread
    return torch.tensor(text[len(prompt) :])


def train(
    model: nn.Module,
    data: Tensor,
    held_back: Tensor,
    found: Learning,
    *,
    steps: int,
    batch: int,
    seq: int,
    seed: int,
    on_step: Callable[[Learning], None] = lambda found: None,
) -> None:
    """Train a character model and write down in `found`, at once, what there is to know.

    Args:
        model: x `(B, T)` -> logits `(B, T, A)` and a state; trained in place.
        data: the training text as numbers, `(N,)`.
        held_back: the text it is scored on, likewise.
        found: where the curve, the speed and the score go; valid after every step.
        steps: how many batches.
        batch: B, windows in a batch.
        seq: T, characters in a window.
        seed: of the batches.
        on_step: called after every step.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C; `found` has all until then.
    """
    batches = DataLoader(RandomWindows(data, batch, seq, steps, seed), batch_size=None)
    diary = _Diary(held_back, found, steps, batch * seq, seq, on_step)
    with _quiet():
        trainer = lightning.Trainer(
            barebones=True,  # no logs, no checkpoints, no folders, no bar of its own
            accelerator="cpu",
            devices=1,
            plugins=[LightningEnvironment()],  # one process, also where a cluster offers more
            max_steps=steps,
            gradient_clip_val=1.0,
            callbacks=[diary],
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(_Lesson(model, steps), batches)
        except SystemExit:
            # Lightning ends the process on Ctrl-C; we have results to write first.
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, handler)


class _Lesson(lightning.LightningModule):
    """Loss, optimiser and schedule: Adam, a short warm-up, then down along a cosine."""

    def __init__(self, model: nn.Module, steps: int):
        super().__init__()
        self.model, self.steps = model, steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch  # (B, T) each
        return cross_entropy(self.model(x)[0].flatten(0, 1), y.flatten())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
        warm_up = max(1.0, WARM_UP * self.steps)

        def rate(step: int) -> float:
            return min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / self.steps)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Diary(lightning.Callback):
    """Writes down every step, scores now and then, and stops the clock while scoring."""

    def __init__(
        self,
        held_back: Tensor,
        found: Learning,
        steps: int,
        characters: int,
        seq: int,
        on_step: Callable[[Learning], None],
    ):
        self.held_back, self.found, self.seq, self.on_step = held_back, found, seq, on_step
        self.characters = characters  # in one step
        every = max(1, steps // POINTS)
        self.points = {*range(0, steps, every), steps}
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._point(pl_module)
        self.clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, found = time.perf_counter(), self.found
        found.steps += 1
        found.seconds += now - self.clock
        found.characters_per_second = found.steps * self.characters / found.seconds
        self.losses.append(float(outputs["loss"]))
        if found.steps in self.points:
            self._point(pl_module)
        self.on_step(found)
        self.clock = time.perf_counter()

    def _point(self, lesson: Any) -> None:
        bits = score(lesson.model, self.held_back, self.seq)
        mean = sum(self.losses) / len(self.losses) / math.log(2) if self.losses else None
        self.losses.clear()
        found = self.found
        found.bits_per_character = bits
        found.curve.append(
            {"step": found.steps, "seconds": found.seconds, "held_back": bits, "train": mean}
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice to itself: its bars, tips and warnings are not about this run."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    loggers, levels = [*loggers, rank_zero], [*levels, rank_zero.level]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(lightning|typing_extensions)\b")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
