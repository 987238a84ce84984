"""`toto prompt rotation`: turntables continued by a model as it is, and the angle that its frames show."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, refuse_idle, require, require_choice, require_not_negative, require_positive

DESCRIPTION = (
    "Continue held-out turntables (toyworld:turntable) and find the angle of each drawn frame by comparing it with the "
    "object at all angles, next to floors: the last frame, optical flow, the untrained model, and the true frames "
    "through the tokenizer. docs/rotation.md explains each number."
)
WORLD = "toyworld:turntable"
OF_FRAMES = {"plain": "ceiling"}  # scores that are of the same frames as others


@dataclass(frozen=True)
class RotationArgs:
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder")
    output: str | None = option(None, "result file to write (.json); a figure (.png) is written next to it")
    dataset: str = option(WORLD, f"{WORLD}, or {WORLD}:NAME=NUMBER,... for other rules")
    split: str = option("test", "validation or test")
    max_clips: int = option(32, "objects to turn, from the split's first one")
    num_prompt_frames: int = option(4, "true frames given to the model (paper: 4)")
    num_frames: int = option(8, "frames to draw (paper: 4)")
    temperature: float = option(0.0, "sampling temperature; 0 takes the most likely token")
    seed: int = option(0, "seed of the sampling")
    batch_size: int = option(32, "clips that are continued at a time; sampled tokens depend on it")
    angle_step: float = option(2.5, "degrees between the views that a frame is compared with: 0.5, 1.5, 2.5 or 7.5")
    sheets: int = option(0, "draw the first N objects, true above drawn, as one picture next to --output")
    compare: list[str] = option([], "results of other models on the same clips, to be drawn in the same figure")

    def __post_init__(self):
        require(bool(self.model), "--model MODEL is missing; name the model that continues the clips.")
        require(self.output is not None, "--output FILE.json is missing; name where to write.")
        require(self.output.endswith(".json"), f"--output is '{self.output}'; it must end in .json.")
        require(
            self.dataset.split(":")[:2] == WORLD.split(":"),
            f"--dataset is '{self.dataset}'; only {WORLD} has the angles that frames are compared with.",
        )
        require_choice(self, "split", ("validation", "test"))
        require_positive(self, "max_clips", "num_prompt_frames", "num_frames", "batch_size")
        require(self.max_clips > 1, "--max_clips is 1; intervals need at least two objects.")
        require_not_negative(self, "temperature", "sheets")
        require(
            self.angle_step in (0.5, 1.5, 2.5, 7.5),
            f"--angle_step is {self.angle_step:g}; it must be 0.5, 1.5, 2.5 or 7.5, which divide the world's angles.",
        )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((RotationArgs,), argv, "toto prompt rotation", DESCRIPTION)
    if args.temperature == 0:
        refuse_idle(argv, ("seed",), "at --temperature 0, which takes the most likely token")

    import numpy as np

    from evaluation.continuations.command import check_prompt, load
    from evaluation.continuations.drawing import continue_codes, decoded, encode
    from evaluation.prompt import rotation_measure as measure
    from evaluation.prompt.rotation_figures import draw, sheet, table
    from evaluation.prompt.rotation_results import RotationResult
    from evaluation.results import command_line
    from tokenization.files import write_json, write_whole
    from tokenization.terminal.progress import tqdm
    from tokenization.toyworld import open_world
    from tokenization.toyworld.turntable import SIDE
    from training.engine.device import versions
    from training.find_model import resolve_model

    prompt, new = args.num_prompt_frames, args.num_frames
    world = open_world(args.dataset.partition(":")[2], args.split, 0, SIDE, prompt + new)
    others = {name: read_result(name, args) for name in args.compare}
    path = resolve_model(args.model)
    model, processor = load(path)
    check_prompt(model.config, args)
    require(
        processor.resolution % SIDE == 0,
        f"The model reads frames of {processor.resolution} pixels; {WORLD} needs a multiple of {SIDE} pixels.",
    )
    clips = [world.clip(index) for index in range(args.max_clips)]
    video, angle = (np.stack([clip[name] for clip in clips]) for name in ("video", "angle"))
    step = np.array([clip["step"] for clip in clips])
    codes = encode(processor, tqdm(video, desc="tokens", unit="clip"))
    who = "sampled" if args.temperature else "greedy"
    seed = args.seed if args.temperature else None
    drawn, seconds = continue_codes(
        model, codes[:, :prompt], new, args.batch_size, who, seed, temperature=args.temperature
    )
    found = {who: decoded(processor, drawn).frames}
    found |= draw_floors(args, model, processor, video, codes)
    views = np.arange(0, 360, args.angle_step)
    angles = read_angles(world, processor, found, views)
    truth = angle[:, prompt:]
    shown = video[:, prompt:].repeat(processor.resolution // SIDE, -3).repeat(processor.resolution // SIDE, -2)
    within = {name: measure.is_within(each, truth, step) for name, each in angles.items()}
    result = RotationResult(
        command=command_line("prompt", ["rotation", *argv]),
        model=args.model,
        tokenizer=processor.fingerprint,
        dataset=args.dataset,
        split=args.split,
        clips=args.max_clips,
        num_prompt_frames=prompt,
        num_frames=new,
        temperature=args.temperature,
        angle_step=args.angle_step,
        chance=float(np.abs(step).mean() / 360),
        scores={
            name: measure.scores(each, truth, step, measure.psnr(found[OF_FRAMES.get(name, name)], shown))
            for name, each in angles.items()
        },
        versus={name: measure.compare(within[who], each) for name, each in within.items() if name != who},
        seconds=seconds,
        seeds={"untrained": 0} | ({} if seed is None else {"draws": seed}),
        versions=versions(),
    )
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.sheets:
        picture = sheet(
            video, decoded(processor, codes[:, :prompt]).frames, found[who], angle, angles[who], args.sheets
        )
        write_whole(place := output.with_name(f"{output.stem}_sheet.png"), lambda file: picture.save(file, "png"))
        print(f"wrote {place}")
    write_json(output, result.to_json())
    print(f"{table(result)}\nwrote {output}")
    try:
        write_whole(place := output.with_suffix(".png"), lambda file: draw(result, others, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {place}")
    tuned = ["--task", "all", "--output_dir", beside(output, "prompt")]
    say_next("prompt", "train", "--model", args.model, *tuned)


def read_result(name: str, args: RotationArgs):
    """A result of --compare. Raises ValueError if its clips are others."""
    import json

    from evaluation.prompt.rotation_results import RotationResult

    found = RotationResult.from_json(json.loads(Path(name).read_text()))
    for key in ("dataset", "split", "num_prompt_frames", "num_frames"):
        require(
            getattr(found, key) == getattr(args, key),
            f"--compare {name} has {key} {getattr(found, key)}, but this run has {getattr(args, key)}; compare results "
            "on the same clips.",
        )
    require(found.clips == args.max_clips, f"--compare {name} has {found.clips} clips; set --max_clips {found.clips}.")
    return found


def draw_floors(args: RotationArgs, model, processor, video, codes) -> dict:
    """Name -> frames (C, G, R, R, 3) of each floor and of the ceiling, all through the tokenizer."""
    import numpy as np

    from evaluation.backbones.contract import fresh
    from evaluation.continuations.drawing import continue_codes, decoded, encode
    from evaluation.prompt.rotation_measure import flow_continued
    from tokenization.terminal.progress import tqdm

    prompt, new = args.num_prompt_frames, args.num_frames
    bar = tqdm(video[:, :prompt], desc="optical flow", unit="clip")
    moved = encode(processor, np.stack([flow_continued(frames, new) for frames in bar]))
    twin = fresh(model, 0).to(model.device)
    untrained, _ = continue_codes(twin, codes[:, :prompt], new, args.batch_size, "untrained")
    drawn = {
        "copy": codes[:, prompt - 1 : prompt].repeat(new, 1),
        "flow": moved,
        "untrained": untrained,
        "ceiling": codes[:, prompt:],
    }
    return {name: decoded(processor, each).frames for name, each in drawn.items()}


def read_angles(world, processor, found: dict, views) -> dict:
    """Name -> angles (C, G) that the frames of `found` show, compared with views through the tokenizer.

    views: angles (A,) of the views. "plain" is the ceiling's frames compared with views that did not pass the
    tokenizer: how well the tokenizer's picture itself shows an angle.
    """
    import numpy as np

    from evaluation.continuations.drawing import decoded, encode, enlarged
    from evaluation.prompt.rotation_measure import find_angles
    from tokenization.terminal.progress import tqdm

    angles: dict[str, list] = {name: [] for name in (*found, *OF_FRAMES)}
    for index in tqdm(range(len(next(iter(found.values())))), desc="angles", unit="object"):
        plain = world.views(index, views)
        shown = decoded(processor, encode(processor, plain[None])).frames[0]
        for name, frames in found.items():
            angles[name].append(find_angles(frames[index], shown, views))
        for name, of in OF_FRAMES.items():
            angles[name].append(find_angles(found[of][index], enlarged(plain, processor), views))
    return {name: np.stack(each) for name, each in angles.items()}


if __name__ == "__main__":
    from toto_cli import run

    run(main)
