"""`toto scaling`: the loss as a function of training compute (paper Sec. 4.9), with a complete run for every point.

C is cumulative training FLOPs, forward and backward, with attention and vocabulary: per token, 6 for each weight and 6
for each causal attention pair. The paper's axis is in forward multiply-adds, so its constant, 7.32, is not comparable
with ours; its exponent, -0.0378, is. Results list forward multiply-adds, C / 6, next to C.

A run is {"size": str, "parameters", "budget", "flops", "seed", "val_loss" (None if it diverged)}: `flops` is its
training FLOPs, and `budget` the target for them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from tokenization.terminal.next_command import say_next
from training.flags import config_fields, option, parse, refuse_idle, require, require_positive, typed_flags
from training.sweep.run_grid import Point, run_grid

PAPER_EXPONENT = -0.0378
DRAWS = 1000
# Exponents that `offset_power_law` tries; outside this range E + a C^b is nearly a straight line, or the constant E.
EXPONENTS = -np.geomspace(0.005, 1.0, 800)
HEADS, BASE_WIDTH, BASE_HEAD_DIM = 4, 64, 16
DESCRIPTION = (
    "Train models of several sizes to several compute budgets, each with its own schedule and no repeated tokens. Take "
    "the best size of every budget (the compute-optimal frontier) and fit L = a C^b and L = E + a C^b to it, with 95 % "
    "bootstrap intervals over runs and seeds. Points with too few steps, or with more tokens than the shards hold, are "
    "left out and listed. A budget shows its optimum only if a smaller and a larger size did worse, so choose sizes on "
    "both sides. The same command resumes a stopped run. --runs RESULT.json fits the runs of a result again, without "
    "training."
)


@dataclass(frozen=True)
class ScalingArgs:
    """The runs, and their training."""

    recipe: str | None = option(None, "YAML file, or a name in training/recipes (scaling_paper: a1..a6)")
    shards: str | None = option(None, "folder written by `toto tokenize`, with more tokens than the longest run sees")
    val_shards: str | None = option(None, "validation shards (default: one item in 20 of --shards)")
    sizes: list[str] = option(
        ["32x2", "48x3", "64x4", "96x5", "128x6", "160x7"], "WIDTHxLAYERS of the tiny preset, or presets such as a1"
    )
    config: str = option("{}", "JSON mapping of TotoConfig fields for all sizes, such as the geometry of the shards")
    budgets: list[float] = option([1.2e11, 3e11, 7e11, 1.7e12, 4e12], "training FLOPs of a run")
    seeds: int = option(2, "runs per size and budget, which differ in the weights and in the order of the rows")
    learning_rate: float = option(2**-8, "learning rate of every size, by muP (paper: 2^-7)")
    tokens_per_step: int = option(2048, "code tokens per optimiser step")
    per_device_batch_size: int = option(8, "rows at a time")
    warmup_share: float = option(0.1, "share of a run's steps with a rising learning rate")
    min_steps: int = option(20, "leave out points with fewer steps")
    workers: int | None = option(None, "runs at a time (default: one per GPU, or one on a CPU)")
    runs: str | None = option(None, "result whose runs are fitted again; nothing is trained")
    output: str = option("results/scaling.json", "file to write; the figure (.png) and the runs are written next to it")

    def __post_init__(self):
        require(self.shards is not None or self.runs is not None, "There are no shards to train on; pass --shards DIR.")
        require(
            len(set(self.budgets)) > 2 and min(self.budgets) > 0, "A law needs at least three --budgets, all above 0."
        )
        require(bool(self.sizes), "--sizes is empty; give at least one size.")
        require(0 <= self.warmup_share < 1, f"--warmup_share is {self.warmup_share}; it must be from 0 to below 1.")
        require_positive(self, "seeds", "min_steps")
        require(self.output.endswith(".json"), f"--output is {self.output}; it must end in .json.")


def model_flags(size: str, fields: dict) -> list[str]:
    """Flags of `toto pretrain` for "64x4" (width x layers, with muP and a base width of 64), or for a preset.

    fields: of TotoConfig, for all sizes.
    Raises:
        ValueError: `size` is neither.
    """
    from modeling_toto import PRESETS

    if size in PRESETS:
        return ["--preset", size, "--config", json.dumps(fields)]
    width, _, layers = size.partition("x")
    require(
        width.isdigit() and layers.isdigit() and int(layers) > 0 and int(width) % (2 * HEADS) == 0 and int(width) > 0,
        f"The size '{size}' is not valid; give WIDTHxLAYERS with a width divisible by {2 * HEADS}, or one of "
        f"{', '.join(PRESETS)}.",
    )
    width = int(width)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": int(layers)}
    shape |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": width // HEADS}
    if width != BASE_WIDTH:
        shape |= {"mup_base_width": BASE_WIDTH, "mup_base_head_dim": BASE_HEAD_DIM}
    return ["--preset", "tiny", "--config", json.dumps(fields | shape)]


def plan(args: ScalingArgs) -> tuple[list[tuple[Point, dict]], list[str]]:
    """([(run, its place)] for every budget, size and seed, the cheapest first; a sentence for each one left out).

    Raises:
        ValueError: an unknown size or field, shards that do not fit the models, or fewer than three budgets with a run.
    """
    from modeling_toto import TotoConfig
    from training.architectures import flops_per_token, parameters
    from training.rows.shard_rows import ShardRows

    fields = config_fields(args.config)
    models = {size: model_flags(size, fields) for size in args.sizes}
    configs = {size: TotoConfig.from_preset(flags[1], **json.loads(flags[3])) for size, flags in models.items()}
    config = next(iter(configs.values()))
    rows = ShardRows(args.shards, config, seed=0, hold_out=args.val_shards is None).rows_per_epoch
    tokens_held = rows * config.num_frames * config.tokens_per_frame

    found, left_out = [], []
    for budget in sorted(set(args.budgets)):
        for size, config in configs.items():
            flops = flops_per_token(config)
            steps = round(budget / (flops * args.tokens_per_step))
            tokens, name = steps * args.tokens_per_step, f"{size} at {budget:g} FLOPs"
            if steps < args.min_steps:
                left_out.append(f"{name}: {steps} steps, fewer than {args.min_steps}")
                continue
            if tokens > tokens_held:
                left_out.append(f"{name}: {tokens:,} tokens, but the shards hold {tokens_held:,} to train on")
                continue
            place = {"size": size, "parameters": parameters(config), "budget": budget, "steps": steps}
            place |= {"tokens": tokens, "flops": tokens * flops, "forward_macs": tokens * flops / 6}
            flags = [*models[size], "--shards", args.shards]
            flags += ["--val_shards", args.val_shards] if args.val_shards else []
            flags += ["--max_steps", str(steps), "--save_steps", str(steps), "--logging_steps", "50"]
            flags += ["--warmup_steps", str(round(args.warmup_share * steps))]
            for key in ("learning_rate", "tokens_per_step", "per_device_batch_size"):
                flags += [f"--{key}", repr(getattr(args, key))]
            for seed in range(args.seeds):
                point = Point(f"{budget:g}-{size}-seed{seed}", (*flags, "--seed", str(seed)))
                found.append((point, place | {"seed": seed}))
    require(
        len({place["budget"] for _, place in found}) > 2,
        f"Fewer than three budgets have a run to train ({'; '.join(left_out)} left out); add sizes or --budgets, lower "
        "--min_steps, or tokenize more data.",
    )
    return found, left_out


def by_budget(runs: list[dict]) -> dict[float, dict[str, list[dict]]]:
    """Budget -> size -> runs, with budgets in increasing order. Runs that diverged are left out."""
    groups: dict[float, dict[str, list[dict]]] = {}
    for run in sorted(runs, key=lambda run: run["budget"]):
        if run["val_loss"] is not None:
            groups.setdefault(run["budget"], {}).setdefault(run["size"], []).append(run)
    return groups


def frontier(runs: list[dict]) -> list[dict]:
    """The compute-optimal frontier: for each budget, the size with the lowest mean loss over its seeds.

    Returns:
        [{"budget", "size", "parameters", "flops", "loss" (mean), "bracketed": whether both a smaller and a larger size
        did worse, so that the optimum lies between them; "optimum": parameters at the minimum of the parabola in log N
        through the best size and its two neighbours, None if it is not bracketed}]
    """
    points = []
    for budget, sizes in by_budget(runs).items():
        means = sorted(
            (runs[0]["parameters"], fmean(run["val_loss"] for run in runs), size) for size, runs in sizes.items()
        )
        best = min(range(len(means)), key=lambda k: means[k][1])
        parameters, loss, size = means[best]
        bracketed = 0 < best < len(means) - 1
        point = {"budget": budget, "size": size, "parameters": parameters, "flops": sizes[size][0]["flops"]}
        optimum = _bottom([mean[:2] for mean in means[best - 1 : best + 2]]) if bracketed else None
        points.append(point | {"loss": loss, "bracketed": bracketed, "optimum": optimum})
    return points


def _bottom(three: list[tuple[int, float]]) -> float:
    """Parameters at the minimum of the parabola through three (parameters, loss), the middle one the lowest."""
    a, b, _ = np.polyfit(np.log([count for count, _ in three]), [loss for _, loss in three], 2)
    return float(np.exp(-b / (2 * a))) if a > 0 else float(three[1][0])  # three equal losses have no minimum


def power_law(compute, losses) -> dict[str, float]:
    """{"a", "b"} of L = a C^b, by least squares of the logarithms."""
    b, log_a = np.polyfit(np.log(compute), np.log(losses), 1)
    return {"a": float(np.exp(log_a)), "b": float(b)}


def offset_power_law(compute, losses) -> dict[str, float]:
    """{"E", "a", "b"} of L = E + a C^b with E and a at least 0 and b in [-1, -0.005], by least squares.

    E and a are linear, so they are solved for each b of `EXPONENTS`, and the best b is taken.
    """
    compute, losses = np.asarray(compute, float), np.asarray(losses, float)
    scale = np.exp(np.log(compute).mean())  # so that C^b is about 1
    x = (compute / scale) ** EXPONENTS[:, None]  # (exponents, points)
    centred = x - x.mean(1, keepdims=True)
    a = (centred * losses).sum(1) / (centred**2).sum(1)
    E = losses.mean() - a * x.mean(1)
    a, E = np.where(E < 0, (x * losses).sum(1) / (x**2).sum(1), a), np.maximum(E, 0)
    a, E = np.maximum(a, 0), np.where(a < 0, losses.mean(), E)
    best = int(((E[:, None] + a[:, None] * x - losses) ** 2).sum(1).argmin())
    b = EXPONENTS[best]
    return {"E": float(E[best]), "a": float(a[best] * scale**-b), "b": float(b)}


LAWS = {"power_law": power_law, "offset_power_law": offset_power_law}


def predicted(law: dict, compute):
    """The loss that a law predicts at training FLOPs `compute`."""
    return law.get("E", 0.0) + law["a"] * np.asarray(compute, float) ** law["b"]


def fit(runs: list[dict], draws: int = DRAWS) -> dict:
    """Both laws fitted to the frontier, with 95 % bootstrap intervals.

    Each draw resamples the sizes of every budget and the seeds of each size, and computes frontier and laws again. So
    the intervals cover seeds and the choice of sizes, but not the choice of validation rows, which is the same for all
    runs, nor the form of the law.

    Returns:
        {"frontier"; for each law its constants, their "median" over the draws and "interval" (2.5 and 97.5 %), its
        "rmse" in nats at the frontier and its "band" {"flops", "low", "high"}; "optimum_size": {"k", "p"} of N = k C^p
        through the bracketed points, None if there are fewer than three}
    Raises:
        ValueError: fewer than three budgets with a run that did not diverge.
    """
    points = frontier(runs)
    if len(points) < 3:
        raise ValueError(
            f"A law needs at least three budgets, but only {len(points)} have a run that did not diverge; "
            "add --budgets, or lower --learning_rate."
        )
    compute, losses = [p["flops"] for p in points], [p["loss"] for p in points]
    generator, groups = np.random.default_rng(0), by_budget(runs)
    drawn: dict[str, list[dict]] = {name: [] for name in LAWS}
    for _ in range(draws):
        again = frontier(_redrawn(groups, generator))
        for name, law in LAWS.items():
            drawn[name].append(law([p["flops"] for p in again], [p["loss"] for p in again]))
    xs = np.geomspace(min(compute), max(compute), 40)
    found: dict = {"frontier": points}
    for name, law in LAWS.items():
        best = law(compute, losses)
        quantiles = {key: np.quantile([each[key] for each in drawn[name]], [0.025, 0.5, 0.975]) for key in best}
        low, high = np.quantile([predicted(each, xs) for each in drawn[name]], [0.025, 0.975], axis=0)
        found[name] = best | {
            "median": {key: float(q[1]) for key, q in quantiles.items()},
            "interval": {key: [float(q[0]), float(q[2])] for key, q in quantiles.items()},
            "rmse": float(np.sqrt(np.mean((predicted(best, compute) - losses) ** 2))),
            "band": {"flops": xs.tolist(), "low": low.tolist(), "high": high.tolist()},
        }
    inside = [(p["flops"], p["optimum"]) for p in points if p["bracketed"]]
    law = power_law(*zip(*inside, strict=True)) if len(inside) >= 3 else None
    return found | {"optimum_size": law and {"k": law["a"], "p": law["b"]}}


def _redrawn(groups: dict[float, dict[str, list[dict]]], generator: np.random.Generator) -> list[dict]:
    chosen = []
    for sizes in groups.values():
        names = list(sizes)
        for name in sorted({names[k] for k in generator.integers(len(names), size=len(names))}):
            own = sizes[name]
            chosen += [own[k] for k in generator.integers(len(own), size=len(own))]
    return chosen


def draw(runs: list[dict], found: dict, path: Path) -> None:
    """Draw final losses against compute, a line per size, with the frontier, both laws and the paper's slope."""
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    from evaluation.report.figures import GREY, MODEL, UNTRAINED, new_figure

    figure, axes = new_figure(8.2, 5.4)
    sizes = sorted({(run["parameters"], run["size"]) for run in runs})
    for k, (count, size) in enumerate(sizes):
        own = [run for run in runs if run["size"] == size and run["val_loss"] is not None]
        colour = colormaps["viridis"](0.9 * k / max(1, len(sizes) - 1))
        losses: dict[float, list[float]] = {}
        for run in own:
            losses.setdefault(run["flops"], []).append(run["val_loss"])
        places = sorted(losses)
        axes.plot(places, [fmean(losses[place]) for place in places], color=colour, linewidth=1, zorder=2)
        axes.plot([run["flops"] for run in own], [run["val_loss"] for run in own], ".", color=colour, markersize=5)
        axes.plot([], [], ".-", color=colour, linewidth=1, label=f"{count / 1e6:.2f} M ({size})")
    points = found["frontier"]
    for bracketed, edge, label in ((True, "-", "best of its budget"), (False, ":", "best, at an end of the sizes")):
        chosen = [p for p in points if p["bracketed"] == bracketed]
        if chosen:
            at = [p["flops"] for p in chosen], [p["loss"] for p in chosen]
            axes.scatter(*at, s=110, facecolors="none", edgecolors="#111", linestyles=edge, zorder=5, label=label)
    xs = np.array(found["power_law"]["band"]["flops"])
    one, two = found["power_law"], found["offset_power_law"]
    styles = (
        (one, MODEL, "-", f"a C^b, b = {one['b']:.4f}"),
        (two, UNTRAINED, (0, (5, 2)), f"E + a C^b, E = {two['E']:.2f}, b = {two['b']:.3f}"),
    )
    for law, colour, dashes, label in styles:
        axes.fill_between(xs, law["band"]["low"], law["band"]["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(xs, predicted(law, xs), color=colour, linewidth=1.9, linestyle=dashes, label=label, zorder=3)
    slope = points[0]["loss"] * (xs / points[0]["flops"]) ** PAPER_EXPONENT
    dashes = {"color": GREY, "linewidth": 1.6, "linestyle": (0, (1, 2))}
    axes.plot(xs, slope, **dashes, label=f"the paper's slope, {PAPER_EXPONENT}")
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="validation loss, nats per code token")
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    above = axes.secondary_xaxis("top", functions=(lambda flops: flops / 6, lambda macs: macs * 6))
    above.set_xlabel("forward multiply-adds")
    for axis in (axes.xaxis, above.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e+", "e")))
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Every dot is a complete run. Bands: 95 % intervals", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def table(found: dict) -> str:
    """The frontier and the laws as text."""
    lines = [f"{'FLOPs':>10}{'forward MACs':>14}{'best size':>11}{'parameters':>12}{'loss':>9}  optimum"]
    for p in found["frontier"]:
        optimum = f"{p['optimum']:,.0f} parameters" if p["bracketed"] else "not shown: best at an end of the sizes"
        row = f"{p['flops']:>10.2e}{p['flops'] / 6:>14.2e}{p['size']:>11}{p['parameters']:>12,}{p['loss']:>9.4f}"
        lines.append(f"{row}  {optimum}")
    for name, shown in (("power_law", "L = a C^b"), ("offset_power_law", "L = E + a C^b")):
        law = found[name]
        values = [f"{key} = {law[key]:.4g} [{low:.4g}, {high:.4g}]" for key, (low, high) in law["interval"].items()]
        lines.append(f"{shown}: {', '.join(values)}; RMSE {law['rmse']:.4f} nats at the frontier")
    if found["optimum_size"]:
        lines.append("optimum size: N = {k:.3g} C^{p:.3f}".format(**found["optimum_size"]))
    lines.append(
        f"The paper's b of L = a C^b is {PAPER_EXPONENT}; its a is for another unit of C and is not comparable."
    )
    return "\n".join(lines)


def read_result(file: str) -> dict:
    """An earlier result of this command.

    Raises:
        ValueError: it is not such a result.
    """
    try:
        result = json.loads(Path(file).read_text())
        complete = all(key in result for key in ("training", "left_out", "runs"))
    except (json.JSONDecodeError, TypeError):
        complete = False
    require(complete, f"--runs is {file}, which is not a result of `toto scaling`; name the JSON file that it wrote.")
    return result


def train(args: ScalingArgs) -> dict:
    """Train every run of the plan; returns {"training": settings, "left_out", "runs"} (runs as described above)."""
    points, left_out = plan(args)
    for sentence in left_out:
        print(f"left out: {sentence}")
    folder = Path(args.output).with_name(f"{Path(args.output).stem}_runs")
    outcomes = run_grid([point for point, _ in points], folder, args.workers, "scaling")
    settings = {key: getattr(args, key) for key in ("config", "learning_rate", "tokens_per_step", "warmup_share")}
    runs = [place | {"val_loss": outcomes[point.name].get("val_loss")} for point, place in points]
    return {"training": settings | {"seeds": args.seeds}, "left_out": left_out, "runs": runs}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ScalingArgs,), argv, "toto scaling", DESCRIPTION)
    if args.runs is not None:
        others = typed_flags(argv) - {"runs", "output"}
        refuse_idle(argv, tuple(sorted(others)), "with --runs, which trains nothing")

    from evaluation.results import command_line
    from tokenization.files import write_json
    from training.engine.device import versions

    output = Path(args.output)
    study = train(args) if args.runs is None else read_result(args.runs)
    for run in study["runs"]:
        if run["val_loss"] is None:
            name = f"{run['size']} at {run['budget']:g} FLOPs, seed {run['seed']}"
            print(f"{name} diverged and is left out of the frontier", file=sys.stderr)
    found = fit(study["runs"])
    result = {"command": command_line("scaling", argv), "training": study["training"], "versions": versions()}
    if args.runs is not None:  # the runs were trained by another command
        result |= {"trained_by": study.get("trained_by") or {key: study.get(key) for key in ("command", "versions")}}
    result |= {"left_out": study["left_out"], "law": found, "paper_exponent": PAPER_EXPONENT, "runs": study["runs"]}
    write_json(output, result)
    draw(study["runs"], found, output.with_suffix(".png"))
    print(table(found))
    if max(run["seed"] for run in study["runs"]) == 0:
        print("There is one seed, so the intervals do not cover seeds.")
    print(f"wrote {output} and {output.with_suffix('.png')}")
    say_next("plan", "--recipe", "base")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
