"""`toto generate --score`: one model against the truth, the floors and the ceiling; or the checkpoints of a run.

Clips of toyworld:motion are compared with the exact truth of their world (`MotionClips`), all others with their pixels
(`FrameClips`); both have the same methods, which draw_floors and measure call.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.continuations.args import DESCRIPTION, ScoreArgs, check_flags
from tokenization.terminal.next_command import look_inside
from training.flags import parse, require

if TYPE_CHECKING:
    import numpy as np

    from evaluation.continuations.frame_clips import FrameClips
    from evaluation.continuations.measures import Drawn, Values
    from evaluation.continuations.motion_clips import MotionClips


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ScoreArgs,), argv, "toto generate --score", DESCRIPTION)
    check_flags(args, argv)
    args = args.with_defaults()

    from evaluation.results import command_line

    command = command_line("generate", argv)
    if args.checkpoints:
        score_checkpoints(args, command)
    else:
        score_model(args, command)


def load(path: str):
    """(TotoForCausalLM, its processor) on the default device."""
    import torch

    from evaluation.backbones.contract import default_device
    from modeling_toto import TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor

    device = default_device()
    model = TotoForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
    return model, TotoProcessor.from_pretrained(path).to(device)


def check_prompt(config, args: ScoreArgs) -> None:
    """Raises ValueError if the model's context does not hold the prompt, before any clip is drawn."""
    require(
        args.num_prompt_frames <= config.context_frames,
        f"--num_prompt_frames is {args.num_prompt_frames}, but the context of the model has only "
        f"{config.context_frames} frames; give fewer.",
    )


@dataclass(frozen=True)
class Measured:
    """What was drawn after the prompts, and its values.

    Fields:
        found: way of continuing -> its values. greedy: the greedy frames. losses: of `likelihood.nats`.
        seconds: of generating the greedy and the sampled frames.
    """

    found: dict[str, Values]
    greedy: Drawn
    losses: dict[str, np.ndarray]
    seconds: dict[str, float]


def measure(args: ScoreArgs, clips: MotionClips | FrameClips, processor, model) -> Measured:
    """Continue the clips greedily and by sampling, and measure these frames, the floors' and the ceiling's."""
    from evaluation.continuations.drawing import continue_codes, decoded
    from evaluation.continuations.likelihood import nats
    from evaluation.continuations.measures import mean

    examiner, new = clips.examiner, args.num_frames
    codes, greedy_seconds = continue_codes(model, clips.prompts, new, args.batch_size, "greedy")
    greedy, drawn = decoded(processor, codes), {"greedy": codes}
    found = {"greedy": examiner.values(greedy)}
    drawings, sampled_seconds = [], 0.0
    for k in range(args.num_samples):
        label = f"sample {k + 1} of {args.num_samples}"
        how = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
        codes, seconds = continue_codes(model, clips.prompts, new, args.batch_size, label, args.seed + k, **how)
        drawings.append(examiner.values(decoded(processor, codes)))
        drawn.setdefault("sampled", codes)  # one drawing is enough for its likelihood
        sampled_seconds += seconds
    losses = nats(model, clips.codes, drawn, args.batch_size)
    found |= {"sampled": mean(drawings), "best": examiner.best(drawings)}
    for name, each in draw_floors(args, clips, processor, model):
        found[name] = examiner.values(each)
    found["ceiling"] = examiner.values(ceiling(clips, processor))
    return Measured(found, greedy, losses, {"greedy": greedy_seconds, "sampled": sampled_seconds})


def score_model(args: ScoreArgs, command: str) -> None:
    from evaluation.continuations.drawing import decoded
    from evaluation.continuations.figures import draw_horizons, sheet
    from evaluation.continuations.frame_clips import frame_clips
    from evaluation.continuations.measures import curve_of
    from evaluation.continuations.motion_clips import control, motion_clips
    from evaluation.continuations.tables import table
    from evaluation.frame_counts import frame_counts
    from evaluation.results import ContinuationResult, FrameContinuationResult
    from evaluation.unlike_training import trained_on, unlike_training
    from tokenization.files import write_json, write_whole
    from training.engine.device import versions
    from training.find_model import resolve_model

    path = resolve_model(args.model)
    model, processor = load(path)
    if not args.is_motion:
        prompt, new = frame_counts(model.config, args.num_prompt_frames, args.num_frames)
        args = replace(args, num_prompt_frames=prompt, num_frames=new)
    check_prompt(model.config, args)
    frames = args.num_prompt_frames + args.num_frames
    times = {} if args.is_drawn else {"stride": args.stride, "fps": args.fps}
    for sentence in unlike_training(model.config, processor, frames, trained_on(path), **times):
        print(f"warning: {sentence}")
    clips = motion_clips(args, processor) if args.is_motion else frame_clips(args, processor)
    measured = measure(args, clips, processor, model)
    found = measured.found
    about = {
        "command": command,
        "model": args.model,
        "tokens": tokens_seen(path),
        "tokenizer": processor.fingerprint,
        "dataset": args.dataset,
        "split": args.split,
        "clips": len(clips.codes),
        "num_prompt_frames": args.num_prompt_frames,
        "num_frames": args.num_frames,
        "sampling": {name: getattr(args, name) for name in ("num_samples", "temperature", "top_k", "top_p")},
        "floor_clips": args.floor_clips,
        "seeds": {"draws": args.seed, "untrained": 0},
        "seconds": measured.seconds,
        "scores": {name: clips.examiner.scores(values, found["ceiling"]) for name, values in found.items()},
        "versions": versions(),
        "nats": {name: curve_of(each) for name, each in measured.losses.items()},
    }
    if args.is_motion:
        result = ContinuationResult(**about, permanence=control(args, clips, processor, model, found["greedy"]))
    else:
        times = {} if args.is_drawn else {"stride": None if args.fps else args.stride, "fps": args.fps}
        result = FrameContinuationResult(**about, **times, resolution=processor.resolution, sources=clips.sources)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.sheets:
        prompts = decoded(processor, clips.prompts[: args.sheets])
        picture = sheet(clips.video, args.num_prompt_frames, prompts, measured.greedy, args.sheets)
        write_whole(place := output.with_name(f"{output.stem}_sheet.png"), lambda file: picture.save(file, "png"))
        print(f"wrote {place}")
    if args.predictions:
        arrays = clips.examiner.arrays(found) | {f"nats.{name}": each for name, each in measured.losses.items()}
        write_whole(place := output.with_suffix(".npz"), lambda file: save_values(file, arrays))
        print(f"wrote {place}")
    write_json(output, result.to_json())
    print(table(result))
    print(f"wrote {output}")
    draw(lambda file: draw_horizons(result, file), output.with_suffix(".png"))
    look_inside(args.model, args.dataset, output)


def score_checkpoints(args: ScoreArgs, command: str) -> None:
    """Score a run and those whose weights it began with; of these, checkpoints whose context holds the prompt."""
    from evaluation.continuations.drawing import continue_codes, decoded
    from evaluation.continuations.figures import draw_checkpoints
    from evaluation.continuations.motion_clips import motion_clips
    from evaluation.continuations.tables import checkpoint_table
    from evaluation.results import CheckpointScores, CheckpointsResult
    from modeling_toto import TotoConfig
    from tokenization.files import write_json
    from tokenization.terminal.progress import tqdm
    from training.engine.device import versions
    from training.find_model import latest, steps

    require(bool(steps(args.model)), f"--model {args.model} is not a run folder with valid checkpoints; name one.")
    model, processor = load(str(latest(args.model)))
    tokens = tokens_since_the_start(args.model, processor.fingerprint)
    check_prompt(model.config, args)
    contexts = {checkpoint: TotoConfig.from_pretrained(checkpoint).context_frames for checkpoint in tokens}
    checkpoints = [each for each, frames in contexts.items() if frames >= args.num_prompt_frames]
    clips = motion_clips(args, processor)
    best = clips.examiner.values(ceiling(clips, processor))
    points = []
    for checkpoint in tqdm(checkpoints, desc="checkpoints", unit="checkpoint"):
        model, _ = load(str(checkpoint))
        codes, _ = continue_codes(model, clips.prompts, args.num_frames, args.batch_size, checkpoint.name)
        values = clips.examiner.values(decoded(processor, codes))
        scores = clips.examiner.scores(values, best)
        name = f"{checkpoint.parents[1].name}/{checkpoint.name}"
        points.append(CheckpointScores(checkpoint=name, tokens=tokens[checkpoint], scores=scores))
    levels = {name: clips.examiner.values(drawn) for name, drawn in clips.pixel_floors(processor)}
    result = CheckpointsResult(
        command=command,
        model=args.model,
        tokenizer=processor.fingerprint,
        dataset=args.dataset,
        split=args.split,
        clips=args.max_clips,
        num_prompt_frames=args.num_prompt_frames,
        num_frames=args.num_frames,
        points=points,
        levels={name: clips.examiner.scores(each, best) for name, each in (levels | {"ceiling": best}).items()},
        versions=versions(),
    )
    output = Path(args.output)
    write_json(output, result.to_json())
    print(checkpoint_table(result))
    print(f"wrote {output}")
    draw(lambda file: draw_checkpoints(result, file), output.with_suffix(".png"))
    look_inside(args.model, args.dataset, output)


def draw_floors(args: ScoreArgs, clips: MotionClips | FrameClips, processor, model):
    """(name, frames) of each floor, one at a time, since each takes as much memory as the clips."""
    from evaluation.backbones.contract import fresh
    from evaluation.continuations import floors
    from evaluation.continuations.drawing import continue_codes, decoded
    from evaluation.predictors import fit

    new = args.num_frames
    yield from clips.pixel_floors(processor)
    if args.floor_clips:
        predictors = fit(clips.training_codes(processor, args.floor_clips), processor.num_codes)
        yield "previous_frame", decoded(processor, floors.previous_frame(predictors, clips.prompts[:, -1], new))
    twin = fresh(model, 0).to(model.device)
    codes, _ = continue_codes(twin, clips.prompts, new, args.batch_size, "untrained")
    yield "untrained", decoded(processor, codes)


def ceiling(clips: MotionClips | FrameClips, processor) -> Drawn:
    """The true frames, encoded and decoded."""
    from evaluation.continuations.drawing import decoded

    return decoded(processor, clips.codes[:, clips.prompts.shape[1] :])


def tokens_seen(model: str | Path) -> int | None:
    """Training tokens of a checkpoint of a run; None if its folder has no training state."""
    from training.engine.checkpoints import load_loop

    try:
        return load_loop(Path(model))["tokens"]
    except FileNotFoundError:
        return None


def tokens_since_the_start(run: str, fingerprint: str) -> dict[Path, int]:
    """Checkpoint -> training tokens that it and the runs before it have seen, as far back as these have its tokens.

    fingerprint: of the run's tokenizer. Raises ValueError for a checkpoint without its training state.
    """
    from tokenization.processing_toto import TotoProcessor
    from training.find_model import began_with, lineage

    parts = lineage(run)
    while TotoProcessor.from_pretrained(parts[0][-1]).fingerprint != fingerprint:
        parts = parts[1:]
    first = parts[0][0].parents[1]
    if (origin := began_with(first)) is not None:
        print(f"the curve begins with {first}; what its weights, {origin}, had seen before is not counted")
    tokens, before = {}, 0
    for part in parts:
        for checkpoint in part:
            count = tokens_seen(checkpoint)
            require(
                count is not None,
                f"The checkpoint {checkpoint} has no training state, which has the tokens that it has seen; move it "
                "out of the run folder.",
            )
            tokens[checkpoint] = before + count
        before = tokens[checkpoint]
    return tokens


def save_values(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the values of every clip and case: arrays of the examiner, and nats.NAME, losses of the true frames."""
    import numpy as np

    arrays = {name: each if name.startswith("clips.") else each.astype(np.float32) for name, each in arrays.items()}
    with file.open("wb") as stream:  # a name without .npz would get it
        np.savez_compressed(stream, **arrays)


def draw(write, file: Path) -> None:
    try:
        write(file)
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {file}")
