"""`toto report`: one page of results and runs, with every comparison and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenization.terminal.next_command import say_next
from training.flags import parse


@dataclass(frozen=True)
class ReportArgs:
    output: str = field(default="report.html", metadata={"help": "HTML page to write"})
    markdown: str | None = field(
        default=None,
        metadata={"help": "Markdown page (.md) to write from --results, without figures, in place of --output"},
    )
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "result files (.json) of `toto probe` and `toto finetune`, or folders of them"},
    )
    runs: list[str] = field(default_factory=list, metadata={"help": "run folders of `toto pretrain`"})
    generations: list[str] = field(
        default_factory=list,
        metadata={"help": "folders written by `toto generate`, whose films play in the page; or single sheets (.png)"},
    )
    title: str = field(default="Toto report", metadata={"help": "title of the page"})

    def __post_init__(self):
        if not (self.results or self.runs or self.generations):
            raise ValueError("There is nothing to report; give --results, --runs or --generations.")
        if self.markdown is not None and (self.runs or self.generations or not self.results):
            raise ValueError("--markdown is written from result files; give it --results alone.")


def main(argv: list[str] | None = None) -> None:
    description = "Write a page of results and runs: comparisons with verdicts, curves, frames, tables."
    (args,) = parse((ReportArgs,), argv, "toto report", description)

    from evaluation.report.comparisons import compare_probe, compare_run, summary
    from evaluation.report.leakage import check_media
    from evaluation.report.page import contents, render
    from evaluation.report.reading import make_probes, read_generations, read_results, read_run
    from evaluation.results import command_line

    runs = [read_run(folder) for folder in args.runs]
    generations = read_generations(args.generations) if args.generations else []
    probed, finetuned = read_results(args.results) if args.results else ({}, {})
    media = check_media({file.stem: result for file, result in (probed | finetuned).items()})
    probes = make_probes(probed)
    tuned = {file.stem: result for file, result in finetuned.items()}
    comparisons = [c for run in runs for c in compare_run(run)] + [c for p in probes for c in compare_probe(p)]
    command = command_line("report", argv)
    facts = contents(args.title, runs, generations, probes, comparisons, command, tuned, media)
    output = Path(args.markdown or args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render("report.md" if args.markdown else "report.html", **facts), encoding="utf-8")
    for subject, sentences in summary(comparisons).items():
        for state, sentence in sentences:
            print(f"{state:<7}{subject}: {sentence}")
    print(f"wrote {output}; open it in a browser")
    if args.runs:
        say_next("app", "--model", args.runs[0])
