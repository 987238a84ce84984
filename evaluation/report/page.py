"""The contents of a report as plain data, and its rendering by the Jinja2 templates in `templates/`.

HTML pages escape every text but the figures (SVG of `figures`, which escapes its own), and fetch nothing.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2

from evaluation.report import probe_figures, run_figures
from evaluation.report.clips import clip_facts
from evaluation.report.comparisons import NO_DIFFERENCE, Comparison, counts, summary
from evaluation.report.opening import learnt
from evaluation.report.probe_figures import layers_svg
from evaluation.report.reading import AGAINST, Generation, Probe, Run, controls, percent, read_loss_maps
from evaluation.report.run_figures import frames_svg, loss_svg, map_svg, overlay_svg
from evaluation.report.sentences import frames_sentence, layers_sentence, loss_sentence, map_sentence, overlay_sentence
from evaluation.results import Row
from tokenization.markdown import markdown_cell
from training.results import FinetuneResult

MEDIA_HEAD = ["model", "medium", "split", "kind", "items", "tokens", "epochs", "also read by probes"]
FIGURES = (loss_svg, overlay_svg, frames_svg, map_svg, layers_svg)
SENTENCES = (frames_sentence, map_sentence, layers_sentence)
# Legend of a probe with several heads: head -> dashes, text. Floors have their names in the figures.
LEGEND = {
    "linear": ("", "linear head"),
    "attention": ("8 4", "attention head"),
    "cross_attention_mlp": ("3 2.4", "cross-attention + MLP head"),
}


@dataclass(frozen=True)
class Table:
    """Cells are plain text. classes: of each row's last cell, in HTML."""

    head: list[str]
    rows: list[list[str]]
    classes: list[str] | None = None


def comparison_table(comparisons: list[Comparison]) -> Table:
    head = ["model or run", "task", "against", "ours", "theirs", "difference", "95 %", "verdict"]
    rows = [[c.subject, c.task, c.against, c.ours, c.theirs, c.difference, c.interval, c.verdict] for c in comparisons]
    states = ["holds" if c.holds else "open" if c.verdict == NO_DIFFERENCE else "fails" for c in comparisons]
    return Table(head, rows, states)


def run_facts(run: Run) -> dict:
    """A run's name, rows, predictors and unit, with: facts, losses (Table), note, sources (Table or None), maps."""
    last = run.rows[-1]
    facts = [f"{last['step']:,} steps"]
    if "tokens" in last:
        facts.append(f"{last['tokens'] / 1e6:.1f} M tokens")
    timed = [row for row in run.rows if "seconds" in row]
    if timed:
        facts.append(f"{timed[-1]['seconds'] / 60:.1f} minutes")
    if timed and "tokens_per_second" in timed[-1]:
        facts.append(f"{timed[-1]['tokens_per_second']:,.0f} tokens/s")
    for key in ("device", "threads"):
        if key in run.versions:
            facts.append(f"{key} {run.versions[key]}")
    changes = run.folder / "changes.txt"
    if changes.is_file():
        facts.append(" ".join(changes.read_text().split()).replace(": - ", ": ").replace(". - ", "; "))
    if run.predictors is None:
        note = "No simple predictors: the shards of this run are gone, or have no validation rows."
        rows = []
    else:
        note = (
            f"Simple predictors: counted on {run.predictors['train_rows']:,} training rows, smoothed on a tenth of "
            f"these, scored on the {run.predictors['val_rows']:,} validation rows. bigram: given the previous token in "
            "raster order. previous frame: given the code at the same place one frame earlier; in a row's first frame, "
            "the bigram."
        )
        names = ("unigram", "bigram", "previous_frame")
        rows = [[name.replace("_", " "), f"{run.predictors[name]:.4f}"] for name in names]
    if run.val_loss is not None:
        rows.append([f"{run.name}, last validation", f"{run.val_loss:.4f}"])
    trained = [row["loss"] for row in run.rows if "loss" in row]
    if trained:
        rows.append([f"{run.name}, last logged training", f"{trained[-1]:.4f}"])
    found = {"name": run.name, "rows": run.rows, "predictors": run.predictors, "unit": run.unit, "facts": facts}
    found |= {"losses": Table([run.unit, ""], rows), "note": note, "has_curve": run_figures.has_curve(run.rows)}
    dots = "" if run.val_loss is None else " Dots: validation loss."
    found |= {"sentence": loss_sentence(run), "legend": f"Thin: training loss.{dots}"}
    return found | {"sources": sources_table(run), "maps": read_loss_maps(run.folder)}


def sources_table(run: Run) -> Table | None:
    """Realised shares, epochs and losses of a run's sources; None if it has one source."""
    last = next((row for row in reversed(run.rows) if len(row.get("sources", {})) > 1), None)
    if last is None:
        return None
    validated = next((row["val_losses"] for row in reversed(run.rows) if row.get("val_losses")), {})
    rows = []
    for name, fact in last["sources"].items():
        epochs = "not known" if fact["epochs"] is None else f"{fact['epochs']:,.2f}"
        losses = [fact["loss"], validated.get(name)]
        cells = ["—" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append([name, f"{fact['rows']:,}", f"{fact['share']:.2%}", epochs, *cells])
    head = ["source", "rows", "share", "epochs", "training loss at the end", "validation loss"]
    return Table(head, rows)


def overlays(runs: list[Run]) -> list[dict]:
    """Runs of one unit of loss over each other: against tokens, and against compute where that is another figure.

    Returns:
        arguments: of `overlay_svg`. sentence: of the figures with these runs, with the first of them.
    """
    found = []
    drawn = [run for run in runs if run_figures.has_curve(run.rows)]
    for unit in dict.fromkeys(run.unit for run in drawn):
        alike = [run for run in drawn if run.unit == unit]
        if len(alike) < 2:
            continue
        # Runs from before compute was logged are still compared by tokens; if all cost the same a token, the figure
        # against compute is the one against tokens again.
        costs = [next((f"{r['flops'] / r['tokens']:.3g}" for r in run.rows if r.get("flops")), None) for run in alike]
        against = ("tokens", "flops") if None not in costs and len(set(costs)) > 1 else ("tokens",)
        curves = [(run.name, run.rows) for run in alike]
        sentences = [overlay_sentence(alike), "The same losses against the training compute."]
        found += [{"arguments": (curves, key, unit), "sentence": s} for key, s in zip(against, sentences, strict=False)]
    return found


def probe_facts(probe: Probe) -> dict:
    """A probe's name, facts, curves (tasks to plot), legend (of LEGEND), table (a row per label) and layers (all)."""
    data, result, tasks = probe.result.data, probe.result, probe.tasks
    facts = [f"{result.model or probe.name} on {data.dataset}" if data and data.dataset else probe.name]
    if data and data.num_frames is not None:
        facts.append(f"{data.num_frames} frame{'s' * (data.num_frames > 1)} of {data.resolution} pixels")
    counts = [(result.n_train, "train"), (result.n_validation, "validation"), (probe.n_test, "test items")]
    facts.append(", ".join(f"{count:,} {part}" for count, part in counts if count is not None))
    if data and data.skipped:
        facts.append(f"{len(data.skipped)} skipped")
    facts += [f"control: {words}" for words in controls(result)]
    floors = [who for who in AGAINST if any(who in task.baselines for task in tasks.values())]
    rows, layers = [], []
    for label, task in tasks.items():
        best, baselines = task.best, task.baselines
        rows.append(
            [
                label,
                f"layer {best.layer}, {best.head}",
                score(best),
                *(score(baselines[who]) if who in baselines else "—" for who in floors),
                "—" if task.chance is None else f"{100 * task.chance:.1f} %",
                "—" if task.majority is None else f"{100 * task.majority:.1f} %",
                f"{probe.n_test:,}",
            ]
        )
        layers += [[label, "trained", *layer_cells(row)] for row in task.layers]
        layers += [[label, "untrained", *layer_cells(row)] for row in task.untrained_layers]
    head = ["label", "chosen on validation", "test accuracy [95 %]", *(AGAINST[who] for who in floors), "chance",
            "most common class", "n test"]  # fmt: skip
    heads = {row.head for task in tasks.values() for row in task.layers}
    legend = [entry for head, entry in LEGEND.items() if head in heads and len(heads) > 1]
    curves = {label: task for label, task in tasks.items() if probe_figures.has_curve(task)}
    found = {"name": probe.name, "curves": curves, "facts": facts, "legend": legend, "table": Table(head, rows)}
    return found | {"layers": Table(["label", "weights", "layer", "head", "validation", "test [95 %]"], layers)}


def score(row: Row) -> str:
    return percent(row.accuracy, row.ci95)


def layer_cells(row: Row) -> list[str]:
    validation = "—" if row.val_accuracy is None else f"{100 * row.val_accuracy:.1f} %"
    return [str(row.layer), row.head, validation, score(row)]


def tuned_table(tuned: dict[str, FinetuneResult]) -> Table:
    """Results of `toto finetune`, by name."""
    from training.scores import wilson_interval

    rows = []
    for name, result in tuned.items():
        best, data = result.best, result.data
        said = percent(best.accuracy, best.ci95 or wilson_interval(best.correct, result.n_test))
        rows.append([name, result.model, data.dataset, data.attention_mode, said, f"{result.n_test:,}"])
    return Table(["result", "from", "data", "attention", "test accuracy [95 %]", "n test"], rows)


def media_cells(row: dict) -> list[str]:
    """The cells of a row of `leakage.ledger_rows`, under MEDIA_HEAD."""
    items = "not listed" if row["items"] is None else f"{row['items']:,}"
    tokens = "—" if row["tokens"] is None else f"{row['tokens'] / 1e6:,.1f} M"
    epochs = "—" if row["epochs"] is None else f"{row['epochs']:,.2f}"
    read = ", ".join(row["read_by_probes"]) or "—"
    return [row["model"], row["medium"], row["split"] or "—", row["kind"] or "—", items, tokens, epochs, read]


def reproduce(
    runs: list[Run], generations: list[Generation], probes: list[Probe], command: str, tuned: dict[str, FinetuneResult]
) -> dict:
    """commands, versions [(names, text)] and seeds (Table or None) of everything on the page."""
    commands = [
        shlex.join(["toto", "pretrain", "--recipe", str(run.folder / "recipe.yaml"), "--output_dir", "NEW_RUN"])
        for run in runs
    ]
    sources = [(g.sheet.name, g.about) for g in generations if g.about is not None] + [
        (p.file.name, p.result) for p in probes
    ]
    sources += tuned.items()
    commands += [about.command for _, about in sources if about.command is not None]
    versions: dict[str, list[str]] = {}  # equal ones are listed once
    for name, found in [(run.name, run.versions) for run in runs] + [(n, a.versions) for n, a in sources]:
        if found:
            text = ", ".join(f"{package} {version}" for package, version in found.items() if version is not None)
            versions.setdefault(text, []).append(name)
    seeds = [[name, json.dumps(about.seeds)] for name, about in sources if about.seeds is not None]
    return {
        "commands": [*dict.fromkeys(commands), command],
        "versions": [(names, text) for text, names in versions.items()],
        "seeds": Table(["result", "seeds"], seeds) if seeds else None,
    }


def contents(
    title: str,
    runs: list[Run],
    generations: list[Generation],
    probes: list[Probe],
    comparisons: list[Comparison],
    command: str,
    tuned: dict[str, FinetuneResult],
    media: list[dict],
) -> dict:
    """The facts that the templates report.html and report.md need.

    tuned: results of `toto finetune` by name. media: of `leakage.ledger_rows`.
    """
    return {
        "title": title,
        "clips": [clip_facts(generation) for generation in generations],
        "learnt": learnt(probes, comparisons),
        "counts": counts(comparisons),
        "comparisons": comparison_table(comparisons),
        "summary": summary(comparisons),
        "runs": [run_facts(run) for run in runs],
        "overlays": overlays(runs),
        "probes": [probe_facts(probe) for probe in probes],
        "tuned": tuned_table(tuned) if tuned else None,
        "media": Table(MEDIA_HEAD, [media_cells(row) for row in media]) if media else None,
        **reproduce(runs, generations, probes, command, tuned),
    }


def render(template: str, **facts) -> str:
    """The text of `templates/TEMPLATE.jinja`; a missing fact is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {figure.__name__: figure for figure in (*FIGURES, *SENTENCES)}
    environment.filters["cell"] = markdown_cell
    return environment.get_template(f"{template}.jinja").render(**facts)
