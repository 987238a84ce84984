"""Results side by side: pairs are found and checked, figures hold what the files say, mistakes get a sentence."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import METRICS, paired_difference, unpaired_difference
from evaluation.report.compare import common_labels, compare, compare_files, depth_of, read_results
from evaluation.report.probe_figures import comparison_figure, write_layer_plot
from evaluation.results import ProbeResult
from training.scores import wilson_interval

N = 200
RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 4, N)


def predictions(share):
    return np.where(np.random.default_rng(1).random(N) < share, TRUE, (TRUE + 1) % 4)


def scored(predicted):
    right = int((predicted == TRUE).sum())
    return {"accuracy": right / N, "ci95": wilson_interval(right, N), "val_accuracy": right / N, "lr": 0.1}


def write(
    file, share=0.6, layers=range(4), items=None, label="label", heads=("linear", "attention"), keep=True, **more
):
    """A result whose curve rises to `share`; the linear head is the chosen one."""
    predicted = predictions(share)
    rows = [
        {"layer": k, "head": head, **scored(predictions(share * (k + 1) / len(layers) - 0.05 * (head != "linear")))}
        for k in layers
        for head in heads
    ]
    task = {
        "classes": 4,
        "chance": 0.25,
        "layers": rows,
        "best": {"layer": layers[-1], "head": heads[0], **scored(predicted)},
        "baselines": {"pixels": {"head": "linear", **scored(predictions(0.3))}},
    }
    if keep:
        names = items if items is not None else [f"test/{k // 2}.mp4" for k in range(N)]  # two clips of each video
        task["predictions"] = {"items": names, "predicted": predicted.tolist(), "label": TRUE.tolist()}
    task |= more
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": f"runs/{file.stem}", "data": {"dataset": "d"}, "label": label, **task, "n_test": N}
    file.write_text(json.dumps(result | {"tasks": {label: task}}))
    return str(file)


def test_the_same_items_are_paired_in_any_order(tmp_path):
    files = [write(tmp_path / "a.json", 0.6), write(tmp_path / "b.json", 0.7)]
    mixed = json.loads((tmp_path / "b.json").read_text())
    kept = mixed["tasks"]["label"]["predictions"]
    order = [k for video in np.random.default_rng(2).permutation(N // 2) for k in (2 * video, 2 * video + 1)]
    mixed["tasks"]["label"]["predictions"] = {key: [values[k] for k in order] for key, values in kept.items()}
    (tmp_path / "b.json").write_text(json.dumps(mixed))
    first, second = compare(read_results(files))
    expected = paired_difference(predictions(0.7), predictions(0.6), TRUE)
    assert "difference" not in first and first["model"] == "a" and first["value"] == np.mean(predictions(0.6) == TRUE)
    assert second["paired"] and second["versus"] == "a" and second["layer"] == 3 and second["head"] == "linear"
    assert second["difference"] == pytest.approx(expected["difference"]) and second["difference"] > 0
    assert second["difference_ci95"] == pytest.approx(expected["ci95"], abs=0.01), "whole videos are resampled"


def test_four_videos_of_fifty_clips_are_four_items(tmp_path):
    """All clips right against none: two hundred items would be certain, four are not."""
    names = [f"test/{k // 50}.mp4" for k in range(N)]
    files = [write(tmp_path / f"{share}.json", share, items=names) for share in (0.0, 1.0)]
    (_, second), (_, balanced) = (compare(read_results(files), metric) for metric in METRICS)
    assert second["difference"] == 1 and second["difference_ci95"] == [0, 1]
    assert balanced["difference"] == 1, "accuracy alone has an exact interval"


def test_other_metrics_come_from_the_predictions(tmp_path):
    names = [f"{k}.png" for k in range(N)]
    files = [write(tmp_path / "a.json", 0.6, items=names), write(tmp_path / "b.json", 0.7, items=names)]
    _, second = compare(read_results(files), "balanced_accuracy")
    balanced = [METRICS["balanced_accuracy"](predictions(share), TRUE) for share in (0.6, 0.7)]
    assert second["value"] == balanced[1] and second["ci95"][0] < balanced[1] < second["ci95"][1]
    expected = paired_difference(predictions(0.7), predictions(0.6), TRUE, metric="balanced_accuracy")
    assert second["difference"] == pytest.approx(balanced[1] - balanced[0])
    assert second["difference_ci95"] == expected["ci95"]
    with pytest.raises(ValueError, match=r"needs predictions, and .*c\.json has none"):
        compare(read_results([files[0], write(tmp_path / "c.json", keep=False)]), "balanced_accuracy")
    with pytest.raises(ValueError, match="The metric 'top5' is not known; use one of accuracy, balanced_accuracy"):
        compare(read_results(files), "top5")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"keep": False}, r"b\.json has no predictions"),
        ({"items": [f"other/{k}.mp4" for k in range(N)]}, "different test items: 0 in common of 200 and 200"),
        (
            {
                "predictions": {
                    "items": [f"test/{k // 2}.mp4" for k in range(N)],
                    "predicted": [0] * N,
                    "label": [0] * N,
                }
            },
            "the same test items with different labels",
        ),
    ],
)
def test_unpaired_intervals_say_why(tmp_path, change, why):
    files = [write(tmp_path / "a.json", 0.6), write(tmp_path / "b.json", 0.7, **change)]
    first, second = compare(read_results(files))
    assert not second["paired"] and re.match(why, second["why"])
    expected = unpaired_difference(second["value"], second["ci95"], first["value"], first["ci95"])
    assert second["difference_ci95"] == expected["ci95"]
    low, high = second["difference_ci95"]
    paired = paired_difference(predictions(0.7), predictions(0.6), TRUE)["ci95"]
    assert high - low > paired[1] - paired[0], "pairing is sharper"


def test_table_page_picture_and_rows(tmp_path, capsys):
    files = [
        write(tmp_path / "a.json"),
        write(tmp_path / "b<i>.json", 0.7, range(7)),
        write(tmp_path / "c.json", keep=False),
    ]
    for kind in ("html", "png", "svg", "json"):
        compare_files(files, str(tmp_path / "new" / f"out.{kind}"), "toto probe --compare")
    text = capsys.readouterr().out
    assert re.search(r"^b<i> +linear +6 +\d\d\.\d % \[.*\] +200 +\+\d+\.\d \[.*\] +paired$", text, re.MULTILINE)
    assert "unpaired: c.json has no predictions" in text and "no significant difference" in text and "wrote" in text
    page = (tmp_path / "new" / "out.html").read_text()
    assert (
        page.count("<svg") == 4  # two heads, over relative depth and over layer numbers
        and "b&lt;i&gt;" in page
        and "b<i>" not in page
        and not re.search(r'(src|href)="(?!#)', page)
    )
    picture = Image.open(tmp_path / "new" / "out.png")
    assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    rows = json.loads((tmp_path / "new" / "out.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["a", "b<i>", "c"]


def test_the_figure_shows_the_numbers_of_the_files(tmp_path):
    probes = read_results([write(tmp_path / "a.json"), write(tmp_path / "b.json", 0.7, range(7))])
    figure = comparison_figure([p.name for p in probes], [depth_of(p) for p in probes], [p.tasks for p in probes])
    relative, absolute = figure.axes[:2]
    for panel, ends in ((relative, (1, 1)), (absolute, (3, 6))):
        curves = [line for line in panel.lines if len(line.get_xdata()) > 2]
        for probe, curve, end in zip(probes, curves, ends, strict=True):
            rows = [row for row in probe.tasks["label"].layers if row.head == "linear"]
            assert list(curve.get_ydata()) == [100 * row.accuracy for row in rows]
            assert list(curve.get_xdata()) == pytest.approx(np.linspace(0, end, len(rows)))
        rings = [line for line in panel.lines if line.get_markersize() == 11]
        assert [ring.get_xdata()[0] for ring in rings] == list(ends)
    assert len({line.get_color() for line in curves}) == len({line.get_marker() for line in curves}) == 2
    assert len(figure.axes) == 4, "two heads, two panels each"
    assert not [line for line in figure.axes[2].lines if line.get_markersize() == 11], "no ring at the head not chosen"


def test_one_result_is_a_picture_too(tmp_path):
    for heads in (("linear",), ("linear", "attention", "cross_attention_mlp")):
        result = json.loads(Path(write(tmp_path / "a.json", heads=heads)).read_text())
        result["tasks"]["label"]["baselines"]["hog"] = scored(predictions(0.4))
        write_layer_plot(ProbeResult.from_json(result), tmp_path / "a.png")
        assert len(np.unique(np.asarray(Image.open(tmp_path / "a.png").convert("L")))) > 50


def test_unknown_depths_are_left_out_of_relative_panels(tmp_path, capsys):
    files = [
        write(tmp_path / "a.json"),
        write(tmp_path / "b.json", layers=[3, 5]),
        write(tmp_path / "c.json", 0.7, range(7)),
    ]
    probes = read_results(files)
    assert [depth_of(probe) for probe in probes] == [3, None, 6]
    compare_files(files, str(tmp_path / "out.png"))
    assert "b: depth unknown" in capsys.readouterr().out


def test_models_of_one_name_keep_apart(tmp_path):
    files = [write(tmp_path / name) for name in ("x/a.json", "y/a.json", "x/b.json")]
    assert [probe.name for probe in read_results(files[:2])] == [f"a ({files[0]})", f"a ({files[1]})"]
    same = json.loads(Path(files[2]).read_text()) | {"model": "runs/a"}
    Path(files[2]).write_text(json.dumps(same))
    assert [probe.name for probe in read_results([files[0], files[2]])] == ["a (a)", "a (b)"]


def test_mistakes_get_a_sentence(tmp_path):
    a = write(tmp_path / "a.json")
    with pytest.raises(ValueError, match="at least two results"):
        compare_files([a])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is not a single result of toto probe"):
        compare_files([a, str(tmp_path / "other.json")])
    with pytest.raises(FileNotFoundError, match="There is no result file"):
        compare_files([a, str(tmp_path / "none.json")])
    with pytest.raises(ValueError, match="no label in common"):
        compare(read_results([a, write(tmp_path / "b.json", label="motion")]))
    with pytest.raises(ValueError, match="has 4 and 10 classes in these results"):
        common_labels(read_results([a, write(tmp_path / "c.json", classes=10)]))
    with pytest.raises(ValueError, match=r"out\.pdf is not supported; .* must end in \.html"):
        compare_files([a, a], "out.pdf")
    with pytest.raises(ValueError, match="too many for one figure; compare at most 7 results"):
        compare_files([a] * 8, str(tmp_path / "out.png"))


def texts(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_floors_have_their_names_at_their_lines(tmp_path):
    def with_twin(file, twin, **more):
        content = json.loads(Path(write(file, **more)).read_text())
        twin = {"layer": 1, "head": "linear", **scored(predictions(twin))}
        for task in (content, content["tasks"]["label"]):
            task["baselines"]["untrained"] = twin
        file.write_text(json.dumps(content))
        return str(file)

    files = [with_twin(tmp_path / "a.json", 0.35), with_twin(tmp_path / "b.json", 0.4, share=0.7)]
    compare_files(files, str(tmp_path / "out.html"))
    page = (tmp_path / "out.html").read_text()
    svgs = re.findall(r"<svg role.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 2, "models of one depth need no panel of relative depth"
    accuracy = {share: 100 * np.mean(predictions(share) == TRUE) for share in (0.3, 0.35, 0.4, 0.6, 0.7)}
    expected = {f"raw pixels {accuracy[0.3]:.1f}", "chance 25.0"}
    expected |= {f"untrained model {accuracy[0.35]:.1f}, a", f"untrained model {accuracy[0.4]:.1f}, b"}
    for svg in svgs:
        assert expected <= set(texts(svg))
    legend = re.search(r'<div class="legend">(.*?)</div>', page, re.DOTALL)[1]
    assert "raw pixels" not in legend and "untrained" not in legend and legend.count("<span>") == 3
    ranked = f"On test, b {accuracy[0.7]:.1f} % (layer 3) and a {accuracy[0.6]:.1f} % (layer 3); "
    assert f"{ranked}significantly different from a: b." in page


def test_one_probe_has_its_floors_at_their_lines_and_one_layer_has_no_figure(tmp_path):
    from evaluation.report.command import main

    main(["--results", write(tmp_path / "a.json"), "--output", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    (svg,) = re.findall(r"<svg role.*?</svg>", page, flags=re.DOTALL)
    right, first = (100 * np.mean(predictions(share) == TRUE) for share in (0.6, 0.15))
    assert {f"raw pixels {100 * np.mean(predictions(0.3) == TRUE):.1f}", "chance 25.0", "model"} <= set(texts(svg))
    sentence = f"From layer 3, label is right in {right:.1f} % of the test items; from layer 0 in {first:.1f} %"
    assert sentence in page
    main(["--results", write(tmp_path / "b.json", layers=[2]), "--output", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "<svg role" not in page and 'class="legend"' not in page and "layer 2, linear" in page
