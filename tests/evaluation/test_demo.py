"""`toto demo`, shortened: every step runs through its real command, and a second call resumes it."""

import json
import re

from evaluation.demo import LABELS, DemoArgs, main, steps
from evaluation.report.comparisons import NO_DIFFERENCE
from evaluation.results import ProbeResult


def test_demo_runs_and_resumes(tmp_path, capsys):
    out = tmp_path / "demo"
    flags = ["--output", str(out), "--train_minutes", "0.03", "--train_clips", "24"]
    flags += ["--max_train", "32", "--max_eval", "24"]
    main(flags)
    printed = capsys.readouterr().out
    for verb in ("tokenize", "pretrain", "generate", "probe", "report"):
        assert f"$ toto {verb} " in printed
    page = (out / "report.html").read_text()
    assert "toto-nano" in page and "http" not in page.split("<body")[0]
    assert page.index('class="clip"') < page.index("comparisons hold") < page.index("More continued clips")
    assert page.count("<video ") == page.count('class="clip"') == 4
    verdicts = re.findall(r"<li class=.*?</li>", page)
    for name, labels in {"probe": LABELS, "probe_trained": ("motion",)}.items():
        results = json.loads((out / "results" / f"{name}.json").read_text())
        tasks = ProbeResult.from_json(results).tasks
        assert set(tasks) == set(labels) and results["n_test"] == 24
        for label, task in tasks.items():
            twin, score = task.baselines["untrained"], f"{100 * task.best.accuracy:.1f} %"
            assert len(twin.layers) == len(task.layers) and "pixels" in task.baselines
            (said,) = {each for each in verdicts if f" {label} {score} " in f" {each}"}
            relation = task.best.versus["untrained"].verdict
            relation = "no significant difference from" if relation == NO_DIFFERENCE else relation
            assert "the untrained model" in said.partition(f" {relation} ")[2].partition(";")[0]
            assert f"for {label}, per layer." in page and "the untrained model" in page.partition("Baselines: ")[2][:90]

    (out / "results" / "probe_trained.json").unlink()
    main(flags)
    again = capsys.readouterr().out
    assert again.count("done before") == 6
    assert (out / "results" / "probe_trained.json").is_file()


def test_the_demo_tests_on_enough_clips():
    assert DemoArgs().max_eval >= 1000
    verbs = [step.command[0] for step in steps(DemoArgs())]
    assert verbs == ["tokenize", "tokenize", "pretrain", "generate", "generate", "probe", "probe", "report"]
