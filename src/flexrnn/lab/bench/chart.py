"""The chart of ratios: an SVG by itself, one panel for each layer and what it is beside."""

import math
from html import escape
from typing import Any

from flexrnn.lab.bench.show import duration, size_of

INK, SOFT, GRID, WRONG = "#22303c", "#5b6b79", "#e3e8ec", "#c0392b"
COLOURS = {"inference": "#3b5b92", "training": "#e08e1b"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
COLUMNS, PANEL, LABELS, GAP, ROW, EDGE = 3, 236, 118, 26, 19, 24
HEAD, TITLE, FOOT = 84, 40, 30  # above all panels; above and below the rows of one

Panel = tuple[str, str, list[dict[str, Any]]]  # ours, theirs, points


def draw(found: dict[str, Any]) -> str:
    """The SVG of `Bench.as_dict`, or of its JSON.

    Left of the line at 1 a layer is faster than what it is beside.
    """
    panels = _panels(found["rows"])
    ratios = [point["ratio"] for _, _, points in panels for point in points if point["ratio"]]
    low, high = min([0.5, *ratios]) / 1.12, max([2.0, *ratios]) * 1.12
    sizes = list(dict.fromkeys(size_of(row) for row in found["rows"]))
    columns = min(COLUMNS, len(panels))
    width = max(2 * EDGE + LABELS + columns * (PANEL + GAP) - GAP, 620)
    tall = TITLE + ROW * len(sizes) + FOOT
    height = HEAD + math.ceil(len(panels) / columns) * tall + 8
    parts = [_head(found)]
    for k, (ours, theirs, points) in enumerate(panels):
        left = EDGE + LABELS + (k % columns) * (PANEL + GAP)
        top = HEAD + (k // columns) * tall
        parts += _panel(left, top, ours, theirs, points, sizes, (low, high), k % columns == 0)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="{FONT}" font-size="12" '
            f'fill="{INK}" role="img" aria-label="Times of layers, as ratios to torch\'s">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _panels(rows: list[dict[str, Any]]) -> list[Panel]:
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    labels = {row["key"]: [r["label"] for r in row["rivals"]] for row in rows if row["rivals"]}
    for row in rows:
        for k, theirs in enumerate(labels.get(row["key"], [])):
            rival = row["rivals"][k] if row["rivals"] else None
            point = {
                "size": size_of(row),
                "mode": row["mode"],
                "ratio": rival["ratio"] if rival else None,
                "said": row["why_not"]
                or f"{row['mode']}: {duration(row['ours']['median_ms'])}, "
                f"{theirs} {duration(rival['median_ms'] if rival else 0)}",
            }
            panels.setdefault((row["label"], theirs), []).append(point)
    return [(ours, theirs, points) for (ours, theirs), points in panels.items()]


def _head(found: dict[str, Any]) -> str:
    m, dtype = found["machine"], found["options"]["dtype"]
    where = (
        f"{m['processor']}, {m['threads']} of {m['cores']} cores · {dtype} · torch {m['torch']} · "
        f"FlexRNN {m['flexrnn']} · {m['date']}"
    )
    parts = [
        _text(EDGE, 30, "Time, divided by the time of torch’s layer", size=18, weight=600),
        _text(EDGE, 50, where, SOFT),
    ]
    x = EDGE
    for mode, colour in COLOURS.items():
        said = "inference" if mode == "inference" else "training: forward and backward"
        parts += [_dot(x + 5, 66, mode, colour), _text(x + 16, 70, said)]
        x += 92
    parts.append(_text(x + 130, 70, "left of the line: faster", SOFT))
    return "\n".join(parts)


def _panel(
    left: float,
    top: float,
    ours: str,
    theirs: str,
    points: list[dict[str, Any]],
    sizes: list[str],
    span: tuple[float, float],
    labelled: bool,
) -> list[str]:
    def x_of(ratio: float) -> float:
        return left + PANEL * math.log(ratio / span[0]) / math.log(span[1] / span[0])

    first, bottom = top + TITLE, top + TITLE + ROW * len(sizes)
    parts = [
        _text(left, top + 14, ours.removeprefix("flexrnn."), weight=600, size=13),
        _text(left, top + 30, f"beside {theirs}", SOFT, size=11),
    ]
    for tick in _ticks(*span):
        x, colour = x_of(tick), INK if tick == 1 else GRID
        parts.append(
            f'<line x1="{x:.1f}" y1="{first}" x2="{x:.1f}" y2="{bottom + 4}" stroke="{colour}" '
            f'stroke-width="{1.4 if tick == 1 else 1}"/>'
        )
        parts.append(_text(x, bottom + 17, f"{tick:g}", SOFT, anchor="middle", size=11))
    if labelled:
        parts.append(_text(left - 14, top + 30, "B×T×I×H", SOFT, anchor="end", size=11))
    for k, size in enumerate(sizes):
        y = first + ROW * (k + 0.5)
        if labelled:
            parts.append(_text(left - 14, y + 4, size, SOFT, anchor="end", size=11))
        own = [point for point in points if point["size"] == size]
        spots = [x_of(point["ratio"]) for point in own if point["ratio"]]
        if len(spots) > 1:
            parts.append(
                f'<line x1="{min(spots):.1f}" y1="{y}" x2="{max(spots):.1f}" y2="{y}" '
                'stroke="#c3ccd4" stroke-width="2"/>'
            )
        for point in own:
            tip = f"<title>{escape(point['said'])}</title>"
            if point["ratio"]:
                dot = _dot(x_of(point["ratio"]), y, point["mode"], COLOURS[point["mode"]], tip)
                parts.append(dot)
            else:
                word = f"<g>{tip}{_text(x_of(1) + 6, y + 4, 'no ratio', WRONG, size=11)}</g>"
                parts.append(word)
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers where there are many.

    Example:
        >>> from flexrnn.lab.bench.chart import _ticks
        >>> _ticks(0.15, 6)
        [0.2, 0.5, 1.0, 2.0, 5.0]
    """
    ticks = [float(f"{digit}e{power}") for power in range(-6, 7) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    powers = [tick for tick in inside if math.log10(tick).is_integer()]
    return powers if len(inside) > 7 else inside


def _dot(x: float, y: float, mode: str, colour: str, tip: str = "") -> str:
    """Told apart by shape, too: a circle for inference, a diamond for training."""
    if mode == "inference":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">{tip}</circle>'
    path = f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5-5.5 5.5-5.5-5.5z"
    return f'<path d="{path}" fill="{colour}">{tip}</path>'


def _text(
    x: float,
    y: float,
    words: str,
    colour: str = INK,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-size="{size}" font-weight="{weight}">{escape(words)}</text>'
    )
