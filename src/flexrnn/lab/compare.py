"""`flexrnn compare`: run the three parts one after the other, and write down after each thing done.

same      are they the same function?   agreement.py
speed     what does a step cost?        speed.py
learning  what does each learn?         train.py, and gates.py to look inside
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flexrnn.lab import agreement, report, speed, terminal
from flexrnn.lab.errors import UsageError
from flexrnn.lab.files import check_folder, no_interrupt
from flexrnn.lab.gates import NAMES
from flexrnn.lab.results import Learning, Results, machine, write, write_json
from flexrnn.lab.table import BASELINE, PARTS, Entry, choose, split_names
from flexrnn.lab.tasks import (
    Text,
    check_length,
    encode,
    python_reference,
    read_file,
    sentence,
    split,
)

SIZES = ("steps", "hidden", "seq", "batch", "threads")
SENTENCE = 64  # characters that still have room side by side
UNITS = 32  # hidden units a heat map shows
SAMPLE = 400  # characters


@dataclass(frozen=True)
class Options:
    """What `flexrnn compare` was asked for; the defaults are the demo's."""

    text: Path | None = None
    seed: int = 0
    steps: int = 800
    hidden: int = 128
    seq: int = 64
    batch: int = 32
    threads: int = 1
    cells: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    out: Path = Path("runs/compare")

    def parts(self) -> list[str]:
        """The parts to run, in their order.

        Raises:
            UsageError: `only` names something else.

        Example:
            >>> from flexrnn.lab.compare import Options
            >>> Options(only=("learning,same",)).parts()
            ['same', 'learning']
        """
        wanted = split_names(self.only, list(PARTS), "--only") or PARTS
        return [part for part in PARTS if part in wanted]


def run(options: Options, console: Console) -> Results:
    """Compare, show and write; Ctrl-C ends it early, with all that is done by then written.

    Args:
        options: what to do; refused before anything is computed if it makes no sense.
        console: where tables and bars go.

    Returns:
        What was found. `state` says whether it is "finished" or "interrupted".

    Raises:
        UsageError: an option, the text or the folder cannot be used.
    """
    began = time.perf_counter()
    parts, entries = options.parts(), choose(options.cells)
    _check_numbers(options)
    text = None
    if options.text is not None or "learning" in parts:
        text = _load(options.text)
        check_length(text, options.batch, options.seq)
    check_folder(options.out)

    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    results = Results(_plain_options(options, entries, parts), machine())
    if text is not None:
        results.text = _about(text, options.seq)

    def save() -> None:
        results.seconds = time.perf_counter() - began
        found = results.as_dict()
        write_json(options.out / "results.json", found)
        write(options.out / "report.html", report.render(found))

    try:
        terminal.show_start(console, results)
        for part in parts:
            entries = choose(options.cells, part)
            if part == "same":
                _same(results, entries, options, console)
            elif part == "speed":
                _speed(results, entries, options, console)
            elif text is not None:
                _learning(results, entries, text, options, console, save)
            save()
        results.state = "finished"
    except KeyboardInterrupt:
        results.state = "interrupted"
    except BaseException:
        results.state = "failed"
        raise
    finally:
        torch.set_num_threads(threads)
        with no_interrupt():
            save()
    terminal.show_end(console, results, options.out)
    return results


def _check_numbers(options: Options) -> None:
    for name in SIZES:
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed: expected a number from 0 to 2^63 - 1, got {options.seed}")


def _load(path: Path | None) -> Text:
    return split(*python_reference()) if path is None else split(str(path), read_file(path))


def _plain_options(options: Options, entries: list[Entry], parts: list[str]) -> dict[str, Any]:
    return {
        "text": None if options.text is None else str(options.text),
        **{name: getattr(options, name) for name in ("seed", *SIZES)},
        "cells": [entry.key for entry in entries],
        "only": parts,
        "colours": {entry.key: entry.colour for entry in entries},
        "twins": {entry.key: entry.twin for entry in entries if entry.twin},
    }


def _about(text: Text, seq: int) -> dict[str, Any]:
    return {
        "source": text.source,
        "characters": len(text.train) + len(text.held_back),
        "train": len(text.train),
        "held_back": len(text.held_back),
        "repeated_paragraphs": text.repeated,
        "alphabet": len(text.alphabet),
        "unigram_bits": text.unigram_bits(),
        "prompt": text.held_back[: max(1, seq // 2)],
    }


def _same(results: Results, entries: list[Entry], options: Options, console: Console) -> None:
    size = {"batch": options.batch, "seq": options.seq, "hidden": options.hidden}
    others = [entry for entry in entries if entry.key != BASELINE]
    with terminal.progress(console) as bars:
        bar = bars.add_task("Same function", total=len(others) * len(agreement.DTYPES), note="")
        for entry in others:
            for dtype in agreement.DTYPES:
                found = agreement.measure(entry, size, dtype, options.seed)
                results.agreement.append(found)
                bars.advance(bar)
    terminal.show_agreement(console, results)


def _speed(results: Results, entries: list[Entry], options: Options, console: Console) -> None:
    with terminal.progress(console) as bars:
        for size in speed.sizes(options.batch, options.seq, options.hidden):
            name = f"Speed, {terminal.size_name(size)}"
            bar = bars.add_task(name, total=speed.ROUNDS, note="")
            for done in speed.measure(entries, size, results.speed, options.seed):
                bars.update(bar, completed=done)
            bars.update(bar, total=bars.tasks[bar].completed)  # the time may end the rounds early
    terminal.show_speed(console, results)


def _learning(
    results: Results,
    entries: list[Entry],
    text: Text,
    options: Options,
    console: Console,
    save: Any,
) -> None:
    # Imported here: Lightning takes a second, which `--only speed` need not wait for.
    from flexrnn.lab.train import CharModel, sample, train

    alphabet = text.alphabet
    data, held_back = encode(text.train, alphabet), encode(text.held_back, alphabet)
    prompt = held_back[: max(1, options.seq // 2)]
    shown = sentence(text.held_back, min(SENTENCE, options.seq))
    with terminal.progress(console, "bits/char") as bars:
        ahead = {
            e.key: bars.add_task(e.label, total=options.steps, start=False, note="–")
            for e in entries
        }
        for entry in entries:
            model = CharModel(entry, len(alphabet), options.hidden, options.seed)
            size = sum(parameter.numel() for parameter in model.cell.parameters())
            found = Learning(entry.key, entry.label, size)
            results.learning.append(found)
            bar = ahead[entry.key]
            bars.start_task(bar)

            def on_step(found: Learning, bar: Any = bar) -> None:
                bars.update(bar, completed=found.steps, note=f"{found.bits_per_character:.2f}")

            train(
                model,
                data,
                held_back,
                found,
                steps=options.steps,
                batch=options.batch,
                seq=options.seq,
                seed=options.seed,
                on_step=on_step,
            )
            drawn = sample(model, prompt, SAMPLE, options.seq, options.seed)
            found.sample = "".join(alphabet[number] for number in drawn.tolist())
            if entry.record is not None:
                _look_inside(results, entry, model, encode(shown, alphabet), shown)
            save()
            terminal.show_learned(console, found)
    terminal.show_learning(console, results)
    terminal.show_samples(console, results)


@torch.no_grad()
def _look_inside(results: Results, entry: Entry, model: Any, numbers: Any, shown: str) -> None:
    """Keep the gates over the sentence.

    Units are ordered by their mean forget gate, those that remember longest first; where there are
    many, some are kept, taken evenly from the first to the last.
    """
    assert entry.record is not None
    recording = entry.record(model.cell, model.embed(numbers))
    order = recording.f.mean(dim=0).argsort(descending=True)
    units = order[torch.linspace(0, len(order) - 1, min(UNITS, len(order))).round().long()]
    if results.gates is None:
        results.gates = {"sentence": shown, "cells": []}
    results.gates["cells"].append(
        {
            "key": entry.key,
            "label": entry.label,
            "units": units.tolist(),
            "means": {name: getattr(recording, name).mean().item() for name in NAMES},
            # (units, T): as the pictures have it
            "values": {
                name: [
                    [round(v, 4) for v in row]
                    for row in getattr(recording, name)[:, units].T.tolist()
                ]
                for name in NAMES
            },
        }
    )
