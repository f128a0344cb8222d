"""The report's pictures, made by Plotly from the plain results: each a piece of HTML."""

from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
MONO = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'
INK, GRID = "#22303c", "#e6eaee"

# What is high is dark; what may be negative is red below zero and blue above, white at zero.
GATE_COLOURS = [[0, "#f7fafc"], [0.35, "#a9cbe0"], [0.7, "#3f83b0"], [1, "#0d3a5f"]]
SIGNED_COLOURS = [
    [0, "#9e2a3c"],
    [0.25, "#e8a598"],
    [0.5, "#fafafa"],
    [0.75, "#8fb8d8"],
    [1, "#174f80"],
]
GATES = ("i", "f", "o")  # between 0 and 1 in every cell


def curves(results: dict[str, Any], against: str) -> str:
    """Bits per held-back character against "step" or "seconds", one line a cell."""
    figure = go.Figure()
    lowest, last = None, 0.0
    for row in results["learning"]:
        points = [point for point in row["curve"] if point["held_back"] is not None]
        if not points:
            continue
        xs, ys = [p[against] for p in points], [p["held_back"] for p in points]
        lowest, last = min(ys) if lowest is None else min(lowest, *ys), max(last, *xs)
        figure.add_scatter(
            x=xs,
            y=ys,
            name=row["label"],
            mode="lines+markers",
            line={"color": _colour(results, row), "width": 2.5},
            marker={"size": 5},
            hovertemplate="%{y:.3f} bits after %{x:,.4~g} "
            + ("steps" if against == "step" else "s"),
        )
    unigram = results["text"]["unigram_bits"]
    figure.add_scatter(
        x=[0, last],
        y=[unigram, unigram],
        name="letter frequencies alone",
        mode="lines",
        line={"color": "#7b8794", "width": 1.5, "dash": "dash"},
        hovertemplate="%{y:.3f} bits",
    )
    # The first points, of an untrained model, lie far above and would flatten all the others.
    floor = min(lowest if lowest is not None else 0.0, unigram)
    span = max(unigram - floor, 0.5)
    title = "training steps" if against == "step" else "seconds of training"
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title=title, rangemode="tozero")
    figure.update_yaxes(
        title="bits per character", range=[floor - 0.12 * span, floor + 1.25 * span], zeroline=False
    )
    return html(figure, f"curve-{against}", 400, legend=True)


def bars(results: dict[str, Any], kind: str) -> str:
    """Median milliseconds of "forward" or "training" on a logarithmic axis, grouped by size."""
    rows = [row for row in results["speed"] if row[kind]["median_ms"] is not None]
    figure = go.Figure()
    for key in dict.fromkeys(row["key"] for row in rows):
        own = [row for row in rows if row["key"] == key]
        ratios = [row[kind]["ratio"] for row in own]
        figure.add_bar(
            orientation="h",
            x=[row[kind]["median_ms"] for row in own],
            y=[_size(row["size"]) for row in own],
            name=own[0]["label"],
            marker={"color": _colour(results, own[0])},
            text=["" if r is None or key == "torch" else f"{r:.1f}×" for r in ratios],
            textposition="outside",
            textfont={"size": 11},
            cliponaxis=False,
            hovertemplate="%{x:.3g} ms<extra>" + escape(own[0]["label"]) + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.08)
    ticks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    figure.update_xaxes(
        title="milliseconds",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:,.10g}" for tick in ticks],
        tickangle=0,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return html(
        figure,
        f"bars-{kind}",
        max(440, 150 + 16 * len(rows)),
        legend=True,
        margin={"l": 56, "r": 40, "t": 16, "b": 50},
    )


def heat_map(gates: dict[str, Any], name: str) -> str:
    """One gate or state over the characters of the sentence, a map for every recorded cell."""
    cells, letters = gates["cells"], [visible(letter) for letter in gates["sentence"]]
    titles = [f"{escape(cell['label'])} <i>(mean {_mean(cell, name)})</i>" for cell in cells]
    height = 250 * len(cells) + 30
    gap = 70 / height
    figure = make_subplots(rows=len(cells), subplot_titles=titles, vertical_spacing=gap)
    for k, cell in enumerate(cells, start=1):
        values = cell["values"][name]
        limit = 1.0
        if name == "c":  # the only one without bounds, and each cell has its own measure
            sizes = sorted(abs(v) for row in values for v in row if v is not None)
            limit = (sizes[int(0.95 * len(sizes))] if sizes else 1.0) or 1.0
        figure.add_heatmap(
            z=values,
            x=list(range(len(letters))),
            customdata=[letters] * len(values),
            text=[[f"unit {unit}"] * len(letters) for unit in cell["units"]],
            zmin=0 if name in GATES else -limit,
            zmax=limit,
            colorscale=GATE_COLOURS if name in GATES else SIGNED_COLOURS,
            colorbar={
                "thickness": 10,
                "len": 1 / len(cells) - 0.1,
                "x": 1.02,
                "xpad": 0,
                "y": _middle(k, len(cells), gap),
                "outlinewidth": 0,
                "tickfont": {"size": 11},
                "nticks": 5,
            },
            xgap=1,
            hovertemplate=f"after character %{{x}}, “%{{customdata}}”<br>%{{text}}<br>{name} = "
            "%{z:.3f}<extra></extra>",
            row=k,
            col=1,
        )
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(letters))),
        ticktext=letters,
        tickangle=0,
        tickfont={"family": MONO, "size": 12},
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_yaxes(
        showticklabels=False,
        title={"text": f"{len(cells[0]['units'])} units", "font": {"size": 12}},
        autorange="reversed",
        showgrid=False,
        zeroline=False,
    )
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    return html(figure, f"gate-{name}", height, margin={"l": 36, "r": 76, "t": 30, "b": 30})


def visible(character: str) -> str:
    """A character as it can stand under a picture, whitespace included.

    Example:
        >>> from flexrnn.lab.figures import visible
        >>> [visible(character) for character in ["a", " ", "<"]]
        ['a', '␣', '&lt;']
    """
    shown = {" ": "␣", "\n": "↵", "\t": "⇥"}.get(character, character)
    return escape(shown, quote=False) if shown.isprintable() else "�"


def _mean(cell: dict[str, Any], name: str) -> str:
    mean = cell["means"][name]
    return "–" if mean is None else f"{round(mean, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"


def _middle(row: int, rows: int, gap: float) -> float:
    """Where the middle of a map lies, from 0 at the bottom of the figure to 1 at its top."""
    height = (1 - gap * (rows - 1)) / rows
    return 1 - (row - 1) * (height + gap) - height / 2


def _size(size: dict[str, int]) -> str:
    """On two lines, so that four of them fit a narrow screen."""
    return f"B {size['batch']} T {size['seq']}<br>H {size['hidden']}"


def _colour(results: dict[str, Any], row: dict[str, Any]) -> str:
    return results["options"]["colours"][row["key"]]


def html(
    figure: go.Figure,
    name: str,
    height: int,
    legend: bool = False,
    margin: dict[str, int] | None = None,
) -> str:
    """A figure in the report's look, as a piece of a page that has Plotly's script already."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin=margin or {"l": 56, "r": 12, "t": 16, "b": 50},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        hoverlabel={"font": {"family": FONT, "size": 12}},
    )
    if legend:
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        figure.update_xaxes(gridcolor=GRID)
        figure.update_yaxes(gridcolor=GRID)
    piece: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True, "scrollZoom": False},
    )
    return piece
