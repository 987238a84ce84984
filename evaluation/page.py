"""The report's HTML: sections, tables and style; every text from outside is escaped, nothing is fetched."""

from __future__ import annotations

import base64
import json
import shlex
from html import escape

from evaluation.claims import AGAINST, Comparison, Generation, Probe, Run, controls, percent, summary
from evaluation.layer_plots import STYLES, layers_svg
from evaluation.plots import MODEL, PIXELS, UNTRAINED, loss_svg
from evaluation.run_plots import frames_svg, map_svg, overlay_svg, read_loss_maps

MEDIA_HEAD = ["model", "medium", "split", "kind", "items", "tokens", "epochs", "also read by probes"]
STYLE = """
:root{--ink:#1f2328;--soft:#59636e;--line:#d8dee4;--good:#0072B2;--bad:#b34700;--panel:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2rem 1.1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.35rem;margin:2.8rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .3rem}
p{margin:.4rem 0;max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.92rem}
.count{font-size:1.15rem;margin:.8rem 0 1rem}
ul.verdicts{list-style:none;margin:0;padding:0;display:grid;gap:.4rem}
ul.verdicts li{border-left:5px solid;padding:.4rem .8rem;background:var(--panel);border-radius:0 6px 6px 0}
ul.verdicts li.holds{border-color:var(--good)}ul.verdicts li.fails{border-color:var(--bad)}
ul.verdicts li.partly{border-color:#8a8f98}
.tag{display:inline-block;min-width:4.2em;font-weight:700;font-size:.85rem;letter-spacing:.02em}
.tag.holds,td.holds{color:var(--good)}.tag.fails,td.fails{color:var(--bad)}.tag.partly{color:#4a5059}
td.holds,td.fails{font-weight:600}
.scroll{overflow-x:auto;margin:.7rem 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{text-align:left;padding:.36rem .8rem .36rem 0;border-bottom:1px solid var(--line);vertical-align:top;
white-space:nowrap}
th{font-weight:600;color:var(--soft)}
.grid{display:grid;gap:1rem 1.6rem;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
.pair{display:grid;gap:1rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));align-items:start}
figure{margin:.4rem 0}
figure svg{width:100%;height:auto;display:block;max-width:560px}
figure.wide svg{max-width:none}
.sheet img{display:block;width:100%;min-width:860px}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;font-size:.9rem;margin:.5rem 0}
.legend span{display:inline-flex;align-items:center;gap:.45rem}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--good)}
pre{background:var(--panel);padding:.8rem 1rem;border-radius:6px;overflow-x:auto;font-size:.86rem;line-height:1.5}
"""


def table(head: list[str], rows: list[list[str]], classes: list[str] | None = None) -> str:
    """Cells are plain text. classes: of each row's last cell."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"]
    for number, row in enumerate(rows):
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if classes:
            cells[-1] = f'<td class="{classes[number]}">{escape(row[-1])}</td>'
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def verdicts(comparisons: list[Comparison]) -> str:
    """The first screen: how many comparisons hold, a sentence for each model and run, and all of them as a table."""
    if not comparisons:
        return "<p>No comparison: none of these results and runs has a baseline beside it.</p>"
    held = sum(c.holds for c in comparisons)
    items = ""
    for subject, sentences in summary(comparisons).items():
        items += f"<h3>{escape(subject)}</h3><ul class='verdicts'>" + "".join(
            f'<li class="{state}"><span class="tag {state}">{state.capitalize()}</span> {escape(sentence)}</li>'
            for state, sentence in sentences
        )
        items += "</ul>"
    rows = [[c.subject, c.task, c.against, c.ours, c.theirs, c.difference, c.interval, c.verdict] for c in comparisons]
    return (
        f'<p class="count"><strong>{held} of {len(comparisons)} comparisons hold, '
        f"{len(comparisons) - held} fail.</strong></p>"
        f"{items}<h3>Every comparison</h3>"
        '<p class="soft">A probe comparison holds (above) when the whole 95 % interval of the difference, paired on '
        "the same test items unless it says otherwise, lies above 0; below: under 0; no significant difference: around "
        "0. Neither training nor the choice of layer saw these items. A loss comparison holds when the last validation "
        "loss is lower, on the same tokens.</p>"
        + table(
            ["model or run", "task", "against", "ours", "theirs", "difference", "95 %", "verdict"],
            rows,
            ["holds" if c.holds else "fails" for c in comparisons],
        )
    )


def run_section(run: Run) -> str:
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
        facts.append(" ".join(changes.read_text().split()))
    if run.predictors is None:
        note = "No simple predictors: the shards of this run are gone, or have no validation rows."
        rows = []
    else:
        note = (
            f"Simple predictors: counted on {run.predictors['train_rows']:,} training rows, smoothed on a tenth of "
            f"these, scored on the {run.predictors['val_rows']:,} validation rows. bigram: given the token before, in "
            "raster order. previous frame: given the code at the same place one frame earlier; in a row's first frame, "
            "the bigram."
        )
        rows = [[key.replace("_", " "), f"{run.predictors[key]:.4f}"] for key in ("unigram", "bigram")]
        rows.append(["previous frame", f"{run.predictors['previous_frame']:.4f}"])
    if run.val_loss is not None:
        rows.append([f"{run.name}, last validation", f"{run.val_loss:.4f}"])
    trained = [row["loss"] for row in run.rows if "loss" in row]
    if trained:
        rows.append([f"{run.name}, last logged training", f"{trained[-1]:.4f}"])
    return (
        f"<h3>{escape(run.name)}</h3><p class='soft'>{escape(', '.join(facts))}</p>"
        f'<div class="pair"><figure>{loss_svg(run.name, run.rows, run.predictors, run.unit)}<figcaption>Thin line: '
        "training loss. Dots: validation loss.</figcaption></figure>"
        f"<div>{table([run.unit, ''], rows)}<p class='soft'>{escape(note)}</p></div></div>"
        + mixture_table(run)
        + "".join(loss_places(run))
    )


def mixture_table(run: Run) -> str:
    """Realised shares, epochs and losses of a run's sources; nothing where it has one source."""
    last = next((row for row in reversed(run.rows) if len(row.get("sources", {})) > 1), None)
    if last is None:
        return ""
    validated = next((row["val_losses"] for row in reversed(run.rows) if row.get("val_losses")), {})
    rows = []
    for name, fact in last["sources"].items():
        epochs = "not known" if fact["epochs"] is None else f"{fact['epochs']:,.2f}"
        losses = [fact["loss"], validated.get(name)]
        cells = ["—" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append([name, f"{fact['rows']:,}", f"{fact['share']:.2%}", epochs, *cells])
    head = ["source", "rows", "share", "epochs", "training loss at the end", "validation loss"]
    return table(head, rows)


def loss_places(run: Run) -> list[str]:
    """Figures of where in a row the validation loss of a run is, for each of its sources."""
    maps = read_loss_maps(run.folder)
    found = []
    for source in maps["sources"] if maps else ():
        predictors = (run.predictors or {}).get("maps", {}).get(source)
        named = (run.name, source, maps, predictors, run.unit)
        found.append(
            f'<div class="pair"><figure>{frames_svg(*named)}<figcaption>Validation loss along a row, {escape(source)}, '
            f"after step {maps['step']:,}.</figcaption></figure><figure>{map_svg(*named)}<figcaption>The same over "
            "rows and columns of the frames.</figcaption></figure></div>"
        )
    return found


def overlays(runs: list[Run]) -> str:
    """Loss curves of several runs over each other, against tokens and against compute; a pair for each unit of loss."""
    figures = []
    for unit in dict.fromkeys(run.unit for run in runs):
        alike = [run for run in runs if run.unit == unit]
        # Runs from before compute was logged are still compared by tokens.
        with_compute = all(any("flops" in row for row in run.rows) for run in alike)
        curves = [(run.name, run.rows) for run in alike]
        figures += [overlay_svg(curves, against, unit) for against in ("tokens", "flops")[: 2 if with_compute else 1]]
    caption = "Thin: training loss. Dots: validation loss."
    return (
        '<h3>All runs</h3><div class="pair">'
        + "".join(f"<figure>{figure}<figcaption>{caption}</figcaption></figure>" for figure in figures)
        + "</div>"
    )


def generation_section(generation: Generation) -> str:
    about, image = generation.about, base64.b64encode(generation.sheet.read_bytes()).decode()
    if about:
        s = about["sampling"]
        sampling = [f"temperature {s['temperature']:g}"]
        sampling += [f"{key} {s[key]:g}" for key in ("top_k", "top_p") if s[key] is not None]
        caption = (
            f"{about['model']} on {about['source']}: {about['num_prompt_frames']} prompt frames, "
            f"{about['num_frames']} drawn; {', '.join(sampling)}, seed {about['seeds']['draws']}; "
            f"{about['tokens_per_second']:,.0f} tokens/s, {about['seconds_per_frame']:.2f} s a frame."
        )
    else:
        caption = str(generation.sheet)
    alt = f"Rows of frames: true, reconstructed by the visual tokenizer, generated. {caption}"
    return (
        f'<figure><div class="scroll sheet" tabindex="0"><img alt="{escape(alt)}" src="data:image/png;base64,{image}">'
        f"</div><figcaption>{escape(caption)}</figcaption></figure>"
    )


def swatch(colour: str, text: str, dash: str = "") -> str:
    line = f'<line x1="0" y1="6" x2="34" y2="6" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dash}"/>'
    return f'<span><svg width="34" height="12" aria-hidden="true">{line}</svg>{escape(text)}</span>'


def legend(probe: Probe) -> str:
    tasks = probe.tasks.values()
    shown = {row["head"] for task in tasks for row in task["layers"]}
    shown |= {who for task in tasks for who in task["baselines"]}
    entries = {
        "linear": (MODEL, "the model, linear head"),
        "attention": (MODEL, "the model, attention head", "8 4"),
        "cross_attention_mlp": (MODEL, "the model, cross-attention + MLP head", "3 2.4"),
        "untrained": (UNTRAINED, "the same model untrained: triangles, same dashes"),
        "pixels": (PIXELS, AGAINST["pixels"], "12 4 2 4"),
        "random_filters": (STYLES["random_filters"]["color"], AGAINST["random_filters"], "9 2"),
        "histogram": (STYLES["histogram"]["color"], AGAINST["histogram"], "6 2 2 2 2 2"),
        "hog": (STYLES["hog"]["color"], AGAINST["hog"], "2 2"),
    }
    items = [
        *(swatch(*entry) for who, entry in entries.items() if who in shown),
        swatch("#5f6670", "chance", "2 4"),
        "<span>◯ chosen on validation</span>",
    ]
    return f'<div class="legend">{"".join(items)}</div>'


def probe_section(probe: Probe) -> str:
    data, result = probe.result.get("data", {}), probe.result
    facts = [f"{result.get('model', probe.name)} on {data['dataset']}" if "dataset" in data else probe.name]
    facts += [f"{data['num_frames']} frames of {data['resolution']} pixels"] if "num_frames" in data else []
    counts = [f"{result[key]:,} {part}" for key, part in (("n_train", "train"), ("n_validation", "validation"))
              if key in result]  # fmt: skip
    facts.append(", ".join([*counts, f"{probe.n_test:,} test items"]))
    if data.get("skipped"):
        facts.append(f"{len(data['skipped'])} skipped")
    facts += [f"control: {words}" for words in controls(result)]
    floors = [who for who in AGAINST if any(who in task["baselines"] for task in probe.tasks.values())]
    plots, rows, details = [], [], []
    for label, task in probe.tasks.items():
        best, baselines = task["best"], task["baselines"]
        plots.append(f"<figure>{layers_svg(probe.name, label, task)}</figure>")
        rows.append(
            [
                label,
                f"layer {best['layer']}, {best['head']}",
                percent(best),
                *(percent(baselines[who]) if who in baselines else "—" for who in floors),
                f"{100 * task['chance']:.1f} %" if "chance" in task else "—",
                f"{100 * task['majority']:.1f} %" if "majority" in task else "—",
                f"{probe.n_test:,}",
            ]
        )
        details += [[label, "trained", *layer_cells(row)] for row in task["layers"]]
        details += [[label, "untrained", *layer_cells(row)] for row in baselines.get("untrained", {}).get("layers", [])]
    head = ["label", "chosen on validation", "test accuracy [95 %]", *(AGAINST[who] for who in floors), "chance",
            "commonest class", "n test"]  # fmt: skip
    return (
        f"<h3>{escape(probe.name)}</h3><p class='soft'>{escape('; '.join(facts))}. Shaded: 95 % intervals.</p>"
        f'{legend(probe)}<div class="grid">{"".join(plots)}</div>{table(head, rows)}'
        "<details><summary>All layers and heads</summary>"
        f"{table(['label', 'weights', 'layer', 'head', 'validation', 'test [95 %]'], details)}</details>"
    )


def tuned_section(tuned: dict[str, dict]) -> str:
    """Results of `toto finetune`, by name."""
    from training.scores import wilson_interval

    rows = []
    for name, result in tuned.items():
        best, data = result["best"], result["data"]
        best = {"ci95": wilson_interval(best["correct"], result["n_test"])} | best
        rows.append([name, result["model"], data["dataset"], data["attention_mode"], percent(best),
                     f"{result['n_test']:,}"])  # fmt: skip
    return table(["result", "from", "data", "attention", "test accuracy [95 %]", "n test"], rows)


def media_section(rows: list[dict]) -> str:
    """The ledger as a table."""
    return (
        "<h2>Media seen</h2><p>What each model was trained on before it was probed or fine-tuned. No result here is "
        "on test media that its model saw: such a result ends the report.</p>"
        + table(MEDIA_HEAD, [media_cells(row) for row in rows])
    )


def media_cells(row: dict) -> list[str]:
    """A row of `ledger.ledger_rows` as texts, under MEDIA_HEAD."""
    items = "not listed" if row["items"] is None else f"{row['items']:,}"
    tokens = "—" if row["tokens"] is None else f"{row['tokens'] / 1e6:,.1f} M"
    epochs = "—" if row["epochs"] is None else f"{row['epochs']:,.2f}"
    read = ", ".join(row["read_by_probes"]) or "—"
    return [row["model"], row["medium"], row["split"] or "—", row["kind"] or "—", items, tokens, epochs, read]


def layer_cells(row: dict) -> list[str]:
    validation = f"{100 * row['val_accuracy']:.1f} %" if "val_accuracy" in row else "—"
    return [str(row["layer"]), row["head"], validation, percent(row)]


def reproduce(
    runs: list[Run], generations: list[Generation], probes: list[Probe], command: str, tuned: dict[str, dict]
) -> str:
    """The commands, and versions and seeds of everything on the page; equal versions stand once."""
    commands = [
        shlex.join(["toto", "pretrain", "--recipe", str(run.folder / "recipe.yaml"), "--output_dir", "NEW_RUN"])
        for run in runs
    ]
    sources = [(g.sheet.name, g.about) for g in generations if g.about] + [(p.file.name, p.result) for p in probes]
    sources += tuned.items()
    commands += [about["command"] for _, about in sources if "command" in about]
    versions: dict[str, list[str]] = {}
    for name, found in [(run.name, run.versions) for run in runs] + [(n, a.get("versions", {})) for n, a in sources]:
        if found:
            text = ", ".join(f"{package} {version}" for package, version in found.items() if version is not None)
            versions.setdefault(text, []).append(name)
    seeds = [[name, json.dumps(about["seeds"])] for name, about in sources if "seeds" in about]
    return (
        f"<pre>{escape(chr(10).join([*dict.fromkeys(commands), command]))}</pre>"
        + "".join(f"<p class='soft'>{escape(', '.join(names))}: {escape(text)}</p>" for text, names in versions.items())
        + (table(["result", "seeds"], seeds) if seeds else "")
    )


def render(
    title: str,
    runs: list[Run],
    generations: list[Generation],
    probes: list[Probe],
    comparisons: list[Comparison],
    command: str,
    tuned: dict[str, dict],
    media: list[dict],
) -> str:
    """The whole page as one string of HTML. tuned: results of `toto finetune` by name. media: of `ledger_rows`."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Toto: a transformer that learns from video by predicting the next visual token.</p>',
        verdicts(comparisons),
    ]
    if runs:
        parts += ["<h2>Pre-training</h2>", overlays(runs) if len(runs) > 1 else "", *map(run_section, runs)]
    if generations:
        parts.append(
            "<h2>Continued clips</h2><p><strong>True</strong>: the clip itself. <strong>Reconstructed</strong>: "
            "through the visual tokenizer and back, the best that tokens can show. <strong>Generated</strong>: the "
            "frames in orange were given, those in blue were drawn by the model.</p>"
            '<p class="soft">On a narrow screen the sheets scroll sideways.</p>'
        )
        parts += map(generation_section, generations)
    if probes:
        parts.append(
            "<h2>What the frozen model knows</h2><p>Linear and attention heads, trained on the frozen features of each "
            "layer. Layer, head and learning rate are chosen on validation items; the accuracy is on test items.</p>"
        )
        parts += map(probe_section, probes)
    if tuned:
        parts += ["<h2>Fine-tuned</h2>", tuned_section(tuned)]
    if media:
        parts.append(media_section(media))
    parts += ["<h2>Reproduce</h2>", reproduce(runs, generations, probes, command, tuned)]
    return document(title, parts)


def document(title: str, parts: list[str]) -> str:
    """A page of HTML that needs nothing else. parts: of its body, escaped."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
