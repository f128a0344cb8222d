"""Draw the pages' figures into docs/figures/ from what the pages' own code computes.

The Python blocks of a page run here as a reader types them; the figures take the classes, trained
models, losses and `race` from them. The SVGs become part of the page, which gives them its colours
(stylesheets/extra.css), so that they fit the light and the dark page and need nothing from outside.
"""

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parent
OUT = DOCS / "figures"
WIDTH = 720


def run(name: str) -> dict[str, Any]:
    """Run a page and return its variables."""
    names: dict[str, Any] = {}
    page = (DOCS / name).read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(block, names)
    return names


def svg(label: str, height: float, parts: list[str]) -> str:
    """One drawing, `WIDTH` wide, that scales with the page."""
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words at a place; `kind` names a class of the style sheet."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{words}</text>'


def box(x: float, y: float, w: float, h: float, kind: str, opacity: float = 1.0, tip="") -> str:
    """A filled rectangle; `tip` is shown under the pointer."""
    inner = f"<title>{tip}</title>" if tip else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" class="{kind}" '
        f'fill-opacity="{opacity:.3f}">{inner}</rect>'
    )


def line(points: list[tuple[float, float]], kind: str) -> str:
    """A line through the points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="{kind}"/>'


def curves() -> str:
    """σ and tanh between −5 and 5."""
    parts = []
    panels = [
        ("σ(z), a gate: from 0, shut, to 1, open", lambda z: 1 / (1 + math.exp(-z)), "f", [0, 1]),
        ("tanh(z), content: from −1 to 1", math.tanh, "g", [-1, 0, 1]),
    ]
    for k, (title, curve, kind, levels) in enumerate(panels):
        left, top, w, h = 40 + 365 * k, 40, 300, 150
        low = levels[0]

        def place(z: float, v: float, left=left, low=low, top=top, w=w, h=h) -> tuple[float, float]:
            return left + (z + 5) / 10 * w, top + h - (v - low) / (1 - low) * h

        parts.append(text(left, 22, title, "title"))
        for level in levels:
            parts.append(line([place(-5, level), place(5, level)], "rule"))
            parts.append(
                text(left - 8, place(0, level)[1] + 4, f"{level}".replace("-", "−"), "end")
            )
        parts += [text(place(z, low)[0], 210, f"{z}".replace("-", "−"), "mid") for z in (-5, 0, 5)]
        z_s = [-5 + z / 10 for z in range(101)]
        parts.append(line([place(z, curve(z)) for z in z_s], f"curve line-{kind}"))
    return svg("The sigmoid and the hyperbolic tangent", 220, parts)


def packing() -> str:
    """Four narrow products beside one wide one."""
    parts, blocks = [], [("U_i", "i"), ("U_f", "f"), ("U_c", "g"), ("U_o", "o")]
    depth, rows, w, top = 54, 84, 54, 48

    parts.append(text(20, 24, "naive: four products", "title"))
    for k, (name, kind) in enumerate(blocks):
        left = 20 + 172 * k
        parts += [box(left, top, depth, rows, "operand"), text(left + 27, top + 46, "x_t", "mid")]
        parts.append(text(left + 66, top + 32, "@", "mid"))
        parts += [box(left + 78, top, w, depth, f"fill-{kind}")]
        parts.append(text(left + 105, top + 31, name, "mid on"))
        if k == 0:
            parts.append(text(left + 27, top + rows + 18, "(B, I)", "mid small"))
            parts.append(text(left + 105, top + depth + 18, "(I, H)", "mid small"))

    top = 228
    parts.append(text(20, top - 24, "vectorised: one product, then a cut", "title"))
    parts += [box(20, top, depth, rows, "operand"), text(47, top + 46, "x_t", "mid")]
    parts.append(text(47, top + rows + 18, "(B, I)", "mid small"))
    parts += [text(86, top + 32, "@", "mid"), text(338, top + 32, "=", "mid")]
    for k, (name, kind) in enumerate(blocks):
        parts.append(box(98 + w * k, top, w, depth, f"fill-{kind}"))
        parts.append(text(125 + w * k, top + 31, name, "mid on"))
        parts.append(box(360 + (w + 8) * k, top, w, rows, f"fill-{kind}"))
        parts.append(text(387 + (w + 8) * k, top + 46, f"z_{kind}", "mid on"))
    parts.append(text(98 + 2 * w, top + depth + 18, "W (I, 4H)", "mid small"))
    parts.append(text(360 + 2 * w + 12, top + rows + 18, "four times (B, H)", "mid small"))
    return svg("Four matrices side by side make one product of four", 340, parts)


def speed(names: dict[str, Any]) -> str:
    """Time of a training step, each bar as a multiple of torch.nn.LSTM's."""
    B, T, sizes = 32, 50, (32, 128, 512)
    parts, y, measured = [], 30.0, []
    for H in sizes:
        x = torch.randn(B, T, H)
        measured.append((H, names["race"](names["contestants"](H, H), x, rounds=9)))
    longest = max(t / times["torch.nn.LSTM"] for _, times in measured for t in times.values())
    for H, times in measured:
        parts.append(text(20, y, f"H = {H}", "title"))
        for k, (name, milliseconds) in enumerate(times.items()):
            ratio = milliseconds / times["torch.nn.LSTM"]
            top, length = y + 10 + 26 * k, 360 * ratio / longest
            parts.append(text(130, top + 15, name, "end"))
            parts.append(box(140, top, length, 20, f"fill-{'fgo'[k]}"))
            words = f"{1000 * milliseconds / T:.0f} µs a step, {ratio:.1f} times nn.LSTM"
            if name == "torch.nn.LSTM":
                words = f"{1000 * milliseconds / T:.0f} µs a step"
            parts.append(text(148 + length, top + 15, words, "small"))
        y += 124
    setting = f"Forward and backward, batch {B}, {T} steps, I = H, float32, one thread, "
    parts.append(text(20, y - 10, setting + f"PyTorch {torch.__version__}", "small"))
    return svg("Time per step of the three implementations", y, parts)


def counting(names: dict[str, Any]) -> str:
    """The counting model's long-term memory as lines, and gates and states as a heat map."""
    sentence, inside = names["sentence"], names["inside"]
    left, step = 130, 27.0
    middle = [left + step * (t + 0.5) for t in range(len(sentence))]
    c = inside["c"]
    H = c.shape[1]

    # The unit whose memory follows the true count best is drawn strong.
    count = torch.tensor(
        [sentence[: t + 1].count("a") - sentence[: t + 1].count("b") for t in range(len(sentence))],
        dtype=c.dtype,
    )
    best = max(range(H), key=lambda k: abs(torch.corrcoef(torch.stack([c[:, k], count]))[0, 1]))

    top, height, low, high = 40, 180, min(0.0, float(c.min())), float(c.max())
    parts = [text(20, 20, "cell state c, unit by unit", "title")]

    def level(v: float) -> float:
        return top + height * (high - v) / (high - low)

    zero = level(0)
    parts += [line([(left, zero), (left + step * len(sentence), zero)], "rule")]
    parts += [text(left - 8, zero + 4, "0", "end")]
    for k in sorted(range(H), key=lambda k: k == best):
        points = [(x, level(float(v))) for x, v in zip(middle, c[:, k], strict=True)]
        parts.append(line(points, "curve line-g" if k == best else "curve faint"))
    parts.append(text(left - 8, top + 4, f"unit {best + 1}", "end strong-g"))
    parts.append(text(left - 8, top + 20, "counts best", "end small"))

    y = top + height + 22
    rows = [
        ("f", "forget gate"),
        ("i", "input gate"),
        ("o", "output gate"),
        ("c", "cell state"),
        ("h", "output"),
    ]
    for key, title in rows:
        parts += [text(middle[t], y, s, "mid symbol") for t, s in enumerate(sentence)]
        parts.append(text(left - 8, y + 32, f"{key}, {title}", "end"))
        largest = 1.0 if key in "fio" else float(inside[key].abs().max())
        for k in range(H):
            for t, value in enumerate(inside[key][:, k].tolist()):
                kind = f"fill-{key}" if key in "fio" else "fill-g" if value > 0 else "fill-f"
                tip = f"{title}, unit {k + 1}, at {sentence[t]}: {value:.2f}".replace("-", "−")
                spot = left + step * t + 1, y + 6 + 16 * k, step - 2, 14
                parts += [box(*spot, "operand"), box(*spot, kind, abs(value) / largest, tip)]
        y += 6 + 16 * H + 24
    key = (
        "Gates: the stronger the colour, the further open. States: orange positive, blue negative."
    )
    parts.append(text(left, y - 6, key, "small"))
    return svg("Gates and states of the counting model over a sentence", y + 4, parts)


def learning(errors: dict[str, list[float]]) -> str:
    """The error of every training step, a mean over the last ten, one line a layer."""
    left, top, width, height, highest = 60, 40, 480, 200, 0.25
    steps = len(next(iter(errors.values())))

    def place(step: float, error: float) -> tuple[float, float]:
        return left + step / steps * width, top + height * (1 - min(error, highest) / highest)

    parts = [text(left - 40, 20, "mean squared error", "title")]
    for level in (0, 0.1, 0.2):
        parts.append(line([place(0, level), place(steps, level)], "rule"))
        parts.append(text(left - 8, place(0, level)[1] + 4, f"{level:g}", "end"))
    parts += [
        text(place(s, 0)[0], top + height + 22, f"{s}", "mid") for s in range(0, steps + 1, 100)
    ]
    parts.append(text(left + width + 24, top + height + 22, "training steps", "small"))

    curves = {}
    for name, history in errors.items():
        means = [sum(history[k - 10 : k]) / 10 for k in range(10, steps + 1)]
        curves[name] = [place(k, mean) for k, mean in enumerate(means, start=10)]
    # Names stand where the curves end, and keep apart where those meet.
    y = math.inf
    for (name, points), kind in zip(curves.items(), "gfo", strict=True):
        parts.append(line(points, f"curve line-{kind}"))
        y = min(points[-1][1] + 4, y - 20)
        parts.append(text(left + width + 10, y, name, f"strong-{kind}"))
    return svg("The error in training of three layers", top + height + 30, parts)


def main() -> None:
    """Run the pages and draw every figure."""
    torch.set_num_threads(1)  # a busy machine disturbs one thread less than several that wait
    OUT.mkdir(exist_ok=True)
    names = run("tutorial.md")
    drawings = {
        "curves": curves(),
        "packing": packing(),
        "speed": speed(names),
        "counting": counting(names),
        "learning": learning(run("write-a-cell.md")["errors"]),
    }
    for name, drawing in drawings.items():
        (OUT / f"{name}.svg").write_text(drawing, encoding="utf-8")
        print(f"docs/figures/{name}.svg")


if __name__ == "__main__":
    main()
