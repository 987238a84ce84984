"""`toto scaling`: how the loss falls with training compute (paper Sec. 4.9); every point is a run that ended there.

C is cumulative training FLOPs, forward and backward, with attention and vocabulary (6 a weight, 6 a causal attention
pair, a token). The paper plots forward multiply-adds on an axis of its own, so that its constant, 7.32, holds for
another unit: only its exponent, -0.0378, compares. A column of forward multiply-adds, C / 6, stands beside ours.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from training.args import config_fields, option, parse, refuse_idle, require, typed_flags
from training.grid import Point, run_grid

PAPER_EXPONENT = -0.0378
HEADS, BASE_WIDTH, BASE_HEAD_DIM = 4, 64, 16
DESCRIPTION = (
    "Train models of several sizes to several compute budgets, each with a warm-up and a cosine of its own that end "
    "there, on no token twice; take the best size of every budget, the compute-optimal frontier; fit L = a C^b and "
    "L = E + a C^b through it, with 95 % intervals by bootstrap over runs and seeds. Points that would be of a few "
    "steps, or need more tokens than the shards hold, are left out and named. A budget shows its optimum only where a "
    "smaller and a larger size did worse: choose sizes around it. Resumable: call it again after it was stopped. With "
    "--runs RESULT.json it fits the runs of a result again and trains nothing."
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
    config: str = option("{}", "JSON mapping of TotoConfig fields for all sizes, such as the geometry of the shards")
    budgets: list[float] = option([1.2e11, 3e11, 7e11, 1.7e12, 4e12], "training FLOPs of a run")
    seeds: int = option(2, "runs of every size and budget, which differ in weights and in the order of the shards")
    learning_rate: float = option(2**-8, "of every size, by muP (paper: 2^-7)")
    tokens_per_step: int = option(2048, "code tokens of one optimiser step")
    per_device_batch_size: int = option(8, "rows at a time")
    warmup_share: float = option(0.1, "share of a run's steps in which the rate rises")
    min_steps: int = option(20, "points of fewer steps are left out")
    workers: int | None = option(None, "runs at a time (default: one a GPU, or one on a CPU)")
    runs: str | None = option(None, "fit the runs of this result again, and train nothing")
    output: str = option("results/scaling.json", "file to write; the figure (.png) and the runs go beside it")

    def __post_init__(self):
        require(self.shards is not None or self.runs is not None, "Name the shards to train on: --shards DIR.")
        require(
            len(set(self.budgets)) > 2 and min(self.budgets) > 0, "A law needs three --budgets or more, all above 0."
        )
        require(bool(self.sizes) and self.seeds > 0, "Give a size, and --seeds above 0.")
        require(0 <= self.warmup_share < 1, "--warmup_share must be 0 or more, and below 1.")
        require(self.min_steps > 0, "--min_steps must be above 0.")
        require(self.output.endswith(".json"), f"--output {self.output} must end in .json.")


def model_flags(size: str, fields: dict) -> list[str]:
    """`toto pretrain` flags of "64x4" (width x layers, by muP from a base of width 64), or of a preset.

    fields: of TotoConfig, for all sizes.
    Raises:
        ValueError: neither.
    """
    from modeling_toto import PRESETS

    if size in PRESETS:
        return ["--preset", size, "--config", json.dumps(fields)]
    width, _, layers = size.partition("x")
    require(
        width.isdigit() and layers.isdigit() and int(layers) > 0 and int(width) % (2 * HEADS) == 0 and int(width) > 0,
        f"The size '{size}' is no WIDTHxLAYERS, the width a multiple of {2 * HEADS}, nor one of {', '.join(PRESETS)}.",
    )
    width = int(width)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": int(layers)}
    shape |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": width // HEADS}
    if width != BASE_WIDTH:
        shape |= {"mup_base_width": BASE_WIDTH, "mup_base_head_dim": BASE_HEAD_DIM}
    return ["--preset", "tiny", "--config", json.dumps(fields | shape)]


def plan(args: ScalingArgs) -> tuple[list[tuple[Point, dict]], list[str]]:
    """(run, its place) of every budget, size and seed, the cheapest first; and sentences on those left out.

    Raises:
        ValueError: an unknown size or field, shards of other geometry than the models, or fewer than three budgets left
            with a run.
    """
    from modeling_toto import TotoConfig
    from training.architectures import flops_per_token, parameters
    from training.data import ShardRows

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
            tokens, told = steps * args.tokens_per_step, f"{size} at {budget:g} FLOPs"
            if steps < args.min_steps:
                left_out.append(f"{told}: {steps} steps, fewer than {args.min_steps}")
                continue
            if tokens > tokens_held:
                left_out.append(f"{told}: {tokens:,} tokens, and the shards hold {tokens_held:,} to train on")
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
        f"A law needs three budgets or more with a run to train, and these are left out: {'; '.join(left_out)}. "
        "Add sizes or --budgets, lower --min_steps, or tokenize more.",
    )
    return found, left_out


def draw(runs: list[dict], found: dict, path: Path) -> None:
    """Final losses against compute, a line a size; the frontier ringed, both laws, the paper's slope for comparison."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    from evaluation.law import predicted
    from evaluation.plots import GREY, MODEL, UNTRAINED, new_figure

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
    for bracketed, edge, told in ((True, "-", "best of its budget"), (False, ":", "best, at an end of the sizes")):
        chosen = [p for p in points if p["bracketed"] == bracketed]
        if chosen:
            at = [p["flops"] for p in chosen], [p["loss"] for p in chosen]
            axes.scatter(*at, s=110, facecolors="none", edgecolors="#111", linestyles=edge, zorder=5, label=told)
    xs = np.array(found["power_law"]["band"]["flops"])
    one, two = found["power_law"], found["offset_power_law"]
    styles = (
        (one, MODEL, "-", f"a C^b, b = {one['b']:.4f}"),
        (two, UNTRAINED, (0, (5, 2)), f"E + a C^b, E = {two['E']:.2f}, b = {two['b']:.3f}"),
    )
    for law, colour, dashes, told in styles:
        axes.fill_between(xs, law["band"]["low"], law["band"]["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(xs, predicted(law, xs), color=colour, linewidth=1.9, linestyle=dashes, label=told, zorder=3)
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
    figure.suptitle("Every dot is a run that ended there. Bands: 95 % intervals", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def table(found: dict) -> str:
    """Frontier and laws as text."""
    lines = [f"{'FLOPs':>10}{'forward MACs':>14}{'best size':>11}{'parameters':>12}{'loss':>9}  optimum"]
    for p in found["frontier"]:
        optimum = f"{p['optimum']:,.0f} parameters" if p["bracketed"] else "not shown: best at an end of the sizes"
        row = f"{p['flops']:>10.2e}{p['flops'] / 6:>14.2e}{p['size']:>11}{p['parameters']:>12,}{p['loss']:>9.4f}"
        lines.append(f"{row}  {optimum}")
    for name, shown in (("power_law", "L = a C^b"), ("offset_power_law", "L = E + a C^b")):
        law = found[name]
        values = [f"{key} = {law[key]:.4g} [{low:.4g}, {high:.4g}]" for key, (low, high) in law["interval"].items()]
        lines.append(f"{shown}: {', '.join(values)}; {law['rmse']:.4f} nats off at the frontier")
    if found["optimum_size"]:
        lines.append("optimum size: N = {k:.3g} C^{p:.3f}".format(**found["optimum_size"]))
    lines.append(
        f"The paper's b of L = a C^b is {PAPER_EXPONENT}; its a holds for another unit of C and does not compare."
    )
    return "\n".join(lines)


def read_result(file: str) -> dict:
    """An earlier result of this command.

    Raises:
        ValueError: it is none.
    """
    try:
        result = json.loads(Path(file).read_text())
        complete = all(key in result for key in ("training", "left_out", "runs"))
    except (json.JSONDecodeError, TypeError):
        complete = False
    require(complete, f"--runs {file} is no result of `toto scaling`; name the JSON file that it wrote.")
    return result


def train(args: ScalingArgs) -> dict:
    """Every run of the plan: {"training": settings, "left_out", "runs"}; see `law` for a run."""
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

    from evaluation.law import fit
    from evaluation.results import command_line, write_json
    from training.device import versions

    output = Path(args.output)
    study = train(args) if args.runs is None else read_result(args.runs)
    for run in study["runs"]:
        if run["val_loss"] is None:
            told = f"{run['size']} at {run['budget']:g} FLOPs, seed {run['seed']}"
            print(f"diverged, and left out of the frontier: {told}", file=sys.stderr)
    found = fit(study["runs"])
    result = {"command": command_line("scaling", argv), "training": study["training"], "versions": versions()}
    if args.runs is not None:  # what trained the runs is not what fits them
        result |= {"trained_by": study.get("trained_by") or {key: study.get(key) for key in ("command", "versions")}}
    told = {"left_out": study["left_out"], "law": found, "paper_exponent": PAPER_EXPONENT, "runs": study["runs"]}
    write_json(output, result | told)
    draw(study["runs"], found, output.with_suffix(".png"))
    print(table(found))
    if max(run["seed"] for run in study["runs"]) == 0:
        print("Of one seed: the intervals say nothing about seeds.")
    print(f"wrote {output} and {output.with_suffix('.png')}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
