"""Measure layers on a CUDA card: FlexRNN beside cuDNN and beside the loop by hand.

    python benchmarks/gpu.py                 # everything; writes benchmarks/results/cuda-NAME.json
    python benchmarks/gpu.py --cells lstm --size 16,1024,256 --dtypes bfloat16

Correctness comes first: a layer whose results do not follow the rule of DESIGN.md is not timed. All
contestants of a row take turns, and a row is the median of many turns:

    flexrnn         our layer
    cudnn           torch's of that name; torch.nn.LSTM for the cells that torch does not have
    engine torch    our layer by torch's kernel
    article         the article's vectorised LSTM
    loop            the cell's step in Python's loop
    loop compiled   that step by torch.compile, in Python's loop

Sizes are B, T, H; the input is as wide as the state. A row that is measured anew takes the place of
the old one in the file. A machine without a card runs the same by Triton's interpreter, to test
this script (`--interpret`): its times mean nothing, and nothing is written.
"""

import copy
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from clock import TURNS, milliseconds
from torch import Tensor, nn

import flexrnn
from flexrnn.fromscratch import CustomLSTM

SIZES = ["1,1024,256", "16,1024,128", "16,1024,256", "16,1024,512", "16,1024,768", "16,1024,1024",
         "64,512,512", "64,512,1024", "256,256,256", "4096,64,256"]  # fmt: skip
RESETS = "4096,64,256"  # a size of reinforcement learning: episodes end within the sequence
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16,
          "float16": torch.float16}  # fmt: skip
CELLS: dict[str, tuple[Any, Any]] = {  # ours, and what cuDNN has
    "lstm": (flexrnn.cells.LSTMCell, nn.LSTM),
    "naive": (flexrnn.cells.NaiveLSTMCell, nn.LSTM),
    "peephole": (flexrnn.cells.PeepholeLSTMCell, nn.LSTM),
    "layernorm": (flexrnn.cells.LayerNormLSTMCell, nn.LSTM),
    "gru": (flexrnn.cells.GRUCell, nn.GRU),
}
WHICH = ("cell", "B", "T", "H", "dtype")  # tells rows apart
FEWEST = 3  # turns of a contestant
OURS = {"lstm": flexrnn.LSTM, "gru": flexrnn.GRU}
TIMES = {"float32": 2.0, "tf32": 2.0, "bfloat16": 1.2, "float16": 1.2}  # the reference's own error


def main(
    cells: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(CELLS),
    size: Annotated[list[str] | None, typer.Option(help="B,T,H; may be repeated.")] = None,
    dtypes: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(DTYPES),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    loop: Annotated[bool, typer.Option(help="The loops by hand, too.")] = True,
    seconds: Annotated[float, typer.Option(help="At most, of a contestant and mode.")] = 0.5,
    interpret: Annotated[bool, typer.Option(help="Without a card; times mean nothing.")] = False,
) -> None:
    """Measure; see the head of this file."""
    if not torch.cuda.is_available() and not interpret:
        raise typer.BadParameter("there is no CUDA card; --interpret tests the script without one")
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    device = "cpu" if interpret else "cuda"
    results: dict[str, Any] = {"about": about(), "floors": {}, "peaks": {}, "rows": []}
    if not interpret:
        import floors  # beside this file; imports Triton

        results |= {"floors": floors.microseconds(), "peaks": floors.peaks(DTYPES)}
        print(json.dumps({k: results[k] for k in ("about", "floors", "peaks")}, indent=1))
        results["rows"] = rows_before(results["about"], out)
    for dtype in dtypes.split(","):
        allowed = dtype == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        for text in size or SIZES:
            B, T, H = map(int, text.split(","))
            for cell in cells.split(","):
                row = measured(cell, B, T, H, dtype, device, loop, seconds, text == RESETS)
                add_fractions(row, results["peaks"])
                same = [r for r in results["rows"] if all(r[k] == row[k] for k in WHICH)]
                results["rows"] = [r for r in results["rows"] if r not in same] + [row]
                print(told(row), flush=True)
                if not interpret:
                    write(results, out)


class Loop(nn.Module):
    """A cell's step, in Python's loop."""

    def __init__(self, cell: Any, step: Callable[..., Any]) -> None:
        super().__init__()
        self.cell, self.step = cell, step

    def forward(self, x: Tensor) -> Any:
        """Input `(T, B, I)`; output `(T, B, H)` and the last state."""
        state, outputs = self.cell.initial_state(x.shape[1:2], x.dtype, x.device), []
        for x_t in x:
            state = self.step(x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs), state


class Article(CustomLSTM):
    """With time in front."""

    def forward(self, x: Tensor, init_states: Any = None) -> Any:
        """Input `(T, B, I)`."""
        return super().forward(x.transpose(0, 1), init_states)


def measured(
    cell: str, B: int, T: int, H: int, dtype: str, device: str, loop: bool, seconds: float,
    resets: bool,
) -> dict[str, Any]:  # fmt: skip
    """All contestants of one row, forward and with the backward pass."""
    torch.manual_seed(0)
    kind, theirs = CELLS[cell]
    ours = flexrnn.FlexRNN(kind, H, H, device=device, dtype=DTYPES[dtype], backend="cuda")
    x = torch.randn(T, B, H, device=device, dtype=DTYPES[dtype])
    marks = {"reset": torch.rand(T, B, device=device) < 0.02} if resets else {}
    row: dict[str, Any] = {"cell": cell, "B": B, "T": T, "H": H, "dtype": dtype, "resets": resets}
    try:
        wrong = errors(ours, x[: min(T, 64)], dtype, marks, min(T, 64))
        if wrong:
            return row | {"refused": wrong}
        contestants: dict[str, Callable[[Tensor], Any]] = {"flexrnn": lambda x: ours(x, **marks)}
        modules: dict[str, nn.Module] = {"flexrnn": ours}
        modules["cudnn"] = theirs(H, H, device=device, dtype=DTYPES[dtype])
        contestants["cudnn"] = modules["cudnn"]  # which knows no resets
        if cell in OURS and not resets and device == "cuda":
            modules["engine torch"] = OURS[cell](H, H, device=device, dtype=DTYPES[dtype])
            modules["engine torch"].backend = "torch"
            contestants["engine torch"] = modules["engine torch"]
        if loop:
            steps: dict[str, nn.Module] = {"article": Article(H, H).to(device, DTYPES[dtype])}
            by_hand = kind(H, H).to(device, DTYPES[dtype])
            steps["loop"] = Loop(by_hand, by_hand.step)
            steps["loop compiled"] = Loop(by_hand, torch.compile(by_hand.step))
            modules |= steps
            contestants |= steps
        for mode in ("forward", "training"):
            row[mode] = race(contestants, modules, x, mode == "training", seconds)
        row["bytes"] = bytes_moved(ours, x)
        row["flops"] = flops(kind, B, T, H)
    except Exception as error:  # one row that fails, on one card, is a result
        return row | {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    return row


def errors(layer: Any, x: Tensor, dtype: str, marks: dict[str, Any], steps: int) -> str:
    """What breaks the rule, or nothing."""
    marks = {name: mark[:steps] for name, mark in marks.items()}

    def results(layer: Any, engine: str, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        with flexrnn.backend(engine):
            output, state = layer(x, **marks)
        weights = torch.linspace(-1, 2, output.numel(), device=x.device, dtype=torch.double)
        loss = (output.double() * weights.view_as(output)).sum()
        leaves = [x, *layer.parameters()]
        found = torch.autograd.grad(loss, leaves)
        return [output, *(state if isinstance(state, tuple) else (state,)), *found]

    golden = results(copy.deepcopy(layer).double(), "reference", x.double())
    theirs, ours = results(layer, "reference", x), results(layer, "cuda", x)
    few = 8 * torch.finfo(x.dtype).eps
    for k, (right, own, found) in enumerate(zip(golden, theirs, ours, strict=True)):
        error, allowed = (found - right).norm(), TIMES[dtype] * (own - right).norm()
        if not error <= allowed + few * right.norm():
            return f"tensor {k}: error {error.item():.3e}, the reference's own {allowed.item():.3e}"
    return ""


def race(
    contestants: dict[str, Callable[[Tensor], Any]],
    modules: dict[str, nn.Module],
    x: Tensor,
    training: bool,
    seconds: float,
) -> dict[str, Any]:
    """Milliseconds and bytes of memory of each, in turn; who is slow has fewer turns."""

    def once(call: Callable[[Tensor], Any], module: nn.Module) -> None:
        if not training:
            with torch.no_grad():
                call(x)
            return
        given = x.detach().requires_grad_()
        output = call(given)[0]
        torch.autograd.grad(output.sum(), [given, *module.parameters()])

    found: dict[str, Any] = {}
    for name, call in contestants.items():  # first calls compile
        once(call, modules[name])
        once(call, modules[name])
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(TURNS if x.device.type == "cuda" else 1):
        for name, call in contestants.items():
            if turn >= FEWEST and sum(times[name]) > 1e3 * seconds:
                continue
            times[name].append(milliseconds(lambda: once(call, modules[name]), x.device))  # noqa: B023
    for name, call in contestants.items():
        found[name] = {"ms": statistics.median(times[name]), "turns": len(times[name])}
        found[name]["us_a_step"] = 1e3 * found[name]["ms"] / x.shape[0]
        if x.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            once(call, modules[name])
            found[name]["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def flops(kind: Any, B: int, T: int, H: int) -> float:
    """Multiplications and additions of the forward pass's products."""
    weights = sum(p.numel() for name, p in kind(H, H).named_parameters() if "weight" in name)
    return 2.0 * B * T * weights


def add_fractions(row: dict[str, Any], peaks: dict[str, float]) -> None:
    """How much of what the card can multiply, and move, our forward pass does."""
    if peaks and "forward" in row:
        seconds = row["forward"]["flexrnn"]["ms"] / 1e3
        row["fraction of matrix rate"] = row["flops"] / seconds / peaks[row["dtype"]]
        row["fraction of bandwidth"] = row["bytes"] / seconds / peaks["bandwidth"]


def bytes_moved(layer: nn.Module, x: Tensor) -> int:
    """What a forward pass must at least read and write: input, weights, output."""
    return (2 * x.numel() + sum(p.numel() for p in layer.parameters())) * x.element_size()


def about() -> dict[str, Any]:
    """The machine and what runs on it."""
    import triton

    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flexrnn": flexrnn.__version__,
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return found


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    head = f"{row['cell']:9} B {row['B']:4} T {row['T']:4} H {row['H']:4} {row['dtype']:8}"
    if "refused" in row or "failed" in row:
        return f"{head} {row.get('refused') or row.get('failed')}"
    texts = []
    for mode in ("forward", "training"):
        theirs = row[mode]["cudnn"]["ms"]
        parts = ", ".join(f"{name} {r['ms']:.3f} ms ({r['ms'] / theirs:.2f})"
                          for name, r in row[mode].items())  # fmt: skip
        texts.append(f"{mode}: {parts}")
    return f"{head} {'; '.join(texts)}"


def path_of(about: dict[str, Any], out: Path) -> Path:
    """A file that is named after the device."""
    name = "".join(c if c.isalnum() else "-" for c in about["device"].lower())
    return out / f"cuda-{name}.json"


def rows_before(about: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """What was measured earlier, on the same day and by the same versions."""
    path = path_of(about, out)
    if not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    return before["rows"] if before["about"] == about else []


def write(results: dict[str, Any], out: Path) -> None:
    """Everything, so that what was measured stays if the rest fails."""
    out.mkdir(parents=True, exist_ok=True)
    path = path_of(results["about"], out)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
