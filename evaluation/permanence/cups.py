"""`toto permanence cups`: where is the object in the last frame? Frozen features of all layers against controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.permanence.cups_args import DESCRIPTION, CupsArgs
from tokenization.terminal.next_command import beside, say_next
from training.flags import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from evaluation.backbones.contract import Backbone
    from evaluation.backbones.extraction import ClipSet, Job
    from evaluation.heads.selection import Chosen
    from evaluation.permanence.cups_results import CupsResult, Predictor, StratumScore
    from evaluation.permanence.pointing import Pointed

ALL = "all"  # of the strata
PARTS = ("train", "validation", "test")
MODEL, UNTRAINED, LAST_FRAME, SHUFFLED = "model", "untrained", "last_frame", "shuffled"
READS = {
    MODEL: "the model",
    UNTRAINED: "the same architecture with random weights",
    LAST_FRAME: "the model, given the last frame alone",
    SHUFFLED: "the model, given the frames before the last in another order",
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((CupsArgs,), argv, "toto permanence cups", DESCRIPTION)

    import shutil

    from evaluation.permanence.cups_figures import draw
    from evaluation.permanence.cups_tables import table
    from evaluation.results import command_line
    from tokenization.files import write_json, write_whole

    result = run_cups(args, command_line("permanence", ["cups", *argv]))
    output = Path(args.output)
    print(table(result))
    write_json(output, result.to_json())
    shutil.rmtree(output.with_suffix(".partial"), ignore_errors=True)
    print(f"\nwrote {output}")
    try:
        write_whole(place := output.with_suffix(".png"), lambda file: draw(result, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {place}")
    clip = ["--input", "toyworld:cups:0", "--frame", "1", "--row", "0", "--column", "0"]
    say_next("visualize", "attention", "--model", args.model, *clip, "--output", beside(output, "attention.png"))


def run_cups(args: CupsArgs, command: str) -> CupsResult:
    """Features of all clips in one pass for each way of showing them, heads on them, and scores by stratum."""
    import numpy as np
    from accelerate import PartialState

    from evaluation.backbones.load import load_backbone
    from evaluation.permanence.cups_controls import LastFrame, truthful
    from evaluation.permanence.cups_results import CupsResult
    from evaluation.probe.args import choose_layers
    from evaluation.probe.run import cache_folder
    from tokenization.toyworld import open_world
    from training.engine.device import flush_denormals, versions
    from training.find_model import resolve_model
    from training.flags import require
    from training.publish.media_seen import media_on_record

    flush_denormals()
    state = PartialState()
    require(state.num_processes == 1, "toto permanence cups runs in one process; start it without a launcher.")
    media = media_on_record(args.model)
    backbone = load_backbone(resolve_model(args.model), state.device)
    layers = choose_layers(args.layers, backbone.depth, args.model)
    frames = args.num_frames or backbone.num_frames
    backbone = LastFrame(backbone) if args.tokens == "last" else backbone

    trained: dict[str, Chosen | Pointed] = {}
    with cache_folder(args.feature_cache) as cache:
        for names, change in ways_of_showing(args.seed):
            jobs = jobs_of(names, args, backbone, layers)
            splits = [read(part, args, frames, backbone.resolution, jobs, change, cache) for part in PARTS]
            for index, name in enumerate(names):
                trained[name] = train(name, index, args, splits)
    cells = splits[2].labels["cell"]
    strata = splits[2].labels["stratum"]
    commonest = int(np.bincount(splits[0].labels["cell"]).argmax())
    world = open_world(args.dataset.partition(":")[2], "test", 0, backbone.resolution, frames)
    told = truthful([world.clip(index) for index in range(len(cells))], commonest, args.seed)
    predictors = predictors_of(trained, told, layers, cells, strata, args.seed)
    return CupsResult(
        command=command,
        model=args.model,
        media=media,
        dataset=args.dataset,
        num_frames=frames,
        head=args.head,
        tokens=args.tokens,
        clips={part: len(split) for part, split in zip(PARTS, splits, strict=True)},
        claim=claim_of(predictors),
        predictors=predictors,
        cell=cells.tolist(),
        stratum=strata.tolist(),
        seeds={"heads": args.seed, "untrained": args.seed, "shuffled": args.seed},
        versions=versions(backbone.device),
    )


def ways_of_showing(seed: int) -> list[tuple[list[str], Callable | None]]:
    """(predictors that read the clips in this way, change of the frames), one pass over the clips each."""
    from evaluation.permanence.cups_controls import ShuffledHistory, last_frame

    return [([MODEL, UNTRAINED], None), ([SHUFFLED], ShuffledHistory(seed)), ([LAST_FRAME], last_frame)]


def jobs_of(names: list[str], args: CupsArgs, backbone: Backbone, layers: list[int]) -> list[Job]:
    """A job for each predictor."""
    from evaluation.backbones.extraction import Job

    few = None if args.head == "linear" else args.max_tokens
    return [Job(backbone.untrained(args.seed) if name == UNTRAINED else backbone, layers, few) for name in names]


def read(part: str, args: CupsArgs, frames: int, resolution: int, jobs, change, cache: Path) -> ClipSet:
    """The clips of a split with the features of all jobs, kept in the cache."""
    from dataclasses import asdict

    from evaluation.backbones.extraction import data_key, dataset_fingerprint, extract
    from tokenization.sampling import Sampling
    from tokenization.sources.open import open_source

    most = getattr(args, f"max_{part}")
    sampling = Sampling(num_frames=frames, resolution=resolution)
    source = open_source(args.dataset, part, sampling, limit=most)
    facts = asdict(sampling) | {"limit": most, "change": getattr(change, "__name__", repr(change))}
    key = data_key(dataset_fingerprint(args.dataset), part, facts)
    return extract(source, part, jobs, cache / key, change=change, batch_size=args.batch_size)


def train(name: str, index: int, args: CupsArgs, splits: list[ClipSet]) -> Chosen | Pointed:
    """The heads of one predictor, trained on the first split and chosen on the second one."""
    import torch

    from evaluation.probe.fit import HeadSettings, LabelledFeatures, train_heads
    from tokenization.toyworld.cups import CELLS

    print(f"{name}: {READS[name]}", flush=True)
    if args.head == "pointing":
        from evaluation.permanence.pointing import point

        # one group of layers, since those of a Toto are all of one width
        return point([each.features[index][0] for each in splits], [torch.from_numpy(s.labels["cell"]) for s in splits])
    labels = [torch.from_numpy(split.labels["cell"])[:, None] for split in splits]
    # every test clip is an item of its own, so that the probabilities of the cells are kept
    items = torch.arange(len(splits[2]))
    data = LabelledFeatures([split.features[index] for split in splits], labels, [CELLS**2], items, probabilities=True)
    state = Path(args.output).with_suffix(".partial") / name
    return train_heads(data, [args.head], HeadSettings(args.epochs, seed=args.seed), state, progress=True)[args.head]


def predictors_of(trained, told, layers: list[int], cells, strata, seed: int) -> dict[str, Predictor]:
    """The model and all controls, scored on the test clips.

    trained: heads by predictor. told: of `cups_controls.truthful`. cells, strata: class numbers (N,).
    """
    import numpy as np

    from evaluation.permanence.cups_results import LayerScore, Predictor
    from training.scores import top_accuracy

    parts = strata_of(strata)
    found = {}
    for name in (MODEL, LAST_FRAME, SHUFFLED, UNTRAINED):
        heads = trained[name]
        best = max(range(len(layers)), key=lambda k: heads.rank(k, 0))
        predicted = heads.test_predictions[:, 0].numpy()  # (L, N)
        rows = [
            LayerScore(
                layer=layer,
                val_accuracy=heads.val_accuracy[k, 0].item(),
                accuracy={part: float((predicted[k] == cells)[inside].mean()) for part, inside in parts.items()},
            )
            for k, layer in enumerate(layers)
        ]
        top5 = top_accuracy(heads.test_probabilities[best, 0].numpy(), cells)
        found[name] = READS[name], layers[best], top5, rows, predicted[best]
    found |= {name: (what, None, None, [], predicted) for name, (what, predicted) in told.items()}
    model = found[MODEL][-1]
    return {
        name: Predictor(
            what=what,
            layer=layer,
            top5=top5,
            strata=scores_by_stratum(predicted, cells, parts, None if name == MODEL else model, seed),
            layers=rows,
            predicted=np.asarray(predicted).tolist(),
        )
        for name, (what, layer, top5, rows, predicted) in found.items()
    }


def strata_of(strata) -> dict[str, np.ndarray]:
    """{"all" and every stratum that occurs: its clips, bool (N,)}."""
    import numpy as np

    from tokenization.toyworld.cups import STRATA

    found = {name: strata == number for number, name in enumerate(STRATA)}
    return {ALL: np.ones(len(strata), bool)} | {name: inside for name, inside in found.items() if inside.any()}


def scores_by_stratum(predicted, cells, parts, model, seed: int) -> dict[str, StratumScore]:
    """The scores of a predictor on each part of the clips. model: the model's predictions, for controls."""
    from evaluation.metrics import paired_difference, verdict
    from evaluation.permanence.cups_results import StratumScore
    from evaluation.results import Versus
    from tokenization.toyworld.cups import CupsWorld
    from training.scores import grid_cells, grid_l1, wilson_interval

    grid = grid_cells(CupsWorld.label_names["cell"])
    found = {}
    for part, inside in parts.items():
        right, versus = (predicted == cells)[inside], None
        if model is not None:
            difference = paired_difference(model[inside], predicted[inside], cells[inside], seed)
            versus = Versus(**difference, verdict=verdict(difference["ci95"]))
        found[part] = StratumScore(
            clips=int(inside.sum()),
            accuracy=float(right.mean()),
            ci95=wilson_interval(int(right.sum()), len(right)),
            grid_l1=grid_l1(predicted[inside], cells[inside], grid),
            versus=versus,
        )
    return found


def claim_of(predictors: dict[str, Predictor]):
    """The claim on "contained and moved", from the intervals of the differences to all controls.

    Raises:
        ValueError: no test clip is of that stratum.
    """
    from evaluation.permanence.cups_results import Claim
    from tokenization.toyworld.cups import MOVED, STRATA
    from training.flags import require

    stratum = STRATA[MOVED]
    require(
        stratum in predictors[MODEL].strata,
        f"No test clip is '{stratum}', on which the claim is made; raise --max_test, or `moved` in the rules.",
    )
    controls = {name: each for name, each in predictors.items() if name != MODEL}
    missing = [name for name, each in controls.items() if each.strata[stratum].versus.verdict != "above"]
    return Claim(stratum=stratum, is_shown=not missing, missing=missing)
