"""`toto probe`: how much a frozen backbone knows, per layer and head, against raw pixels and its untrained twin."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

from evaluation.probe.args import ProbeArgs, choose_layers, idle_flags, of_task, refuse_idle_flags

MOST_CONFUSED = 100  # classes whose confusion matrix is kept in the result


def train_heads(features: list, labels: list, items, classes: list[int], args: ProbeArgs, state: Path) -> dict:
    """Every head on the features of one backbone: {head: `choosing.Chosen`}, its layers in ascending order.

    features: of train, validation and test, each a list with one `Features` for each width of layers. labels: (N,
    tasks) of the three. items: of the test clips, as `HeadBank.run` takes them, or None. state: begins the names of the
    files that keep half-trained heads until the probe is done.
    """
    import torch

    from evaluation.heads.bank import make_head
    from evaluation.heads.selection import join_layers

    found = {}
    for head in args.heads:
        parts = []
        for number, (train, validation, test) in enumerate(zip(*features, strict=True)):
            options = {"batch_norm": args.batch_norm} if head == "linear" else {}
            device = "cuda" if torch.cuda.is_available() else "cpu"
            bank = make_head(head, classes, epochs=args.epochs, seed=args.seed, device=device, **options)
            file = state.with_name(f"{state.name}-{head}-{number}.safetensors")
            options = {"progress": True, "items": items, "checkpoint": file}
            parts.append(bank.run(train, labels[0], validation, labels[1], test, **options))
        found[head] = join_layers(parts)
    return found


def leave_groups_out(
    splits: list, job: int, labels: list, items, classes: list[int], args: ProbeArgs, state: Path
) -> dict:
    """As `train_heads`, each group of the test clips being predicted by heads that train on all others too.

    What training and validation have of that group is left out as well. Layer, head and setting are chosen by the mean
    over the folds of the validation accuracy.
    """
    import torch

    from evaluation.backbones.contract import Features
    from evaluation.heads.selection import merge_folds
    from tokenization.sources.labelled import group_of

    train, validation, test = (split.features[job] for split in splits)
    groups = [group_of(source, args.group_by) for source in splits[2].sources]
    folds = []

    names = sorted(set(groups))
    outside = [{name: rows_outside(split, name, args.group_by) for name in names} for split in splits[:2]]
    for fold, name in enumerate(names):
        inside = torch.tensor([group == name for group in groups])
        others, rows = (~inside).nonzero()[:, 0], inside.nonzero()[:, 0]
        kept, judges = outside[0][name], outside[1][name]
        more = [Features.joined(a.take(kept), b.take(others)) for a, b in zip(train, test, strict=True)]
        its_labels = [torch.cat([labels[0][kept], labels[2][others]]), labels[1][judges], None]
        features = [more, [group.take(judges) for group in validation], [group.take(rows) for group in test]]
        file = state.with_name(f"{state.name}-fold{fold}")
        its_items, numbers = (rows, None) if items is None else items[rows].unique(return_inverse=True)
        folds.append((its_items, train_heads(features, its_labels, numbers, classes, args, file)))
    return {head: merge_folds([(rows, chosen[head]) for rows, chosen in folds]) for head in args.heads}


def rows_outside(split, name: str, pattern: str):
    """Numbers of the clips of a split that are not of this group; clips without a group are of none.

    Raises:
        ValueError: there are none.
    """
    import re

    import torch

    from tokenization.sources.labelled import group_of

    has_group = [re.search(pattern, source) is not None for source in split.sources]
    kept = [row for row, source in enumerate(split.sources) if not has_group[row] or group_of(source, pattern) != name]
    if not kept:
        raise ValueError(
            f"{split.split} holds the group {name!r} alone, which test has too and is to be left out: give a "
            "--validation_split of several groups, or keep the groups of test out of the training split."
        )
    return torch.tensor(kept)


def score(
    chosen: dict, layers: list[int], task: int, references, items: list[str]
) -> tuple[list[dict], dict, object, dict]:
    """Rows of all layers and heads for one label, the row chosen on validation, and its test predictions (N,).

    The last of the four holds {"layer", "head", "predicted"} of what validation chooses among the rows of each head
    ("head=linear") and of the first and the last layer ("layer=0"), so that these can be compared on the same items.
    items: names of what is tested; clips of one video share theirs, and are resampled together in the intervals.
    """
    import numpy as np

    from evaluation.metrics import BalancedAccuracy, Top1Accuracy
    from training.scores import accuracy_interval

    references = np.asarray(references)
    rows, keys, predictions = [], [], []
    for index, layer in enumerate(layers):
        for head, bank in chosen.items():
            predicted = bank.test_predictions[index, task].numpy()
            row = {
                "layer": layer,
                "head": head,
                **{key: float(f"{value:.6g}") for key, value in bank.setting(index, task).items()},
                "val_accuracy": bank.val_accuracy[index, task].item(),
                **Top1Accuracy().compute(predictions=predicted, references=references),
                **BalancedAccuracy().compute(predictions=predicted, references=references),
                "ci95": accuracy_interval(predicted == references, items),
            }
            rows.append(row)
            keys.append((row["val_accuracy"], -bank.val_loss[index, task].item()))
            predictions.append(predicted)
    best = max(range(len(rows)), key=keys.__getitem__)
    selected = {}
    for key, value in (*(("head", head) for head in chosen), ("layer", layers[0]), ("layer", layers[-1])):
        k = max((k for k, row in enumerate(rows) if row[key] == value), key=keys.__getitem__)
        where = {"layer": rows[k]["layer"], "head": rows[k]["head"]}
        selected[f"{key}={value}"] = where | {"predicted": predictions[k].tolist()}
    return rows, rows[best], predictions[best], selected


def compare(best: dict, predictions, baselines: dict, references, items: list[str], seed: int) -> dict:
    """The chosen row against each baseline on the same clips: paired difference, its interval and what that says.

    items: as in `score`.
    """
    from evaluation.metrics import paired_difference, verdict

    groups = items if len(set(items)) < len(items) else None
    result = {}
    for name, (_, other) in baselines.items():
        found = paired_difference(predictions, other, references, seed, groups=groups)
        result[name] = found | {"verdict": verdict(found["ci95"])}
    return result


def told(row: dict) -> str:
    """The chosen setting of a row in words: a learning rate (and decay), a penalty, or a number of neighbours."""
    return ", ".join(f"{key} {row[key]:g}" for key in ("lr", "weight_decay", "penalty", "k") if key in row)


def table(label: str, task: dict, n_test: int, n_validation: int) -> str:
    """Layers x heads, the baselines and the verdict, as plain text. Accuracies in percent."""

    def cells(row: dict) -> str:
        low, high = row["ci95"]
        return f"{100 * row['val_accuracy']:6.1f} {100 * row['accuracy']:6.1f}  [{100 * low:4.1f}, {100 * high:4.1f}]"

    best = task["best"]
    heads = list(dict.fromkeys(row["head"] for row in task["layers"]))
    lines = [
        "",
        f"{label}: {task['classes']} classes, chance {100 * task['chance']:.1f} %, always the commonest "
        f"{100 * task['majority']:.1f} %; {n_validation:,} validation and {n_test:,} test clips",
        " " * 18 + "".join(f"{head + ' head':^30}" for head in heads),
        f"{'layer':<18}" + f"{'   val   test  95 % interval':<30}" * len(heads),
    ]
    for layer in dict.fromkeys(row["layer"] for row in task["layers"]):
        rows = [row for row in task["layers"] if row["layer"] == layer]
        marks = ["*" if layer == best["layer"] and row["head"] == best["head"] else " " for row in rows]
        lines.append(
            f"{layer:<18}" + "".join(f"{cells(row) + mark:<30}" for row, mark in zip(rows, marks, strict=True))
        )
    for name, row in task["baselines"].items():
        where = f"layer {row['layer']}, {row['head']}" if "layer" in row else row["head"]
        lines.append(f"{name:<18}{cells(row):<30}({where})")
    lines.append(f"* chosen on validation: layer {best['layer']}, {best['head']} head, {told(best)}")
    for name, versus in best["versus"].items():
        low, high = versus["ci95"]
        lines.append(
            f"  against {name}: {100 * versus['difference']:+.1f} points, paired 95 % interval [{100 * low:+.1f}, "
            f"{100 * high:+.1f}]: {versus['verdict']}"
        )
    return "\n".join(lines)


def run_probe(args: ProbeArgs, command: str) -> dict:
    """The whole probe; returns what the result file holds (`tasks`: every label)."""
    import numpy as np
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from evaluation.backbones.extraction import Job
    from evaluation.backbones.floors import FLOORS
    from evaluation.backbones.load import load_backbone
    from evaluation.backbones.toto import TotoBackbone
    from evaluation.heads.bank import TOKEN_HEADS
    from evaluation.metrics import confusion_matrix
    from evaluation.probe.splits import read_splits, same_classes
    from tokenization.precision import bf16_is_fast
    from training.engine.checkpoints import resolve_model
    from training.engine.device import flush_denormals, require_together, versions
    from training.publish.media_seen import media_on_record
    from training.scores import per_class_accuracy

    flush_denormals()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    require_together(state.num_processes)
    if state.num_processes > 1 and args.feature_cache == "none":
        raise ValueError("several processes share their features: name a folder with --feature_cache, which all see.")
    media = media_on_record(args.model)
    folder = resolve_model(args.model)
    backbone = load_backbone(folder, state.device, args.rope_base, args.resolution)
    layers = choose_layers(args.layers, backbone.depth, args.model)
    wanted = ["pixels", "untrained"] if args.baselines is None else [n for n in args.baselines if n != "none"]
    if "histogram" in wanted and not isinstance(backbone, TotoBackbone):
        raise ValueError("--baselines histogram counts the codes of a Toto, and the model is none; leave it out.")
    num_frames = args.num_frames or backbone.num_frames

    few = args.max_tokens if any(head in TOKEN_HEADS for head in args.heads) else None
    jobs = {"model": Job(backbone, layers, few)}
    for name in wanted:
        if name == "untrained":
            jobs[name] = Job(backbone.untrained(args.seed), layers, few)
        else:
            jobs[name] = Job(FLOORS[name](backbone, backbone.device), [0], few)

    with cache_folder(args.feature_cache) as cache:
        splits = read_splits(args, list(jobs.values()), backbone.resolution, num_frames, cache)
        from_text = [column for column, values in splits[0].labels.items() if values.dtype.kind == "U"]
        classes = same_classes(splits)
        columns = list(classes)
        labels = [torch.from_numpy(np.stack([split.labels[c] for c in columns], axis=1)) for split in splits]
        numbers = [len(names) for names in classes.values()]
        train, validation, test = splits
        items, tested, numbers_of_items = test.sources, labels[2], None
        if args.average_clips or args.views:
            items = list(dict.fromkeys(test.sources))
            places = {name: place for place, name in enumerate(items)}
            numbers_of_items = torch.tensor([places[name] for name in test.sources])
            tested = torch.empty_like(tested[: len(items)]).index_copy_(0, numbers_of_items, tested)
        trained = {}
        partial = Path(args.output).with_suffix(".partial")
        for index, name in enumerate(jobs):
            if args.leave_one_group_out:
                heads = leave_groups_out(splits, index, labels, numbers_of_items, numbers, args, partial / name)
            else:
                features = [split.features[index] for split in splits]
                heads = train_heads(features, labels, numbers_of_items, numbers, args, partial / name)
            trained[name] = heads

    tasks = {}
    for index, column in enumerate(columns):
        references = tested[:, index].numpy()
        rows, best, predictions, selected = score(trained["model"], layers, index, references, items)
        baselines, chosen = {}, {}
        for name in wanted:
            its_rows, its_best, its_predictions, _ = score(trained[name], jobs[name].layers, index, references, items)
            chosen[name] = (its_best, its_predictions)
            if name == "untrained":
                baselines[name] = its_best | {"layers": its_rows}
            else:
                baselines[name] = {key: value for key, value in its_best.items() if key != "layer"}  # there is one only
        commonest = labels[0][:, index].bincount().argmax()
        tasks[column] = {
            "classes": len(classes[column]),
            "chance": 1 / len(classes[column]),
            "majority": float((tested[:, index] == commonest).float().mean()),
            "layers": rows if args.layers != ["best"] else [{key: best[key] for key in rows[0]}],
            "best": dict(best) | {"versus": compare(best, predictions, chosen, references, items, args.seed)},
            "baselines": baselines,
            "per_class": per_class_accuracy(predictions, references, classes[column]),
        }
        if column in from_text:
            tasks[column]["class_names"] = classes[column]
        if len(classes[column]) <= MOST_CONFUSED:
            confused = confusion_matrix(predictions, references, len(classes[column]))
            tasks[column]["confusion"] = confused.tolist()  # a row for each true class
        if args.predictions:
            tasks[column]["predictions"] = {
                "items": items,
                "label": references.tolist(),
                "predicted": predictions.tolist(),
                "baselines": {name: other.tolist() for name, (_, other) in chosen.items()},
                "selected": selected,
            }

    def margin(column: str) -> float:
        task = tasks[column]
        floor = [row["val_accuracy"] for row in task["baselines"].values()] or [task["chance"]]
        return task["best"]["val_accuracy"] - max(floor)

    label = max(columns, key=margin)
    control = {"control": f"RoPE base changed to {args.rope_base:g} without training"} if args.rope_base else {}
    return {
        "command": command,
        "model": args.model,
        "depth": backbone.depth,
        "media": media,
        **control,
        "data": {
            "dataset": args.dataset,
            "kind": test.kind,
            "num_frames": 1 if test.kind == "image" else num_frames,
            "stride": args.stride,
            "fps": args.fps,
            "resolution": backbone.resolution,
            "detail": args.detail,
            "frame_order": args.frame_order,
            "views": args.views,
            "leave_one_group_out": args.group_by if args.leave_one_group_out else None,
            "splits": {
                part: {"split": split.split, "clips": len(split), "sources": len(set(split.sources))}
                for part, split in zip(("train", "validation", "test"), splits, strict=True)
            },
            "skipped": [skip for split in splits for skip in split.skipped],
        },
        "versions": versions(backbone.device) | {"features": "bf16" if bf16_is_fast(backbone.device) else "fp32"},
        "seeds": {"heads": args.seed, "untrained": args.seed, "split": args.split_seed},
        "label": label,
        **tasks[label],
        "n_train": len(train),
        "n_validation": len(validation),
        "n_test": len(items),
        "tasks": tasks,
    }


@contextlib.contextmanager
def cache_folder(asked: str | None):
    """The folder that keeps features: the one asked for, the default one, or one that is gone afterwards ("none")."""
    from huggingface_hub.constants import HF_HOME

    if asked == "none":
        with tempfile.TemporaryDirectory(prefix="toto-features-") as folder:
            yield Path(folder)
        return
    folder = Path(asked or Path(HF_HOME) / "toto_features")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def main(argv: list[str] | None = None) -> None:
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(
        ProbeArgs,
        prog="toto probe",
        description="Probe a frozen backbone: which layer knows the labels, and how well.",
        allow_abbrev=False,  # --task yields to what was typed, which must be a whole name
    )
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.task is not None:
        args = of_task(args, argv)
    refuse_idle_flags(args, argv)

    from evaluation.results import command_line, write_json

    if args.compare is not None:
        from evaluation.report.compare import compare_files

        compare_files(args.compare, args.output, command_line("probe", argv))
        return
    from accelerate import PartialState

    from evaluation.report.figures import write_layer_plot
    from tokenization.sources.labelled import told_classes

    results = run_probe(args, command_line("probe", argv))
    state = PartialState()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    if "control" in results:
        print(f"control: {results['control']}")
    for sentence in idle_flags(args, argv, results["data"]["kind"]):
        print(sentence)
    for part, split in results["data"]["splits"].items():
        print(f"{part:<10} {split['clips']:>7,} clips from {split['sources']:,} sources: {split['split']}")
    skipped = results["data"]["skipped"]
    if skipped:
        print(f"skipped    {len(skipped):>7,}, the first: {skipped[0]['source']}: {skipped[0]['why']}")
    for label, task in results["tasks"].items():
        if "class_names" in task:
            print(told_classes(label, task["class_names"]))
        print(table(label, task, results["n_test"], results["n_validation"]))
    if len(results["tasks"]) > 1:
        print(f"\nlabel with the largest margin over the baselines on validation: {results['label']}")
    write_json(args.output, results)
    shutil.rmtree(Path(args.output).with_suffix(".partial"), ignore_errors=True)
    print(f"\nwrote {args.output}")
    plot = Path(args.output).with_suffix(".png")
    try:
        write_layer_plot(results, plot)
    except ImportError:
        print("no plot of the layers: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {plot}")
