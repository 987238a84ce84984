"""`toto track`: reads the sequences, tracks each, and writes the result, a table, a figure and overlays."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.track.args import DESCRIPTION, TrackArgs, check_flags
from tokenization.terminal.next_command import beside, say_next
from training.flags import parse, require

if TYPE_CHECKING:
    from evaluation.track.reading import Sequence
    from evaluation.track.results import SequenceScores, TrackResult
    from evaluation.track.run import Finished, Tracker

TOY_FRAMES = 16
NAMES = {
    "copy": "copy of the first mask",
    "position": "position only",
    "patches": "raw 8 x 8 patches",
    "layer 0": "layer 0 (embeddings)",
    "untrained": "untrained, layer {}",
    "ceiling": "ceiling of the grid",
}

LABELS = {"patches": "raw patches", "copy": "first mask copied"}  # of the rows of a sheet


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((TrackArgs,), argv, "toto track", DESCRIPTION)
    check_flags(args, argv)

    from evaluation.results import command_line
    from evaluation.track.figures import draw
    from evaluation.track.run import Finished
    from tokenization.files import write_json, write_whole

    sequences, skipped = find_sequences(args)
    tracker = make_tracker(args)
    output = Path(args.output)
    finished = Finished(output.with_suffix(".parts"), tracker.key())
    scores = track_all(tracker, sequences, finished, skipped, args.sheets)
    result = make_result(args, tracker, scores, skipped, command_line("track", argv))
    write_json(output, result.to_json())
    print(f"{table(result)}\nwrote {output}")
    try:
        write_whole(place := output.with_suffix(".png"), lambda file: draw(result, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {place}")
    done = {each.name for each in scores}
    draw_overlays([each for each in sequences[: args.sheets] if each.name in done], finished, scores, result, output)
    shown = ["--dataset", "toyworld:photos", "--output", beside(output, "pca.png")]
    say_next("visualize", "pca", "--model", args.model, *shown)


def find_sequences(args: TrackArgs) -> tuple[list[Sequence], dict[str, str]]:
    """The sequences that can be scored, and for the others the reason why not, which is printed.

    Raises:
        ValueError: none can be scored.
    """
    from evaluation.track.reading import davis_sequences, toy_sequences

    if args.dataset.split(":")[0] == "toyworld":
        frames = args.num_frames or TOY_FRAMES
        found = toy_sequences(args.dataset, args.split, args.num_sequences, frames, args.resolution, args.seed)
        skipped = {each.name: f"{each.name} shows no object in its first frame." for each in found if not each.objects}
        found = [each for each in found if each.objects]
    else:
        found, skipped = davis_sequences(args.dataset, args.split, args.sequences)
        found = found[: args.num_sequences]
    for reason in skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    require(
        bool(found), f"No sequence of {args.dataset} can be scored: {next(iter(skipped.values()), 'there is none.')}"
    )
    return found, skipped


def make_tracker(args: TrackArgs) -> Tracker:
    """The backbone, its untrained twin and the setting. Raises ValueError for a size or layer that it does not have."""
    from evaluation.backbones import load_backbone
    from evaluation.backbones.toto import TotoBackbone
    from evaluation.probe.args import choose_layers
    from evaluation.track.run import Tracker

    backbone = load_backbone(args.model, args.device, resolution=args.resolution)
    if args.attention == "full":
        require(isinstance(backbone, TotoBackbone), f"{args.model} is not a Toto; leave --attention out.")
        backbone.model.config.attention_mode = "full"
    layers = choose_layers(args.layer_list, backbone.depth, args.model)
    twin = backbone.untrained(args.seed) if "untrained" in args.floors else None
    return Tracker(backbone, twin, layers, args.resolved(), args.floors, args.frames_per_row)


def track_all(
    tracker: Tracker, sequences: list[Sequence], finished: Finished, skipped: dict[str, str], sheets: int
) -> list[SequenceScores]:
    """Scores of all sequences, in order; those of an earlier run are read. One that fails is added to `skipped`.

    Raises:
        ValueError: none could be tracked.
    """
    from tokenization.terminal.progress import tqdm

    found = {each.name: finished.read(each, number < sheets) for number, each in enumerate(sequences)}
    frames = {each.name: each.num_frames - 1 for each in sequences}
    before = sum(frames[name] for name, scores in found.items() if scores is not None)
    with tqdm(total=sum(frames.values()), initial=before, desc="track", unit="frame", smoothing=0.02) as bar:
        for number, sequence in enumerate(sequences):
            if found[sequence.name] is not None:
                continue
            with_pictures = number < sheets
            bar.set_postfix_str(sequence.name)
            try:
                scores = tracker.track(sequence, bar.update, finished.keeper(sequence) if with_pictures else None)
            except (ValueError, OSError) as error:
                skipped[sequence.name] = f"{sequence.name}: {error}"
                tqdm.write(f"skipped: {skipped[sequence.name]}", file=sys.stderr)
                continue
            finished.write(sequence, scores, with_pictures)
            found[sequence.name] = scores
    scores = [each for each in found.values() if each is not None]
    require(bool(scores), f"No sequence could be tracked: {next(iter(skipped.values()), '')}")
    return scores


def make_result(
    args: TrackArgs, tracker: Tracker, scores: list[SequenceScores], skipped: dict[str, str], command: str
) -> TrackResult:
    from evaluation.track.results import TrackResult
    from evaluation.track.summary import baselines, best_layer, layer_scores
    from training.engine.device import versions

    layers, floors = layer_scores(scores, tracker.layers, "layer"), baselines(scores, tracker.layers)
    return TrackResult(
        command=command,
        model=args.model,
        depth=tracker.backbone.depth,
        dataset=args.dataset,
        split=args.split,
        setting=asdict(tracker.setting),
        resolution=args.resolution,
        frames_per_row=args.frames_per_row,
        attention=args.attention,
        layers=layers,
        best=best_layer(scores, layers, floors),
        baselines=floors,
        sequences=scores,
        skipped=skipped,
        seeds={"untrained": args.seed},
        versions=versions(),
    )


def table(result: TrackResult) -> str:
    """Scores in percent as plain text."""
    rows = [("", "J&F", "J", "F", "95 % interval of J&F")]
    for row in result.layers:
        rows.append((f"layer {row.layer}", *_numbers(row)))
    for name, floor in result.baselines.items():
        rows.append((NAMES[name].format(floor.layer), *_numbers(floor)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"{len(result.sequences)} sequences, {result.resolution} px, setting {result.setting['name']}"]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    best = result.best
    lines.append(f"largest: layer {best.layer}, {100 * best.jf:.1f}; against")
    for name, versus in best.versus.items():
        low, high = (100 * bound for bound in versus.ci95)
        label = NAMES[name].format(result.baselines[name].layer)
        lines.append(f"  {label}: {100 * versus.difference:+.1f} [{low:+.1f}, {high:+.1f}], {versus.verdict}")
    if best.chosen_on_others is not None:
        lines.append(f"layer chosen on the other sequences: {100 * best.chosen_on_others.jf:.1f}")
    return "\n".join(lines)


def _numbers(row) -> tuple[str, ...]:
    span = "" if row.ci95 is None else "[{:.1f}, {:.1f}]".format(*(100 * bound for bound in row.ci95))
    return (*(f"{100 * value:.1f}" for value in (row.jf, row.j, row.f)), span)


def draw_overlays(
    sequences: list[Sequence], finished: Finished, scores: list[SequenceScores], result: TrackResult, output: Path
) -> None:
    """A sheet and a video of each sequence: true masks, the best layer, and the floors that need no model."""
    from evaluation.track.figures import write_overlays

    best = f"layer {result.best.layer}"
    for sequence in sequences:
        kinds = list(next(each for each in scores if each.name == sequence.name).scores)
        shown = {best: best} | {name: LABELS[name] for name in ("patches", "copy") if name in kinds}
        stem = output.with_name(f"{output.stem}_{sequence.name}")
        write_overlays(sequence, finished, kinds, shown, stem)
        print(f"wrote {stem}.png and {stem}.mp4")
