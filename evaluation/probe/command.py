"""`toto probe`: accuracy of heads on every layer of a frozen backbone, against raw pixels and its untrained twin."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.probe.args import ProbeArgs, idle_flags, of_task, refuse_idle_flags
from tokenization.terminal.next_command import after_result
from training.flags import parse

if TYPE_CHECKING:
    from evaluation.results import ProbeResult, Row, TaskResult


DESCRIPTION = "Train small heads on the frozen features of every layer of a backbone, and report their accuracy."


def setting_in_words(row: Row) -> str:
    """The chosen setting of a row in words: a learning rate (and decay), a penalty, or a number of neighbours."""
    return ", ".join(f"{key} {value:g}" for key, value in row.setting.items())


def table(label: str, task: TaskResult, n_test: int, n_validation: int, unit: str = "clips") -> str:
    """Layers x heads, the baselines and the verdict, as plain text, in percent. unit: "clips" or "images"."""

    def cells(row: Row) -> str:
        low, high = row.ci95
        return f"{100 * row.val_accuracy:6.1f} {100 * row.accuracy:6.1f}  [{100 * low:4.1f}, {100 * high:4.1f}]"

    best = task.best
    heads = list(dict.fromkeys(row.head for row in task.layers))
    lines = [
        "",
        f"{label}: {task.classes} classes, chance {100 * task.chance:.1f} %, always the most common "
        f"{100 * task.majority:.1f} %; {n_validation:,} validation and {n_test:,} test {unit}",
        " " * 18 + "".join(f"{head + ' head':^30}" for head in heads),
        f"{'layer':<18}" + f"{'   val   test  95 % interval':<30}" * len(heads),
    ]
    for layer in dict.fromkeys(row.layer for row in task.layers):
        rows = [row for row in task.layers if row.layer == layer]
        marks = ["*" if layer == best.layer and row.head == best.head else " " for row in rows]
        lines.append(
            f"{layer:<18}" + "".join(f"{cells(row) + mark:<30}" for row, mark in zip(rows, marks, strict=True))
        )
    for name, row in task.baselines.items():
        where = f"layer {row.layer}, {row.head}" if row.layer is not None else row.head
        lines.append(f"{name:<18}{cells(row):<30}({where})")
    lines.append(f"* chosen on validation: layer {best.layer}, {best.head} head, {setting_in_words(best)}")
    if best.top5 is not None:
        lines.append(f"  top 5: {100 * best.top5:.1f} %; mean distance on the grid: {best.grid_l1:.2f} cells")
    for name, versus in best.versus.items():
        low, high = versus.ci95
        lines.append(
            f"  against {name}: {100 * versus.difference:+.1f} points, paired 95 % interval [{100 * low:+.1f}, "
            f"{100 * high:+.1f}]: {versus.verdict}"
        )
    return "\n".join(lines)


def described(result: ProbeResult) -> str:
    """The result as plain text: its splits, and the table of every label."""
    from tokenization.sources.labelled import describe_classes

    lines = [] if result.control is None else [f"control: {result.control}"]
    unit = "images" if result.data.kind == "image" else "clips"
    for part, split in result.data.splits.items():
        windows = "" if split.clips == split.sources else f" from {split.sources:,} files or rows"
        lines.append(f"{part:<10} {split.clips:>7,} {unit}{windows}: {split.split}")
    if skipped := result.data.skipped:
        lines.append(f"skipped    {len(skipped):>7,}, the first: {skipped[0]['source']}: {skipped[0]['why']}")
    for label, task in result.tasks.items():
        lines += [] if task.class_names is None else [describe_classes(label, task.class_names)]
        lines.append(table(label, task, result.n_test, result.n_validation, unit))
        if result.data.groups is not None:
            lines.append(f"  intervals resample the {result.data.groups:,} groups of --group_by in test as wholes")
    if len(result.tasks) > 1:
        lines.append(f"\nlabel with the largest margin over the baselines on validation: {result.label}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ProbeArgs,), argv, "toto probe", DESCRIPTION)
    if args.task is not None:
        args = of_task(args, argv)
    refuse_idle_flags(args, argv)

    from evaluation.results import command_line

    command = command_line("probe", argv)
    if args.compare is not None:
        from evaluation.report.compare import compare_files

        compare_files(args.compare, args.output, command)
        return
    from accelerate import PartialState

    from evaluation.probe.run import run_probe
    from evaluation.report.probe_figures import write_layer_plot
    from tokenization.files import write_json

    result = run_probe(args, command)
    state = PartialState()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    for sentence in idle_flags(args, argv, result.data.kind):
        print(sentence)
    print(described(result))
    write_json(args.output, result.to_json())
    shutil.rmtree(Path(args.output).with_suffix(".partial"), ignore_errors=True)
    print(f"\nwrote {args.output}")
    plot = Path(args.output).with_suffix(".png")
    try:
        write_layer_plot(result, plot)
    except ImportError:
        print("no plot of the layers: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {plot}")
    after_result(args.output, args.model)
