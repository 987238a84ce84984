"""The report: simple predictors of a run, verdicts in words (failures too), and a page that needs nothing else."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from evaluation.predictors import fit
from evaluation.report.command import main
from evaluation.report.comparisons import Comparison, compare_probe, summary, words
from evaluation.report.figures import spread
from evaluation.report.reading import read_probes, read_run
from training.publish.media_seen import Media, to_json
from training.scores import wilson_interval

K, N_TEST = 16, 1000


def write_shards(folder, codes):
    """A folder of shards of codes (N, T, h, w), one source a row."""
    folder.mkdir(parents=True)
    flat = codes.reshape(len(codes), -1).astype(np.uint16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    table = pa.table({"codes": column, "source": [f"{folder.name}-{i}" for i in range(len(codes))]})
    pq.write_table(table, folder / "train-00000.parquet")
    manifest = {
        "format": 1,
        "kind": "video",
        "num_codes": K,
        "grid": list(codes.shape[2:]),
        "num_frames": codes.shape[1],
        "shards": [{"file": "train-00000.parquet", "rows": len(codes)}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_run(folder, shards, val_shards, last=2.0):
    folder.mkdir(parents=True)
    rows = [{"step": s, "tokens": 8192 * s, "loss": last + 3 / s, "seconds": 3.0 * s} for s in range(1, 41)]
    rows += [{"step": s, "tokens": 8192 * s, "val_loss": last + 2.9 / s} for s in (10, 20, 40)]
    rows.sort(key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 41, "lo')
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"shards": str(shards), "val_shards": val_shards and str(val_shards)})
    )
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13", "device": "cpu", "threads": 2, "commit": None}))
    return folder


def row(accuracy, **more):
    return {"accuracy": accuracy, "ci95": wilson_interval(round(accuracy * N_TEST), N_TEST), **more}


def task(best, untrained, pixels, classes=10, layers=7):
    """A task whose trained curve peaks at `best`; the attention head is a little worse everywhere."""

    def curve(top):
        rise = np.linspace(0.6, 1, layers)
        return [
            row(
                float(top * rise[k] - (0.02 if head == "attention" else 0)),
                layer=k,
                head=head,
                lr=0.01,
                val_accuracy=0.5,
            )
            for k in range(layers)
            for head in ("linear", "attention")
        ]

    return {
        "classes": classes,
        "chance": 1 / classes,
        "majority": 1 / classes + 0.01,
        "layers": curve(best),
        "best": row(best, layer=layers - 1, head="linear", lr=0.01, val_accuracy=0.5)
        | {"versus": {"pixels": {"difference": best - pixels, "ci95": [best - pixels - 0.03, best - pixels + 0.03]}}},
        "baselines": {
            "pixels": row(pixels, head="linear", val_accuracy=0.4),
            "untrained": row(untrained, layer=2, head="linear", val_accuracy=0.4) | {"layers": curve(untrained)},
        },
    }


def write_result(file, model, tasks):
    file.parent.mkdir(parents=True, exist_ok=True)
    label = next(iter(tasks))
    result = {
        "command": f"toto probe --model {model} --output {file.name}",
        "model": model,
        "data": {"dataset": "toyworld", "num_frames": 16, "resolution": 64, "splits": {}, "skipped": []},
        "versions": {"torch": "2.13"},
        "seeds": {"heads": 0, "untrained": 0},
        "label": label,
        **tasks[label],
        "n_train": 5000,
        "n_validation": 500,
        "n_test": N_TEST,
        "tasks": tasks,
    }
    file.write_text(json.dumps(result))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What a demo leaves behind: a run and its shards, two probes, a sheet."""
    folder = tmp_path_factory.mktemp("demo")
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, K, (140, 1, 2, 2)), 5, axis=1)
    write_shards(folder / "shards", still[:120])
    write_shards(folder / "val_shards", still[120:])
    write_run(folder / "run", folder / "shards", folder / "val_shards")
    nano = {
        "digit": task(0.62, 0.41, 0.35),
        "texture": task(0.55, 0.53, 0.40, 8),
        "motion": task(0.20, 0.22, 0.34, 8),
    }
    write_result(folder / "results" / "probe.json", "checkpoints/toto-nano", nano)
    trained = {"digit": task(0.30, 0.31, 0.35), "texture": task(0.41, 0.40, 0.39, 8), "motion": task(0.2, 0.2, 0.3, 8)}
    write_result(folder / "results" / "probe_trained.json", "out/demo/run", trained)
    (folder / "frames").mkdir()
    Image.new("RGB", (2000, 300), (200, 220, 240)).save(folder / "frames" / "toyworld-0.png")
    about = {
        "command": "toto generate --model out/demo/run --output frames",
        "model": "out/demo/run",
        "source": "toyworld/simple/test/0/0",
        "num_prompt_frames": 8,
        "num_frames": 8,
        "sampling": {"temperature": 1.0, "top_k": None, "top_p": 0.9},
        "seeds": {"draws": 0},
        "tokens_per_second": 310.0,
        "seconds_per_frame": 0.21,
    }
    (folder / "frames" / "toyworld-0.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def page(demo):
    output = demo / "new" / "report.html"
    flags = ["--runs", str(demo / "run"), "--generations", str(demo / "frames"), "--title", "Demo <1>"]
    main(["--results", str(demo / "results"), *flags, "--output", str(output)])
    return output.read_text(encoding="utf-8")


def test_predictors_are_those_of_the_runs_rows(demo):
    from training.rows.shard_rows import read_codes

    train, val = read_codes(demo / "shards"), read_codes(demo / "val_shards")
    predictors = read_run(str(demo / "run")).predictors
    expected = {name: nats.mean() for name, nats in fit(train, K).maps(val).items()}
    assert {key: predictors[key] for key in expected} == pytest.approx(expected)
    assert predictors["train_rows"] == 120 and predictors["val_rows"] == 20
    assert json.loads((demo / "run" / "predictors.json").read_text()) == predictors


def test_predictors_are_kept_and_follow_the_shards(tmp_path):
    rng = np.random.default_rng(1)
    write_shards(tmp_path / "shards", rng.integers(0, K, (120, 3, 2, 2)))
    run = write_run(tmp_path / "run", tmp_path / "shards", None)  # validation: held-out sources of the same shards
    first = read_run(str(run)).predictors
    assert first["train_rows"] + first["val_rows"] == 120 and first["val_rows"] > 0
    kept = json.loads((run / "predictors.json").read_text())
    (run / "predictors.json").write_text(json.dumps(kept | {"unigram": 9.0}))
    assert read_run(str(run)).predictors["unigram"] == 9.0  # read, not counted again
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert read_run(str(run)).predictors["unigram"] == first["unigram"]  # other shards: counted again
    manifest.unlink()
    assert read_run(str(run)).predictors["unigram"] == first["unigram"]  # shards gone: what was kept
    (run / "predictors.json").unlink()
    assert read_run(str(run)).predictors is None
    assert read_run(str(run)).val_loss == pytest.approx(2 + 2.9 / 40)  # the last, and the torn line is passed over


def test_failures_are_said_like_successes(page):
    text = re.sub(r"<[^>]+>", "", page)
    assert "5 of 15 comparisons hold, 6 show no significant difference and 4 are lost." in text
    assert "digit 62.0 % [59.0, 65.0]: above raw pixels and the untrained model" in text
    assert "texture 55.0 % [51.9, 58.1]: above raw pixels; no significant difference from the untrained model" in text
    assert "motion 20.0 % [17.6, 22.6]: no significant difference from the untrained model; below raw pixels" in text
    assert '<td class="open">no significant difference<' in page and '<td class="fails">below<' in page
    assert "below unigram and bigram; not below previous frame" in text
    assert 'class="fails"' in page and 'class="partly"' in page


def test_the_page_is_whole_and_stands_alone(page):
    class Checker(HTMLParser):
        stack, images, ids = [], [], []

        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            if tag not in ("meta", "img", "br"):
                self.stack.append(tag)
            if tag == "img":
                self.images.append(attributes)
            self.ids += [attributes["id"]] if "id" in attributes else []
            assert not any(str(attributes.get(key, "")).startswith("http") for key in ("src", "href", "xlink:href"))

        def handle_startendtag(self, tag, attributes):
            self.handle_starttag(tag, attributes)
            if tag not in ("meta", "img", "br"):
                self.stack.pop()

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.stack == [] and len(checker.ids) == len(set(checker.ids))
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in checker.images)
    assert page.count("Demo &lt;1&gt;") == 3 and "Demo <1>" not in page
    assert "<title>Demo &lt;1&gt;</title>" in page and "<script" not in page and "@import" not in page
    svgs = re.findall(r'<svg role="img".*?</svg>', page, flags=re.DOTALL)
    assert len(svgs) == 1 + 6
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.attrib["aria-label"] and "viewBox" in root.attrib and "width" not in root.attrib
    for command in ("toto pretrain --recipe", "toto generate --model", "toto probe --model", "toto report --results"):
        assert command in page


def test_a_minimal_result_is_enough(tmp_path):
    """The documented fields alone: intervals are computed from the accuracies."""
    result = {
        "command": "toto probe",
        "model": "some/model",
        "data": {},
        "versions": {},
        "seeds": {},
        "layers": [{"layer": 0, "head": "linear", "lr": 1, "val_accuracy": 0.5, "accuracy": 0.5}],
        "best": {"layer": 0, "head": "linear", "accuracy": 0.5},
        "baselines": {"pixels": {"accuracy": 0.3}, "untrained": {"accuracy": 0.48}},
        "n_test": 100,
    }
    (tmp_path / "a.json").write_text(json.dumps(result))
    (tmp_path / "other.json").write_text('{"psnr": 30}')
    (probe,) = read_probes([str(tmp_path)])
    assert probe.name == "model" and probe.tasks["accuracy"].best.ci95 == wilson_interval(50, 100)
    main(["--results", str(tmp_path / "a.json"), "--output", str(tmp_path / "r.html")])
    assert "above raw pixels; no significant difference from the untrained model" in (tmp_path / "r.html").read_text()


def test_two_results_of_one_model_keep_their_names_apart(tmp_path):
    for name in ("a", "b"):
        write_result(tmp_path / f"{name}.json", "x/toto", {"digit": task(0.6, 0.4, 0.3)})
    assert [probe.name for probe in read_probes([str(tmp_path)])] == ["toto (a)", "toto (b)"]


def test_a_run_and_a_probe_of_one_name_share_no_sentence():
    loss = Comparison("run", "validation loss", "unigram", "2 nats", "3 nats", "-1 nats", "", "below", True)
    probe = Comparison(
        "run", "digit", "raw pixels", "20 %", "30 %", "-10 points", "", "no significant difference", False
    )
    assert summary([loss, probe]) == {
        "run": [
            ("holds", "validation loss 2 nats: below unigram."),
            ("open", "digit 20 %: no significant difference from raw pixels."),
        ]
    }


@pytest.mark.parametrize("says", ["not apart", "no significant difference"])
def test_a_verdict_reads_the_same_in_both_spellings(says, tmp_path):
    digit = task(0.41, 0.4, 0.4)
    digit["best"]["versus"]["pixels"]["verdict"] = says
    write_result(tmp_path / "a.json", "x/toto", {"digit": digit})
    found = compare_probe(read_probes([str(tmp_path)])[0])
    assert {(c.verdict, c.holds) for c in found} == {("no significant difference", False)}


def test_words_and_labels():
    assert words(["a"]) == "a" and words(["a", "b", "c"], "or") == "a, b or c" and words([]) == ""
    placed = spread([1.0, 1.01, 5.0], 0.5)
    assert placed[1] - placed[0] == pytest.approx(0.5) and placed[2] == 5.0


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        main([])
    with pytest.raises(ValueError, match="--markdown is written from result files"):
        main(["--markdown", "a.md", "--runs", "r"])
    with pytest.raises(FileNotFoundError, match="There is no result file"):
        main(["--results", str(tmp_path / "none.json")])
    with pytest.raises(FileNotFoundError, match="contains no sheet of frames"):
        main(["--generations", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        main(["--runs", str(tmp_path)])
    (tmp_path / "torn.json").write_text('{"layers": [')
    with pytest.raises(ValueError, match=r"torn.json is not a valid JSON file"):
        main(["--results", str(tmp_path)])


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


SPLITS = {"train": {"split": "train"}, "validation": {"split": "validation"}, "test": {"split": "test"}}
TUNED = {
    "model": "runs/before",
    "checkpoint": "runs/tuned/checkpoints/step_000010",
    "data": {
        "dataset": "org/cats",
        "attention_mode": "full",
        "splits": {part: {"name": f"{part}: {part}"} for part in SPLITS},
    },
    "best": {"accuracy": 0.5, "correct": 50},
    "n_test": 100,
}


def test_media_stand_in_the_page_and_an_overlap_ends_the_report(tmp_path):
    write_result(tmp_path / "probe.json", "runs/gone", {"digit": task(0.6, 0.4, 0.3)})
    seen = [Media("cats", "train", "image", frozenset({"train[0]"}), tokens=2e6, epochs=1.5)]
    data = {"dataset": "org/cats", "splits": SPLITS}
    edit(tmp_path / "probe.json", media=to_json(seen), data=data)
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    output = tmp_path / "out" / "report.html"
    flags = ["--results", str(tmp_path), "--output", str(output)]
    main(flags)
    text = re.sub(r"<[^>]+>", "|", output.read_text())
    assert re.search(r"gone\|+cats\|+train\|+image\|+1\|+2.0 M\|+1.50\|+train\|", text)
    assert re.search(r"before\|+not recorded\|", text)
    assert re.search(r"tuned\|+runs/before\|+org/cats\|+full\|+50.0 % \[40.4, 59.6\]\|+100\|", text)

    output.unlink()
    for file, told in (("probe.json", "probe .runs/gone."), ("tuned.json", "tuned .runs/before.")):
        before = (tmp_path / file).read_text()
        edit(tmp_path / file, media=to_json([Media("cats", "test")]))
        with pytest.raises(ValueError, match=f"{told} was trained on cats .test. and is scored on cats .test."):
            main(flags)
        (tmp_path / file).write_text(before)
    assert not output.exists()


def test_controls_are_named(tmp_path):
    told = "RoPE base changed to 50,000 without training"
    for name in ("as_it_is", "base", "order"):
        write_result(tmp_path / f"{name}.json", f"x/{name}", {"digit": task(0.6, 0.4, 0.3)})
    edit(tmp_path / "base.json", control=told)
    edit(tmp_path / "order.json", data={"dataset": "toyworld", "frame_order": "shuffled"})
    names = [probe.name for probe in read_probes([str(tmp_path)])]
    assert names == ["as_it_is", "base, control", "order, control"]
    main(["--results", str(tmp_path), "--output", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert page.count(f"control: {told}") == 1 and page.count("control: frames shuffled") == 1


def test_the_markdown_page_has_the_tables_of_the_html_page(tmp_path):
    write_result(tmp_path / "a.json", "x/to|to<b>", {"digit": task(0.62, 0.41, 0.35)})
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    main(["--results", str(tmp_path), "--markdown", str(tmp_path / "new" / "r.md"), "--title", "Ours"])
    page = (tmp_path / "new" / "r.md").read_text()
    assert page.startswith("# Ours\n\n**2 of 2 comparisons hold.**\n") and page.endswith("torch 2.13\n")
    assert "- Holds, to\\|to&lt;b>: digit 62.0 % [59.0, 65.0]: above raw pixels and the untrained model.\n" in page
    assert (
        "\n| digit | layer 6, linear | 62.0 % [59.0, 65.0] | 41.0 % [38.0, 44.1] | 35.0 % [32.1, 38.0] | 10.0 % |"
        in page
    )
    assert "| tuned | runs/before | org/cats | full | 50.0 % [40.4, 59.6] | 100 |" in page
    assert "| before | not recorded |" in page and "toto probe --model x/to|to<b>" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for lines in tables:  # one width, and the line of dashes is the second
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 and set(lines[1]) == set("| -")
    assert not (tmp_path / "new" / "report.html").exists() and "<svg" not in page


def test_every_baseline_has_its_name_and_its_column(tmp_path):
    found = task(0.6, 0.4, 0.3)
    found["baselines"] |= {"hog": row(0.7, head="linear"), "histogram": row(0.2, head="linear")}
    found["baselines"]["random_filters"] = row(0.5, head="linear")
    write_result(tmp_path / "a.json", "x/toto", {"digit": found})
    main(["--results", str(tmp_path), "--output", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "the untrained model, the histogram of codes and random filters; below HOG" in page
    for name in ("raw pixels", "random filters", "the histogram of codes", "HOG"):
        assert f'<th scope="col">{name}</th>' in page
    assert "<td>70.0 % [67.1, 72.8]</td>" in page
