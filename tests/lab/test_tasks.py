"""The text: what is dropped, held back and refused, and what batches are made of it."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flexrnn.lab.errors import UsageError
from flexrnn.lab.tasks import (
    RandomWindows,
    Text,
    check_length,
    encode,
    python_reference,
    read_file,
    sentence,
    split,
    windows,
)


def words(text: str) -> list[str]:
    """The paragraphs of a text, whatever space is in and around them."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def test_the_default_text_has_no_paragraph_twice_and_shares_none_between_its_parts():
    source, whole = python_reference()
    text = split(source, whole)
    train, held_back = words(text.train), words(text.held_back)

    assert text.repeated > 0
    assert len(train) == len(set(train))
    assert len(held_back) == len(set(held_back))
    assert not set(train) & set(held_back)
    assert set(train) | set(held_back) == set(words(whole))


def test_a_tenth_is_held_back():
    text = split(*python_reference())
    share = len(text.held_back) / (len(text.train) + len(text.held_back))
    assert 0.08 < share < 0.12


@given(st.lists(st.text("ab .", min_size=1, max_size=30), min_size=2, max_size=30))
def test_splitting_loses_no_letter_and_repeats_none(parts: list[str]):
    different = list(dict.fromkeys(" ".join(part.split()) for part in parts))
    assume(sum(bool(part) for part in different) > 1)
    text = split("", "\n\n".join(parts))
    assert "".join((text.train + text.held_back).split()) == "".join("".join(different).split())


def test_the_first_of_equal_paragraphs_stays_where_it_is():
    parts = [f"number {n}" for n in range(20)]
    text = split("", "\n\n".join([*parts, "number  3", parts[7]]))
    assert words(text.train) + words(text.held_back) == parts
    assert text.repeated == 2


def test_without_blank_lines_every_line_is_a_paragraph():
    lines = [f"line {n}" for n in range(50)]
    text = split("", "\n".join([*lines, *lines]))
    assert text.repeated == 50
    assert text.train.split("\n") + text.held_back.split("\n") == lines


def test_one_giant_paragraph_is_cut_through():
    text = split("", "x" * 1000)
    assert (len(text.train), len(text.held_back)) == (900, 100)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"abc\0def", "binary"),
        (b"abc \xff def", "0xff at position 4"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, said: str):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_file(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read_file(tmp_path / "missing")
    with pytest.raises(UsageError, match="directory"):
        read_file(tmp_path)


def test_line_ends_and_byte_order_mark_do_not_reach_the_model(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_file(path) == "one\ntwo\nthree\n"


def test_the_least_length_is_enough_and_one_less_is_too_short():
    def text(n: int) -> Text:
        return split("a file", "".join(chr(97 + k % 26) for k in range(n)))

    needed = 100  # 2 windows of 4 + 1 characters in the tenth that is held back
    check_length(text(needed), batch=4, seq=4)
    with pytest.raises(UsageError, match=r"a file: too short: 99 characters .* needs 100"):
        check_length(text(needed - 1), batch=4, seq=4)


def test_encoding_and_its_inverse_beyond_the_basic_plane():
    text = "naïve 😀 text"
    alphabet = "".join(sorted(set(text)))
    assert "".join(alphabet[n] for n in encode(text, alphabet).tolist()) == text


def test_windows_cover_the_text_once():
    read, follows = windows(torch.arange(10), 3)
    assert read.flatten().tolist() == list(range(9))
    assert torch.equal(follows, read + 1)


def test_random_windows_reach_both_ends_and_follow_their_seed():
    def batches(seed: int) -> list[torch.Tensor]:
        return [
            x for x, y in RandomWindows(torch.arange(8), 5, 3, 40, seed) if torch.equal(y, x + 1)
        ]

    first = torch.stack(batches(1))
    assert first.shape == (40, 5, 3)
    assert (first.min(), first.max() + 1) == (0, 7)
    assert torch.equal(first, torch.stack(batches(1)))
    assert not torch.equal(first, torch.stack(batches(2)))


def test_the_sentence_is_whole_fits_and_stands_on_one_line():
    text = "Short one. A sentence\nover two lines. This one is the right one.  Too   wide. end"
    assert sentence(text, 30) == "This one is the right one."
    assert sentence("no sentence at all", 11) == "no sentence"


def test_unigram_bits_of_a_text_that_is_known_by_heart():
    assert Text("", "", "aaaa", 0).unigram_bits() == 0
    assert Text("", "", "abcdabcd", 0).unigram_bits() == 2
