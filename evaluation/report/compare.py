"""`toto probe --compare`: several results in one figure and one table, with differences to the first.

A difference is paired, which makes its 95 % interval much narrower, where both results contain the predictions of the
same test items (`toto probe --predictions`); elsewhere it is unpaired, and the table says why.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from evaluation.report.leakage import check_media
from evaluation.report.probe_figures import DEPTH, axes_of, check_count, comparison_figure, comparison_svg, heads_of
from evaluation.report.reading import Probe, percent, read_probes

# Markers of figures.SERIES as text.
MARKS = {"o": "●", "^": "▲", "s": "■", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
HEAD = ["model", "head", "layer", "on test [95 %]", "n test", "difference [95 %]", "interval"]


def read_results(files: list[str]) -> list[Probe]:
    """Results with names that differ. Raises ValueError for fewer than two, or for a file that is not one result."""
    if len(files) < 2:
        raise ValueError("A comparison needs at least two results; give --compare a.json b.json.")
    probes = []
    for file in files:
        found = read_probes([file])
        if len(found) != 1:
            raise ValueError(f"{file} is not a single result of toto probe; name its .json file.")
        probes += found
    if len({probe.name for probe in probes}) < len(probes):
        stems = [probe.file.stem for probe in probes]
        which = stems if len(set(stems)) == len(stems) else files
        probes = [Probe(f"{p.name} ({w})", p.file, p.result, p.tasks) for p, w in zip(probes, which, strict=True)]
    return probes


def common_labels(probes: list[Probe]) -> list[str]:
    """Labels that all results have. Raises ValueError if there are none, or if the numbers of classes differ."""
    labels = [label for label in probes[0].tasks if all(label in probe.tasks for probe in probes)]
    if not labels:
        has = "; ".join(f"{probe.file}: {', '.join(probe.tasks)}" for probe in probes)
        raise ValueError(f"The results have no label in common ({has}); compare results of the same labels.")
    for label in labels:
        classes = {probe.tasks[label].classes for probe in probes} - {None}
        if len(classes) > 1:
            numbers = " and ".join(map(str, sorted(classes)))
            raise ValueError(
                f"The label {label!r} has {numbers} classes in these results; compare results of the same task."
            )
    return labels


def kept_predictions(probe: Probe, label: str) -> dict[tuple, tuple[int, int]] | None:
    """{(item, k): (predicted, true class)} of the test clips, k counting those of a video; None if not kept."""
    kept = probe.tasks[label].predictions
    if kept is None:
        return None
    seen, found = Counter(), {}
    for item, predicted, true in zip(kept.items, kept.predicted, kept.label, strict=True):
        found[item, seen[item]] = (predicted, true)
        seen[item] += 1
    return found


def unlike(first: Probe, other: Probe, label: str) -> str | None:
    """Why the predictions of two results cannot be paired; None if they are of the same items and labels."""
    ours, theirs = kept_predictions(first, label), kept_predictions(other, label)
    for probe, kept in ((first, ours), (other, theirs)):
        if kept is None:
            return f"{probe.file.name} has no predictions (toto probe --predictions)"
    if ours.keys() != theirs.keys():
        both = len(ours.keys() & theirs.keys())
        return f"different test items: {both:,} in common of {len(ours):,} and {len(theirs):,}"
    if any(ours[key][1] != theirs[key][1] for key in ours):
        return "the same test items with different labels"
    return None


def on_test(probe: Probe, label: str, metric: str) -> dict:
    """{"value", "ci95"} of the chosen row, by a metric of `metrics.METRICS`; all but accuracy need the predictions."""
    from evaluation.metrics import METRICS
    from training.scores import bootstrap_interval

    best = probe.tasks[label].best
    if metric == "accuracy":
        return {"value": best.accuracy, "ci95": best.ci95}
    if metric not in METRICS:
        raise ValueError(f"The metric {metric!r} is not known; use one of {', '.join(METRICS)}.")
    kept = kept_predictions(probe, label)
    if kept is None:
        raise ValueError(f"The {metric} needs predictions, and {probe.file} has none; run toto probe --predictions.")
    predicted, true = np.array(list(kept.values())).T
    return {
        "value": METRICS[metric](predicted, true),
        "ci95": bootstrap_interval(predicted == true, true, groups=units(probe, label)),
    }


def units(probe: Probe, label: str) -> list[str] | None:
    """What intervals resample as wholes, for each test clip: its recording or its video; None if each is one alone."""
    kept = probe.tasks[label].predictions
    found = kept.groups or kept.items
    return found if len(set(found)) < len(found) else None


def compare(probes: list[Probe], metric: str = "accuracy") -> list[dict]:
    """A row per label and result: its chosen row on test, and the difference to the first result.

    Returns:
        {label, model, file, head, layer, metric, value, ci95, n_test}, and of all but the first also
        {versus, difference, difference_ci95, paired: bool, why: of an unpaired interval}; fractions.
    """
    from evaluation.metrics import paired_difference, unpaired_difference

    found = []
    for label in common_labels(probes):
        first, base = probes[0], on_test(probes[0], label, metric)
        for probe in probes:
            best, mine = probe.tasks[label].best, base if probe is first else on_test(probe, label, metric)
            row = {"label": label, "model": probe.name, "file": str(probe.file), "head": best.head}
            row |= {"layer": best.layer, "metric": metric, **mine, "n_test": probe.n_test}
            if probe is not first:
                why = unlike(first, probe, label)
                if why is None:
                    ours, theirs = kept_predictions(first, label), kept_predictions(probe, label)
                    a = [theirs[key][0] for key in ours]
                    b, true = map(list, zip(*ours.values(), strict=True))
                    result = paired_difference(a, b, true, metric=metric, groups=units(first, label))
                else:
                    result = unpaired_difference(mine["value"], mine["ci95"], base["value"], base["ci95"])
                row |= {"versus": first.name, "difference": result["difference"], "difference_ci95": result["ci95"]}
                row |= {"paired": True} if why is None else {"paired": False, "why": why}
            found.append(row)
    return found


def cells(row: dict) -> list[str]:
    """The cells of a row of `compare`, under HEAD."""
    if "versus" not in row:
        difference = ["", "reference"]
    else:
        low, high = row["difference_ci95"]
        verdict = "" if low > 0 or high < 0 else ", no significant difference"
        kind = "paired" if row["paired"] else f"unpaired: {row['why']}"
        difference = [f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{verdict}", kind]
    score = percent(row["value"], row["ci95"])
    return [row["model"], row["head"], str(row["layer"]), score, f"{row['n_test']:,}", *difference]


def table(rows: list[dict]) -> str:
    """All rows as plain text, a block per label."""
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = [row for row in rows if row["label"] == label]
        block = [HEAD, *map(cells, of_label)]
        widths = [max(map(len, column)) for column in zip(*block, strict=True)]
        metric = of_label[0]["metric"].replace("_", " ")
        lines += ["", f"{label}, {metric}: layer and head chosen on validation; differences in points"]
        lines += [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(each, widths, strict=True)).rstrip() for each in block
        ]
    return "\n".join(lines)


def depth_of(probe: Probe) -> int | None:
    """The model's deepest layer: from the result, or the last row if all layers from 0 on are there; else None."""
    if probe.result.depth is not None:
        return probe.result.depth
    layers = sorted({row.layer for task in probe.tasks.values() for row in task.layers})
    return layers[-1] if len(layers) > 1 and layers == list(range(len(layers))) else None


def compare_files(
    files: list[str], output: str | None = None, command: str = "", metric: str = "accuracy"
) -> list[dict]:
    """`toto probe --compare`: print the table; write the figure (.png, .svg), both (.html), or the rows (.json).

    Raises ValueError or FileNotFoundError before anything is written.
    """
    from evaluation.report.figures import SERIES
    from evaluation.report.page import Table, render
    from evaluation.report.sentences import comparison_sentence
    from tokenization.files import write_json

    kinds = (".html", ".png", ".svg", ".json")
    if output and Path(output).suffix not in kinds:
        raise ValueError(f"--output {output} is not supported; its name must end in {', '.join(kinds)}.")
    probes = read_results(files)
    check_media({probe.name: probe.result for probe in probes})
    rows = compare(probes, metric)
    print(table(rows))
    data = {probe.name: (probe.result.data and probe.result.data.dataset) or "unknown" for probe in probes}
    if len(set(data.values())) > 1:
        print("\nthe datasets have different names: " + "; ".join(f"{name}: {where}" for name, where in data.items()))
    if output is None:
        return rows
    labels = common_labels(probes)
    shown = [{label: probe.tasks[label] for label in labels} for probe in probes]
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, {"command": command, "compared": [str(probe.file) for probe in probes], "rows": rows})
        print(f"\nwrote {path}")
        return rows
    names, depths = [probe.name for probe in probes], [depth_of(probe) for probe in probes]
    check_count(names)
    if DEPTH in axes_of(depths):
        for name in (name for name, depth in zip(names, depths, strict=True) if depth is None):
            print(f"{name}: depth unknown (not all layers probed): shown in the panels of layer numbers only")
    if path.suffix == ".html":
        panels = [
            {
                "label": label,
                "table": Table(HEAD, [cells(row) for row in rows if row["label"] == label]),
                "sentence": comparison_sentence([row for row in rows if row["label"] == label]),
                "figures": [
                    comparison_svg(label, head, below, names, depths, shown)
                    for head in heads_of(shown)
                    for below in axes_of(depths)
                ],
            }
            for label in labels
        ]
        facts = {"title": f"{len(probes)} models compared", "panels": panels, "command": command}
        facts |= {
            "legend": [(colour, MARKS[marker], name) for (colour, marker), name in zip(SERIES, names, strict=False)],
            "metric": metric.replace("_", " "),
        }
        path.write_text(render("comparison.html", **facts), encoding="utf-8")
    else:
        comparison_figure(names, depths, shown).savefig(path, dpi=130)
    print(f"\nwrote {path}")
    return rows
