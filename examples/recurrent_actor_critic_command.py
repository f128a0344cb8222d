"""The command line around `recurrent_actor_critic`: options, bars, times, and a page of it all."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import plotly.graph_objects as go
import torch
import typer
from plotly.offline import get_plotlyjs
from recurrent_actor_critic import (
    RECENT,
    SCORED,
    Agent,
    Options,
    Player,
    Remember,
    Rollout,
    Run,
    at_once,
    environments,
    learn,
    loss,
    one_by_one,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import flexrnn
from flexrnn.lab import figures, terminal
from flexrnn.lab.errors import UsageError
from flexrnn.lab.files import check_folder, no_interrupt
from flexrnn.lab.results import machine, to_plain, write, write_json
from flexrnn.lab.table import split_names

PARTS = ["speed", "learning"]
ROUNDS = 21
INTERRUPTED = 130  # what a shell gives a process that Ctrl-C ended
COLOURS = {"with memory": "#3b5b92", "without memory": "#e08e1b"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def contestants(agent: Agent) -> dict[str, tuple[Agent, Remember]]:
    """Ways to the same loss with the same weights; the first is the one the agent learns by."""
    theirs, memory = deepcopy(agent), agent.memory
    theirs.memory = nn.GRU(memory.input_size, memory.hidden_size).to(agent.value.weight)
    theirs.memory.load_state_dict(memory.state_dict())
    return {
        "flexrnn.GRU, one call": (agent, at_once),
        "torch.nn.GRU, step by step": (theirs, one_by_one),
        "flexrnn.GRU, step by step": (agent, one_by_one),
    }


def gradients(agent: Agent, rollout: Rollout, remember: Remember) -> dict[str, Tensor]:
    """Of the loss, for every parameter and for the memory before the rollout."""
    state = rollout.state.detach().requires_grad_()
    wanted = {**dict(agent.named_parameters()), "state": state}
    value = loss(agent, rollout._replace(state=state), remember)
    return dict(zip(wanted, torch.autograd.grad(value, list(wanted.values())), strict=True))


def in_double(agent: Agent, rollout: Rollout) -> tuple[Agent, Rollout]:
    """Both in float64."""
    fields = (f.double() if f.is_floating_point() else f for f in rollout)
    return deepcopy(agent).double(), Rollout(*fields)


def difference(agent: Agent, rollout: Rollout) -> float:
    """In float64, the largest difference of another way's gradient, relative to its norm."""
    agent, rollout = in_double(agent, rollout)
    first, *others = (gradients(who, rollout, way) for who, way in contestants(agent).values())
    return max(
        float((other[name] - first[name]).norm() / first[name].norm().clamp_min(1e-300))
        for other in others
        for name in first
    )


@dataclass
class Speed:
    """What the loss and its gradients cost at one size."""

    size: dict[str, int]
    resets: int  # in the middle of the rollout
    difference: float  # of gradients, see `difference`
    ms: dict[str, list[float]] = field(default_factory=dict)  # of each way, round for round

    def summary(self) -> list[tuple[str, float, float]]:
        """Each way, its median milliseconds, and how many times as long as the first it takes."""
        medians = {label: median(times) for label, times in self.ms.items() if times}
        first = next(iter(medians.values()), 1.0)
        return [(label, ms, ms / first) for label, ms in medians.items()]


def sizes(options: Options) -> list[dict[str, int]]:
    """As trained, and a longer rollout of more environments with a wider memory."""
    trained = {"T": options.rollout, "B": options.envs, "H": options.hidden}
    return [trained, {name: 2 * number for name, number in trained.items()}]


def race(size: dict[str, int], seed: int, rounds: int) -> Iterator[Speed]:
    """Time all ways in turn on one rollout; yields the same `Speed` after every round."""
    torch.manual_seed(seed)
    envs, agent = environments(size["B"]), Agent(2, 2, size["H"])
    player = Player(agent, envs, seed)
    player.rollout(size["T"])  # at whose beginning all is reset: no state goes into it
    rollout = player.rollout(size["T"])
    envs.close()
    found = Speed(size, int(rollout.reset[1:].sum()), difference(agent, rollout))
    ways = list(contestants(agent).items())
    found.ms = {label: [] for label, _ in ways}
    for n in range(rounds + 1):
        times = dict[str, float]()
        for k in range(len(ways)):  # nobody always comes after the same one
            label, (who, remember) = ways[(k + n) % len(ways)]
            began = perf_counter()
            torch.autograd.grad(loss(who, rollout, remember), list(who.parameters()))
            times[label] = (perf_counter() - began) * 1e3
        if n:  # the first round warms up
            for label, ms in times.items():
                found.ms[label].append(ms)
            yield found


@app.command()
def command(
    steps: Annotated[
        int, typer.Option(help="Steps to learn from, of all environments together.")
    ] = Options.steps,
    envs: Annotated[int, typer.Option(help="Environments side by side.")] = Options.envs,
    rollout: Annotated[int, typer.Option(help="Steps in one rollout.")] = Options.rollout,
    hidden: Annotated[int, typer.Option(help="Units of the memory.")] = Options.hidden,
    threads: Annotated[
        int, typer.Option(help="CPU threads. At these sizes more gain nothing.")
    ] = Options.threads,
    seed: Annotated[int, typer.Option(help="Of weights, actions and environments.")] = Options.seed,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Engine of FlexRNN's layers, as in flexrnn.backend.")
    ] = Options.backend,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART,...",
            help="Run these parts alone: speed, learning. Comma-separated or repeated; both by "
            "default.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for report.html, results.json and agent.pt."),
    ] = Path("runs/actor-critic"),
) -> None:
    """Balance CartPole without seeing a velocity, with and without a memory.

    Writes report.html, one page with the learning curves that opens offline; results.json with
    every number; agent.pt, the weights of the agent with memory.

    Ctrl-C ends it early and writes what was learned by then.
    """
    options = Options(steps, envs, rollout, hidden, seed, threads, backend)
    try:
        parts = split_names(only or (), PARTS, "--only") or PARTS
        check(options, out)
    except UsageError as error:
        typer.echo(f"recurrent_actor_critic: {error}", err=True)
        raise typer.Exit(2) from None
    if carry_out(options, parts, out, Console()) == "interrupted":
        raise typer.Exit(INTERRUPTED)


def check(options: Options, out: Path) -> None:
    """Refuse what cannot be done before anything is computed."""
    numbers = {name: n for name, n in vars(options).items() if isinstance(n, int)}
    for name, number in numbers.items():
        least = {"seed": 0, "rollout": 2}.get(name, 1)  # one advantage alone has no spread
        if number < least:
            raise UsageError(f"--{name}: expected at least {least}, got {number}")
    try:
        with flexrnn.backend(options.backend):
            pass
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    check_folder(out)


def carry_out(options: Options, parts: list[str], out: Path, console: Console) -> str:
    """Run the parts and write; returns how it ended, "finished" or "interrupted"."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    speeds, runs, state = list[Speed](), list[Run](), "failed"
    try:
        with flexrnn.backend(options.backend):
            if "speed" in parts:
                _speed(options, speeds, console)
            if "learning" in parts:
                _learn(options, runs, console)
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
    finally:
        with no_interrupt():
            found = {
                "state": state,
                "options": vars(options),
                "machine": machine(),
                "speed": [vars(speed) for speed in speeds],
                "learning": [_without_agent(run) for run in runs],
            }
            write_json(out / "results.json", to_plain(found))
            write(out / "report.html", page(found, speeds))
            for run in runs:
                if run.label == "with memory":
                    torch.save(run.agent.state_dict(), out / "agent.pt")
            torch.set_num_threads(before)
    console.print(
        f"{state.capitalize()}. The page: {out / 'report.html'}", highlight=False, soft_wrap=True
    )
    return state


def _speed(options: Options, speeds: list[Speed], console: Console) -> None:
    with terminal.progress(console) as bars:
        for size in sizes(options):
            bar = bars.add_task(f"Speed, {_name(size)}", total=ROUNDS)
            for found in race(size, options.seed, ROUNDS):
                if not any(found is known for known in speeds):
                    speeds.append(found)
                bars.advance(bar)
    table = Table(title="Loss and gradients of one rollout", title_justify="left")
    for heading in ("Size", "Way", "median ms", "×"):
        table.add_column(heading, justify="left" if heading in ("Size", "Way") else "right")
    for speed in speeds:
        for k, (label, ms, ratio) in enumerate(speed.summary()):
            table.add_row("" if k else _name(speed.size), label, f"{ms:.1f}", f"{ratio:.2f}")
        table.add_section()
    console.print(table)
    largest = max(speed.difference for speed in speeds)
    resets = " and ".join(str(speed.resets) for speed in speeds)
    console.print(
        f"Resets in the middle: {resets}. In float64 no gradient differs between the ways by more "
        f"than {largest:.0e} of its norm.",
        style="dim",
        highlight=False,
    )


def _learn(options: Options, runs: list[Run], console: Console) -> None:
    with terminal.progress(console, "mean return") as bars:
        for forgetful in (False, True):
            title = f"Learning, with{'out' if forgetful else ''} memory"
            bar = bars.add_task(title, total=options.rollouts * options.together, note="–")
            for run in learn(options, forgetful):
                if not any(run is known for known in runs):
                    runs.append(run)
                note = f"{run.curve[-1][1]:.0f}" if run.curve else "–"
                bars.update(bar, completed=run.steps, note=note)
    for run in runs:
        console.print(
            f"{run.label}: mean return {run.score:.1f} of {SCORED} episodes, after {run.steps:,} "
            f"steps: {run.acting:.1f} s acting, {run.learning:.1f} s learning",
            highlight=False,
        )


def _name(size: dict[str, int]) -> str:
    return " ".join(f"{letter} {number}" for letter, number in size.items())


def _without_agent(run: Run) -> dict[str, Any]:
    return {name: value for name, value in vars(run).items() if name != "agent"}


def curves(runs: list[dict[str, Any]]) -> str:
    """Mean recent return against steps, one line an agent."""
    figure = go.Figure()
    for run in runs:
        steps, returns = zip(*run["curve"], strict=True) if run["curve"] else ((), ())
        figure.add_scatter(
            x=steps,
            y=returns,
            name=run["label"],
            mode="lines",
            line={"color": COLOURS[run["label"]], "width": 2.5},
            hovertemplate="%{y:.0f} after %{x:,} steps",
        )
    figure.add_hline(500, line={"color": "#7b8794", "width": 1.5, "dash": "dash"})
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title="steps of all environments", rangemode="tozero")
    figure.update_yaxes(title=f"mean return of the last {RECENT} episodes", range=[0, 520])
    return figures.html(figure, "curve", 440, legend=True)


def page(found: dict[str, Any], speeds: list[Speed]) -> str:
    """A page that needs nothing beside itself."""
    m, options = found["machine"], ", ".join(f"{k} {v}" for k, v in found["options"].items())
    facts = escape(f"{m['processor']}, torch {m['torch']}, flexrnn {m['flexrnn']}; {options}")
    parts = [f"<h1>CartPole without velocities</h1><p class=soft>{facts}</p>"]
    if found["state"] != "finished":
        parts.append(f"<p><b>This run is {found['state']}: here is what it had by then.</b></p>")
    if found["learning"]:
        rows = [
            (
                run["label"],
                f"{run['steps']:,}",
                terminal.number(run["score"], ".1f"),
                f"{run['acting']:.1f}",
                f"{run['learning']:.1f}",
            )
            for run in found["learning"]
        ]
        heads = ("", "steps", f"mean return of {SCORED} episodes", "s acting", "s learning")
        parts += [
            "<h2>Learning</h2><p>Both agents are the same network; the one without memory has it "
            "reset before every step. The dashed line is the longest episode there is.</p>",
            f"<script>{get_plotlyjs()}</script>",
            curves(found["learning"]),
            _table(heads, rows),
        ]
    for speed in speeds:
        rows = [(way, f"{ms:.1f}", f"{ratio:.2f}") for way, ms, ratio in speed.summary()]
        parts += [
            f"<h2>Speed, {_name(speed.size)}</h2><p>Loss and gradients of one rollout with "
            f"{speed.resets} resets in its middle. In float64 no gradient differs between the ways "
            f"by more than {speed.difference:.0e} of its norm.</p>",
            _table(("", "median ms", "×"), rows),
        ]
    return HEAD + "\n".join(parts) + "\n</main></body></html>\n"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CartPole without velocities</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
body {{ margin: 0; color: {figures.INK}; font: 16px/1.6 {figures.FONT}; }}
main {{ max-width: 860px; margin: 0 auto; padding: 32px 24px 64px; }}
.soft {{ color: #5b6b79; font-size: 14px; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 5px 14px; text-align: right; border-bottom: 1px solid {figures.GRID}; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
</style></head><body><main>
"""


def main() -> None:
    """Run the command line."""
    app()
