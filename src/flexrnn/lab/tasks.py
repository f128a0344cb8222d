"""The text to learn: where it comes from, what is held back of it, and how it becomes batches."""

import re
import sys
from collections import Counter
from dataclasses import dataclass
from math import log2
from pathlib import Path

import torch
from torch import Tensor

from flexrnn.lab.errors import UsageError

HELD_BACK = 0.1


@dataclass(frozen=True)
class Text:
    """A text, cleaned and cut in two.

    Args:
        source: where it comes from, for people.
        train: what is learned from.
        held_back: what is only ever scored.
        repeated: how many paragraphs were dropped because they had occurred before.
    """

    source: str
    train: str
    held_back: str
    repeated: int

    @property
    def alphabet(self) -> str:
        """The characters that occur, in the order of their numbers."""
        return "".join(sorted(set(self.train) | set(self.held_back)))

    def unigram_bits(self) -> float:
        """Bits per held-back character for one who knows its letter frequencies and nothing else.

        Example:
            >>> from flexrnn.lab.tasks import Text
            >>> Text("example", "", "abab", 0).unigram_bits()
            1.0
        """
        counts = Counter(self.held_back)
        total = len(self.held_back)
        return -sum(n / total * log2(n / total) for n in counts.values()) + 0.0  # no "-0.0"


def python_reference() -> tuple[str, str]:
    """Python's own language reference, which every installation brings along, and its name.

    Raises:
        UsageError: this Python was installed without `pydoc_data`.

    Example:
        >>> from flexrnn.lab.tasks import python_reference
        >>> source, text = python_reference()
        >>> "assert" in text
        True
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "this Python has no pydoc_data.topics; name a text with --text FILE"
        ) from None
    version = ".".join(map(str, sys.version_info[:3]))
    return f"the language reference of Python {version} (pydoc_data.topics)", "\n\n".join(
        topics.values()
    )


def read_file(path: Path) -> str:
    """The contents of a text file, in UTF-8.

    Raises:
        UsageError: the file is missing, a folder, unreadable, binary or empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--text {path}: {error.strerror or error}") from None
    if b"\0" in data:
        raise UsageError(f"--text {path}: expected a text, got a binary file (it holds NUL bytes)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--text {path}: expected UTF-8 text, got byte 0x{data[error.start]:02x} "
            f"at position {error.start}"
        ) from None
    if not text.strip():
        raise UsageError(f"--text {path}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split(source: str, text: str) -> Text:
    r"""Drop every paragraph that has occurred before and hold back the last tenth.

    A paragraph ends at a blank line; in a text without blank lines every line is one. The cut is
    made between two paragraphs, so that none is in both parts, unless a single one is so long that
    the cut must go through it.

    Example:
        >>> from flexrnn.lab.tasks import split
        >>> text = split("example", "\n\n".join(["again", *"abcdefghijklmnopq", "again"]))
        >>> text.held_back, text.repeated
        ('p\n\nq', 1)
    """
    parts = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    joint = "\n\n"
    if len(parts) == 1:
        parts, joint = text.split("\n"), "\n"
    first: dict[str, str] = {}  # the words of a paragraph -> the paragraph, where it occurs first
    for part in parts:
        first.setdefault(" ".join(part.split()), part.rstrip())
    first.pop("", None)
    paragraphs = list(first.values())
    clean = joint.join(paragraphs)

    target = len(clean) * (1 - HELD_BACK)
    cuts = _ends(paragraphs, len(joint))
    cut = min(cuts, key=lambda at: abs(at - target), default=0)
    held = len(clean) - cut - len(joint)
    if not HELD_BACK / 2 <= held / max(len(clean), 1) <= HELD_BACK * 2:
        cut, joint = int(target), ""  # one giant paragraph: through it
    repeated = sum(1 for part in parts if part.strip()) - len(paragraphs)
    return Text(source, clean[:cut], clean[cut + len(joint) :], repeated)


def _ends(paragraphs: list[str], joint: int) -> list[int]:
    """Where each paragraph but the last ends in the joined text."""
    ends, at = [], 0
    for paragraph in paragraphs[:-1]:
        at += len(paragraph)
        ends.append(at)
        at += joint
    return ends


def check_length(text: Text, batch: int, seq: int) -> None:
    """Refuse a text of which no batch, or no window of the held-back part, can be cut.

    Raises:
        UsageError: the text is too short for these options.
    """
    total = len(text.train) + len(text.held_back)
    needed = round(max(batch * (seq + 1) / (1 - HELD_BACK), 2 * (seq + 1) / HELD_BACK))
    if total < needed or len(text.train) <= seq + 1 or len(text.held_back) <= seq + 1:
        raise UsageError(
            f"{text.source}: too short: {total:,} characters without repeated paragraphs, and "
            f"--batch {batch} --seq {seq} needs {needed:,}"
        )


def encode(text: str, alphabet: str) -> Tensor:
    """The text as numbers, `(len(text),)` int64: each character's place in the alphabet.

    Example:
        >>> from flexrnn.lab.tasks import encode
        >>> encode("banana", "abn")
        tensor([1, 0, 2, 0, 2, 0])
    """
    if not text:
        return torch.empty(0, dtype=torch.int64)
    order = torch.tensor([ord(character) for character in alphabet], dtype=torch.int32)
    points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    return torch.searchsorted(order, points)


def windows(data: Tensor, seq: int) -> tuple[Tensor, Tensor]:
    """Cut a text into neighbouring windows: what is read and what comes next, each `(N, seq)`.

    Example:
        >>> import torch
        >>> from flexrnn.lab.tasks import windows
        >>> windows(torch.arange(5), 2)[1]
        tensor([[1, 2],
                [3, 4]])
    """
    n = (len(data) - 1) // seq
    return data[: n * seq].view(n, seq), data[1 : n * seq + 1].view(n, seq)


class RandomWindows(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of windows from anywhere in the text; the same ones for the same seed.

    Yields `steps` pairs of what is read and what comes next, each `(batch, seq)` int64.
    """

    def __init__(self, data: Tensor, batch: int, seq: int, steps: int, seed: int):
        self.data, self.batch, self.seq, self.steps, self.seed = data, batch, seq, steps, seed

    def __iter__(self):
        """Begin again at the first batch."""
        generator = torch.Generator().manual_seed(self.seed)
        last = len(self.data) - self.seq
        for _ in range(self.steps):
            start = torch.randint(last, (self.batch, 1), generator=generator)
            window = self.data[start + torch.arange(self.seq + 1)]  # (B, T + 1)
            yield window[:, :-1], window[:, 1:]


def sentence(text: str, longest: int) -> str:
    """A sentence of this text to look at: the longest whole one on one line that fits.

    Where there is none, the first `longest` characters.

    Example:
        >>> from flexrnn.lab.tasks import sentence
        >>> sentence("No. A sentence that fits here. Another that is much longer than that.", 30)
        'A sentence that fits here.'
    """
    found = re.findall(r"(?:(?<=[.!?] )|(?<=\n)|^)[A-Z][^\n.!?]*[.!?](?=\s|$)", text)
    fitting = [match for match in found if len(match) <= longest and "  " not in match]
    return max(fitting, key=len, default=text[:longest])
