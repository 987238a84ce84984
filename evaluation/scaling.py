"""`toto scaling`: how the loss falls with training compute (paper Sec. 4.9); every point is a run that ended there.

C is cumulative training FLOPs, forward and backward, with attention and vocabulary (6 a weight, 6 a causal attention
pair, a token). The paper plots forward multiply-adds on an axis of its own, so that its constant, 7.32, holds for
another unit: only its exponent, -0.0378, compares. A column of forward multiply-adds, C / 6, stands beside ours.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from training.args import option, parse, require
from training.grid import Point, run_grid

PAPER_EXPONENT = -0.0378
DRAWS = 1000
HEADS, BASE_WIDTH, BASE_HEAD_DIM = 4, 64, 16
DESCRIPTION = (
    "Train models of several sizes to several compute budgets, each with a schedule of its own that ends there and on "
    "no token twice; take the best size of every budget; fit L = a C^b and L = E + a C^b. Resumable; about an hour on "
    "one core at the defaults. --runs RESULT.json fits again without training."
)


@dataclass(frozen=True)
class ScalingArgs:
    """Which runs, and how each is trained."""

    recipe: str | None = option(None, "YAML file, or a name in training/recipes (scaling_paper: a1..a6)")
    shards: str | None = option(None, "folder written by `toto tokenize`, large enough that no run sees a token twice")
    val_shards: str | None = option(None, "validation shards (default: one source in 20 of --shards)")
    sizes: list[str] = option(
        ["32x2", "48x3", "64x4", "96x5", "128x6", "160x7"], "WIDTHxLAYERS of the tiny preset, or presets such as a1"
    )
    budgets: list[float] = option([1.2e11, 3e11, 7e11, 1.7e12, 4e12], "training FLOPs of a run")
    seeds: int = option(2, "runs of every size and budget, which differ in weights and in the order of the shards")
    learning_rate: float = option(2**-8, "of every size, by muP (paper: 2^-7)")
    tokens_per_step: int = option(2048, "code tokens of one optimiser step")
    per_device_batch_size: int = option(8, "rows at a time")
    warmup_share: float = option(0.1, "share of a run's steps in which the rate rises")
    min_steps: int = option(50, "points of fewer steps are left out")
    workers: int | None = option(None, "runs at a time (default: one a GPU, or one on a CPU)")
    runs: str | None = option(None, "fit the runs of this result again, and train nothing")
    output: str = option("results/scaling.json", "file to write; the figure (.png) and the runs go beside it")

    def __post_init__(self):
        require(self.shards is not None or self.runs is not None, "Name the shards to train on: --shards DIR.")
        require(len(set(self.budgets)) > 1 and min(self.budgets) > 0, "--budgets needs two budgets above 0, or more.")
        require(bool(self.sizes) and self.seeds > 0, "Give a size, and --seeds above 0.")
        require(0 <= self.warmup_share < 1, "--warmup_share must lie between 0 and 1.")
        require(self.output.endswith(".json"), f"--output {self.output} must end in .json.")


def model_flags(size: str) -> list[str]:
    """`toto pretrain` flags of "64x4" (width x layers, by muP from a base of width 64), or of a preset.

    Raises:
        ValueError: neither.
    """
    from modeling_toto import PRESETS

    if size in PRESETS:
        return ["--preset", size]
    width, _, layers = size.partition("x")
    require(
        width.isdigit() and layers.isdigit() and int(width) % (2 * HEADS) == 0,
        f"The size '{size}' is no WIDTHxLAYERS, the width a multiple of {2 * HEADS}, nor one of {', '.join(PRESETS)}.",
    )
    width = int(width)
    fields = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": int(layers)}
    fields |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": width // HEADS}
    if width != BASE_WIDTH:
        fields |= {"mup_base_width": BASE_WIDTH, "mup_base_head_dim": BASE_HEAD_DIM}
    return ["--preset", "tiny", "--config", json.dumps(fields)]


def config_of(size: str):
    """The TotoConfig of a size."""
    from modeling_toto import TotoConfig

    flags = model_flags(size)
    return TotoConfig.from_preset(flags[1], **(json.loads(flags[3]) if len(flags) > 2 else {}))


def plan(args: ScalingArgs, tokens: int) -> tuple[list[tuple[Point, dict]], list[str]]:
    """(run, its place) of every budget, size and seed, the cheapest first; and why others are left out.

    tokens: that the training shards hold.
    """
    from training.architectures import flops_per_token, parameters

    found, left_out = [], []
    for budget in sorted(set(args.budgets)):
        for size in args.sizes:
            config = config_of(size)
            steps = round(budget / (flops_per_token(config) * args.tokens_per_step))
            told = f"{size} at {budget:.0e} FLOPs"
            if steps < args.min_steps:
                left_out.append(f"{told}: {steps} steps, fewer than {args.min_steps}")
            elif steps * args.tokens_per_step > tokens:
                left_out.append(f"{told}: {steps * args.tokens_per_step:,} tokens, and there are {tokens:,}")
            else:
                for seed in range(args.seeds):
                    flags = [*model_flags(size), "--shards", args.shards]
                    flags += ["--val_shards", args.val_shards] if args.val_shards else []
                    flags += ["--max_steps", str(steps), "--save_steps", str(steps), "--seed", str(seed)]
                    flags += ["--warmup_steps", str(round(args.warmup_share * steps)), "--logging_steps", "50"]
                    for key in ("learning_rate", "tokens_per_step", "per_device_batch_size"):
                        flags += [f"--{key}", repr(getattr(args, key))]
                    place = {"size": size, "parameters": parameters(config), "budget": budget, "seed": seed}
                    place |= {"flops": steps * args.tokens_per_step * flops_per_token(config)}
                    place |= {"tokens": steps * args.tokens_per_step, "forward_macs": place["flops"] / 6}
                    found.append((Point(f"{budget:.0e}-{size}-seed{seed}", tuple(flags)), place))
    return found, left_out


def frontier(runs: list[dict]) -> list[dict]:
    """Of every budget the size with the lowest mean loss over its seeds: {"budget", "size", "parameters", "flops" and
    "loss" (means)}. Runs that diverged (loss None) take no part."""
    groups: dict[float, dict[str, list[dict]]] = {}
    for run in runs:
        if run["val_loss"] is not None:
            groups.setdefault(run["budget"], {}).setdefault(run["size"], []).append(run)
    points = []
    for budget, sizes in sorted(groups.items()):
        best = min(sizes.values(), key=lambda each: fmean(run["val_loss"] for run in each))
        point = {key: best[0][key] for key in ("size", "parameters")}
        means = {"flops": fmean(run["flops"] for run in best), "loss": fmean(run["val_loss"] for run in best)}
        points.append({"budget": budget} | point | means)
    return points


def power_law(compute, losses) -> dict[str, float]:
    """{"a", "b"} of L = a C^b, by least squares of the logarithms."""
    import numpy as np

    b, log_a = np.polyfit(np.log(compute), np.log(losses), 1)
    return {"a": float(np.exp(log_a)), "b": float(b)}


def offset_power_law(compute, losses) -> dict[str, float]:
    """{"E", "a", "b"} of L = E + a C^b with E and a not below 0, by least squares: for every b on a grid from -1 to
    -0.005 the best E and a, then the best b."""
    import numpy as np

    compute, losses = np.asarray(compute, float), np.asarray(losses, float)
    scale = np.exp(np.log(compute).mean())  # so that C^b is about 1
    best = (math.inf, 0.0, 0.0, 0.0)
    for b in -np.geomspace(0.005, 1, 400):
        x = (compute / scale) ** b
        slope, intercept = np.polyfit(x, losses, 1) if len(x) > 1 else (0.0, losses[0])
        if intercept < 0:
            intercept, slope = 0.0, float(x @ losses / (x @ x))
        if slope < 0:
            intercept, slope = float(losses.mean()), 0.0
        error = float(((intercept + slope * x - losses) ** 2).sum())
        if error < best[0]:
            best = (error, float(intercept), float(slope), float(b))
    _, offset, slope, b = best
    return {"E": offset, "a": slope * scale**-b, "b": b}


def fit(runs: list[dict], draws: int = DRAWS) -> dict:
    """Both laws of the frontier, with 95 % intervals by bootstrap.

    In a draw, the seeds of every size and budget are drawn anew, and so are the sizes that a budget was tried with; the
    frontier and the laws follow from what was drawn.

    Raises:
        ValueError: fewer than three budgets with a run that did not diverge.
    """
    import numpy as np

    points = frontier(runs)
    if len(points) < 3:
        raise ValueError(f"A law needs three budgets or more, and only {len(points)} have a run that did not diverge.")
    laws = {"power_law": power_law, "offset_power_law": offset_power_law}
    compute, losses = [p["flops"] for p in points], [p["loss"] for p in points]
    found = {name: law(compute, losses) for name, law in laws.items()}
    generator = np.random.default_rng(0)
    groups: dict[float, dict[str, list[dict]]] = {}
    for run in runs:
        groups.setdefault(run["budget"], {}).setdefault(run["size"], []).append(run)
    drawn: dict[str, list[dict]] = {name: [] for name in laws}
    for _ in range(draws):
        chosen = []
        for sizes in groups.values():
            names = list(sizes)
            for name in {names[i] for i in generator.integers(len(names), size=len(names))}:
                chosen += [sizes[name][i] for i in generator.integers(len(sizes[name]), size=len(sizes[name]))]
        again = frontier(chosen)
        if len(again) >= 3:
            for name, law in laws.items():
                drawn[name].append(law([p["flops"] for p in again], [p["loss"] for p in again]))
    for name, law in found.items():
        values = {key: [each[key] for each in drawn[name]] for key in law}
        law["interval"] = {key: [float(q) for q in np.quantile(v, [0.025, 0.975])] for key, v in values.items()}
    xs = np.geomspace(min(compute), max(compute), 40)
    band = [[each["a"] * x ** each["b"] for each in drawn["power_law"]] for x in xs]
    low, high = np.quantile(np.array(band), [0.025, 0.975], axis=1)
    return found | {"frontier": points, "band": {"flops": xs.tolist(), "low": low.tolist(), "high": high.tolist()}}


def draw(runs: list[dict], law: dict, path: Path) -> None:
    """Final losses against compute, a line a size; the frontier ringed, both laws, the paper's slope for comparison."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = sorted({(run["parameters"], run["size"]) for run in runs})
    for k, (count, size) in enumerate(sizes):
        own = [run for run in runs if run["size"] == size and run["val_loss"] is not None]
        colour = colormaps["viridis"](0.9 * k / max(1, len(sizes) - 1))
        budgets = sorted({run["budget"] for run in own})
        means = [fmean(run["val_loss"] for run in own if run["budget"] == budget) for budget in budgets]
        places = [fmean(run["flops"] for run in own if run["budget"] == budget) for budget in budgets]
        axes.plot(places, means, color=colour, linewidth=1.3, label=f"{count / 1e6:.2f} M ({size})")
        axes.plot([run["flops"] for run in own], [run["val_loss"] for run in own], ".", color=colour, markersize=5)
    points, xs = law["frontier"], np.array(law["band"]["flops"])
    axes.plot([p["flops"] for p in points], [p["loss"] for p in points], "o", ms=10, mfc="none", mec="#111", mew=1.4)
    axes.fill_between(xs, law["band"]["low"], law["band"]["high"], color="#0072B2", alpha=0.15, linewidth=0)
    one, two = law["power_law"], law["offset_power_law"]
    axes.plot(xs, one["a"] * xs ** one["b"], color="#0072B2", linewidth=2, label=f"a C^b, b = {one['b']:.4f}")
    told = f"E + a C^b, E = {two['E']:.2f}, b = {two['b']:.3f}"
    axes.plot(
        xs, two["E"] + two["a"] * xs ** two["b"], color="#D55E00", linewidth=1.8, linestyle=(0, (5, 2)), label=told
    )
    slope = points[0]["loss"] * (xs / points[0]["flops"]) ** PAPER_EXPONENT
    axes.plot(
        xs, slope, color="#5f6670", linewidth=1.4, linestyle=(0, (1, 2)), label=f"the paper's slope, {PAPER_EXPONENT}"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training FLOPs (six times the forward multiply-adds)", fontsize=10)
    axes.set_ylabel("validation loss, nats per code token", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8.5, ncol=2)
    axes.set_title("Rings: the best size of each budget. Band: 95 % interval of a C^b", fontsize=10, loc="left")
    figure.savefig(path, dpi=110)


def table(law: dict) -> str:
    """Frontier and laws as text."""
    lines = [f"{'FLOPs':>10}{'forward MACs':>14}{'best size':>11}{'parameters':>12}{'loss':>9}"]
    for p in law["frontier"]:
        lines.append(
            f"{p['flops']:>10.2e}{p['flops'] / 6:>14.2e}{p['size']:>11}{p['parameters']:>12,}{p['loss']:>9.4f}"
        )
    for name, shown in (("power_law", "L = a C^b"), ("offset_power_law", "L = E + a C^b")):
        values = [
            f"{key} = {law[name][key]:.4g} [{low:.4g}, {high:.4g}]"
            for key, (low, high) in law[name]["interval"].items()
        ]
        lines.append(f"{shown}: {', '.join(values)}")
    lines.append(
        f"The paper's b of L = a C^b is {PAPER_EXPONENT}; its a holds for another unit of C and does not compare."
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((ScalingArgs,), argv, "toto scaling", DESCRIPTION)

    from evaluation.results import command_line, write_json
    from tokenization.shards import read_manifest
    from training.device import versions

    output = Path(args.output)
    if args.runs is not None:
        before = json.loads(Path(args.runs).read_text())
        runs, left_out = before["runs"], before["left_out"]
    else:
        points, left_out = plan(args, read_manifest(args.shards)["num_tokens"])
        require(bool(points), f"No run is left: {'; '.join(left_out)}.")
        for sentence in left_out:
            print(f"left out: {sentence}")
        folder = output.with_name(f"{output.stem}_runs")
        outcomes = run_grid([point for point, _ in points], folder, args.workers, "scaling")
        runs = [place | {"val_loss": outcomes[point.name].get("val_loss")} for point, place in points]
    for run in runs:
        if run["val_loss"] is None:
            print(f"diverged: {run['size']} at {run['budget']:.0e} FLOPs, seed {run['seed']}", file=sys.stderr)
    law = fit(runs)
    settings = {key: getattr(args, key) for key in ("learning_rate", "tokens_per_step", "warmup_share", "seeds")}
    result = {"command": command_line("scaling", argv), "training": settings, "versions": versions("cpu")}
    write_json(output, result | {"left_out": left_out, "law": law, "paper_exponent": PAPER_EXPONENT, "runs": runs})
    draw(runs, law, output.with_suffix(".png"))
    print(table(law))
    print(f"wrote {output} and {output.with_suffix('.png')}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
