"""`toto permanence cups`: what its controls see, how strata are scored, and when the claim is made."""

import json

import numpy as np
import pytest
import torch

from evaluation.backbones.load import load_backbone
from evaluation.heads.selection import Chosen
from evaluation.permanence.command import main
from evaluation.permanence.cups import (
    LAST_FRAME,
    MODEL,
    SHUFFLED,
    UNTRAINED,
    claim_of,
    jobs_of,
    predictors_of,
    ways_of_showing,
)
from evaluation.permanence.cups_args import CupsArgs
from evaluation.permanence.cups_controls import LastFrame, ShuffledHistory, last_frame, truthful
from evaluation.permanence.cups_results import CupsResult
from tokenization.toyworld import open_world
from tokenization.toyworld.cups import CONTAINED, MOVED, OCCLUDED, STRATA, VISIBLE

FRAMES = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random Toto of frames of 64 tokens, with the tokenizer that ships."""
    from modeling_toto import TotoConfig, TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor

    folder = tmp_path_factory.mktemp("tiny")
    processor = TotoProcessor.default()
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TotoConfig(
        vocab_size=64 + processor.num_codes,
        tokens_per_frame=64,
        num_frames=FRAMES,
        max_position_embeddings=64 * FRAMES + 2,
        initializer_range=0.2,
        **sizes,
    )
    TotoForCausalLM(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


# --- controls


def test_the_tokens_of_the_last_frame(tiny):
    backbone = load_backbone(tiny, torch.device("cpu"))
    frames = open_world("cups", "test", num_frames=FRAMES).clip(0)["video"][None]
    whole = backbone.grids(backbone.prepare(frames), [0, 1])
    read = LastFrame(backbone)
    last = read.grids(read.prepare(frames), [0, 1])
    for layer in (0, 1):
        assert last[layer].shape == (1, 1, 8, 8, 16) and torch.equal(last[layer], whole[layer][:, -1:])
    assert read.fingerprint() != backbone.fingerprint(), "their features have different keys in the cache"
    twin = read.untrained(0)
    assert isinstance(twin, LastFrame) and twin.fingerprint() != read.fingerprint()
    # they know the frames before, but of the last frame alone they do not
    other = frames.copy()
    other[:, 0] = 200
    assert not torch.equal(read.grids(read.prepare(other), [1])[1], last[1])
    alone = [read.grids(read.prepare(last_frame(each[0], "")[None]), [1])[1] for each in (frames, other)]
    assert torch.equal(*alone)


def test_the_untrained_model_is_another_one(tiny):
    backbone = load_backbone(tiny, torch.device("cpu"))
    jobs = jobs_of([MODEL, UNTRAINED], CupsArgs(model="m", output="o.json"), backbone, [1])
    assert jobs[0].backbone is backbone and jobs[1].backbone.fingerprint() != backbone.fingerprint()
    assert [names for names, _ in ways_of_showing(0)] == [[MODEL, UNTRAINED], [SHUFFLED], [LAST_FRAME]]


def test_shuffled_history_keeps_the_last_frame():
    frames = np.arange(16)[:, None, None, None] * np.ones((1, 2, 2, 3), int)
    shuffle = ShuffledHistory(seed=1)
    orders = [shuffle(frames, f"clip {k}")[:, 0, 0, 0].tolist() for k in range(3)]
    for order in orders:
        assert order[-1] == 15 and sorted(order) == list(range(16)) and order != list(range(16))
    assert orders[0] != orders[1] and np.array_equal(shuffle(frames, "clip 0")[:, 0, 0, 0], orders[0])
    assert ShuffledHistory(seed=2)(frames, "clip 0")[:, 0, 0, 0].tolist() != orders[0]


def test_predictors_that_read_the_truth():
    world = open_world("cups", "test")
    clips = [world.clip(index) for index in range(200)]
    cells, strata = (np.array([clip[key] for clip in clips]) for key in ("cell", "stratum"))
    told = {name: predicted for name, (_, predicted) in truthful(clips, 7, seed=0).items()}
    assert set(told["majority"]) == {7}
    right = told["last_seen"] == cells
    assert right[np.isin(strata, (VISIBLE, CONTAINED))].all() and not right[np.isin(strata, (MOVED, OCCLUDED))].any()
    right = told["any_cup"] == cells
    assert right[strata == VISIBLE].all() and not right[strata == OCCLUDED].any()
    assert 0.25 < right[strata == MOVED].mean() < 0.6  # one of two or three cups


# --- scores


def chosen(right: np.ndarray, cells: np.ndarray, val: float = 0.5) -> Chosen:
    """Heads of two layers; the second is chosen and right on these clips, the first is always wrong."""
    wrong = (cells + 1) % 36
    predictions = torch.from_numpy(np.stack([wrong, np.where(right, cells, wrong)])[:, None])
    likely = torch.nn.functional.one_hot(predictions, 36).float()
    accuracy = torch.tensor([[val - 0.1], [val]])
    return Chosen([{"lr": 1.0}], torch.zeros(2, 1, dtype=torch.long), accuracy, 1 - accuracy, predictions, likely)


@pytest.fixture(scope="module")
def truth():
    world = open_world("cups", "test")
    clips = [world.clip(index) for index in range(240)]
    return clips, *(np.array([clip[key] for clip in clips]) for key in ("cell", "stratum"))


def scored(truth, right, history=False):
    """Predictors for a model that is right on some clips; controls that are right in sight only, or with `history`."""
    clips, cells, strata = truth
    heads = {name: chosen(strata == VISIBLE, cells) for name in (LAST_FRAME, SHUFFLED, UNTRAINED)}
    if history:
        heads[SHUFFLED] = chosen(right, cells)
    told = truthful(clips, 7, 0)
    return predictors_of(heads | {MODEL: chosen(right, cells)}, told, [0, 3], cells, strata, 0)


def test_scores_by_stratum(truth):
    _, cells, strata = truth
    found = scored(truth, (strata == VISIBLE) | (strata == MOVED))
    model = found[MODEL]
    assert next(iter(found)) == MODEL and model.layer == 3 and list(model.strata) == ["all", *STRATA]
    assert [model.strata[name].accuracy for name in STRATA] == [1, 0, 0, 1]
    assert [model.strata[name].clips for name in STRATA] == np.bincount(strata).tolist()
    assert model.strata["all"].accuracy == pytest.approx(np.isin(strata, (VISIBLE, MOVED)).mean())
    assert model.layers[0].accuracy["all"] == 0 and model.layers[1].accuracy[STRATA[MOVED]] == 1
    # a wrong cell is the next one: a step to the right, or at the end of a row 5 to the left and one down
    steps = np.where(cells % 6 < 5, 1, np.where(cells == 35, 10, 6))[strata == OCCLUDED]
    assert model.strata[STRATA[OCCLUDED]].grid_l1 == pytest.approx(steps.mean())
    versus = found["last_seen"].strata[STRATA[MOVED]].versus
    assert versus.difference == 1 and versus.verdict == "above" and model.strata["all"].versus is None
    assert found["last_seen"].strata[STRATA[CONTAINED]].versus.verdict == "below" and found["last_seen"].layers == []


def test_the_claim_needs_every_control(truth):
    _, _, strata = truth
    shown = claim_of(scored(truth, np.isin(strata, (VISIBLE, MOVED))))
    assert shown.is_shown and shown.missing == [] and shown.stratum == "contained and moved"
    as_good = claim_of(scored(truth, np.isin(strata, (VISIBLE, MOVED)), history=True))
    assert not as_good.is_shown and as_good.missing == [SHUFFLED]
    elsewhere = claim_of(scored(truth, strata != MOVED))  # right in all other clips
    assert not elsewhere.is_shown and {LAST_FRAME, "any_cup"} <= set(elsewhere.missing)


def test_the_claim_needs_clips(truth):
    clips, cells, strata = truth
    kept = np.flatnonzero(strata != MOVED)
    few = [clips[k] for k in kept], cells[kept], strata[kept]
    with pytest.raises(ValueError, match=r"No test clip is 'contained and moved'.*raise --max_test"):
        claim_of(scored(few, few[2] == VISIBLE))


# --- the command

SMALL = ["--max_train", "40", "--max_validation", "8", "--max_test", "24", "--epochs", "2"]


def test_the_command(tiny, tmp_path, capsys):
    file = tmp_path / "new" / "cups.json"
    rules = "toyworld:cups:max_cups=2"
    flags = [*SMALL, "--dataset", rules, "--feature_cache", str(tmp_path / "cache")]
    main(["cups", "--model", tiny, "--output", str(file), *flags])
    text = capsys.readouterr().out
    assert f"next: toto visualize attention --model {tiny} --input toyworld:cups:0 " in text
    assert "last visible cell" in text and "24 test" in text and "hown: on 'contained and moved' the model is" in text
    content = json.loads(file.read_text())
    result = CupsResult.from_json(content)
    assert result.to_json() == content and result.other == {} and "NaN" not in file.read_text()
    names = ["model", "last_frame", "shuffled", "untrained", "last_seen", "any_cup", "majority"]
    assert list(result.predictors) == names
    world = open_world("cups:max_cups=2", "test", num_frames=FRAMES)
    assert result.cell == [world.clip(index)["cell"] for index in range(24)]
    assert result.stratum == [world.clip(index)["stratum"] for index in range(24)]
    last_seen = [world.clip(index)["last_seen"] for index in range(24)]
    assert result.predictors["last_seen"].predicted == last_seen
    assert result.clips == {"train": 40, "validation": 8, "test": 24} and result.num_frames == FRAMES
    shown = open_world("cups:max_cups=2", "train", num_frames=FRAMES)
    commonest = np.bincount([shown.clip(index)["cell"] for index in range(40)]).argmax()
    assert set(result.predictors["majority"].predicted) == {commonest} != {np.bincount(result.cell).argmax()}
    # clips that are shown in another way have features of their own: three ways of three parts
    assert len(list((tmp_path / "cache").iterdir())) == 9
    assert result.command.startswith("toto permanence cups --model ")
    for each in result.predictors.values():
        right = [p == c for p, c in zip(each.predicted, result.cell, strict=True)]
        assert each.strata["all"].accuracy == pytest.approx(np.mean(right))
    assert [row.layer for row in result.predictors["model"].layers] == [0, 1]
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" and not file.with_suffix(".partial").exists()
    # the same command again reads the features that are kept, and gives the same numbers
    main(["cups", "--model", tiny, "--output", str(file), *flags])
    assert json.loads(file.read_text()) == content
    main(
        [
            "cups",
            "--model",
            tiny,
            "--output",
            str(tmp_path / "all.json"),
            *flags,
            "--tokens",
            "all",
            "--head",
            "attention",
            "--layers",
            "1",
        ]
    )
    other = CupsResult.from_json(json.loads((tmp_path / "all.json").read_text()))
    assert other.tokens == "all" and [row.layer for row in other.predictors["model"].layers] == [1]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"model": None}, "--model MODEL is missing"),
        ({"output": "out.txt"}, "ends in .json"),
        ({"dataset": "toyworld:motion"}, "only toyworld:cups"),
        ({"tokens": "first"}, "must be one of last, all"),
        ({"head": "knn"}, "must be one of pointing"),
        ({"tokens": "all"}, "--head pointing reads the 64 tokens of the last frame"),
        ({"max_test": 0}, "--max_test is 0"),
        ({"layers": ["deep"]}, "takes all or layer numbers"),
    ],
)
def test_bad_flags(flags, why):
    with pytest.raises(ValueError, match=why):
        CupsArgs(**{"model": "m", "output": "o.json"} | flags)


def test_an_unknown_question():
    with pytest.raises(ValueError, match="There is no question 'saucers'"):
        main(["saucers"])
