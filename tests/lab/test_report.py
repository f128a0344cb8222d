"""The page: alone in the world, whole at every stage of a run, and faithful to the numbers."""

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from flexrnn.lab import figures, report, terminal

Whole = tuple[str, dict[str, Any], str]


class Reader(HTMLParser):
    """Collects what a page would fetch, its ids, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.scripts = 0
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)


def test_the_page_fetches_nothing(whole: Whole):
    page = whole[2]
    reader = Reader(page)
    assert reader.fetched == ["data:,"]  # the icon, which a browser would ask for otherwise
    assert reader.scripts > 10
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_has_every_picture(whole: Whole):
    pictures = {"curve-step", "curve-seconds", "bars-forward", "bars-training"}
    pictures |= {f"gate-{name}" for name in "ifgoch"}
    assert set(Reader(whole[2]).ids) == pictures


def test_the_page_has_the_numbers(whole: Whole):
    _, found, page = whole
    text = " ".join("".join(Reader(page).text).split())
    for row in found["learning"]:
        assert f"{row['bits_per_character']:.3f}" in text
        assert f"{row['characters_per_second']:,.0f}" in text
    for row in found["speed"]:
        assert f"{row['training']['median_ms']:.2f}" in text
    assert "another function by design" in text
    assert "long-term memory" in text
    assert "short-term memory" in text


def test_markup_in_the_text_stays_text(whole: Whole):
    _, found, page = whole
    hostile = copy.deepcopy(found)
    hostile["learning"][0]["sample"] = "</pre><script>alert(1)</script>"
    hostile["gates"]["sentence"] = "</script><i>" + hostile["gates"]["sentence"][12:]
    assert Reader(report.render(hostile)).scripts == Reader(page).scripts


@pytest.mark.parametrize(
    ("missing", "pictures"), [("agreement", 10), ("speed", 8), ("learning", 2), ("gates", 4)]
)
def test_a_run_that_lacks_a_part_still_has_a_page(whole: Whole, missing: str, pictures: int):
    found = copy.deepcopy(whole[1])
    found["state"] = "interrupted"
    found[missing] = None if missing == "gates" else []
    if missing == "learning":
        found["gates"] = None
    page = report.render(found)
    assert "This run is interrupted" in page
    assert len(Reader(page).ids) == pictures


def test_cells_that_have_only_begun_can_be_shown(whole: Whole):
    found = copy.deepcopy(whole[1])
    found["learning"][2] |= {"curve": [], "bits_per_character": None, "characters_per_second": None}
    found["learning"][1]["curve"][1]["held_back"] = None  # a training that ran off to infinity
    found["speed"][0]["forward"] |= {"median_ms": None, "ratio": None}
    text = "".join(Reader(report.render(found)).text)
    assert "–" in text


def test_a_heat_map_has_the_characters_and_the_values(whole: Whole):
    gates = whole[1]["gates"]
    page = figures.heat_map(gates, "f")
    assert '"ticktext":[' in page
    ticks = page.split('"ticktext":[', 1)[1].split("]", 1)[0]
    assert len(ticks.split('","')) == len(gates["sentence"])
    assert "\\u2423" in ticks or "␣" in ticks
    assert "hovertemplate" in page


def test_facts_name_what_was_measured(whole: Whole):
    found = whole[1]
    numbers = [number for number, _ in report.facts(found)]
    exact = [row for row in found["agreement"] if row["dtype"] == "float64" and not row["why_not"]]
    largest = max(max(r["output"], r["states"], *r["gradients"].values()) for r in exact)
    assert numbers[0] == f"{largest:.0e}"
    for at, keys in ((1, found["options"]["twins"].values()), (2, found["options"]["twins"])):
        ratios = [
            row["training"]["ratio"]
            for row in found["speed"]
            if row["key"] in keys and row["size"] == {"batch": 3, "seq": 12, "hidden": 5}
        ]
        assert len(ratios) == 3
        assert numbers[at].split("×")[0] == f"{min(ratios):.1f}"
    bits = [row["bits_per_character"] for row in found["learning"]]
    assert numbers[3] == f"{min(bits):.2f} – {max(bits):.2f}"


def test_what_a_terminal_would_obey_is_not_sent_to_it():
    assert terminal.printable("a\x1b[2J\rb\tc\nd\u202e") == "a?[2J?b c\nd?"
