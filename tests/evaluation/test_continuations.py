"""Continuations are measured exactly: the truth scores 1, and each mistake lowers the measures that it should."""

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.continuations import floors
from evaluation.continuations.control import compare, without_returning
from evaluation.continuations.likelihood import nats
from evaluation.continuations.measures import CURVES, EVENTS, Drawn, Examiner, decibels, mean, share_of
from evaluation.continuations.reading import _sums, read
from evaluation.continuations.tables import table
from evaluation.continuations.truth import bounces, periods, read_truth, returns
from evaluation.generate import main, read_video
from evaluation.predictors import Predictors
from evaluation.results import CheckpointsResult, ContinuationResult, Curve
from tokenization.sequences import video_rows
from tokenization.toyworld import MotionRules, MotionWorld, motion, sprites

PROMPT, FRAMES, CLIPS = 8, 16, 32
HARDER = "half_tokens=40,pan=40,textured=50,overlap=0,max_objects=4"


def lossless(frames: np.ndarray) -> np.ndarray:
    """Codes (C, T, 8, 8) of a tokenizer without loss: a checksum of the pixels of each token."""
    tokens = frames.reshape(*frames.shape[:2], 8, 8, 8, 8, 3).swapaxes(3, 4)
    codes = [zlib.crc32(token.tobytes()) for token in tokens.reshape(-1, 8, 8, 3)]
    return np.array(codes).reshape(*frames.shape[:2], 8, 8)


def make(rules: str = "", count: int = CLIPS) -> tuple[MotionWorld, Examiner]:
    world = MotionWorld("test", MotionRules.parse(rules), num_frames=FRAMES)
    truth = read_truth(world, count, PROMPT)
    return world, Examiner(truth, lossless(truth.video))


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def world(made):
    return made[0]


@pytest.fixture(scope="module")
def examiner(made):
    return made[1]


@pytest.fixture(scope="module")
def truth(examiner):
    return examiner.truth


def drawn(frames: np.ndarray) -> Drawn:
    return Drawn(frames, lossless(frames))


def means(examiner: Examiner, frames: np.ndarray) -> dict[str, float]:
    """The mean of every measure over horizons, or over cases, and of the parts of events."""
    scores = examiner.scores(examiner.values(drawn(frames))).to_json()
    found = {name: np.mean([each for each in scores[name]["mean"] if each is not None]) for name in scores
             if name not in (*EVENTS, "rhythm") and scores[name]}  # fmt: skip
    for name in EVENTS:
        found[name] = scores[name]["mean"]
        found |= {f"{name}.{part}": value for part, value in scores[name]["parts"].items()}
    return found


def repaint(world: MotionWorld, truth, place=None, phase=None, shown=None) -> np.ndarray:
    """Drawn frames with the objects elsewhere, or in other phases, or left out: arrays over objects, as in Truth."""
    place = truth.place if place is None else place
    phase = truth.phase if phase is None else phase
    shown = np.ones(len(truth.clip), bool) if shown is None else shown
    found = []
    for clip in range(len(truth.video)):
        own = truth.clip == clip
        found.append(world.repaint(clip, place[own].swapaxes(0, 1), phase[own].T, shown[own])[truth.prompt :])
    return np.stack(found)


def paste(frames: np.ndarray, truth, which, frame: int, sprite: int | None = None, hue: int | None = None) -> None:
    """Paint an object, in its true picture or that of another sprite or hue, over a drawn frame, in place."""
    picture = sprites.pictures()[truth.sprite[which] if sprite is None else sprite, truth.drawn("phase")[which, frame]]
    tones = sprites.tones(truth.hue[which] if hue is None else hue, truth.shade[which])
    x, y = truth.drawn("place")[which, frame]
    palette = np.concatenate([[motion.COLOURS[motion.FLOOR]], tones]).astype(np.uint8)
    frames[truth.clip[which], frame, y : y + 16, x : x + 16] = palette[picture]


def test_a_clip_is_repainted_as_it_was():
    for rules in ("", HARDER):
        for resolution in (64, 128):
            world = MotionWorld("validation", MotionRules.parse(rules), resolution=resolution, num_frames=5)
            for index in range(6):
                clip = world.clip(index)
                every = np.ones(len(clip["sprite"]), bool)
                again = world.repaint(index, clip["place"], clip["phase"], every)
                assert np.array_equal(again, clip["video"])
                none = world.repaint(index, clip["place"], clip["phase"], ~every)
                assert not np.array_equal(none, clip["video"])


@pytest.mark.parametrize("rules", ["", HARDER, "min_objects=4,max_objects=5", "pan=100", "half_tokens=100"])
@pytest.mark.parametrize("times", [1, 2])
def test_the_truth_itself_scores_one(rules, times):
    _, examiner = make(rules, 16)
    truth = examiner.truth
    frames = truth.drawn("video").repeat(times, 2).repeat(times, 3)
    values = examiner.values(Drawn(frames, examiner.drawn_codes))
    scores = examiner.scores(values, values)
    for name in ("iou", "identity", "place", "codes", "object_codes", "changed_codes", "ssim"):
        curve = getattr(scores, name)
        assert curve.mean == [1.0] * (FRAMES - PROMPT) and min(curve.clips) > 4
        assert curve.ci95 == [[1.0, 1.0]] * (FRAMES - PROMPT)
    assert scores.iou_of_ceiling == [1.0] * (FRAMES - PROMPT) and scores.psnr.mean == [150.0] * (FRAMES - PROMPT)
    for name in EVENTS:
        share = getattr(scores, name)
        assert share.cases > 3 and share.mean == 1 and set(share.parts.values()) <= {1.0}
    assert scores.rhythm.cases > 3 and scores.rhythm.at_period == pytest.approx(1) and scores.rhythm.other_lags < 0.2
    assert scores.rhythm.versus.verdict == "above"


def test_cases_are_what_they_say(truth):
    """Recounted object by object."""
    seen, contact = truth.drawn("visibility"), truth.drawn("contact")
    found = []
    for k in range(len(truth.clip)):
        first = next((t for t in range(FRAMES - PROMPT - 1) if contact[k, t]), None)
        if first is not None and min(seen[k, first], seen[k, first + 1]) >= 0.5:
            found.append((k, first))
    cases = bounces(truth)
    assert list(zip(cases.objects, cases.frame, strict=True)) == found and len(found) > 20

    found = []
    for k, visibility in enumerate(truth.visibility):
        hidden = next((t for t in range(PROMPT - 1, FRAMES) if visibility[t] < 0.1), FRAMES)
        back = next((t for t in range(hidden, FRAMES) if visibility[t] >= 0.6), None)
        if back is not None and visibility[:PROMPT].max() >= 0.6:
            found.append((k, back - PROMPT))
    cases = returns(truth)
    assert list(zip(cases.objects, cases.frame, strict=True)) == found and len(found) > 10
    for k, frame, frames in zip(cases.objects, cases.frame, cases.frames, strict=True):
        assert not frames[frame:].any() and (seen[k, frames] < 0.1).all()
    assert set(periods(truth).objects) == {k for k in np.flatnonzero(truth.period > 1) if seen[k].max() >= 0.75}


def test_the_least_picture_and_those_of_a_sprite_equal_a_search_through_all():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 99, (5, 3, 16, 16)).astype(float)
    sums = _sums(costs)
    shown = sprites.pictures()[:, :, None] == np.arange(3)[:, None, None]
    every = np.stack([(shown * each).sum((2, 3, 4)) for each in costs])  # (5, sprites, phases)
    sprite = rng.integers(0, sprites.NUM_SPRITES, 5)
    sprite[:2] = sprites.NUM_CREATURES + 2, 7
    assert np.array_equal(sums.least(), every.min((1, 2)))
    assert np.array_equal(sums.of(sprite), every[np.arange(5), sprite])


def test_a_token_away(world, examiner, truth):
    """Places are right within a token, but a bounce must be exact."""
    room = truth.place[..., :1]
    away = truth.place + np.where(room < 24, 8, -8) * np.array([1, 0])
    found = means(examiner, repaint(world, truth, place=away))
    assert found["iou"] < 0.4 and found["bounce"] < 0.1 and found["bounce.after"] < 0.1
    # not 1, since objects that are moved hide others
    assert found["place"] > 0.95 and found["bounce.contact"] > 0.9 and found["identity"] > 0.95
    assert found["object_codes"] < 0.5 < found["codes"] < 0.95 and found["psnr"] < 25
    twice = truth.place + np.where(room < 24, 16, -16) * np.array([1, 0])
    assert means(examiner, repaint(world, truth, place=twice))["place"] < 0.1


@pytest.mark.parametrize("change", ["sprite", "hue"])
def test_another_identity(truth, change):
    frames, whole = truth.drawn("video").copy(), truth.drawn("visibility") == 1
    single = np.bincount(truth.clip)[truth.clip] == 1
    chosen = np.flatnonzero(whole[:, 3] & single)
    assert len(chosen) > 4
    for k in chosen:
        other = {"sprite": (truth.sprite[k] + 7) % sprites.NUM_CREATURES, "hue": (truth.hue[k] + 1) % 5}
        paste(frames, truth, k, 3, **{change: other[change]})
    reading = read(frames, truth)
    assert not reading.identity[chosen, 3].any() and reading.identity[chosen, 2][whole[chosen, 2]].all()
    if change == "sprite":
        assert (reading.iou[chosen, 3] < 1).all() and (reading.place == truth.drawn("place"))[chosen, 3].all()
    assert (reading.iou[chosen, 2] == 1)[whole[chosen, 2]].all()


def test_a_hue_that_is_not_in_the_clip(truth):
    """Some are nearest to the object's own: it is found then, in the wrong hue."""
    chosen = np.flatnonzero((np.bincount(truth.clip)[truth.clip] == 1) & (truth.drawn("visibility")[:, 0] == 1))
    found = 0
    for turn in range(1, 5):
        frames = truth.drawn("video").copy()
        for k in chosen:
            paste(frames, truth, k, 0, hue=(truth.hue[k] + turn) % 5)
        reading = read(frames, truth)
        found += (reading.shown[chosen, 0] > 0.9).sum()
        assert not reading.identity[chosen, 0].any()
    assert found > 1


def test_pictures_of_other_splits_are_compared(truth):
    """A drawn sprite that only another split owns in this hue is a wrong identity."""
    frames = truth.drawn("video").copy()
    k = np.flatnonzero((np.bincount(truth.clip)[truth.clip] == 1) & (truth.drawn("visibility")[:, 0] == 1))[0]
    owned = sprites.owned("train")[0]
    sprite = owned[owned[:, 1] == truth.hue[k]][0, 0]
    paste(frames, truth, k, 0, sprite=sprite)
    assert not read(frames, truth).identity[k, 0]


def test_nothing_is_found_where_nothing_is_drawn(world, examiner, truth):
    found = means(examiner, repaint(world, truth, shown=np.zeros(len(truth.clip), bool)))
    assert {found[name] for name in ("iou", "identity", "place", *EVENTS)} == {0.0}


def test_a_frozen_phase(world, examiner, truth):
    frozen = truth.phase[:, PROMPT - 1, None].repeat(FRAMES, 1)
    found = means(examiner, repaint(world, truth, phase=frozen))
    assert found["period"] < 0.1 and 0.5 < found["iou"] < 1
    assert found["returned"] == found["bounce"] == 1 and min(found["place"], found["identity"]) > 0.99
    rhythm = examiner.scores(examiner.values(drawn(repaint(world, truth, phase=frozen)))).rhythm
    assert rhythm.at_period < 0.3 and rhythm.versus.verdict == "below"
    half = truth.phase + np.where(np.arange(FRAMES) % 8 < 1, 1, 0)  # one wrong frame of eight
    half %= truth.period[:, None]
    assert means(examiner, repaint(world, truth, phase=half))["period"] > 0.8


def test_an_object_that_does_not_come_back(world, examiner, truth):
    cases = examiner.cases["returned"]
    shown = ~np.isin(np.arange(len(truth.clip)), cases.objects)
    found = means(examiner, repaint(world, truth, shown=shown))
    assert found["returned"] == found["returned.time"] == found["returned.place"] == found["returned.identity"] == 0


def test_an_object_that_is_seen_too_early_or_too_late(examiner, truth):
    cases = examiner.cases["returned"]
    early, late = truth.drawn("video").copy(), truth.drawn("video").copy()
    hidden = [
        (k, int(np.flatnonzero(row)[-1])) for k, row in zip(cases.objects, cases.frames, strict=True) if row.any()
    ]
    assert len(hidden) > 5
    for k, frame in hidden:  # in front of the post
        paste(early, truth, k, frame)
    values = examiner.values(drawn(early)).events["returned"]
    clips = truth.clip[cases.objects]
    which = cases.frames.any(1) & (np.bincount(clips)[clips] == 1)  # two would be pasted over one another
    assert (
        which.sum() > 3
        and not values["time"][which].any()
        and not values["right"][which].any()
        and values["time"][~cases.frames.any(1)].all()
    )
    for k, frame in zip(cases.objects, cases.frame, strict=True):
        clip = truth.clip[k]
        late[clip, frame] = truth.video[clip, PROMPT + frame - 1]
    values = examiner.values(drawn(late)).events["returned"]
    unseen = truth.visibility[cases.objects, PROMPT + cases.frame - 1] < 0.5
    assert unseen.sum() > 3 and not values["time"][unseen].any()


def test_no_bounce(world, examiner, truth):
    place = truth.place.copy()
    cases = bounces(truth)
    for k, frame in zip(cases.objects, cases.frame, strict=True):
        place[k, PROMPT + frame :] = place[k, PROMPT + frame]
    values = examiner.values(drawn(repaint(world, truth, place=place))).events["bounce"]
    assert values["contact"].mean() > 0.85  # not 1, since objects that stay hide others
    assert not values["after"].any() and not values["right"].any()


def test_copying_is_right_for_objects_at_rest(examiner, truth):
    found = read(floors.copy(truth), truth)
    still = ~truth.moving & (truth.period == 1) & (truth.visibility[:, PROMPT - 1 :] == 1).all(1)
    assert still.sum() > 3 and (found.iou[still] == 1).all() and found.identity[still].all()
    found = means(examiner, floors.copy(truth))
    assert found["iou"] < 0.4 and found["returned"] == 0 and found["changed_codes"] < 0.2
    assert found["psnr"] < 25


@pytest.mark.parametrize("rules", ["walkers=0,spinners=0", "walkers=0,spinners=0,pan=100,half_tokens=50"])
def test_constant_velocity_is_exact_until_a_wall(rules):
    world, examiner = make(rules, 64)
    truth = examiner.truth
    frames = floors.constant_velocity(world, truth)
    exact = wrong = 0
    for clip in range(len(frames)):
        own = truth.clip == clip
        if (truth.visibility[own, PROMPT - 1] < 0.1).any():
            continue
        contact = truth.contact[own].any(0)[PROMPT - 1 :]  # at the end of the prompt and in the drawn frames
        until = int(contact.argmax()) if contact.any() else FRAMES - PROMPT
        assert np.array_equal(frames[clip, :until], truth.video[clip, PROMPT : PROMPT + until])
        exact += until
        after = frames[clip, until : until + 1], truth.video[clip, PROMPT + until : PROMPT + until + 1]
        wrong += not np.array_equal(*after)
    assert exact > 40 and wrong > 10
    assert means(examiner, frames)["bounce.after"] < 0.2


def test_constant_velocity_knows_only_what_is_seen(world, truth):
    frames = floors.constant_velocity(world, truth)
    hidden = np.flatnonzero(truth.visibility[:, PROMPT - 1] < 0.1)
    assert len(hidden) > 1
    tones = [sprites.tones(truth.hue[k], truth.shade[k])[0] for k in hidden]
    for k, tone in zip(hidden, tones, strict=True):
        assert not (frames[truth.clip[k]] == tone).all(-1).any()


def test_the_most_likely_code_is_that_of_a_brute_force_count():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 12, (20, 4, 3, 3))
    codes[:, 1:] = np.where(rng.random((20, 3, 3, 3)) < 0.6, (5 * codes[:, :-1] + 3) % 12, codes[:, 1:])
    predictors = Predictors(codes, 14, {"previous_frame": 2.0})
    asked = np.arange(14).reshape(2, 7)
    found = predictors.most_likely_next(asked)
    assert len(np.unique(found)) > 6
    for code, best in zip(asked.ravel(), found.ravel(), strict=True):
        rows = np.stack([np.full((1, 2, 1, 1), code), np.zeros((1, 2, 1, 1), int)])[0].repeat(14, 0)
        rows[:, 1, 0, 0] = np.arange(14)
        assert best == predictors.nats("previous_frame", rows)[:, 1, 0, 0].argmin()
    drawn = floors.previous_frame(predictors, asked[None], 3)
    assert np.array_equal(drawn[:, 0], found[None]) and drawn.shape == (1, 3, 2, 7)
    assert np.array_equal(drawn[:, 1], predictors.most_likely_next(found)[None])


def test_several_drawings(world, examiner, truth):
    right = examiner.values(drawn(truth.drawn("video")))
    wrong = examiner.values(drawn(floors.copy(truth)))
    middle, best = mean([right, wrong]), examiner.best([wrong, right])
    for name in CURVES:
        expected = (right.curves[name] + wrong.curves[name]) / 2
        assert np.allclose(middle.curves[name], expected, equal_nan=True)
    moves = np.isin(np.arange(CLIPS), truth.clip[truth.moving])
    for name in CURVES:
        assert np.array_equal(best.curves[name][moves], right.curves[name][moves], equal_nan=True)
        assert np.array_equal(best.curves[name][~moves], wrong.curves[name][~moves], equal_nan=True)  # the first
    for name in EVENTS:
        own = moves[examiner.clips_of(name)]
        assert np.array_equal(best.events[name]["right"][own], right.events[name]["right"][own])
        expected = (right.events[name]["right"] + wrong.events[name]["right"]) / 2
        assert np.array_equal(middle.events[name]["right"], expected)


def test_intervals_are_over_clips(examiner, truth):
    values = examiner.values(drawn(floors.copy(truth)))
    scores = examiner.scores(values, examiner.values(drawn(truth.drawn("video"))))
    for mean_value, (low, high) in zip(scores.psnr.mean, scores.psnr.ci95, strict=True):
        assert low < mean_value < high
    error = ((truth.drawn("video")[:, 0] / 255 - floors.copy(truth)[:, 0] / 255) ** 2).mean()
    assert scores.psnr.mean[0] == pytest.approx(-10 * np.log10(error))
    assert scores.iou_of_ceiling == scores.iou.mean  # the ceiling's is 1
    period = values.events["period"]["right"]
    doubled = replace(values, events=values.events | {"period": {"right": np.ones(len(period))}})
    assert examiner.scores(doubled).period.ci95 == [1.0, 1.0]
    _, few = make("", 1)
    # of two clips, one has twenty cases that are right and one has one that is wrong
    right = np.array([1.0] * 20 + [0.0])
    assert share_of({"right": right}, np.array([0] * 20 + [1])).ci95 == [0, 1]
    assert share_of({"right": right}, np.arange(21)).ci95[0] > 0.6
    assert decibels(Curve(mean=[0.01], ci95=[[0.001, 0.1]], clips=[5])).ci95 == [[10, 30]]
    alone = few.scores(few.values(drawn(few.truth.drawn("video"))))
    assert alone.codes.ci95 == [None] * (FRAMES - PROMPT) and alone.codes.mean == [1.0] * (FRAMES - PROMPT)


def test_an_object_deleted_from_the_prompt(world, examiner, truth):
    deleted, cases = without_returning(world, examiner), examiner.cases["returned"]
    for e, k in enumerate(cases.objects):
        own, clip = truth.masks[truth.clip[k]] == truth.number[k], truth.video[truth.clip[k]]
        overlapped = own.copy()  # an object hides what is behind its transparent pixels too
        for t, (x, y) in enumerate(truth.place[k]):
            overlapped[t, y : y + 16, x : x + 16] = True
        assert np.array_equal(deleted.video[e][~overlapped], clip[~overlapped])  # all else is as it was, exactly
        assert (deleted.video[e][own] != clip[own]).any(1).mean() > 0.95
    true = examiner.values(drawn(truth.drawn("video")))
    control = compare(examiner, true, deleted, deleted.drawn("video"))
    assert (control.with_object.mean, control.deleted.mean) == (1, 0) and control.versus.difference == 1
    assert control.deleted.parts == {"returned": 0} and control.versus.verdict == "above"
    assert control.with_object.cases == control.deleted.cases == len(cases.objects)
    hallucinated = compare(examiner, true, deleted, truth.drawn("video")[truth.clip[cases.objects]])
    assert hallucinated.deleted.mean == 1 and hallucinated.versus.verdict == "no significant difference"
    later = deleted.drawn("video").copy()
    for e, frame in enumerate(cases.frame):
        later[e, frame + 1 :] = 0
    assert compare(examiner, true, deleted, later) == control
    nowhere = compare(examiner, examiner.values(drawn(floors.copy(truth))), deleted, floors.copy(deleted))
    assert nowhere.with_object.mean < 0.3 and nowhere.deleted.mean == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random Toto of 16 frames of 64 tokens, with the tokenizer that ships."""
    from modeling_toto import TotoConfig, TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor

    folder = tmp_path_factory.mktemp("tiny")
    processor = TotoProcessor.default()
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TotoConfig(
        vocab_size=64 + processor.num_codes, tokens_per_frame=64, num_frames=6, max_position_embeddings=386, **sizes
    )
    TotoForCausalLM(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_likelihoods_are_those_of_rows_scored_one_by_one(tiny):
    from modeling_toto import TotoForCausalLM

    model = TotoForCausalLM.from_pretrained(tiny).eval()
    rng = np.random.default_rng(0)
    true, greedy, sampled = (rng.integers(0, model.config.num_codes, (3, frames, 8, 8)) for frames in (5, 3, 3))
    drawings = {"greedy": greedy, "sampled": sampled}
    found = nats(model, true, drawings, 2)
    assert {name: each.shape for name, each in found.items()} == dict.fromkeys(["teacher_forced", *drawings], (3, 3))
    ids = video_rows(true, end=False)
    with torch.no_grad():
        logits = model(ids).logits.log_softmax(-1)
    each = -logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0].reshape(3, 5, 64).mean(2)
    assert np.allclose(found["teacher_forced"], each[:, 2:], atol=1e-5)
    for name, drawing in drawings.items():
        assert np.allclose(found[name][:, 0], found["teacher_forced"][:, 0])
        for frame in range(1, 3):
            row = np.concatenate([true[:, :2], drawing[:, :frame], true[:, 2 + frame, None]], axis=1)
            expected = model.score_frames(video_rows(row, end=False))[:, -1].numpy()
            assert np.allclose(found[name][:, frame], expected, atol=1e-5)
            assert not np.allclose(found[name][:, frame], found["teacher_forced"][:, frame], atol=1e-5)
    longer = np.concatenate([true, true], 1)  # beyond the context of 6 frames
    beyond = nats(model, longer, {"greedy": longer[:, 3:]}, 2)  # the drawn frames are the true ones
    assert beyond["greedy"].shape == (3, 7) and np.allclose(beyond["greedy"], beyond["teacher_forced"], atol=1e-4)


SMALL = ["--score", "--max_clips", "3", "--num_prompt_frames", "3", "--num_frames", "2"]


def test_the_command(tiny, tmp_path, capsys):
    file = tmp_path / "new" / "scores.json"
    flags = ["--num_samples", "2", "--floor_clips", "4", "--top_k", "9", "--sheets", "2", "--predictions"]
    main([*SMALL, *flags, "--model", tiny, "--output", str(file), "--batch_size", "2", "--split", "validation"])
    text = capsys.readouterr().out
    assert "3 validation clips of toyworld:motion" in text and "sampled, best of 2" in text and "bounces" in text
    content = json.loads(file.read_text())
    result = ContinuationResult.from_json(content)
    assert result.to_json() == content and result.other == {} and "NaN" not in file.read_text()
    assert list(result.nats) == ["teacher_forced", "greedy", "sampled"] and "nats per token" in text
    assert result.nats["greedy"].mean[0] == result.nats["teacher_forced"].mean[0] != result.nats["greedy"].mean[1]
    assert result.permanence is None or "deleted from the prompt" in text
    names = ["greedy", "sampled", "best", "copy", "constant_velocity", "previous_frame", "untrained", "ceiling"]
    assert list(result.scores) == names
    assert result.scores["ceiling"].codes.mean == [1.0, 1.0] and result.scores["greedy"].codes.mean[0] < 0.5
    assert result.scores["ceiling"].iou_of_ceiling == [1.0, 1.0] and result.tokens is None
    assert result.sampling == {"num_samples": 2, "temperature": 1.0, "top_k": 9, "top_p": None}
    assert set(result.seconds) == {"greedy", "sampled"} and result.command.startswith("toto generate --score")
    earlier = {key: value for key, value in content.items() if key not in ("nats", "permanence")}
    for scores in earlier["scores"].values():
        del scores["ssim"], scores["rhythm"]
    read_again = ContinuationResult.from_json(earlier)
    assert read_again.to_json() == earlier
    assert "nats" not in table(read_again) and "copy last frame" in table(read_again)
    kept = np.load(file.with_suffix(".npz"))
    assert kept["greedy.iou"].shape == (3, 2) and len(kept["clips.period"]) == result.scores["copy"].period.cases
    assert kept["nats.greedy"].shape == (3, 2) and kept["copy.ssim"].shape == (3, 2)
    assert np.nanmean(kept["copy.codes"][:, 0]) == pytest.approx(result.scores["copy"].codes.mean[0])
    with Image.open(file.with_suffix(".png")) as figure, Image.open(tmp_path / "new" / "scores_sheet.png") as sheet:
        assert figure.width > 1000 and sheet.width > 5 * 128 and sheet.height > 4 * 128
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_seeds_decide_and_floors_can_be_left_out(tiny, tmp_path, capsys):
    def scores(*flags) -> dict:
        file = tmp_path / "scores.json"
        main([*SMALL, "--num_samples", "1", "--floor_clips", "0", "--model", tiny, "--output", str(file), *flags])
        return json.loads(file.read_text())["scores"]

    one, again, other = scores("--seed", "3"), scores("--seed", "3"), scores("--seed", "4")
    assert one == again and one["greedy"] == other["greedy"] and one["sampled"] != other["sampled"]
    assert "previous_frame" not in one and one["sampled"] == one["best"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.png"]


def test_the_curve_of_a_run(tiny, tmp_path, capsys):
    from shutil import copytree

    run, first, short = tmp_path / "run", tmp_path / "first", tmp_path / "short"
    for folder, tokens in ((run, 1000), (run, 2000), (first, 700), (short, 300), (short, 500)):
        folder = folder / "checkpoints" / f"step_{tokens // 100:06d}"
        copytree(tiny, folder)
        (folder / "training_state").mkdir()
        (folder / "training_state" / "loop.json").write_text(json.dumps({"tokens": tokens}))
    for checkpoint in (short / "checkpoints").iterdir():  # whose context of two frames does not hold the prompt
        config = json.loads((checkpoint / "config.json").read_text())
        config["max_position_embeddings"] = 2 * config["tokens_per_frame"] + 2
        (checkpoint / "config.json").write_text(json.dumps(config))
    (run / "recipe.yaml").write_text(f"init_from: {first}\n")
    (first / "recipe.yaml").write_text(f"init_from: {short / 'checkpoints' / 'step_000003'}\n")
    (short / "recipe.yaml").write_text("init_from: org/elsewhere\n")
    file = tmp_path / "curve.json"
    main([*SMALL, "--checkpoints", "--model", str(run), "--output", str(file)])
    content = json.loads(file.read_text())
    result = CheckpointsResult.from_json(content)
    assert result.to_json() == content and [point.tokens for point in result.points] == [1000, 2000, 3000]
    assert [point.checkpoint for point in result.points] == ["first/step_000007", "run/step_000010", "run/step_000020"]
    assert result.points[0].scores == result.points[1].scores  # the same weights
    assert list(result.levels) == ["copy", "constant_velocity", "ceiling"]
    printed = capsys.readouterr().out
    assert "run/step_000020" in printed and f"begins with {short}; what its weights, org/elsewhere," in printed
    with Image.open(file.with_suffix(".png")) as figure:
        assert figure.width > 1000
    (run / "checkpoints" / "step_000020" / "training_state" / "loop.json").unlink()
    with pytest.raises(ValueError, match="step_000020 has no training state"):
        main([*SMALL, "--checkpoints", "--model", str(run), "--output", str(file)])
    with pytest.raises(ValueError, match="is not a run folder with valid checkpoints"):
        main([*SMALL, "--checkpoints", "--model", tiny, "--output", str(file)])


def test_mistakes_get_a_sentence(tiny, checkpoint, tmp_path):
    def run(*flags, model=tiny):
        main(["--score", "--model", model, "--output", str(tmp_path / "a.json"), *flags])

    for flags, sentence in (
        (["--split", "train"], "--split is train, which the model was trained on; choose validation or test"),
        (["--split", "dev"], "--split is 'dev'; it must be one of validation, test"),
        (["--dataset", "toyworld:motion:colour=3"], "does not know the rule 'colour=3'"),
        (["--max_clips", "0"], "--max_clips is 0; it must be above 0"),
        (["--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["--top_p", "1.5"], "--top_p is 1.5"),
        (["--floor_clips", "1"], "--floor_clips is 1; the predictor needs at least two clips"),
        (["--num_prompt_frames", "7"], "the context of the model has only 6 frames"),
        (["--video", "a.mp4"], "--video would have no effect with --score"),
        (["--drop_frames", "2", "--recompute"], "--drop_frames, --recompute would have no effect with --score"),
        (["--stride", "2"], "--stride would have no effect on toyworld, which is drawn"),
        (["--checkpoints", "--seed", "2", "--sheets", "1"], "--seed, --sheets would have no effect with --checkpoints"),
        (["--max_clipz", "2"], "did you mean --max_clips"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(*flags)
    with pytest.raises(ValueError, match="reads frames of 32 pixels as 4 x 4 tokens"):
        run("--num_prompt_frames", "2", model=checkpoint)
    with pytest.raises(ValueError, match=r"--output is 'a'; it must end in \.json"):
        main(["--score", "--model", tiny, "--output", "a"])
    with pytest.raises(ValueError, match="--model MODEL is missing"):
        main(["--score", "--output", "a.json"])
    with pytest.raises(ValueError, match="--dataset, --sheets would have no effect without --score"):
        main(["--model", tiny, "--output", str(tmp_path), "--sheets", "1", "--dataset", "toyworld:motion"])
    assert not list(tmp_path.iterdir())


def test_clips_of_the_motion_world_are_continued_by_name():
    for name, rules, index in (
        ("motion:3", "", 3),
        ("motion:pan=100:3", "pan=100", 3),
        ("motion:pan=100", "pan=100", 0),
    ):
        clip = read_video(f"toyworld:{name}", 2, 3, 4, None, 64)
        expected = MotionWorld("test", MotionRules.parse(rules), num_frames=5).clip(index)
        assert np.array_equal(clip.frames, expected["video"]) and clip.source == f"toyworld/motion/test/0/{index}"
    with pytest.raises(ValueError, match="toyworld:motion:RULES:INDEX"):
        read_video("toyworld:motion:pan=1:a:3", 2, 3, 4, None, 64)


def test_the_page_shows_the_committed_results():
    docs = Path(__file__).parents[2] / "docs"
    rows = re.findall(r"^\| \[`(.+?)`\]\((.+?)\) \| (.+) \|$", (docs / "continuations.md").read_text(), flags=re.M)
    assert len(rows) == 6
    for rules, file, cells in rows:
        result = ContinuationResult.from_json(json.loads((docs / file).read_text()))
        assert (result.dataset, result.model) == (f"toyworld:motion:{rules}", "checkpoints/toto-motion")
        greedy, floor = (percents(result.scores[who]) for who in ("greedy", "constant_velocity"))
        assert cells.split(" | ") == [
            str(result.clips),
            *(f"{one} ({other})" for one, other in zip(greedy, floor, strict=True)),
        ]


def percents(scores) -> list[str]:
    """IoU at the first and last frame, identity at the last, bounces, returns and periods; "-" without cases."""
    values = [scores.iou.mean[0], scores.iou.mean[-1], scores.identity.mean[-1]]
    values += [share.mean for share in (scores.bounce, scores.returned, scores.period)]
    return ["-" if value is None else f"{100 * value:.0f}" for value in values]
