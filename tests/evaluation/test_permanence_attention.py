"""Attention to the last sighting: occlusions are what they say, controls are fair, and planted heads are found."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.backbones.attention_maps import attention_rows
from evaluation.permanence import blocking, looking
from evaluation.permanence.attention import heads, main
from evaluation.permanence.attention_results import AttentionResult
from evaluation.permanence.sightings import NEAR, Sighting, find_sightings, span, tokens_of
from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from tokenization.toyworld import MotionRules, MotionWorld

GRID = (8, 8)


@pytest.fixture(scope="module")
def world():
    return MotionWorld("test", MotionRules.parse("max_objects=3"), num_frames=16)


@pytest.fixture(scope="module")
def sightings(world):
    return find_sightings(world, 6, GRID, 200)


def test_the_span_of_an_occlusion():
    assert span(np.array([1, 0.7, 0.3, 0.05, 0, 0.4, 0.6, 0])) == (1, 6)
    assert span(np.array([0.05, 1, 1])) is None  # never seen before it hid
    assert span(np.array([1, 0, 0.5])) is None  # not back
    assert span(np.array([0, 1, 0, 0, 1])) == (1, 4)


def test_a_clip_without_what_hides(world):
    for index in range(40):
        clip = world.clip(index)
        for number in range(1, len(clip["sprite"]) + 1):
            video, masks = world.uncovered(index, number)
            assert (masks != 255).all()
            true = clip["masks"] == number
            assert (masks[true] == number).all()  # it shows at least what it did
            whole, seen = (masks == number).sum((1, 2)), clip["visibility"][:, number - 1]
            assert whole * seen == pytest.approx(true.sum((1, 2)), abs=0.01)
            same = (clip["masks"] == masks).all((1, 2))
            assert (video[same] == clip["video"][same]).all()
    assert any(clip_is_hidden(world.clip(index)) for index in range(40))


def clip_is_hidden(clip) -> bool:
    return (clip["visibility"] < 0.1).any()


def test_sightings_are_tokens_of_the_object(world, sightings):
    for each in sightings:
        clip = world.clip(each.index)
        seen = clip["visibility"][:, each.number - 1]
        assert seen[each.last] >= 0.6 <= seen[each.back] and (seen[each.last + 1 : each.back] < 0.6).all()
        assert seen[each.last : each.back].min() < 0.1
        assert len(each.video) == len(each.never) == each.back + 1
        shown = tokens_of(clip["masks"] == each.number, GRID).reshape(-1)
        assert shown[each.queries].all() and shown[each.keys].all() and shown[each.seen].all()
        assert set(each.queries // 64) == {each.back} and set(each.keys // 64) == {each.last}
        assert set(each.keys) <= set(each.seen) and each.seen.max() // 64 == each.last
        assert each.matched and len(each.matched_seen) <= len(each.seen)
        assert not shown[each.matched_seen].any()

        def centre(tokens):
            return np.stack(np.unravel_index(tokens % 64, GRID), 1).mean(0)

        distance = np.hypot(*(centre(each.keys) - centre(each.queries)))
        for tokens in each.matched:
            assert len(tokens) == len(each.keys) and not shown[tokens].any() and set(tokens // 64) == {each.last}
            assert abs(np.hypot(*(centre(tokens) - centre(each.queries))) - distance) <= NEAR + 1e-9
    assert len({each.index for each in sightings}) == len(sightings)


def test_too_few_occlusions_are_said_so(world):
    with pytest.raises(ValueError, match=r"3 clips of 16 frames have \d objects .* lower --num_occlusions"):
        find_sightings(world, 50, GRID, 3)


def tiny_model(**more) -> TotoForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 704, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 2, "tokens_per_frame": 64, "num_frames": 16,
             "max_position_embeddings": 1026, "initializer_range": 0.1}  # fmt: skip
    return TotoForCausalLM(TotoConfig(**sizes | more)).eval()


@pytest.mark.parametrize("mode", ["causal", "full"])
def test_attention_rows_are_those_of_the_whole_matrix(mode):
    model = tiny_model(attention_mode=mode)
    model.set_attn_implementation("eager")
    ids = torch.randint(64, 704, (1, 70))
    whole = model.model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    places = [0, 17, 69]
    rows = attention_rows(model, ids, places)
    assert rows.shape == (3, 4, 3, 70)
    for block, matrix in enumerate(whole):
        torch.testing.assert_close(rows[block], matrix[0][:, places].float())
    assert rows.sum(-1) == pytest.approx(np.ones((3, 4, 3)), abs=1e-5)
    for wrong in ([70], [-1]):
        with pytest.raises(ValueError, match="is outside of the row"):
            attention_rows(model, ids, wrong)


def test_a_head_that_always_looks_back_has_no_lead():
    rng = np.random.default_rng(0)
    looks = {name: rng.uniform(0, 0.02, (40, 2, 3)) for name in ("sighting", "matched", "never")}
    looks["sighting"][:, 0, 1] += 0.4  # looks some frames back, hidden or not
    looks["never"][:, 0, 1] += 0.4
    looks["sighting"][:, 1, 0] += 0.3  # looks at the whole frame
    looks["matched"][:, 1, 0] += 0.3
    looks["sighting"][:, 1, 2] += 0.1  # permanence
    first, *others = heads(looks, 3)
    assert (first.block, first.head) == (2, 2) and first.above_matched.ci95[0] > 0.08 < first.above_never.ci95[0]
    assert all(min(each.above_matched.mean, each.above_never.mean) < 0.02 for each in others)


def test_heads_are_chosen_on_one_half_and_reported_on_the_other():
    looks = {name: np.zeros((8, 1, 2)) for name in ("sighting", "matched", "never")}
    looks["sighting"][::2, 0, 0] = 0.5
    looks["sighting"][1::2, 0, 1] = 0.7
    (head,) = heads(looks, 1)
    assert head.head == 0 and head.sighting.mean == 0


def planted(monkeypatch) -> Sighting:
    """Attention by hand: in block b and head h a query at place p gives 0.1 b + 0.01 h + p / 1e4 times a key's share.

    The row is that of `video` or of `never`; a key has the share 1 in the one and 2 in the other, and key k, counted
    with the start token, has 1 + k / 100 of it.
    """
    asked = []

    def rows(model, ids, places):
        asked.append(places)
        share = ids * (1 + torch.arange(130) / 100)
        heads = torch.tensor([[0.1, 0.11], [0.2, 0.21]])[..., None, None]
        return (heads + torch.tensor(places)[:, None] / 1e4) * share

    monkeypatch.setattr(looking, "attention_rows", rows)
    monkeypatch.setattr(looking, "rows_of", lambda _, video: float(video))
    monkeypatch.setattr(looking, "asked", asked, raising=False)
    sets = [np.array([3, 5]), np.array([4, 8])]
    return Sighting(0, 1, 0, 1, 1.0, 2.0, np.array([70, 72]), np.array([0, 2]), np.array([0, 2]), sets, sets[0])


@pytest.mark.parametrize(("query", "places"), [("predicting", [70, 72]), ("token", [71, 73])])
def test_a_look_by_hand(monkeypatch, query, places):
    """A row begins with the start token: token n stands at place n + 1, and the place before predicts it."""
    found = looking.look(None, None, planted(monkeypatch), query)
    assert looking.asked == [places, places]
    heads = np.array([[0.1, 0.11], [0.2, 0.21]]) + np.mean(places) / 1e4
    wanted = {"sighting": 1.01 + 1.03, "never": 2 * (1.01 + 1.03), "matched": (1.04 + 1.06 + 1.05 + 1.09) / 2}
    for name, share in wanted.items():
        np.testing.assert_allclose(found[name], heads * share, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    processor = TotoProcessor.from_pretrained("checkpoints/toto-motion")
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_blocking_hides_exactly_what_it_names(tiny, sightings):
    model, processor = tiny_model(), TotoProcessor.from_pretrained(tiny)
    sighting = sightings[0]
    ids = looking.rows_of(processor, sighting.video)
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[sighting.back * 64 :, torch.from_numpy(sighting.keys) + 1] = False
    with blocking.blocked(model, {2: mask[None, None]}):
        rows = attention_rows(model, ids, [length - 1])  # reads the queries and keys, not the mask
        shut = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    free = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    assert rows.shape[-1] == length and not model.model.layers[1].self_attn._forward_pre_hooks
    torch.testing.assert_close(shut[1], free[1])
    before = sighting.back * 64
    torch.testing.assert_close(shut[2][:, :before], free[2][:, :before], atol=1e-5, rtol=1e-4)
    assert (shut[2][:, before:] - free[2][:, before:]).abs().max() > 1e-3


def test_costs_are_losses_of_the_objects_tokens_without_the_keys_that_are_named(tiny, sightings):
    """From the frame of return on, or from the frame after the last sighting on."""
    model, processor = tiny_model(), TotoProcessor.from_pretrained(tiny)
    sighting = max(sightings, key=lambda each: each.back - each.last)
    assert sighting.back > sighting.last + 1
    ids = looking.rows_of(processor, sighting.video)
    found = blocking.losses(model, processor, sighting, [])

    def cost(keys, since):
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        mask[since:, torch.from_numpy(keys) + 1] = False
        with blocking.blocked(model, dict.fromkeys((1, 2, 3), mask[None, None])), torch.no_grad():
            shares = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        # the token n stands at place n + 1 and is predicted at place n
        return float(-np.mean([shares[n, ids[0, n + 1]].item() for n in sighting.queries]))

    assert found["open"] == pytest.approx(cost(sighting.keys[:0], 0), abs=1e-5)
    back, since = 64 * sighting.back, 64 * (sighting.last + 1)
    for name, keys, place in (
        ("sighting", sighting.keys, back),
        ("all sightings", sighting.seen, back),
        ("all sightings, from then on", sighting.seen, since),
        ("matched to all, from then on", sighting.matched_seen, since),
    ):
        assert found[name] == pytest.approx(cost(keys, place), abs=5e-6), name
    assert abs(cost(sighting.seen, since) - cost(sighting.seen, since - 64)) > 2e-5


def test_what_is_reported_is_of_the_half_that_chose_no_head(tiny, tmp_path, monkeypatch):
    """Sighting n has the attention n + 1 (n + 101 in the untrained model), and costs n when nothing is blocked."""
    asked = []

    def look_all(model, processor, sightings, query):
        first = len(asked)
        asked.append(model)
        each = (np.arange(len(list(sightings))) + 1.0 + 100 * first)[:, None, None] * np.ones((1, 3, 4))
        return {"sighting": each, "matched": each / 2, "never": each / 4}

    def losses(model, processor, sighting, names):
        return dict.fromkeys(("open", *blocking.TESTS), float(sighting.number))

    numbered = [SimpleNamespace(number=number) for number in range(4)]
    monkeypatch.setattr("evaluation.permanence.looking.look_all", look_all)
    monkeypatch.setattr("evaluation.permanence.blocking.losses", losses)
    monkeypatch.setattr("evaluation.permanence.sightings.find_sightings", lambda *_: numbered)
    output = tmp_path / "a.json"
    main(["--model", str(tiny), "--num_occlusions", "4", "--num_heads", "1", "--output", str(output)])
    found = AttentionResult.from_json(json.loads(output.read_text()))
    assert found.looks["sighting"][0][0] == 3 and found.untrained["sighting"][0][0] == 103  # of the second and fourth
    assert found.chosen[0].sighting.mean == 3 and found.chosen[0].above_matched.mean == 1.5
    assert found.chosen_untrained[0].sighting.mean == 103
    assert found.costs["open"].loss.mean == 2 and found.above_control["sighting"].mean == 0
    assert asked[0] is not asked[1]


def test_all_heads_chosen_is_all_heads(tiny, sightings):
    model, processor = tiny_model(), TotoProcessor.from_pretrained(tiny)
    every = [(block, head) for block in (1, 2, 3) for head in range(4)]
    found = blocking.losses(model, processor, sightings[0], every)
    assert found["sighting, chosen heads"] == pytest.approx(found["sighting"], abs=1e-5)
    assert found["matched, chosen heads"] == pytest.approx(found["matched"], abs=1e-5)
    none = blocking.losses(model, processor, sightings[0], [])
    assert none["sighting, chosen heads"] == pytest.approx(none["open"], abs=1e-5)
    assert none["sighting"] != pytest.approx(none["open"], abs=1e-5)
    assert none["all sightings"] != pytest.approx(none["sighting"], abs=1e-5)


def test_the_command(tiny, tmp_path, capsys):
    output = tmp_path / "out" / "a.json"
    main(["--model", str(tiny), "--num_occlusions", "4", "--num_heads", "2", "--output", str(output)])
    result = AttentionResult.from_json(json.loads(output.read_text()))
    assert result.command.startswith("toto permanence attention --model ")
    assert result.occlusions == 4 and result.chosen_on == 2 and len(result.chosen) == 2
    assert np.array(result.looks["sighting"]).shape == (3, 4)
    assert result.costs["open"].rise.mean == 0 and set(result.costs) == {"open", *blocking.TESTS}
    assert output.with_suffix(".png").is_file()
    printed = capsys.readouterr().out
    assert "never hidden" in printed and f"next: toto permanence cups --model {tiny} " in printed


def test_the_picture_of_a_clip(tiny, tmp_path):
    flags = ["--model", str(tiny), "--video=toyworld:motion:1", "--point", "30", "30", "--frame", "6"]
    main([*flags, "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file() and json.loads((tmp_path / "a.json").read_text())["position"] == [6, 3, 3]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--output", "a.json"], "--model MODEL is missing"),
        (["--model", "m"], "--output FILE.json is missing"),
        (["--model", "m", "--output", "a.png"], "must end in .json"),
        (["--model", "m", "--output", "a.json", "--dataset", "toyworld"], "only toyworld:motion has objects"),
        (["--model", "m", "--output", "a.json", "--num_occlusions", "2"], "each half needs at least two"),
        (["--model", "m", "--output", "a.json", "--query", "all"], "--query is 'all'"),
    ],
)
def test_mistakes_get_a_sentence(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        main(flags)
