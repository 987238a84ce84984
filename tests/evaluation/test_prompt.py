"""`toto prompt`: measures equal hand-computed ones, controls differ, files are written, mistakes are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.prompt.command import main
from evaluation.prompt.draw_labels import label_pictures
from evaluation.prompt.drawing import Prompted, draw, nats
from evaluation.prompt.figures import sheet
from evaluation.prompt.measures import measure
from evaluation.prompt.results import WAYS, PromptResult
from evaluation.prompt.score import (
    MEAN_SEED,
    PromptScoreArgs,
    labels_of,
    mean_map,
    open_items,
    other_task,
    way_score,
    wrong_labels,
)
from evaluation.prompt.tables import mark, table
from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from tokenization.sequences import codes_of, prompted_rows
from training.prompting.calibration import colours_shown
from training.prompting.examples import WorldExamples
from training.prompting.tasks import TASKS, Prompting, make_coding
from training.rows.prompted_rows import episode_coding

TOKENIZER = "checkpoints/toto-motion/visual_tokenizer"


@pytest.fixture(scope="module")
def processor():
    return TotoProcessor.from_visual_tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def prompting(processor):
    colours = colours_shown(processor)
    codings = {name: make_coding(task, colours) for name, task in TASKS.items()}
    return Prompting(processor.fingerprint, dict(TASKS), codings, (4,))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, processor, prompting):
    """A tiny random Toto with a prompt.json."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    layout = {"vocab_size": 704, "tokens_per_frame": 64, "num_frames": 8, "max_position_embeddings": 515}
    TotoForCausalLM(TotoConfig(**sizes, **layout, num_key_value_heads=2)).save_pretrained(folder)
    processor.save_pretrained(folder)
    prompting.write(folder)
    return folder


@pytest.fixture(scope="module")
def model(tuned):
    return TotoForCausalLM.from_pretrained(tuned).eval()


def test_a_true_label_is_perfect():
    rng = np.random.default_rng(0)
    depth = rng.choice([1.0, 3.0, 6.0], (5, 1, 8, 8))
    found = measure(depth, depth, TASKS["depth"])
    assert not found["absrel"].any() and (found["delta1"] == 1).all() and not found["absrel_near"].any()
    flow = rng.choice([-8.0, 0.0, 8.0], (5, 2, 8, 8))
    assert not np.concatenate(list(measure(flow, flow, TASKS["flow"]).values())).any()
    masks = rng.integers(0, 4, (5, 1, 8, 8)).astype(float)
    found = measure(masks, masks, TASKS["segmentation"], (3,))
    assert (found["miou"] == 1).all() and (found["miou_held_out"] == 1).all()


def test_measures_by_hand():
    truth = np.array([[[[6.0, 6.0], [2.0, np.nan]]]])
    found = measure(np.array([[[[6.0, 3.0], [2.4, 9.0]]]]), truth, TASKS["depth"])
    assert found["absrel"][0] == pytest.approx((0 + 0.5 + 0.2) / 3)
    assert found["delta1"][0] == pytest.approx(2 / 3)  # 6 / 3 = 2; 2.4 / 2 = 1.2
    assert found["absrel_near"][0] == pytest.approx(0.2)

    truth, drawn = np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1, 4))
    truth[0, 0, 0, 0], drawn[0, 1, 0, 0] = 3.0, 4.0
    found = measure(drawn, truth, TASKS["flow"])
    assert found["epe"][0] == pytest.approx(5 / 4) and found["epe_moving"][0] == pytest.approx(5)

    truth, drawn = np.array([[[[1, 1, 2, 0]]]], float), np.array([[[[1, 0, 2, 2]]]], float)
    found = measure(drawn, truth, TASKS["segmentation"], (2,))
    assert found["miou"][0] == pytest.approx((1 / 2 + 1 / 2) / 2) and found["miou_held_out"][0] == pytest.approx(0.5)


def test_an_item_with_nothing_to_judge_is_left_out():
    still = np.zeros((2, 2, 4, 4))
    still[1, 0] = 8
    found = measure(still, still, TASKS["flow"])["epe_moving"]
    assert np.isnan(found[0]) and found[1] == 0
    empty = measure(np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 4)), TASKS["segmentation"])
    assert np.isnan(empty["miou"]).all() and way_score(empty["miou"], empty["miou"], "scratch").mean is None


def test_the_tuned_models_lead_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 60)  # items differ far more than the two ways do
    found = way_score(hard + 1 + rng.normal(0, 0.1, 60), hard, "scratch")
    low, high = found.tuned_minus.ci95
    assert -1.1 < low < found.tuned_minus.mean < high < -0.9 and found.items == 60
    assert found.ci95[1] - found.ci95[0] > 3
    assert mark(found, "epe") == " *" and mark(found, "miou") == " -"
    assert mark(way_score(hard, hard, "scratch"), "epe") == ""
    missing = way_score(np.where(np.arange(60) < 10, np.nan, hard + 1), hard, "scratch")
    assert missing.items == 50 and missing.tuned_minus.mean == pytest.approx(-1)
    assert way_score(hard, hard, "tuned").tuned_minus is None


def test_drawn_labels_are_the_most_likely_codes_and_do_not_see_the_true_ones(model):
    task = TASKS["flow"]
    codes = torch.randint(0, 640, (3, 8, 8, 8), generator=torch.Generator().manual_seed(0)).numpy()
    drawn = draw(model, codes, task, task.prompt_id, batch_size=2, label="test")
    assert drawn.shape == (3, 2, 8, 8)
    other = codes.copy()
    other[:, -2:] = 7
    assert np.array_equal(draw(model, other, task, task.prompt_id, 3, "test"), drawn)
    whole = np.concatenate([codes[:, :-2], drawn], axis=1)
    rows = prompted_rows(whole, task.prompt_id, end=False)
    with torch.no_grad():
        logits = model(rows).logits[:, -129:-1, 64:]
    assert np.array_equal(logits.argmax(-1).numpy(), drawn.reshape(3, -1))
    assert np.array_equal(codes_of(rows, (8, 8)).numpy()[:, -2:], drawn)


def test_the_likelihood_is_that_of_the_last_labels(model):
    task = TASKS["depth"]
    codes = torch.randint(0, 640, (3, 8, 8, 8), generator=torch.Generator().manual_seed(1)).numpy()
    found = nats(model, codes, task, 5, batch_size=2)
    rows = prompted_rows(codes, 5, end=False)
    with torch.no_grad():
        logits = model(rows).logits.log_softmax(-1)
    each = -logits[:, :-1].gather(2, rows[:, 1:, None])[..., 0]
    assert np.allclose(found, each[:, -64:].mean(1).numpy(), atol=1e-5)


def test_wrong_examples_keep_the_images_and_the_query():
    for task in TASKS.values():
        codes = np.arange(3)[:, None, None, None] * 100 + np.arange(8)[:, None, None] + np.zeros((2, 2), int)
        found = wrong_labels(codes, task)
        examples = task.is_label.copy()
        examples[-len(task.labels) :] = False
        assert np.array_equal(found[:, ~examples], codes[:, ~examples])
        assert np.array_equal(found[:2, examples], codes[1:, examples])
        assert np.array_equal(found[2, examples], codes[0, examples])


def test_another_prompt_id(prompting):
    assert {name: other_task(prompting, name).prompt_id for name in TASKS} == {"depth": 5, "flow": 6, "segmentation": 4}
    single = Prompting("", {"flow": TASKS["flow"]}, {})
    assert other_task(single, "flow") is None


@pytest.mark.parametrize("name", TASKS)
def test_another_prompt_has_the_other_labels_of_the_same_images(prompting, processor, name):
    args = PromptScoreArgs(model="m", output="a.json", items=2)
    items, other = open_items(name, args, prompting, processor), other_task(prompting, name)
    found = labels_of(other, items, args, prompting, processor)
    examples = items.task.is_label.copy()
    examples[-len(items.task.labels) :] = False
    assert np.array_equal(found[:, ~examples], items.codes[:, ~examples])
    assert (found[:, examples] != items.codes[:, examples]).any()
    world = WorldExamples(items.task, args.split, args.seed, processor.resolution)
    same, others = world.episode(1), world.episode(1, other)
    assert all(np.array_equal(a.images, b.images) and a.name == b.name for a, b in zip(same, others, strict=True))
    colours = episode_coding(other, prompting.codings[other.name], args.seed, 1)
    first = processor.encode_frames(colours.paint(others[0].truth)[:1]).numpy()[0]
    assert np.array_equal(found[1, np.flatnonzero(examples)[0]], first)


def test_the_mean_map_looks_at_no_image(prompting, monkeypatch):
    depth = mean_map("depth", prompting, 64)
    assert depth.shape == (1, 64, 64) and 1 < depth.min() < depth.max() <= 6
    assert not mean_map("segmentation", prompting, 64).any()
    asked = []
    monkeypatch.setattr(
        "training.prompting.examples.WorldExamples", lambda *given: asked.append(given[1:]) or WorldExamples(*given)
    )
    mean_map("flow", prompting, 64)
    assert asked == [("train", MEAN_SEED, 64, (4,))]


def test_score_writes_a_table_with_all_controls(tuned, tmp_path, capsys):
    output = tmp_path / "scores.json"
    flags = ["--model", str(tuned), "--scratch", str(tuned), "--untuned", str(tuned), "--task", "flow"]
    main(["score", *flags, "--items", "2", "--sheet", "1", "--output", str(output)])
    result = PromptResult.from_json(json.loads(output.read_text()))
    assert json.loads(output.read_text()) == result.to_json()
    scores = result.tasks["flow"].scores
    assert set(scores["epe"]) == set(WAYS) and set(scores["nats"]) == set(WAYS) - {"ceiling", "mean_map"}
    assert scores["epe"]["ceiling"].mean < 0.5
    assert scores["nats"]["scratch"].tuned_minus.mean == 0  # the same model
    assert scores["nats"]["swapped"].mean != scores["nats"]["tuned"].mean
    assert scores["nats"]["wrong_examples"].mean != scores["nats"]["tuned"].mean
    text = capsys.readouterr().out
    assert table(result) in text and all(title in text for title in WAYS.values())
    assert Image.open(output.with_suffix(".png")).width > 500


def test_run_labels_pictures(tuned, model, processor, tmp_path, capsys):
    for k in range(2):
        Image.fromarray(np.full((50, 70, 3), 90 * k, np.uint8)).save(tmp_path / f"{k}.png")
    files = [str(tmp_path / f"{k}.png") for k in range(2)]
    main(["run", "--model", str(tuned), "--task", "depth", "--inputs", *files, "--output", str(tmp_path / "out.png")])
    numbers = np.load(tmp_path / "out.npy")
    assert numbers.shape == (2, 1, 64, 64) and set(np.unique(numbers)) <= {1, 2, 3, 4, 5, 6}
    assert "depth from 1 to 6 m" in capsys.readouterr().out and Image.open(tmp_path / "out.png").width > 500
    prompted = Prompted(model, processor, str(tuned))
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    task, rows, numbers, frames = label_pictures(prompted, pictures, "flow")
    assert task.name == "flow" and rows.shape == (1, 8, 64, 64, 3) and numbers.shape == (1, 2, 64, 64)
    assert np.array_equal(rows[:, -2:], frames) and np.array_equal(rows[0, 4:6], pictures)


def test_a_sheet_has_a_line_for_every_episode():
    shown = {
        name: {
            "task": task,
            "rows": np.zeros((3, 8, 64, 64, 3), np.uint8),
            "frames": {"truth": np.zeros((3, len(task.labels), 64, 64, 3), np.uint8)},
        }
        for name, task in TASKS.items()
    }
    assert sheet(shown, 3).height > sheet(shown, 1).height


def test_mistakes_are_sentences(tuned, tmp_path):
    output = str(tmp_path / "x.json")
    picture = str(tmp_path / "x.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in.png")
    here = str(tmp_path / "in.png")
    for argv, sentence in (
        (["paint"], "There is no action 'paint'"),
        (["score", "--output", output], "--model MODEL is missing"),
        (["score", "--model", str(tuned), "--output", "x.txt"], r"must|ends in \.json"),
        (["score", "--model", str(tuned), "--output", output, "--items", "1"], "needs at least 2"),
        (["score", "--model", str(tuned), "--output", output, "--split", "train"], "must be one of validation, test"),
        (["run", "--model", str(tuned), "--output", picture], "--inputs FILE is missing"),
        (["run", "--model", str(tuned), "--inputs", here, "--output", picture], "knows several tasks"),
        (["run", "--model", str(tuned), "--inputs", here, "--task", "flow", "--output", picture], "needs 2 pictures"),
    ):
        with pytest.raises(ValueError, match=sentence):
            main(argv)
    with pytest.raises(FileNotFoundError, match="was not tuned for prompts"):
        main(["score", "--model", "checkpoints/toto-motion", "--output", output])
    with pytest.raises(FileNotFoundError, match="There is no picture"):
        main(["run", "--model", str(tuned), "--inputs", "nothing.png", "--output", picture])
    main(["--help"])


def test_the_page_has_the_tables_of_its_result_file():
    root = Path(__file__).parents[2]
    result = PromptResult.from_json(json.loads((root / "docs" / "studies" / "prompt" / "scores.json").read_text()))
    assert result.split == "test" and result.scratch and result.untuned
    assert table(result) in (root / "docs" / "prompting.md").read_text()
