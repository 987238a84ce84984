"""`toto sweep coordinates`: the change of activations in a few Adam steps, against width, with and without muP.

The coordinate check of Yang et al. 2022 (arXiv 2203.03466, Fig. 5): the mean absolute change of logits, attention
logits and the residual stream after t steps. If muP is set up correctly, no curve rises or falls with the width. With
standard parametrisation the curves rise, so a wide model diverges at a rate that is good for a narrow one.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING

from tokenization.files import write_whole
from tokenization.terminal.next_command import say_next
from training.flags import config_fields, option, parse, require, require_positive

if TYPE_CHECKING:
    import torch

    from modeling_toto import TotoConfig, TotoForCausalLM

QUANTITIES = ("logits", "attention logits", "residual stream")
PARAMETRISATIONS = ("muP", "standard")
# Two rows of 16 codes with 4 different values: codes repeat as in a video, so the changes of several steps add up. With
# distinct codes, noise hides the changes in the narrow models.
ROWS, CODES, DIFFERENT = 2, 16, 4


@dataclass(frozen=True)
class CoordinateArgs:
    """The widths, and their training."""

    preset: str = option("tiny", "model whose width is muP's base width: tiny, base, large, 1b, a1..a6")
    config: str = option(
        '{"num_hidden_layers": 4, "tie_word_embeddings": false}', "JSON mapping of fields that replace the preset's"
    )
    widths: list[int] = option([64, 128, 256, 512, 1024], "hidden sizes; the MLP scales, the number of heads is fixed")
    steps: int = option(10, "Adam steps; each one is measured")
    seeds: int = option(3, "number of seeds to average over")
    learning_rate: float = option(2**-9, "constant learning rate, for every width (2^-9: ours, for such short rows)")
    zero_start: bool = option(
        True,
        "initialise queries and readout with zero, as in Yang et al.; otherwise narrow models show their random start "
        "in the first steps. Tied readouts start like the embeddings",
    )
    output: str = option("results/coordinates.json", "file to write; the plot (.png) is written next to it")

    def __post_init__(self):
        require(len(set(self.widths)) > 1, "--widths needs at least two different widths.")
        require_positive(self, "steps", "seeds", "learning_rate")
        require(self.output.endswith(".json"), f"--output is {self.output}; it must end in .json.")


def config_of_width(base: TotoConfig, width: int, parametrisation: str) -> TotoConfig:
    """`base` at another width: the MLP scales, the number of heads is fixed (as in Table 15 of the paper).

    muP's base width is that of `base` if it has one, else the width of `base`.

    Raises:
        ValueError: the width does not give heads of an even size.
    """
    heads, mup = base.num_attention_heads, parametrisation == "muP"
    require(
        width % (2 * heads) == 0,
        f"The width is {width}; it must be a multiple of {2 * heads}, so that {heads} heads have an even size.",
    )
    fields = {
        "hidden_size": width,
        "intermediate_size": base.intermediate_size * width // base.hidden_size,
        "head_dim": width // heads,
        "mup_base_width": (base.mup_base_width or base.hidden_size) if mup else None,
        "mup_base_head_dim": (base.mup_base_head_dim or base.head_dim) if mup else None,
    }
    return type(base)(**base.to_dict() | fields)


def coordinates(model: TotoForCausalLM, ids: torch.LongTensor) -> dict[str, list[torch.Tensor]]:
    """Quantity -> its tensors, one per layer.

    These are the logits (B, L, V), and for each block the attention logits (B, H, causal pairs) and the residual stream
    after the block (B, L, D).
    """
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    found = {quantity: [] for quantity in QUANTITIES}
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()

    def keep_scores(attention, args, kwargs) -> None:
        q, k = (
            project(kwargs["hidden_states"]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
        scores = q @ repeat_kv(k, attention.num_key_value_groups).transpose(2, 3) * attention.scaling
        found["attention logits"].append(scores[:, :, seen])

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.register_forward_pre_hook(keep_scores, with_kwargs=True))
        hooks.append(layer.register_forward_hook(lambda _, args, out: found["residual stream"].append(out)))
    try:
        with torch.no_grad():
            found["logits"].append(model.eval()(ids, use_cache=False).logits)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def measure(
    config: TotoConfig, steps: int, learning_rate: float, seed: int, zero_start: bool = True, tick=None
) -> list:
    """Train a new model for `steps` steps on a few rows and measure it after each step.

    tick: called after each step.
    Returns:
        [{"step" (from 1), "quantity", "layer" (block from 1; 0 for logits), "size" (mean |x|), "change" (mean absolute
        difference from x before the first step)}]
    """
    import torch

    from modeling_toto import TotoForCausalLM
    from training.args import OptimArgs
    from training.engine.optim import make_optimizer

    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.code_offset, config.code_offset + DIFFERENT, (ROWS, CODES), generator=generator)
    ids = torch.nn.functional.pad(codes, (1, 0), value=config.bos_token_id)
    torch.manual_seed(seed)
    model = TotoForCausalLM(config)
    if zero_start:
        zero = [layer.self_attn.q_proj.weight for layer in model.model.layers]
        zero += [] if config.tie_word_embeddings else [model.lm_head.weight]
        for weight in zero:
            torch.nn.init.zeros_(weight)
    optimizer = make_optimizer(model, OptimArgs(learning_rate=learning_rate, weight_decay=0.0))
    start, rows = coordinates(model, ids), []
    for step in range(1, steps + 1):
        model.train()(input_ids=ids, labels=ids, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for quantity, layers in coordinates(model, ids).items():
            for layer, (now, then) in enumerate(zip(layers, start[quantity], strict=True), quantity != "logits"):
                sizes = {"size": now.abs().mean().item(), "change": (now - then).abs().mean().item()}
                rows.append({"step": step, "quantity": quantity, "layer": layer} | sizes)
        if tick:
            tick()
    return rows


def curve(rows: list[dict], parametrisation: str, quantity: str, step: int, what: str = "change") -> dict[int, float]:
    """Width -> mean over seeds and layers. rows: from `measure`, each with its parametrisation, width and seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["parametrisation"], row["quantity"], row["step"]) == (parametrisation, quantity, step):
            found.setdefault(row["width"], []).append(row[what])
    return {width: fmean(values) for width, values in sorted(found.items())}


def slope(curve: dict[int, float]) -> float | None:
    """The slope of log2 of the values over log2 of the widths: 0 is flat, 1 is proportional to the width.

    It is 0 for a curve that is 0 everywhere, and None for values that are not finite.
    """
    if not any(curve.values()):
        return 0.0
    if not all(math.isfinite(value) and value > 0 for value in curve.values()):
        return None
    return linear_regression([math.log2(w) for w in curve], [math.log2(v) for v in curve.values()]).slope


def draw(rows: list[dict], path: Path) -> None:
    """Draw the figure: muP above, standard parametrisation below, a column per quantity, a curve per step."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    steps, widths = sorted({row["step"] for row in rows}), sorted({row["width"] for row in rows})
    colours = ListedColormap([colormaps["viridis"](0.92 * k / max(1, len(steps) - 1)) for k in range(len(steps))])
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(QUANTITIES), sharex=True, sharey="col")
    for parametrisation, line in zip(PARAMETRISATIONS, panels, strict=True):
        for quantity, axes in zip(QUANTITIES, line, strict=True):
            for k, step in enumerate(steps):
                found = {w: v for w, v in curve(rows, parametrisation, quantity, step).items() if v > 0}
                axes.plot(list(found), list(found.values()), color=colours(k), linewidth=1.8, marker="o", markersize=3)
            last = slope(curve(rows, parametrisation, quantity, steps[-1]))
            verdict = "not finite" if last is None else f"slope {last:+.2f}"
            axes.set_title(f"{quantity}: {verdict}", fontsize=10, loc="left", color="#1f2328", pad=8)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(widths, [str(width) for width in widths])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(color="#9aa1a9", labelcolor="#30363d", labelsize=9, which="both", labelbottom=True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("#9aa1a9")
            axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
            axes.set_axisbelow(True)
        name = "muP" if parametrisation == "muP" else "standard parametrisation"
        line[0].set_ylabel(f"$\\bf{{{name.replace(' ', '~')}}}$\nmean |change| since the start", fontsize=10)
    title = f"Change of activations in Adam steps against width (slopes after step {steps[-1]}; 0 is flat)"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color="#1f2328")
    for axes in panels[1]:
        axes.set_xlabel("width", fontsize=10)
    norm = BoundaryNorm([step - 0.5 for step in steps] + [steps[-1] + 0.5], len(steps))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels.ravel().tolist(), ticks=steps, aspect=40, pad=0.02)
    bar.set_label("after Adam step", fontsize=10)
    bar.ax.tick_params(labelsize=9, length=0, which="both")
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((CoordinateArgs,), argv, "toto sweep coordinates", " ".join(__doc__.split("\n\n")[1].split()))

    from modeling_toto import TotoConfig
    from tokenization.terminal.progress import tqdm
    from training.engine.device import versions

    fields = config_fields(args.config)
    base = TotoConfig.from_preset(args.preset, **fields)
    widths = sorted(set(args.widths))
    configs = {(name, width): config_of_width(base, width, name) for name in PARAMETRISATIONS for width in widths}
    rows = []
    with tqdm(total=len(configs) * args.seeds * args.steps, unit="step") as bar:
        for (name, width), config in configs.items():
            bar.set_description(f"{name}, width {width}")
            for seed in range(args.seeds):
                measured = measure(config, args.steps, args.learning_rate, seed, args.zero_start, bar.update)
                rows += [{"parametrisation": name, "width": width, "seed": seed} | row for row in measured]
    slopes = {
        name: {
            quantity: [slope(curve(rows, name, quantity, step)) for step in range(1, args.steps + 1)]
            for quantity in QUANTITIES
        }
        for name in PARAMETRISATIONS
    }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": shlex.join(["toto", "sweep", "coordinates", *argv]),
        "model": {"preset": args.preset, "config": fields, "base_width": configs["muP", widths[0]].mup_base_width},
        "learning_rate": args.learning_rate,
        "zero_start": args.zero_start,
        "seeds": list(range(args.seeds)),
        "versions": versions("cpu"),
        "slopes": slopes,
        "rows": rows,
    }
    write_whole(output, lambda path: path.write_text(json.dumps(result) + "\n"))
    draw(rows, output.with_suffix(".png"))
    print(table(slopes))
    print(f"wrote {output} and {output.with_suffix('.png')}")
    say_next("sweep", "mup", "--help")


def table(slopes: dict) -> str:
    """The slopes as text: a line per parametrisation and quantity, a column per step."""
    steps = len(slopes["muP"]["logits"])
    lines = [
        "slope of log2 mean |change| over log2 width: 0 is flat",
        f"{'after step':<28}" + "".join(f"{step:>7}" for step in range(1, steps + 1)),
    ]
    for name, quantities in slopes.items():
        for quantity, found in quantities.items():
            cells = "".join(f"{'-' if value is None else format(value, '+.2f'):>7}" for value in found)
            lines.append(f"{name + ', ' + quantity:<28}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
