"""`toto visualize`: attention, surprise, components and the arrow of time are exact; bad input gets one sentence."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_zoo import save
from PIL import Image

from evaluation.backbones.attention_maps import attention_of, attention_rows
from evaluation.visualize import components as pca
from evaluation.visualize.arrow import ArrowArgs, measure
from evaluation.visualize.command import PICTURES, main
from evaluation.visualize.likelihood import arrow_of, surprise_of
from evaluation.visualize.pca import fit_layers
from evaluation.visualize.results import ArrowResult
from evaluation.visualize.tokens import code_pictures, errors, peak_ratio
from tokenization.sequences import video_rows
from training.flags import typed_flags
from training.scores import exact_interval

ROOT = Path(__file__).parents[2]
FRAMES, GRID = 3, (4, 4)


@pytest.fixture(scope="module")
def codes():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 64, (2, FRAMES, *GRID)))


@pytest.fixture(scope="module")
def ids(codes):
    return video_rows(codes, end=False)


def eager(model, mode="causal", **changes):
    """The same weights in a model of eager attention, which returns its probabilities."""
    from modeling_toto import TotoConfig, TotoForCausalLM

    kept = model.config.to_dict() | {"attention_mode": mode} | changes
    kept.pop("attn_implementation", None)
    copy = TotoForCausalLM(TotoConfig(**kept)).eval()
    copy.set_attn_implementation("eager")
    if "num_key_value_heads" not in changes:
        copy.load_state_dict(model.state_dict())
    return copy


# --- attention


@pytest.mark.parametrize("changes", [{}, {"mode": "full"}, {"mode": "prefix", "prefix_length": 20}])
def test_attention_equals_that_of_eager_attention(model, ids, changes):
    """In every mode, for positions in and after a prefix."""
    copy = eager(model, **changes)
    with torch.no_grad():
        whole = torch.stack(copy.model(input_ids=ids[:1], output_attentions=True).attentions)[:, 0]
    for place in (0, 5, 19, 20, 33, ids.shape[1] - 1):
        found = attention_rows(copy, ids[:1], [place])[:, :, 0]
        assert torch.allclose(found, whole[:, :, place], atol=1e-5), place


def test_shared_keys_are_repeated(model, ids):
    torch.manual_seed(2)
    copy = eager(model, num_key_value_heads=1)
    with torch.no_grad():
        whole = torch.stack(copy.model(input_ids=ids[:1], output_attentions=True).attentions)[:, 0]
    assert torch.allclose(attention_rows(copy, ids[0], [40])[:, :, 0], whole[:, :, 40], atol=1e-5)


def test_attention_sums_to_one_and_is_causal(model, ids):
    place = (1, 2, 3)
    at = 1 + (1 * 4 + 2) * 4 + 3
    rows = attention_rows(model, ids[:1], [at])[:, :, 0]
    assert rows.shape == (3, 2, ids.shape[1])
    assert torch.allclose(rows.sum(-1), torch.ones(3, 2), atol=1e-5)
    assert (rows[..., : at + 1] > 0).all() and (rows[..., at + 1 :] == 0).all()
    maps = attention_of(model, ids[:1], place)
    assert maps.shape == (3, 2, FRAMES, *GRID)
    assert (maps[:, :, 1, 2, 3] > 0).all() and (maps[:, :, 2] == 0).all() and (maps[:, :, 1, 3] == 0).all()
    assert torch.allclose(maps.sum((2, 3, 4)) + rows[..., 0], torch.ones(3, 2), atol=1e-5)
    before = attention_of(model, ids[:1], place, predicting=True)
    assert (before[:, :, 1, 2, 3] == 0).all() and (before[:, :, 1, 2, 2] > 0).all()


def test_attention_of_a_place_outside_of_the_clip(model, ids):
    with pytest.raises(ValueError, match="row is 4, but the clip has rows 0 to 3"):
        attention_of(model, ids[:1], (0, 4, 0))
    with pytest.raises(ValueError, match="whole frames of 16 codes"):
        attention_of(model, ids[:1, :-1], (0, 0, 0))
    with pytest.raises(ValueError, match="at most 66"):
        attention_rows(model, ids[:1].repeat(1, 2), [3])


# --- likelihoods


def test_surprise_is_that_of_score_frames(model, ids):
    nats = surprise_of(model, ids)
    assert nats.shape == (2, FRAMES, *GRID)
    assert torch.allclose(nats.mean((2, 3)), model.score_frames(ids), atol=1e-5)
    logits = model(input_ids=ids).logits.log_softmax(-1)
    one = -logits[1, 16 + 4 * 2 + 1, ids[1, 16 + 4 * 2 + 2]]  # frame 1, row 2, column 1 is position 1 + 16 + 9
    assert torch.allclose(nats[1, 1, 2, 1], one, atol=1e-5)


def test_models_without_a_next_token_are_refused(model, ids):
    from modeling_toto import TotoForImageClassification

    with pytest.raises(ValueError, match="TotoForImageClassification predicts no next token"):
        surprise_of(TotoForImageClassification(model.config), ids)
    with pytest.raises(ValueError, match="full attention"):
        surprise_of(eager(model, "full"), ids)
    with pytest.raises(ValueError, match="8 frames, but the context of the model has only 4"):
        surprise_of(model, torch.cat([ids[:, :1], ids[:, 1:].repeat(1, 3)[:, : 8 * 16]], 1))


def test_arrow_of_a_clip_that_reads_the_same_backwards_is_zero(model, codes):
    palindrome = torch.cat([codes[:, :2], codes[:, :1]], 1)
    found = arrow_of(model, torch.cat([palindrome[:1], codes[1:]]))
    assert found[0] == 0 and found[1] != 0


def test_arrow_is_the_difference_of_log_likelihoods_in_reversed_frames(model, codes):
    """Frames are reversed, not tokens inside of them, and the sign is forwards minus backwards."""
    forward = surprise_of(model, video_rows(codes, end=False)).sum((1, 2, 3))
    backward = surprise_of(model, video_rows(codes[:, [2, 1, 0]], end=False)).sum((1, 2, 3))
    found = arrow_of(model, codes.numpy())
    assert torch.allclose(found * FRAMES * 16, (backward - forward).double(), atol=1e-3)
    assert torch.allclose(arrow_of(model, codes.flip(1)), -found)


def test_intervals_of_the_arrow_are_over_videos(monkeypatch):
    """Twenty clips of a video that run forwards and one of another that runs backwards are two videos."""
    late = torch.tensor([1.0, 2.0, 3.0])  # a frame has its code's nats, and more the later it is read
    monkeypatch.setattr("evaluation.visualize.likelihood.frame_surprise", lambda _, codes: codes[:, :, 0, 0] * late)
    codes = np.array([[6, 2, 1]] * 20 + [[1, 2, 6]])[..., None, None]  # 13 nats forwards and 23 backwards, or reversed
    args = ArrowArgs(model="m", dataset="toyworld", output="a.json", batch_size=4)
    found = measure(None, codes, ["a"] * 20 + ["b"], args, "test")
    assert found.differences == pytest.approx([10 / 3] * 20 + [-10 / 3])
    assert found.forward == pytest.approx([(20 * 6 + 1) / 21, 4, (20 * 3 + 18) / 21])
    assert found.ci95 == pytest.approx([-10 / 3, 10 / 3]) and found.positive == 20 / 21
    assert found.positive_ci95 == exact_interval(20, 21)
    assert measure(None, codes[:3], ["a"] * 3, args, "test").ci95 is None


# --- components


def features(seed=0, n=30):
    """Features whose first components are far apart: (n, 4, 5, 12)."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(n, 4, 5, 12)) * np.array([9, 5, 3] + [0.1] * 9)).astype(np.float32)


def test_components_are_those_of_the_features():
    values = features()
    fitted = pca.fit_components(values)
    scores = fitted.scores(values)
    assert scores.shape == (30, 4, 5, 3)
    assert np.allclose(scores.reshape(-1, 3).std(0), 1, atol=1e-2) and np.allclose(scores.mean((0, 1, 2)), 0, atol=1e-4)
    for k in range(3):
        assert abs(np.corrcoef(scores[..., k].ravel(), values[..., k].ravel())[0, 1]) > 0.99
    assert fitted.explained == sorted(fitted.explained, reverse=True) and 0.99 < sum(fitted.explained) <= 1


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
@pytest.mark.parametrize("signs", [[1, 1, 1], [-1, 1, -1]])
def test_a_layer_with_flipped_and_permuted_components_comes_back(order, signs):
    """Its directions are other ones, since the next layer has another basis and width, and new scales of variance."""
    values = features()
    before = pca.fit_components(values)
    reference = before.scores(values)
    layer = 0.01 * np.random.default_rng(1).normal(size=(*values.shape[:3], 20))
    size = np.array([9, 5, 3])[np.argsort(order)]  # so that another component is the first
    layer[..., [4, 9, 13]] += reference * np.array(signs) * size
    fitted = pca.fit_components(layer)
    plain = fitted.scores(layer)
    found = pca.aligned(fitted, plain, reference)
    assert np.allclose(found.scores(layer), reference, atol=0.05)
    assert np.allclose(found.explained, np.array(fitted.explained)[found.order])
    again = pca.aligned(found, found.scores(layer), -reference[..., [1, 2, 0]])  # aligned a second time
    assert np.allclose(again.scores(layer), -reference[..., [1, 2, 0]], atol=0.05)


def test_grids_of_different_sizes_are_aligned():
    reference = np.random.default_rng(0).normal(size=(40, 4, 4, 3))
    coarse = reference.reshape(40, 2, 2, 2, 2, 3).mean((2, 4))
    order, signs = pca.match(-coarse[..., [2, 0, 1]], reference)
    assert order.tolist() == [1, 2, 0] and signs.tolist() == [-1, -1, -1]


def test_colours_have_one_scale():
    shown = pca.colours(np.array([[-2.0, 0, 2], [-5, 1, 9]]))
    assert shown.dtype == np.uint8 and shown.tolist() == [[0, 128, 255], [0, 191, 255]]


def test_the_position_mean_is_removed():
    place = np.random.default_rng(5).normal(size=(4, 5, 12)) * 50
    values = features()
    fitted = pca.fit_components(values + place, remove_position_mean=True)
    scores = fitted.scores(values + place)
    assert np.allclose(scores.mean(0), 0, atol=1e-3)  # no place has a colour of its own
    assert not np.allclose(pca.fit_components(values + place).scores(values + place).mean(0), 0, atol=0.1)
    assert np.allclose(abs(np.corrcoef(scores[..., 0].ravel(), values[..., 0].ravel())[0, 1]), 1, atol=0.02)


def test_layers_are_aligned_with_the_one_before_or_with_those_of_another_model(monkeypatch):
    """The components of the second layer are those of the first in another order, and flipped."""
    values = features()
    turned = np.concatenate([-values[..., [2, 0, 1]] * [5, 1, 1], values[..., 3:]], -1).astype(np.float32)
    layers = {1: values[:, None], 2: turned[:, None]}
    monkeypatch.setattr("evaluation.visualize.pca.features_of", lambda *_: dict(layers))

    def alike(a, b) -> bool:
        return all(np.corrcoef(a[..., k].ravel(), b[..., k].ravel())[0, 1] > 0.95 for k in range(3))

    found = fit_layers(None, None, True, [1, 2], False)
    assert alike(found[1][1], found[2][1]) and found[1][0].position_mean is None
    # each as the other model's own layer, whatever the layer before is like
    other = {1: (found[1][0], -found[1][1][..., [1, 2, 0]]), 2: (found[2][0], found[2][1][..., [2, 1, 0]])}
    again = fit_layers(None, None, True, [1, 2], True, reference=other)
    for k in (1, 2):
        assert alike(again[k][1], other[k][1])
        assert np.allclose(again[k][0].position_mean, layers[k].mean((0, 1)), atol=1e-4)


def test_pictures_of_features():
    values = features()
    shown = pca.pca_pictures(values[:2], pca.fit_components(values))
    assert shown.shape == (2, 4, 5, 3) and shown.dtype == np.uint8 and shown.std() > 20
    assert pca.pca_pictures(values[:, None]).shape == (30, 1, 4, 5, 3)
    with pytest.raises(ValueError, match="3 tokens"):
        pca.pca_pictures(values[0, :1, :3])


# --- tokens


def test_code_pictures_give_each_code_its_colour():
    found = code_pictures(np.array([[[3, 4], [3, 63]]]))
    assert found.shape == (1, 2, 2, 3) and found.dtype == np.uint8
    assert (found[0, 0, 0] == found[0, 1, 0]).all() and (found[0, 0, 0] != found[0, 0, 1]).any()
    assert (code_pictures(np.array([[63]]))[0, 0] == found[0, 1, 1]).all()  # whatever else is shown


def test_codes_have_colours_of_their_own():
    colours = code_pictures(np.arange(640)[None])[0]
    assert len({tuple(colour) for colour in colours.tolist()}) > 620


def test_errors():
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    decoded = frames.copy()
    decoded[0, 0, 1] = [30, 0, 0]
    wrong = errors(frames, decoded)
    assert wrong.shape == (1, 2, 2) and np.allclose(wrong[0], [[0, 300**0.5], [0, 0]])
    assert peak_ratio(wrong[0]) == pytest.approx(10 * np.log10(255**2 / 75)) and peak_ratio(wrong[0] * 0) is None


# --- the command


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with seven images, and a video of 4 frames."""
    from evaluation.pictures import write_movie

    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for k in range(7):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((48, 36)).save(folder / "images" / f"{k}.png")
    frames = generator.integers(0, 256, (13, 4, 4, 3), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    write_movie(folder / "clip.mp4", frames, 8)
    return folder


def run(*argv) -> str:
    with contextlib.redirect_stdout(said := io.StringIO()):
        main([str(each) for each in argv])
    return said.getvalue()


def result(file) -> dict:
    return json.loads(file.with_suffix(".json").read_text())


@pytest.mark.parametrize("picture", PICTURES)
def test_help_names_every_flag(picture, capsys):
    with pytest.raises(SystemExit):
        main([picture, "--help"])
    said = capsys.readouterr().out
    assert f"usage: toto visualize {picture}" in said and "--output" in said
    main([])
    assert all(each in capsys.readouterr().out for each in [picture])


def test_pca_of_a_toto(checkpoint, media, tmp_path):
    out = tmp_path / "new" / "pca.png"
    run("pca", "--model", checkpoint, "--dataset", media / "images", "--fit_images", 5, "--show", 2, "--output", out)
    found = result(out)
    assert [each["layer"] for each in found["layers"]] == [1, 3] and found["fit_images"] == 5
    assert len(found["shown"]) == 2 and all(0 < sum(each["explained"]) <= 1 for each in found["layers"])
    assert all(len(each["untrained"]) == 3 for each in found["layers"])
    with Image.open(out) as picture:
        assert picture.height > 4 * 128  # two images, trained and untrained
    shared = ("pca", "--model", checkpoint, "--dataset", media / "images", "--fit_images", 5)
    run(*shared, "--input", media / "clip.mp4", media / "images" / "0.png", "--layers", 0, 2, "--num_frames", 4,
        "--no_untrained", "--remove_position_mean", "--output", out)  # fmt: skip
    found = result(out)
    assert [each["layer"] for each in found["layers"]] == [0, 2] and found["layers"][0]["untrained"] is None
    with Image.open(out) as picture:
        assert picture.height > 5 * 128  # four frames and an image


@pytest.mark.parametrize("name", ["vit_mae", "hiera", "videomae"])
def test_pca_of_other_backbones(name, media, tmp_path):
    """Hiera's grids shrink from layer to layer; VideoMAE reads an image as a still clip, of which one step is shown."""
    out = tmp_path / "pca.png"
    model = save(name, tmp_path / "model")
    shared = ("pca", "--model", model, "--dataset", media / "images", "--layers", 0, 1, 2, "--output", out)
    run(*shared, "--fit_images", 6, "--show", 1)
    assert [each["layer"] for each in result(out)["layers"]] == [0, 1, 2]
    with Image.open(out) as picture:
        assert 2 * 128 < picture.height < 3.5 * 128


@pytest.mark.parametrize("heads", ["mean", "all"])
def test_attention_of_a_clip(checkpoint, media, tmp_path, heads):
    out = tmp_path / "a.png"
    said = run("attention", "--model", checkpoint, "--input", media / "clip.mp4", "--num_frames", 4, "--frame", 2,
               "--point", 31, 8, "--heads", heads, "--output", out)  # fmt: skip
    found = result(out)
    assert found["position"] == [2, 1, 3]  # 8 pixels a token; x is the column
    assert len(found["heads"]) == (3 if heads == "mean" else 6) and "block 3" in said
    for each in found["heads"]:
        assert each["start"] + sum(each["frames"]) == pytest.approx(1, abs=1e-4) and each["frames"][3] == 0
        assert each["places"][0][3] >= each["places"][1][3] and each["places"][0][0] <= 2
    assert out.stat().st_size > 1000


def test_surprise_of_an_image_and_of_a_clip(checkpoint, media, tmp_path):
    import av

    out = tmp_path / "s.png"
    run("surprise", "--model", checkpoint, "--input", media / "images", "--index", 3, "--output", out)
    found = result(out)
    assert np.shape(found["nats"]) == (1, *GRID) and found["mean"] == pytest.approx(np.mean(found["nats"]), abs=1e-3)
    for suffix in (".mp4", ".gif"):
        out = tmp_path / f"m{suffix}"
        run("surprise", "--model", checkpoint, "--input", "toyworld:2", "--num_frames", 3, "--output", out)
        with av.open(str(out)) as film:
            assert len(list(film.decode(video=0))) == 3
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.gif", "m.json", "m.mp4", "s.json", "s.png"]


def test_tokens_of_an_image(checkpoint, media, tmp_path):
    out = tmp_path / "t.png"
    run("tokens", "--model", checkpoint, "--input", media / "images" / "1.png", "--numbers", "--output", out)
    found = result(out)
    assert np.shape(found["codes"]) == (1, *GRID) and found["num_codes"] == 64
    assert found["different"] == [len(np.unique(found["codes"]))]


def test_arrow_of_a_world(checkpoint, tmp_path):
    out = tmp_path / "arrow.json"
    shared = ("--model", checkpoint, "--dataset", "toyworld", "--max_clips", 5, "--num_frames", 3, "--output", out)
    said = run("arrow", *shared, "--batch_size", 2)
    found = result(out)
    each = found["trained"]
    assert found["command"].startswith("toto visualize arrow --model ")
    assert found["clips"] == found["videos"] == 5 and found["tokens_per_clip"] == 48 and found["untrained"]
    assert each["difference"] == pytest.approx(np.mean(each["differences"]))
    assert each["difference"] == pytest.approx(np.mean(each["backward"]) - np.mean(each["forward"]), abs=1e-6)
    assert each["positive"] == np.mean(np.array(each["differences"]) > 0)
    assert each["ci95"][0] <= each["difference"] <= each["ci95"][1] and "untrained" in said
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nothing"], "There is no picture 'nothing'"),
        (["pca", "--model", "M", "--dataset", "D", "--output", "a.jpg"], "must end in .png"),
        (["pca", "--model", "M", "--dataset", "images", "--layers", "9", "--output", "a.png"], "embeddings\\) to 3"),
        (["pca", "--model", "M", "--dataset", "images", "--show", "7", "--output", "a.png"], "7 readable images"),
        (["pca", "--model", "M", "--output", "a.png"], "--dataset DATA is missing"),
        (["attention", "--model", "M", "--input", "toyworld", "--output", "a.png"], "--row and --column, or"),
        (["attention", "--model", "M", "--input", "toyworld", "--point", "32", "0", "--output", "a.png"], "0 to 31"),
        (["attention", "--model", "M", "--input", "toyworld", "--row", "4", "--column", "0", "--output", "a.png"],
         "--row is 4, but a frame has the rows 0 to 3"),
        (["attention", "--model", "M", "--input", "toyworld", "--frame", "4", "--point", "1", "1", "--output", "a.png"],
         "the frames 0 to 3"),
        (["attention", "--model", "M", "--input", "toyworld", "--point", "1", "1", "--layers", "0", "--output",
          "a.png"], "the blocks 1 to 3"),
        (["surprise", "--model", "M", "--input", "toyworld", "--output", "a.avi"], "must end in .png or .mp4 or .gif"),
        (["surprise", "--model", "M", "--input", "toyworld", "--num_frames", "5", "--output", "a.png"], "only 4 fr"),
        (["surprise", "--model", "M", "--input", "none.mp4", "--output", "a.png"], "There is no file none.mp4"),
        (["surprise", "--model", "M", "--input", "toyworld:a:b:3", "--output", "a.png"], "--input toyworld:a:b:3"),
        (["surprise", "--model", "M", "--input", "images", "--index", "7", "--output", "a.png"], "no readable item 7"),
        (["surprise", "--model", "M", "--output", "a.png"], "--input INPUT is missing"),
        (["arrow", "--model", "M", "--dataset", "images", "--output", "a.json"], "no direction of time"),
        (["arrow", "--model", "M", "--dataset", "toyworld", "--num_frames", "1", "--output", "a.json"], "at least 2"),
        (["arrow", "--model", "M", "--dataset", "toyworld", "--stride", "2", "--output", "a.json"], "no effect"),
        (["tokens", "--model", "gone/", "--input", "toyworld", "--output", "a.png"], "gone"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(argv, sentence, checkpoint, media, tmp_path):
    assert typed_flags(argv) or argv == ["nothing"]
    places = {"M": checkpoint, "images": str(media / "images"), "gone/": str(tmp_path / "gone")}
    argv = [places.get(each, str(tmp_path / each) if each.startswith("a.") else each) for each in argv]
    with pytest.raises((ValueError, OSError), match=sentence) as raised:
        run(*argv)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_the_page_has_the_numbers_of_the_committed_results():
    page = (ROOT / "docs" / "pictures.md").read_text()
    files = sorted((ROOT / "docs" / "studies").glob("arrow_*.json"))
    assert files
    for file in files:
        found = ArrowResult.from_json(json.loads(file.read_text()))
        each, twin = found.trained, found.untrained
        assert each.difference == pytest.approx(np.mean(each.differences)) and len(each.differences) == found.clips
        row = next(line for line in page.splitlines() if line.startswith(f"| {Path(found.model).name}, {found.clips} "))
        shown = [f"{sum(values) / found.num_frames:.4f}" for values in (each.forward, each.backward)]
        shown += [f"{one.difference:+.4f} [{one.ci95[0]:+.4f}, {one.ci95[1]:+.4f}]" for one in (each, twin)]
        assert all(text in row for text in [*shown, f"{each.positive:.0%}".replace("%", " %")]), (file, shown)
