"""`toto permanence attention`: which heads look from a returning object to its last sighting, and what it is worth."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.permanence.attention_results import AttentionResult, Cost, Head, Mean
from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, require, require_choice, require_positive, typed_flags

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = (
    "Measure the attention of objects that hide and come back to their last sighting, in every block and head, next to "
    "as many tokens as far away and to the same clip where nothing hides the object; then block it and measure what "
    "the object's tokens cost (paper App. A.10)."
)


@dataclass(frozen=True)
class AttentionArgs:
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder")
    output: str | None = option(None, "result file to write (.json); a figure (.png) is written next to it")
    dataset: str = option("toyworld:motion", "toyworld:motion, or toyworld:motion:NAME=NUMBER,... for other rules")
    split: str = option("test", "validation or test")
    num_occlusions: int = option(
        256, "objects that hide and come back, one of a clip; heads are chosen on half of them"
    )
    num_heads: int = option(4, "heads to choose")
    video: str | None = option(
        None,
        "draw what a token of this clip attends to instead: `toto visualize attention --input VIDEO`, whose flags "
        "(--point X Y, --frame, --layers, --heads, --output FILE.png) come with it",
    )
    query: str = option(
        "predicting", "attention of the positions that predict the object's tokens (predicting), or of these (token)"
    )

    def __post_init__(self):
        require(bool(self.model), "--model MODEL is missing; name the model.")
        require(self.output is not None, "--output FILE.json is missing; name where to write.")
        require(self.output.endswith(".json"), f"--output is '{self.output}'; it must end in .json.")
        require(
            self.dataset.split(":")[:2] == ["toyworld", "motion"],
            f"--dataset is '{self.dataset}'; only toyworld:motion has objects that hide and come back.",
        )
        require_choice(self, "split", ("validation", "test"))
        require_choice(self, "query", ("token", "predicting"))
        require_positive(self, "num_occlusions", "num_heads")
        require(self.num_occlusions >= 4, f"--num_occlusions is {self.num_occlusions}; each half needs at least two.")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if "video" in typed_flags(argv):
        from evaluation.visualize.attention import main as draw

        draw([re.sub(r"^--video(?==|$)", "--input", flag) for flag in argv])
        return
    (args,) = parse((AttentionArgs,), argv, "toto permanence attention", DESCRIPTION)

    from evaluation.backbones.contract import default_device, fresh
    from evaluation.permanence import blocking
    from evaluation.permanence.attention_figures import draw_heads
    from evaluation.permanence.looking import look_all
    from evaluation.permanence.sightings import find_sightings
    from evaluation.results import command_line
    from modeling_toto import TotoForCausalLM
    from tokenization.files import write_json, write_whole
    from tokenization.processing_toto import TotoProcessor
    from tokenization.terminal.progress import tqdm
    from tokenization.toyworld import motion, open_world
    from training.engine.device import versions
    from training.find_model import resolve_model

    path = resolve_model(args.model)
    model = TotoForCausalLM.from_pretrained(path).eval().to(default_device())
    processor = TotoProcessor.from_pretrained(path).to(default_device())
    require(
        processor.resolution % motion.SIDE == 0 and motion.SIDE % processor.grid[0] == 0,
        f"--model reads frames of {processor.resolution} pixels; {args.dataset} needs a multiple of {motion.SIDE}.",
    )
    frames = min(model.config.num_frames, model.config.context_frames)
    rules = args.dataset.partition(":")[2]
    world = open_world(rules, args.split, resolution=processor.resolution, num_frames=frames)
    watch = tqdm(range(100 * args.num_occlusions), desc="clips searched", unit="clip")
    sightings = find_sightings(world, args.num_occlusions, processor.grid, len(watch), lambda _: watch)
    watch.close()

    looks = look_all(model, processor, tqdm(sightings, desc="attention", unit="occlusion"), args.query)
    twin = fresh(model, 0).to(model.device)
    floor = look_all(twin, processor, tqdm(sightings, desc="untrained", unit="occlusion"), args.query)
    chosen, rest = heads(looks, args.num_heads), sightings[1::2]
    names = [(head.block, head.head) for head in chosen]
    bar = tqdm(rest, desc="blocked", unit="occlusion")
    costs = [blocking.losses(model, processor, each, names) for each in bar]
    found = {name: [each[name] for each in costs] for name in costs[0]}
    result = AttentionResult(
        command=command_line("permanence", ["attention", *argv]),
        model=args.model,
        dataset=args.dataset,
        split=args.split,
        query=args.query,
        occlusions=len(sightings),
        chosen_on=len(sightings[::2]),
        looks={name: values[1::2].mean(0).tolist() for name, values in looks.items()},
        untrained={name: values[1::2].mean(0).tolist() for name, values in floor.items()},
        chosen=chosen,
        chosen_untrained=heads(floor, args.num_heads),
        costs={
            name: Cost(loss=mean(each), rise=mean(differences(each, found["open"]))) for name, each in found.items()
        },
        above_control={
            name: mean(differences(found[name], found[control])) for name, control in blocking.CONTROLS.items()
        },
        seeds={"matched": 0, "untrained": 0},
        versions=versions(),
    )
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result.to_json())
    print(table(result))
    print(f"wrote {output}")
    try:
        write_whole(output.with_suffix(".png"), lambda file: draw_heads(result, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {output.with_suffix('.png')}")
    say_next("permanence", "cups", "--model", args.model, "--output", beside(output, "cups.json"))


def heads(looks: dict[str, np.ndarray], count: int) -> list[Head]:
    """The heads whose attention to the sighting leads both controls most, chosen on occlusions 0, 2, 4 ..., best first.

    Their means are those of occlusions 1, 3, 5 ...
    """
    import numpy as np

    from evaluation.permanence.looking import lead

    leads = lead({name: values[::2] for name, values in looks.items()})
    order = np.argsort(-leads, axis=None)[:count]
    found = []
    for block, head in zip(*np.unravel_index(order, leads.shape), strict=True):
        own = {name: values[1::2, block, head] for name, values in looks.items()}
        found.append(
            Head(
                block=int(block) + 1,
                head=int(head),
                **{name: mean(values) for name, values in own.items()},
                above_matched=mean(own["sighting"] - own["matched"]),
                above_never=mean(own["sighting"] - own["never"]),
            )
        )
    return found


def mean(values) -> Mean:
    import numpy as np

    from training.scores import bootstrap_interval

    return Mean(mean=float(np.mean(values)), ci95=[float(end) for end in bootstrap_interval(values)])


def differences(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def table(result: AttentionResult) -> str:
    """Chosen heads and costs as plain text."""

    def cell(each: Mean, times: float = 100) -> str:
        low, high = each.ci95
        return (
            f"{times * each.mean:.1f} [{times * low:.1f}, {times * high:.1f}]"
            if times > 1
            else (f"{each.mean:.3f} [{low:.3f}, {high:.3f}]")
        )

    half = result.occlusions - result.chosen_on
    lines = [
        f"\nattention of returning objects in %, {half} of {result.occlusions} occlusions; heads chosen on the others"
    ]
    lines.append(f"{'':<22}{'last sighting':>20}{'as far away':>20}{'never hidden':>20}{'above both by':>20}")
    for who, rows in (("", result.chosen), ("untrained ", result.chosen_untrained)):
        for row in rows:
            least = min((row.above_matched, row.above_never), key=lambda each: each.mean)
            cells = "".join(f"{cell(each):>20}" for each in (row.sighting, row.matched, row.never, least))
            lines.append(f"{who + f'block {row.block} head {row.head}':<22}{cells}")
    lines += ["", f"loss of the object's tokens in nats{'':<8}{'loss':>24}{'rise':>24}"]
    for name, cost in result.costs.items():
        lines.append(f"{name:<42}{cell(cost.loss, 1):>24}{cell(cost.rise, 1):>24}")
    lines += ["", "rise above its control"]
    lines += [f"{name:<42}{'':>24}{cell(each, 1):>24}" for name, each in result.above_control.items()]
    return "\n".join(lines)
