"""`toto generate --score`: one model against the truth, the floors and the ceiling; or the checkpoints of a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.continuations.args import DESCRIPTION, ScoreArgs, check_flags
from training.flags import parse, require

if TYPE_CHECKING:
    import numpy as np

    from evaluation.continuations.measures import Drawn, Examiner, Values
    from evaluation.continuations.truth import Truth
    from evaluation.results import PermanenceControl
    from tokenization.toyworld import MotionWorld


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ScoreArgs,), argv, "toto generate --score", DESCRIPTION)
    check_flags(args, argv)

    from evaluation.results import command_line

    command = command_line("generate", argv)
    if args.checkpoints:
        score_checkpoints(args, command)
    else:
        score_model(args, command)


@dataclass(frozen=True)
class Clips:
    """The held-out clips: their world, truth, codes (C, T, h, w) and examiner."""

    world: MotionWorld
    truth: Truth
    codes: np.ndarray
    examiner: Examiner

    @property
    def prompts(self) -> np.ndarray:
        """Codes of the prompts, (C, P, h, w)."""
        return self.codes[:, : self.truth.prompt]


def held_out(args: ScoreArgs, processor) -> Clips:
    """The clips to score. Raises ValueError for a processor whose frames are not a multiple of the world's."""
    from tqdm import tqdm

    from evaluation.continuations.drawing import encode
    from evaluation.continuations.measures import Examiner
    from evaluation.continuations.truth import read_truth
    from tokenization.toyworld import motion, open_world

    require(
        processor.resolution % motion.SIDE == 0 and motion.SIDE % processor.grid[0] == 0,
        f"The model reads frames of {processor.resolution} pixels as {processor.grid[0]} x {processor.grid[1]} tokens; "
        f"--score needs a multiple of {motion.SIDE} pixels and whole pixels of the world in a token.",
    )
    frames = args.num_prompt_frames + args.num_frames
    world = open_world(args.dataset.partition(":")[2], args.split, 0, motion.SIDE, frames)
    truth = read_truth(
        world, args.max_clips, args.num_prompt_frames, lambda each: tqdm(each, desc="clips", unit="clip")
    )
    codes = encode(processor, tqdm(truth.video, desc="tokens", unit="clip"))
    return Clips(world, truth, codes, Examiner(truth, codes))


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


def score_model(args: ScoreArgs, command: str) -> None:
    from evaluation.continuations.drawing import continue_codes, decoded
    from evaluation.continuations.figures import draw_horizons, sheet
    from evaluation.continuations.likelihood import nats
    from evaluation.continuations.measures import curve_of, mean
    from evaluation.continuations.tables import table
    from evaluation.results import ContinuationResult
    from tokenization.files import write_json, write_whole
    from training.engine.device import versions
    from training.find_model import resolve_model

    path = resolve_model(args.model)
    model, processor = load(path)
    check_prompt(model.config, args)
    clips = held_out(args, processor)
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
    permanence = control(args, clips, processor, model, found["greedy"])
    found |= {"sampled": mean(drawings), "best": examiner.best(drawings)}
    for name, drawn in draw_floors(args, clips, processor, model):
        found[name] = examiner.values(drawn)
    found["ceiling"] = examiner.values(ceiling(clips, processor))

    result = ContinuationResult(
        command=command,
        model=args.model,
        tokens=tokens_seen(path),
        tokenizer=processor.fingerprint,
        dataset=args.dataset,
        split=args.split,
        clips=args.max_clips,
        num_prompt_frames=args.num_prompt_frames,
        num_frames=new,
        sampling={name: getattr(args, name) for name in ("num_samples", "temperature", "top_k", "top_p")},
        floor_clips=args.floor_clips,
        seeds={"draws": args.seed, "untrained": 0},
        seconds={"greedy": greedy_seconds, "sampled": sampled_seconds},
        scores={name: examiner.scores(values, found["ceiling"]) for name, values in found.items()},
        versions=versions(),
        nats={name: curve_of(each) for name, each in losses.items()},
        permanence=permanence,
    )
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.sheets:
        picture = sheet(clips.truth, decoded(processor, clips.prompts[: args.sheets]), greedy, args.sheets)
        write_whole(place := output.with_name(f"{output.stem}_sheet.png"), lambda file: picture.save(file, "png"))
        print(f"wrote {place}")
    if args.predictions:
        write_whole(place := output.with_suffix(".npz"), lambda file: save_values(file, found, examiner, losses))
        print(f"wrote {place}")
    write_json(output, result.to_json())
    print(table(result))
    print(f"wrote {output}")
    draw(lambda file: draw_horizons(result, file), output.with_suffix(".png"))


def score_checkpoints(args: ScoreArgs, command: str) -> None:
    """Score a run and those whose weights it began with; of these, checkpoints whose context holds the prompt."""
    from tqdm import tqdm

    from evaluation.continuations.drawing import continue_codes, decoded
    from evaluation.continuations.figures import draw_checkpoints
    from evaluation.continuations.tables import checkpoint_table
    from evaluation.results import CheckpointScores, CheckpointsResult
    from modeling_toto import TotoConfig
    from tokenization.files import write_json
    from training.engine.device import versions
    from training.find_model import latest, steps

    require(bool(steps(args.model)), f"--model {args.model} is not a run folder with valid checkpoints; name one.")
    model, processor = load(str(latest(args.model)))
    tokens = tokens_since_the_start(args.model, processor.fingerprint)
    check_prompt(model.config, args)
    contexts = {checkpoint: TotoConfig.from_pretrained(checkpoint).context_frames for checkpoint in tokens}
    checkpoints = [each for each, frames in contexts.items() if frames >= args.num_prompt_frames]
    clips = held_out(args, processor)
    best = clips.examiner.values(ceiling(clips, processor))
    points = []
    for checkpoint in tqdm(checkpoints, desc="checkpoints", unit="checkpoint"):
        model, _ = load(str(checkpoint))
        codes, _ = continue_codes(model, clips.prompts, args.num_frames, args.batch_size, checkpoint.name)
        values = clips.examiner.values(decoded(processor, codes))
        scores = clips.examiner.scores(values, best)
        name = f"{checkpoint.parents[1].name}/{checkpoint.name}"
        points.append(CheckpointScores(checkpoint=name, tokens=tokens[checkpoint], scores=scores))
    levels = {name: clips.examiner.values(drawn) for name, drawn in draw_pixel_floors(clips, processor)}
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


def draw_floors(args: ScoreArgs, clips: Clips, processor, model):
    """(name, frames) of each floor, one at a time, since each takes as much memory as the clips."""
    from tqdm import tqdm

    from evaluation.backbones.contract import fresh
    from evaluation.continuations import floors
    from evaluation.continuations.drawing import continue_codes, decoded, encode
    from evaluation.predictors import fit
    from tokenization.toyworld import motion, open_world

    new, last = args.num_frames, clips.prompts[:, -1]
    yield from draw_pixel_floors(clips, processor)
    if args.floor_clips:
        train = open_world(
            args.dataset.partition(":")[2], "train", 0, motion.SIDE, args.num_prompt_frames + args.num_frames
        )
        bar = tqdm(range(args.floor_clips), desc="training clips of the predictor", unit="clip")
        codes = encode(processor, (train.clip(index)["video"] for index in bar))
        predictors = fit(codes, processor.num_codes)
        yield "previous_frame", decoded(processor, floors.previous_frame(predictors, last, new))
    twin = fresh(model, 0).to(model.device)
    codes, _ = continue_codes(twin, clips.prompts, new, args.batch_size, "untrained")
    yield "untrained", decoded(processor, codes)


def draw_pixel_floors(clips: Clips, processor):
    """The floors that need no model, as `draw_floors`. Their frames are the world's own, without a tokenizer's loss."""
    from evaluation.continuations import floors
    from evaluation.continuations.drawing import encode, enlarged
    from evaluation.continuations.measures import Drawn

    last, new = clips.prompts[:, -1:], clips.truth.num_frames
    yield "copy", Drawn(enlarged(floors.copy(clips.truth), processor), last.repeat(new, 1))
    moved = floors.constant_velocity(clips.world, clips.truth)
    yield "constant_velocity", Drawn(enlarged(moved, processor), encode(processor, moved))


def ceiling(clips: Clips, processor) -> Drawn:
    """The true frames, encoded and decoded."""
    from evaluation.continuations.drawing import decoded

    return decoded(processor, clips.codes[:, clips.truth.prompt :])


def control(args: ScoreArgs, clips: Clips, processor, model, greedy: Values) -> PermanenceControl | None:
    """Greedy continuations of the clips from whose prompts an object that returns was deleted; None without returns."""
    from evaluation.continuations.control import compare, without_returning
    from evaluation.continuations.drawing import continue_codes, decoded, encode

    if not len(clips.examiner.cases["returned"].objects):
        return None
    deleted = without_returning(clips.world, clips.examiner)
    prompts = encode(processor, deleted.video[:, : deleted.prompt])
    codes, _ = continue_codes(model, prompts, args.num_frames, args.batch_size, "objects deleted")
    return compare(clips.examiner, greedy, deleted, decoded(processor, codes).frames)


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


def save_values(file: Path, found: dict[str, Values], examiner: Examiner, losses: dict[str, np.ndarray]) -> None:
    """Write the values of every clip and of every case, as arrays.

    NAME.MEASURE, NAME.EVENT.PART and nats.NAME, losses of the true frames; clips.EVENT are the clips of the cases.
    """
    import numpy as np

    arrays = {f"clips.{event}": examiner.clips_of(event) for event in examiner.cases}
    arrays |= {f"nats.{name}": array.astype(np.float32) for name, array in losses.items()}
    for name, values in found.items():
        arrays |= {f"{name}.{measure}": array.astype(np.float32) for measure, array in values.curves.items()}
        for event, parts in values.events.items():
            arrays |= {f"{name}.{event}.{part}": array.astype(np.float32) for part, array in parts.items()}
    with file.open("wb") as stream:  # a name without .npz would get it
        np.savez_compressed(stream, **arrays)


def draw(write, file: Path) -> None:
    try:
        write(file)
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {file}")
