"""`toto prompt score --data`: no pair is its own example, unknown pixels are not judged, numbers are hand-computed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.prompt.command import main
from evaluation.prompt.drawing import encoded, token_nats
from evaluation.prompt.pairs import known_tokens, mean_of, open_queries, shares
from evaluation.prompt.results import PairsResult
from evaluation.prompt.tables import pairs_table
from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from tokenization.toyworld import sprites
from training.prompting.examples import WorldExamples
from training.prompting.tasks import TASKS, Prompting, make_coding
from training.rows.prompted_rows import episode_frames

TOKENIZER = "checkpoints/toto-motion/visual_tokenizer"
COLOURS = np.array([(0, 0, 0), *sprites.HUES.values()], np.uint8)
CODINGS = {name: make_coding(task, COLOURS) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def processor():
    return TotoProcessor.from_visual_tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, processor):
    """A tiny random Toto with a prompt.json."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    layout = {"vocab_size": 704, "tokens_per_frame": 64, "num_frames": 8, "max_position_embeddings": 515}
    TotoForCausalLM(TotoConfig(**sizes, **layout, num_key_value_heads=2)).save_pretrained(folder)
    processor.save_pretrained(folder)
    Prompting(processor.fingerprint, dict(TASKS), CODINGS, (4,)).write(folder)
    return folder


def write(folder: Path, labels: list[np.ndarray], second: bool = False) -> str:
    """A folder of pairs of 64 x 64 pixels: images of one grey each."""
    for kind in ("image", "label", *(["second"] if second else [])):
        (folder / kind).mkdir(parents=True)
    for k, label in enumerate(labels):
        picture = Image.fromarray(np.full((64, 64, 3), 10 + 20 * k, np.uint8))
        for kind in ("image", *(["second"] if second else [])):
            picture.save(folder / kind / f"pair{k}.png")
        np.save(folder / "label" / f"pair{k}.npy", label)
    return str(folder)


def depths(*numbers: float) -> list[np.ndarray]:
    """Flat depths; the upper left quarter of the first is unknown."""
    found = [np.full((64, 64), number, np.float32) for number in numbers]
    found[0][:32, :32] = np.nan
    return found


@pytest.mark.parametrize(("name", "count"), [("depth", 4), ("depth", 6), ("flow", 2), ("flow", 5), ("segmentation", 4)])
def test_each_pair_is_left_out_of_its_own_examples(tmp_path, name, count):
    task, shape = TASKS[name], (64, 64, 2) if name == "flow" else (64, 64)
    data = write(tmp_path / "pairs", [np.full(shape, k + 1.0) for k in range(count)], second=name == "flow")
    queries, source = open_queries(task, CODINGS[name], data, 0, 64)
    assert source == data and [each.name for each in queries] == [f"pair{k}" for k in range(count)]
    for k, query in enumerate(queries):
        assert len(query.group) == task.groups and len(query.names) == task.groups - 1
        *examples, own = [int(each.images.flat[0] - 10) // 20 for each in query.group]
        assert own == k and k not in examples and len(set(examples)) == len(examples)
        assert query.names == [f"pair{i}" for i in examples]
        assert [each.truth.flat[0] for each in query.group] == [i + 1 for i in (*examples, k)]
        # the mean map is of all others, not of the examples only
        others = [min(i + 1, CODINGS[name].values.max()) for i in range(count) if i != k]
        expected = min(others) if name == "segmentation" else np.mean(others)
        assert query.mean.shape == (len(task.labels), 64, 64) and np.allclose(query.mean, expected)
        if (name, count) == ("flow", 2):  # there is no other label to be wrong with
            assert query.wrong is None
            continue
        assert [int(each.images.flat[0] - 10) // 20 for each in query.wrong] == [*examples, k]
        *wrong, true = [each.truth.flat[0] - 1 for each in query.wrong]
        assert true == k and k not in wrong and all(a != b for a, b in zip(wrong, examples, strict=True))


def test_too_few_pairs_have_examples_of_the_embedded_world(tmp_path):
    task, coding = TASKS["depth"], CODINGS["depth"]
    data = write(tmp_path / "pairs", depths(2, 4))
    queries, source = open_queries(task, coding, data, 3, 64)
    assert source == "training scenes of toyworld:motion"
    world = WorldExamples(task, "train", 3, 64).episode(1)
    assert queries[1].names == [each.name for each in world[:3]] and queries[1].name == "pair1"
    assert all(np.array_equal(a.images, b.images) for a, b in zip(queries[1].group, world[:3], strict=False))
    assert (queries[1].group[-1].truth == 4).all()
    assert all(np.array_equal(a.truth, b.truth) for a, b in zip(queries[1].wrong, world[1:], strict=False))
    with pytest.raises(ValueError, match=r"holds 2 pairs, but a row of depth needs 4, .* range 1 to 9; add pairs"):
        open_queries(replace(task, high=9.0), coding, data, 0, 64)
    single, _ = open_queries(task, coding, write(tmp_path / "one", depths(2)), 0, 64)
    assert single[0].mean is None and single[0].wrong is not None


def test_means_shares_and_known_tokens_by_hand():
    nan = np.nan
    truth = np.array([[[[1.0, nan], [3.0, nan]]], [[[2.0, nan], [nan, 6.0]]]])
    assert mean_of(TASKS["depth"], truth).tolist() == [[[1.5, 3.0], [3.0, 6.0]]]  # 3 is the mean of all four
    classes = np.array([[[[1, 2, nan]]], [[[1, 0, nan]]], [[[0, 2, 3]]]])
    assert mean_of(TASKS["segmentation"], classes).tolist() == [[[1, 2, 3]]]
    assert shares(np.array([[[0.5, 1.0, 6.0, 7.0], [2.0, 3.0, nan, nan]]]), CODINGS["depth"]) == (0.75, 2 / 6)
    flow = np.array([[[nan, 17.0], [0.0, 0.0]], [[0.0, 0.0], [nan, -16.0]]])
    assert shares(flow, CODINGS["flow"]) == (0.5, 0.5)
    truth = np.zeros((1, 1, 4, 4))
    truth[0, 0, 1, 2] = nan
    assert known_tokens(truth, (2, 2)).tolist() == [[[[True, False], [True, True]]]]


def test_score_writes_a_row_per_pair_and_judges_known_pixels_only(tuned, processor, tmp_path, capsys):
    data, output = write(tmp_path / "pairs", depths(1, 2, 3, 4, 9)), tmp_path / "pairs.json"
    flags = ["--model", str(tuned), "--untuned", str(tuned), "--task", "depth", "--data", data, "--sheet", "2"]
    main(["score", *flags, "--output", str(output)])
    content = json.loads(output.read_text())
    result = PairsResult.from_json(content)
    assert content == result.to_json() and "ci95" not in output.read_text()
    assert result.examples_from == data and result.side == 64 and result.levels == 6
    assert [each.pair for each in result.pairs] == [f"pair{k}" for k in range(5)]
    assert [each.known for each in result.pairs] == [0.75, 1, 1, 1, 1]
    assert [each.clipped for each in result.pairs] == [0, 0, 0, 0, 1]
    first, last = result.pairs[0].scores, result.pairs[4].scores
    assert set(first["absrel"]) == {"ceiling", "tuned", "wrong_examples", "untuned", "mean_map", "background"}
    # The others of the first are 2, 3, 4 and 6 (9, clipped); of the last, 1 (unknown in a quarter), 2, 3 and 4.
    assert first["absrel"]["mean_map"] == pytest.approx(2.75) and first["delta1"]["mean_map"] == 0
    assert last["absrel"]["mean_map"] == pytest.approx(0.75 * 3.5 / 6 + 0.25 * 3 / 6)
    assert last["absrel"]["ceiling"] < 0.05
    assert first["absrel"]["background"] == 5 and last["absrel"]["background"] == 0  # 6 m
    assert first["nats"]["untuned"] == first["nats"]["tuned"]
    assert first["nats"]["wrong_examples"] != first["nats"]["tuned"]

    task, model = TASKS["depth"], TotoForCausalLM.from_pretrained(tuned).eval()
    group = open_queries(task, CODINGS["depth"], data, 0, 64)[0][0].group
    losses = token_nats(model, encoded(processor, episode_frames(group, CODINGS["depth"])[None]), task, 4, 1)[0, 0]
    known = np.ones((8, 8), bool)
    known[:4, :4] = False
    assert first["nats"]["tuned"] == pytest.approx(losses[known].mean(), abs=1e-5)
    assert abs(losses[known].mean() - losses.mean()) > 1e-3

    lines = pairs_table(result).splitlines()
    assert len(lines) == 7 and [line.split(" | ")[0] for line in lines[2:]] == [f"| pair{k}" for k in range(5)]
    assert lines[0].startswith("| depth: AbsRel / delta 1, % / nats per label token | known, % | clipped, % |")
    assert lines[6].split(" | ")[2] == "100.0" and lines[2].split(" | ")[1] == "75.0"
    assert lines[2].endswith("| 2.750 / 0.0 | 5.000 / 0.0 |")
    text = capsys.readouterr().out
    assert pairs_table(result) in text and f"examples: {data}" in text
    assert Image.open(output.with_suffix(".png")).width > 500


def test_a_pair_without_a_wholly_known_token_has_no_likelihood(tuned, tmp_path):
    sparse = np.full((64, 64, 2), np.nan, np.float32)
    sparse[::8, ::8] = (20.0, 3.0)
    data = write(tmp_path / "pairs", [sparse, np.zeros((64, 64, 2))], second=True)
    flags = ["--model", str(tuned), "--task", "flow", "--data", data, "--sheet", "0"]
    main(["score", *flags, "--output", str(tmp_path / "a.json")])
    result = PairsResult.from_json(json.loads((tmp_path / "a.json").read_text()))
    first = result.pairs[0]
    assert (first.known, first.clipped, first.examples) == (1 / 64, 1, ["pair1"])
    assert set(first.scores["nats"]) == {"tuned"} and first.scores["nats"]["tuned"] is None
    assert first.scores["epe"]["mean_map"] == pytest.approx(np.hypot(16, 3))  # 20 is clipped to 16
    assert first.scores["epe"]["background"] == first.scores["epe"]["mean_map"]
    assert pairs_table(result).splitlines()[2].split(" | ")[4].endswith(" / -")


def test_mistakes_in_a_folder_are_sentences(tuned, tmp_path):
    def score(task: str, data: Path) -> None:
        main(
            ["score", "--model", str(tuned), "--task", task, "--data", str(data), "--output", str(tmp_path / "x.json")]
        )

    with pytest.raises(ValueError, match="holds the labels of one task; name it with --task"):
        score("all", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*image"):
        score("depth", tmp_path / "nothing")
    data = Path(write(tmp_path / "pairs", depths(1, 2)))
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*second"):
        score("flow", data)
    np.save(data / "label" / "pair1.npy", np.full((64, 64), 255.0))
    with pytest.raises(ValueError, match=r"pair1.npy has the class 255, but the model knows the classes 0 to 5"):
        score("segmentation", data)
    np.save(data / "label" / "pair1.npy", np.zeros((64, 64)))
    with pytest.raises(ValueError, match=r"pair1.npy has no known number in its central square; leave the pair out"):
        score("depth", data)
    (data / "label" / "pair1.npy").unlink()
    with pytest.raises(ValueError, match=r"do not hold the same names \(pair1\)"):
        score("depth", data)
    (tmp_path / "empty" / "image").mkdir(parents=True)
    (tmp_path / "empty" / "label").mkdir()
    with pytest.raises(ValueError, match="holds 0 pairs"):
        score("depth", tmp_path / "empty")
    assert not (tmp_path / "x.json").exists()


PAGE = Path(__file__).parents[2] / "docs" / "prompting.md"


@pytest.mark.parametrize("file", sorted(PAGE.parent.glob("studies/prompt/pairs_*.json")), ids=lambda file: file.stem)
def test_the_page_has_the_tables_of_its_result_files(file):
    result = PairsResult.from_json(json.loads(file.read_text()))
    assert file.stem == f"pairs_{result.task}" and result.untuned
    assert pairs_table(result) in PAGE.read_text()
