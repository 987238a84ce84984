"""`toto demo`, shortened: every step runs through its real command, and a second call resumes it."""

import json

from evaluation.demo import LABELS, commands, main


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
    expected = {"probe": (LABELS, {"pixels"}), "probe_trained": (("motion",), {"pixels", "untrained"})}
    for name, (labels, baselines) in expected.items():
        results = json.loads((out / "results" / f"{name}.json").read_text())
        tasks = set(results["tasks"]) if len(labels) > 1 else {results["label"]}
        assert tasks == set(labels) and results["n_test"] == 24
        assert set(results["baselines"]) == baselines

    (out / "results" / "probe_trained.json").unlink()
    main(flags)
    again = capsys.readouterr().out
    assert again.count("done before") == 6
    assert (out / "results" / "probe_trained.json").is_file()


def test_the_demo_tests_on_enough_clips():
    from evaluation.demo import DemoArgs

    assert DemoArgs().max_eval >= 1000
    verbs = [command[0] for _, command in commands(DemoArgs())]
    assert verbs == ["tokenize", "tokenize", "pretrain", "generate", "generate", "probe", "probe", "report"]
