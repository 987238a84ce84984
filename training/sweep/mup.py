"""`toto sweep mup`: the best learning rate at every width, with muP and with standard parametrisation.

The study of the paper's App. A.7 (widths 64 to 1536, rates 2^-20 to 2^0, one depth): with muP the best rate is the same
at every width, so it can be found on a narrow model and used on a wide one. Every point of the grid is a short training
with its own warm-up and cosine. The best rate of a width is the minimum of a parabola through the lowest losses.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

from tokenization.files import write_whole
from tokenization.terminal.next_command import beside, say_next
from training.flags import config_fields, option, parse, require, require_positive
from training.sweep.coordinates import PARAMETRISATIONS, config_of_width
from training.sweep.run_grid import Point, run_grid

# A parabola is fitted to the rates within BAND nats of a width's lowest loss, and to at least PARABOLA rates.
BAND, PARABOLA = 0.3, 4
DRAWS = 1000


@dataclass(frozen=True)
class MupSweepArgs:
    """The grid, and the training of each of its points."""

    recipe: str | None = option(None, "YAML file, or a name in training/recipes (sweep_paper: the paper's grid)")
    shards: str | None = option(None, "folder written by `toto tokenize`")
    val_shards: str | None = option(None, "validation shards (default: one item in 20 of --shards)")
    preset: str = option("tiny", "model whose width is muP's base width: tiny, base, large, 1b, a1..a6")
    config: str = option("{}", "JSON mapping of TotoConfig fields that replace the preset's, such as the depth")
    widths: list[int] = option([32, 64, 128, 256], "hidden sizes; the MLP scales, the number of heads is fixed")
    log2_rates: list[int] = option(list(range(-12, -2)), "learning rates, as powers of two (paper: -20 to 0)")
    parametrisations: list[str] = option(list(PARAMETRISATIONS), "muP, standard, or both")
    seeds: int = option(2, "runs per point, which differ in the weights and in the order of the rows")
    max_steps: int = option(128, "optimiser steps of a run, including warm-up and cosine")
    warmup_steps: int = option(16, "steps of linear warm-up")
    tokens_per_step: int = option(2048, "code tokens per optimiser step")
    per_device_batch_size: int = option(8, "rows at a time")
    weight_decay: float = option(0.1, "weight decay of matrices, as in the recipes")
    workers: int | None = option(None, "runs at a time (default: one per GPU, or one on a CPU)")
    output: str = option(
        "results/mup_sweep.json", "file to write; the figure (.png) and the runs are written next to it"
    )

    def __post_init__(self):
        require(
            self.shards is not None, "There are no shards to train on; pass --shards DIR (written by toto tokenize)."
        )
        require(bool(self.widths), "--widths is empty; give at least one width.")
        require(len(set(self.log2_rates)) > 2, "--log2_rates needs at least three different rates.")
        require_positive(self, "seeds", "max_steps")
        unknown = set(self.parametrisations) - set(PARAMETRISATIONS)
        known = " and ".join(PARAMETRISATIONS)
        require(not unknown, f"--parametrisations has {', '.join(unknown)}; the parametrisations are {known}.")
        require(self.output.endswith(".json"), f"--output is {self.output}; it must end in .json.")


def best_rate(losses: dict[float, float]) -> float | None:
    """log2 of the best learning rate: the minimum of a parabola through the losses near the lowest one.

    None if the grid does not show the optimum: the lowest loss is at an end of the grid, or the parabola has no minimum
    inside the grid.

    losses: log2 rate -> loss, which is not finite if the run diverged.
    """
    import numpy as np

    rates = sorted(rate for rate, loss in losses.items() if math.isfinite(loss))
    if len(rates) < 3:
        return None
    lowest = min(rates, key=losses.__getitem__)
    if lowest in (min(losses), max(losses)):
        return None
    near = [rate for rate in rates if losses[rate] <= losses[lowest] + BAND]
    by_distance = sorted(rates, key=lambda rate: (abs(rate - lowest), losses[rate]))
    chosen = near if len(near) >= PARABOLA else by_distance[:PARABOLA]
    a, b, _ = np.polyfit(chosen, [losses[rate] for rate in chosen], 2)
    bottom = -b / (2 * a) if a > 0 else math.nan
    return float(bottom) if rates[0] <= bottom <= rates[-1] else None


def optimum(runs: list[dict]) -> dict:
    """The best rate of the runs of one width, with its 95 % interval.

    runs: [{"log2_rate", "seed", "val_loss" (inf if the run diverged)}].
    Returns:
        {"log2_rate", "interval" (both None if the optimum is not inside the grid), "lowest": rate of the lowest mean
        loss, "loss": that mean}. The interval is a bootstrap in which the losses of the seeds are resampled at every
        rate.
    """
    import numpy as np

    seeds: dict[float, list[float]] = {}
    for run in runs:
        seeds.setdefault(run["log2_rate"], []).append(run["val_loss"])
    means = {rate: fmean(losses) for rate, losses in sorted(seeds.items())}
    generator = np.random.default_rng(0)
    drawn = [
        best_rate({rate: float(np.mean(generator.choice(losses, len(losses)))) for rate, losses in seeds.items()})
        for _ in range(DRAWS)
    ]
    found, drawn = best_rate(means), [rate for rate in drawn if rate is not None]
    lowest = min(means, key=means.__getitem__)
    interval = None if found is None or not drawn else [float(q) for q in np.quantile(drawn, [0.025, 0.975])]
    return {"log2_rate": found, "interval": interval, "lowest": lowest, "loss": means[lowest]}


def grid(args: MupSweepArgs) -> list[tuple[Point, dict]]:
    """[(run, its place in the grid)]. At muP's base width, both parametrisations are the same model and share a run."""
    from modeling_toto import TotoConfig

    fields = config_fields(args.config)
    base = TotoConfig.from_preset(args.preset, **fields)
    found = []
    for name, width, rate, seed in product(
        args.parametrisations, sorted(set(args.widths)), sorted(set(args.log2_rates)), range(args.seeds)
    ):
        config = config_of_width(base, width, name)
        is_base = width == config_of_width(base, width, "muP").mup_base_width
        of_width = {key: getattr(config, key) for key in ("hidden_size", "intermediate_size", "head_dim")}
        if not is_base:
            of_width |= {key: getattr(config, key) for key in ("mup_base_width", "mup_base_head_dim")}
        flags = ["--preset", args.preset, "--config", json.dumps(fields | of_width), "--shards", args.shards]
        flags += ["--val_shards", args.val_shards] if args.val_shards else []
        for key in ("max_steps", "warmup_steps", "tokens_per_step", "per_device_batch_size", "weight_decay"):
            flags += [f"--{key}", str(getattr(args, key))]
        flags += ["--save_steps", str(args.max_steps), "--learning_rate", repr(2.0**rate), "--seed", str(seed)]
        place = {"parametrisation": name, "width": width, "log2_rate": rate, "seed": seed}
        found.append((Point(f"{'base' if is_base else name}-{width}-lr{rate}-seed{seed}", tuple(flags)), place))
    return found


def optima(runs: list[dict]) -> list[dict]:
    """The optimum of every parametrisation and width of the runs."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for run in runs:
        groups.setdefault((run["parametrisation"], run["width"]), []).append(run)
    return [{"parametrisation": name, "width": width} | optimum(group) for (name, width), group in groups.items()]


def draw(runs: list[dict], found: list[dict], path: Path) -> None:
    """Draw the loss against log2 of the rate, a curve per width, a panel per parametrisation, with the optima."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in PARAMETRISATIONS if any(run["parametrisation"] == name for run in runs)]
    widths = sorted({run["width"] for run in runs})
    colours = {w: colormaps["viridis"](0.9 * k / max(1, len(widths) - 1)) for k, w in enumerate(widths)}
    finite = sorted(run["val_loss"] for run in runs if math.isfinite(run["val_loss"]))
    figure = Figure(figsize=(5.2 * len(names), 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    # The relevant parts of the curves are near the bottom; diverging losses are cut off at the top.
    top = min(finite[-1], finite[0] + 3.0) + 0.1
    for name, axes in zip(names, panels, strict=True):
        for width in widths:
            own = [run for run in runs if (run["parametrisation"], run["width"]) == (name, width)]
            rates = sorted({run["log2_rate"] for run in own})
            losses = [fmean(run["val_loss"] for run in own if run["log2_rate"] == rate) for rate in rates]
            axes.plot(rates, losses, color=colours[width], linewidth=1.8, marker="o", markersize=3, label=str(width))
            axes.plot(
                [run["log2_rate"] for run in own],
                [run["val_loss"] for run in own],
                ".",
                color=colours[width],
                alpha=0.4,
                markersize=4,
            )
        for row in found:
            if row["parametrisation"] == name and row["log2_rate"] is not None:
                left, right = row["interval"]
                axes.plot([left, right], [row["loss"] - 0.03] * 2, color=colours[row["width"]], linewidth=3)
                axes.plot(row["log2_rate"], row["loss"] - 0.03, "v", color=colours[row["width"]], mec="#111", ms=7)
        axes.set_ylim(finite[0] - 0.15, top)
        axes.set_title("muP" if name == "muP" else "standard parametrisation", loc="left", fontsize=11)
        axes.set_xlabel("log2 of the learning rate", fontsize=10)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation loss, nats per code token", fontsize=10)
    panels[-1].legend(title="width", frameon=False, fontsize=9)
    figure.suptitle("Triangle: minimum of the parabola; bar: its 95 % interval", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((MupSweepArgs,), argv, "toto sweep mup", " ".join(__doc__.split("\n\n")[1].split()))

    from training.engine.device import versions

    output, points = Path(args.output), grid(args)
    folder = output.with_name(f"{output.stem}_runs")
    outcomes = run_grid(list({point.name: point for point, _ in points}.values()), folder, args.workers, "sweep mup")
    runs = [place | {"val_loss": outcomes[point.name].get("val_loss", math.inf)} for point, place in points]
    found = optima(runs)
    result = {
        "command": shlex.join(["toto", "sweep", "mup", *argv]),
        "training": {key: getattr(args, key) for key in ("preset", "config", "max_steps", "warmup_steps")}
        | {key: getattr(args, key) for key in ("tokens_per_step", "weight_decay", "seeds")},
        "versions": versions("cpu"),
        "optima": found,
        # JSON has no infinity, so a run that diverged has no loss.
        "runs": [run | {"val_loss": run["val_loss"] if math.isfinite(run["val_loss"]) else None} for run in runs],
    }
    write_whole(output, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    require(any(math.isfinite(run["val_loss"]) for run in runs), f"Every run diverged ({output}); lower --log2_rates.")
    draw(runs, found, output.with_suffix(".png"))
    print(table(found))
    print(f"wrote {output} and {output.with_suffix('.png')}; the runs are in {folder}")
    say_next("scaling", "--shards", args.shards, "--output", beside(output, "scaling.json"))


def table(found: list[dict]) -> str:
    """The optima as text."""
    lines = [f"{'parametrisation':<18}{'width':>6}{'best log2 rate':>16}{'95 % interval':>18}{'lowest loss':>16}"]
    for row in found:
        best = "not in the grid" if row["log2_rate"] is None else f"{row['log2_rate']:.2f}"
        interval = "" if row["interval"] is None else f"[{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"
        lowest = f"{row['loss']:.3f} at {row['lowest']}"
        lines.append(f"{row['parametrisation']:<18}{row['width']:>6}{best:>16}{interval:>18}{lowest:>16}")
    return "\n".join(lines)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
