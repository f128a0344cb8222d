"""The report: one page that needs nothing beside itself, made from the plain results alone."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from flexrnn.lab import figures, terminal

# Name, heading, what one sees: in the order in which a step computes them.
EXPLAINED = [
    (
        "f",
        "Forget gate f: what stays",
        "Each unit's memory is multiplied by it. Dark, near 1: the unit keeps what it knows. Pale, "
        "near 0: it lets go, often where a word, a quotation or a sentence ends.",
    ),
    (
        "i",
        "Input gate i: what may enter",
        "It decides whether a unit writes at this character at all. Pale: the unit looks on and "
        "its memory stays untouched by what it reads.",
    ),
    (
        "g",
        "Candidate g: what would be written",
        "The new content, before the input gate has its say: what is added to the memory is i ∘ g. "
        "In the plain LSTM it takes both signs. The article's peephole form makes it from the "
        "input alone, by a sigmoid, so that it is never negative.",
    ),
    (
        "c",
        "Cell state c: the long-term memory",
        "c ← f ∘ c + i ∘ g. Long horizontal bands are things remembered over many characters; a "
        "step in a band is where a gate opened. Nothing squeezes c on its way through time, which "
        "is why gradients survive on it. In the peephole form it can only be added to or "
        "forgotten, never subtracted from. Mind that every picture has its own scale.",
    ),
    (
        "o",
        "Output gate o: what is shown",
        "It decides how much of the memory the rest of the network gets to see at this character. "
        "A unit can keep something dark in c and show it only when it is wanted.",
    ),
    (
        "h",
        "Output h: the short-term memory",
        "h = o ∘ tanh(c) in the plain LSTM, tanh(o ∘ c) in the article's peephole form. It is what "
        "the readout sees and, in the plain LSTM, what the next step's gates read. It changes "
        "from one character to the next: compare its speckle with the bands of c.",
    ),
]


def render(results: dict[str, Any]) -> str:
    """The page, as a string.

    Args:
        results: what `Results.as_dict` gives, or `json.load` of a results.json.
    """
    environment = Environment(
        loader=PackageLoader("flexrnn.lab"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def part(*names: str) -> str:
        return json.dumps({name: results[name] for name in names})

    environment.filters |= {
        "number": terminal.number,
        "products": terminal.products,
        "size": terminal.size_name,
    }
    return environment.get_template("report.html.j2").render(
        r=results,
        facts=facts(results),
        plotly=Markup(get_plotlyjs()),
        curves=[
            _drawn(figures.curves, part("learning", "text", "options"), against)
            for against in ("step", "seconds")
        ] if results["learning"] else [],
        bars=[
            _drawn(figures.bars, part("speed", "options"), kind)
            for kind in ("forward", "training")
        ] if results["speed"] else [],
        maps=[
            (heading, said, _drawn(figures.heat_map, json.dumps(results["gates"]), name))
            for name, heading, said in EXPLAINED
        ] if results["gates"] else [],
        sections=_by_size(results["speed"]),
    )  # fmt: skip


@lru_cache(maxsize=16)  # a page has ten
def _drawn(draw: Callable[[Any, str], str], numbers: str, name: str) -> Markup:
    """A figure; of the same numbers it is not drawn anew for every page of a run."""
    return Markup(draw(json.loads(numbers), name))


def facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What to know first: a number and what it says, for every part that has one.

    Example:
        >>> from flexrnn.lab.report import facts
        >>> facts({"agreement": [], "speed": [], "learning": [], "options": {}})
        []
    """
    found = []
    exact = [
        row for row in results["agreement"] if row["dtype"] == "float64" and not row["why_not"]
    ]
    if exact:
        largest = max(
            max(row["output"], row["states"], *row["gradients"].values()) for row in exact
        )
        names = _list([row["label"] for row in exact])
        found.append((
            f"{largest:.0e}",
            f"is the largest difference of {names} to torch.nn.LSTM in float64, over outputs, "
            "states and every gradient.",
        ))  # fmt: skip
    options = results["options"]
    trained = [
        row
        for row in results["speed"]
        if row["size"] == {name: options[name] for name in ("batch", "seq", "hidden")}
        and row["key"] != "torch"
        and row["training"]["ratio"]
    ]
    twins = options.get("twins", {})
    by_hand = [row for row in trained if row["key"] in twins.values()]
    compiled = [row for row in trained if row["key"] in twins]
    others = [row for row in trained if row not in by_hand + compiled]
    for rows, who in (
        (by_hand, "the loops written by hand take"),
        (compiled, "the same loop bodies take, unchanged and compiled"),
        (others, "the other layers take" if by_hand or compiled else "the others take"),
    ):
        if rows:
            ratios = [row["training"]["ratio"] for row in rows]
            low, high = f"{min(ratios):.1f}×", f"{max(ratios):.1f}×"
            found.append((
                low if low == high else f"{low} – {high}",
                f"as long as torch.nn.LSTM is what {who}, forward and backward, at the size "
                f"trained here ({options['batch']} sequences of {options['seq']} steps, "
                f"{options['hidden']} units).",
            ))  # fmt: skip
    scored = [row for row in results["learning"] if row["bits_per_character"] is not None]
    if scored:
        bits = [row["bits_per_character"] for row in scored]
        low, high = f"{min(bits):.2f}", f"{max(bits):.2f}"
        found.append((
            low if low == high else f"{low} – {high}",
            f"bits per held-back character after {max(row['steps'] for row in scored):,} steps; "
            f"letter frequencies alone need {results['text']['unigram_bits']:.2f}.",
        ))  # fmt: skip
    return found


def _list(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _by_size(rows: list[dict[str, Any]]) -> list[tuple[dict[str, int], list[dict[str, Any]]]]:
    sections: list[tuple[dict[str, int], list[dict[str, Any]]]] = []
    for row in rows:
        if not sections or sections[-1][0] != row["size"]:
            sections.append((row["size"], []))
        sections[-1][1].append(row)
    return sections
