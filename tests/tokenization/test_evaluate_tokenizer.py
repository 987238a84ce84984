"""The figures of a tokenizer are scikit-image's and a count's, in any batches; the command writes them and a sheet."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Features as HFFeatures
from datasets import Image as HFImage
from media import make_image, make_video, tiny_processor, tiny_tokenizer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tokenization.configuration_vqgan import TotoVQGANConfig
from tokenization.evaluate_tokenizer.command import Draw, _chosen, main
from tokenization.evaluate_tokenizer.scores import (
    TokenizerScore,
    markdown_table,
    measure,
    psnr,
    reconstruction_sheet,
    ssim,
)
from tokenization.modeling_vqgan import TotoVQGANModel
from tokenization.sampling import Sampling
from tokenization.sources.open import open_source
from tokenization.terminal import progress
from tokenization.toyworld import MotionRules, MotionWorld, sprites

MOTION = Path(__file__).parents[2] / "checkpoints" / "toto-motion" / "visual_tokenizer"


def noisy_pair(kind, shape=(4, 3, 13, 20)):
    """Smooth, noisy, flat and equal pictures, and copies of them; uint8 or floats."""
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(shape, generator=generator)
    true[0] = torch.linspace(0, 1, shape[3])
    true[2] = 0.9  # without any variance, where rounding shows
    copy = (true + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    copy[3] = true[3]
    if kind == "uint8":
        return tuple((pictures * 255).round().byte() for pictures in (true, copy))
    return true, copy


# --- figures of pictures


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_psnr_and_ssim_are_scikit_images(kind):
    true, copy = noisy_pair(kind)
    ours_psnr, ours_ssim = psnr(true, copy), ssim(true, copy)
    assert ours_psnr.shape == ours_ssim.shape == (4,)
    peak = 255 if kind == "uint8" else 1
    for i in range(4):
        a, b = (pictures[i].permute(1, 2, 0).numpy() for pictures in (true, copy))
        theirs = structural_similarity(a.astype(float), b.astype(float), channel_axis=2, data_range=peak)
        assert ours_ssim[i].item() == pytest.approx(theirs, abs=1e-6)
        if i < 3:
            assert ours_psnr[i].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=peak), abs=1e-5)
    assert ours_psnr[3] == 150 and ours_ssim[3] == 1  # equal pictures: finite, so that a mean is


def test_types_may_differ_and_gradients_stay_out():
    true, copy = noisy_pair("uint8")
    floats = (copy.float() / 255).requires_grad_()
    assert not psnr(true, floats).requires_grad and not ssim(true, floats).requires_grad
    torch.testing.assert_close(psnr(true, floats), psnr(true, copy), atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(true, floats), ssim(true, copy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("figure", [psnr, ssim, reconstruction_sheet])
@pytest.mark.parametrize(
    ("true", "copy", "words"),
    [
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), "must have the same shape"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) * 255, r"within \[0, 1\]"),
        (torch.rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), float("nan")), "finite"),
        (torch.rand(1, 3, 8, 8), torch.ones(1, 3, 8, 8, dtype=torch.int64), "must be floats"),
        (torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3), "RGB channels second"),
        (np.zeros((1, 3, 8, 8), np.float32), torch.rand(1, 3, 8, 8), "torch tensor"),
    ],
)
def test_wrong_pictures_are_one_sentence(figure, true, copy, words):
    with pytest.raises(ValueError, match=words) as error:
        figure(true, copy)
    assert "\n" not in str(error.value)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="at least 7 x 7 pixels, got 6 x 8"):
        ssim(torch.rand(1, 3, 6, 8), torch.rand(1, 3, 6, 8))


def test_a_sheet_shows_both_rows_enlarged():
    true = torch.zeros(5, 3, 10, 20, dtype=torch.uint8)
    true[:, 0] = 200
    copy = torch.zeros(5, 3, 10, 20)
    copy[:, 1] = 100 / 255
    sheet = np.asarray(reconstruction_sheet(true, copy, columns=3, cell=50))
    red, green = (sheet == (200, 0, 0)).all(-1), (sheet == (0, 100, 0)).all(-1)
    assert red.sum() == green.sum() == 5 * 20 * 40  # twice as large: three times does not fit into 50
    assert np.flatnonzero(red.any(1))[0] < np.flatnonzero(green.any(1))[0]
    assert len(np.flatnonzero(np.diff(red.any(1).astype(int)) == 1)) == 2  # five pairs in rows of three


# --- figures of a tokenizer


class Halves:
    """A tokenizer of 2 x 2 pixels whose four codes are grey levels: what it does to a picture can be worked out."""

    class config:
        num_codes, stride = 4, 2

    device = torch.device("cpu")

    def encode(self, pixels):
        return (pixels.mean(1)[:, ::2, ::2] * 3).round().long()

    def decode(self, codes):
        return (codes[:, None].float() / 3).expand(-1, 3, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_figures_equal_a_count_by_hand():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[1] = 255  # kept exactly, as frame 0
    frames[2] = 90  # code 1, grey level 85
    figures = measure(Halves(), frames)
    assert figures["codes_used"] == 3 and figures["num_codes"] == 4 and figures["num_frames"] == 3
    assert figures["perplexity"] == 3.0  # three codes, equally often
    assert figures["psnr"] == round((150 + 150 + 10 * np.log10(255**2 / 25)) / 3, 2)
    c1, x, y = 0.01**2, 90 / 255, 85 / 255
    assert figures["ssim"] == round((1 + 1 + (2 * x * y + c1) / (x * x + y * y + c1)) / 3, 4)


def test_codes_are_compared_after_a_shift_by_one_code():
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    assert measure(Halves(), frames)["shift_equality"] == 1

    class Placed(Halves):
        """Codes of the last row and column, and of those before, get another number than the rest."""

        def encode(self, pixels):
            codes = super().encode(pixels) // 2
            codes[:, -1] += 2
            codes[:, :, -1] = 3
            return codes

    # 3 x 5 codes have a counterpart, of which the 2 x 4 that do not arrive in the last row or column are equal
    assert measure(Placed(), frames)["shift_equality"] == round(8 / 15, 6)

    class Large(Halves):
        class config:
            num_codes, stride = 4, 8

        def encode(self, pixels):
            return super().encode(pixels)[:, ::4, ::4]

        def decode(self, codes):
            return super().decode(codes).repeat_interleave(4, 2).repeat_interleave(4, 3)

    assert measure(Large(), frames.repeat(2, 2)[:, :, :16])["shift_equality"] is None  # a single row of codes


def test_only_a_local_tokenizer_keeps_all_codes_after_a_shift():
    frames = np.random.default_rng(1).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
    sizes = {"num_codes": 32, "embed_dim": 4, "base_channels": 8, "channel_multipliers": [1], "num_res_blocks": 1}
    sizes |= {"attention_resolutions": [], "mid_attention": False, "z_channels": 4, "norm_groups": 2}
    shares = {}
    for local in (True, False):
        torch.manual_seed(0)
        model = TotoVQGANModel(TotoVQGANConfig(**sizes, patch_size=4, resolution=24, local=local)).eval()
        with torch.no_grad():
            latents = model.encode_latents(torch.rand(8, 3, 24, 24)).permute(0, 2, 3, 1).flatten(0, 2)
            model.quantize.embedding.weight.copy_(latents[:32])
        figures = measure(model, frames)
        assert figures["codes_used"] > 10  # not a comparison of constants
        shares[local] = figures["shift_equality"]
    assert shares[True] == 1 and 0.1 < shares[False] < 0.99


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_motion_tokenizer_gives_held_out_shades_the_codes_of_training(split, monkeypatch):
    """toyworld:motion has another shade of each hue in each split; its own code would be one that no model has seen."""
    model = TotoVQGANModel.from_pretrained(MOTION).eval()

    def codes():
        clips = [MotionWorld(split, MotionRules(max_objects=5)).clip(i)["video"] for i in range(16)]
        return model.encode(torch.from_numpy(np.concatenate(clips)).permute(0, 3, 1, 2).float() / 255)

    own = codes()
    monkeypatch.setitem(sprites.SHADES, split, sprites.SHADES["train"])
    assert torch.equal(codes(), own) and len(own.unique()) > 100


def test_batches_do_not_matter():
    frames = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    tokenizer = tiny_tokenizer()
    assert measure(tokenizer, frames) == measure(tokenizer, frames, batch_size=2)
    score = TokenizerScore(tokenizer)
    copies = torch.cat([score.add(frames[:3]), score.add(frames[3:])])
    assert score.result() == measure(tokenizer, frames)
    direct = tiny_processor().decode(tiny_processor()(videos=frames).input_ids)[0]
    assert np.array_equal(copies.permute(0, 2, 3, 1).numpy(), direct)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), r"frames must be uint8 \(N, H, W, 3\), not float32"),
        (np.zeros((16, 16, 3), np.uint8), r"frames must be uint8 \(N, H, W, 3\)"),
        (np.zeros((1, 3, 16, 16), np.uint8), r"frames must be uint8 \(N, H, W, 3\)"),
        (np.zeros((1, 16, 18, 3), np.uint8), "multiples of 4"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no frames to measure"),
    ],
)
def test_wrong_frames_are_one_sentence(frames, words):
    with pytest.raises(ValueError, match=words):
        measure(tiny_tokenizer(), frames)


def test_a_table_has_a_row_a_data_set():
    figures = measure(Halves(), np.zeros((1, 8, 8, 3), np.uint8))
    lines = markdown_table({"black": figures, "again": figures}).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1 and "(of 4)" in lines[0]
    assert lines[2] == "| black | 150.00 | 1.0000 | 1 | 1.0 | 1.0000 | 1 |"
    single = {**figures, "shift_equality": None}
    assert markdown_table({"black": single}).splitlines()[2] == "| black | 150.00 | 1.0000 | 1 | 1.0 | - | 1 |"


# --- the command


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder of images and one of videos, and a tokenizer."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("images", "videos"):
        (folder / name / "test").mkdir(parents=True)
    for i in range(20):
        make_image(folder / "images" / "test" / f"{i:02d}.png", (12 * i, 255 - 12 * i, 90))
    for i in range(3):
        make_video(folder / "videos" / "test" / f"{i}.mp4", frames=70)  # 2.8 s
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def evaluate(media, output, *flags):
    main(["--tokenizer", str(media / "tokenizer"), "--output", str(output), *map(str, flags)])
    return json.loads((output / "evaluation.json").read_text())


def test_the_command_writes_figures_and_sheets(media, tmp_path, capsys):
    written = evaluate(media, tmp_path / "out", "--dataset", media / "images", media / "videos")
    assert written["tokenizer"]["fingerprint"] == tiny_processor().fingerprint
    assert written["resolution"] == 16 and written["versions"]["torch"]
    frames = {name: open_source(str(media / name), "test", Sampling(num_frames=1, fps=1.0, resolution=16)) for name in
              ("images", "videos")}  # fmt: skip
    for name, clips in frames.items():
        expected = measure(tiny_tokenizer(), np.concatenate([clip.frames for clip in clips]))
        assert written["datasets"][name] == {**expected, "skipped": 0, "split": "test"}
        with Image.open(tmp_path / "out" / f"reconstructions-{name}.png") as sheet:
            assert min(sheet.size) > 128
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "reconstructions-images.png", "reconstructions-videos.png",
    }  # fmt: skip
    assert markdown_table(written["datasets"]) in capsys.readouterr().out
    assert written["datasets"]["images"]["num_frames"] == 20 and written["datasets"]["videos"]["num_frames"] == 9


def test_without_a_test_split_the_only_one_is_measured(media, tmp_path, capsys):
    photos = media / "images" / "test"  # itself a folder without splits
    written = evaluate(media, tmp_path / "out", "--dataset", photos)
    assert written["datasets"]["test"]["split"] == "train" and written["datasets"]["test"]["num_frames"] == 20
    assert "has no split test; its only one, train, is measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no split 'test'"):
        evaluate(media, tmp_path / "named", "--dataset", photos, "--split", "test")


def test_frames_spread_over_the_videos(media, tmp_path):
    source = open_source(str(media / "videos"), "test", Sampling(num_frames=1, fps=1.0, resolution=16))
    chosen = list(_chosen(source, max_frames=100, frames_per_video=2))
    assert [first for _, first in chosen] == [True, False] * 3
    assert not np.array_equal(chosen[0][0], chosen[1][0])  # a second apart
    assert len(list(_chosen(source, max_frames=3, frames_per_video=2))) == 3
    written = evaluate(media, tmp_path, "--dataset", media / "videos", "--frames_per_video", 1, "--max_frames", 2)
    assert written["datasets"]["videos"]["num_frames"] == 2


def test_toyworld_and_another_resolution(media, tmp_path):
    written = evaluate(media, tmp_path, "--dataset", "toyworld", "--max_frames", 3, "--resolution", 40)
    assert written["datasets"]["toyworld"]["num_frames"] == 3 and written["resolution"] == 40


def test_one_of_several_configurations(media, tmp_path):
    data = tmp_path / "data"
    for name, count in (("few", 2), ("many", 3)):
        (data / name / "test").mkdir(parents=True)
        for i in range(count):
            make_image(data / name / "test" / f"{i}.png", (50 * i, 90, 20))
    configs = "".join(f"- {{config_name: {name}, data_dir: {name}}}\n" for name in ("few", "many"))
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    flags = ["--dataset", data, "toyworld", "--max_frames", 4, "--resolution", 32]
    written = evaluate(media, tmp_path / "out", *flags, "--config_name", "many")
    assert written["config_name"] == "many"
    assert {name: figures["num_frames"] for name, figures in written["datasets"].items()} == {"data": 3, "toyworld": 4}
    with pytest.raises(ValueError, match="several configurations; name one with --config_name: few, many"):
        evaluate(media, tmp_path / "none", *flags)


def test_what_cannot_be_read_is_counted(media, tmp_path):
    (tmp_path / "data" / "test").mkdir(parents=True)
    make_image(tmp_path / "data" / "test" / "a.png", (1, 2, 3))
    (tmp_path / "data" / "test" / "b.png").write_bytes(b"no picture")
    written = evaluate(media, tmp_path / "out", "--dataset", tmp_path / "data")
    assert written["datasets"]["data"]["num_frames"] == written["datasets"]["data"]["skipped"] == 1
    (tmp_path / "data" / "test" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"No picture of .*data could be used: test/b\.png: the image cannot be read"):
        evaluate(media, tmp_path / "none", "--dataset", tmp_path / "data")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "There is nothing to evaluate on; pass --dataset"),
        (["--dataset", "toyworld", "--max_frames", "0"], "--max_frames is 0; it must be at least 1"),
        (["--dataset", "toyworld", "toyworld"], "Two datasets are called toyworld"),
        (["--dataset", "./nowhere"], "There is no folder or file"),
        (["--dataset", "toyworld", "--resolution", "18"], "not a multiple of the visual tokenizer's stride 4"),
        (["--dataset", "IMAGES", "--resolution", "4"], "at least 7 x 7 pixels"),
        (["--dataset", "toyworld", "--split", "dev"], "toyworld has no split"),
        (["--dataset", "toyworld", "--config_name", "x"], "--config_name would have no effect on toyworld"),
    ],
)
def test_wrong_flags_are_one_sentence(media, tmp_path, flags, words):
    with pytest.raises((ValueError, OSError), match=words):
        evaluate(media, tmp_path / "out", *(flag.replace("IMAGES", str(media / "images")) for flag in flags))
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(media, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        evaluate(media, tmp_path / "out", "--dataset", "toyworld")


def test_a_draw_is_seeded_even_and_in_order():
    def drawn(seed: int, things: int = 40) -> list[int]:
        draw = Draw(16, seed)
        for thing in range(things):
            draw.add(thing)
        return draw.drawn

    assert drawn(0) == drawn(0) != drawn(1) and drawn(0, 12) == list(range(12))
    times = np.zeros(40)
    for seed in range(2000):
        found = drawn(seed)
        assert len(found) == 16 and found == sorted(set(found))
        times[found] += 1
    assert abs(times / 2000 - 16 / 40).max() < 0.06  # about five standard deviations


def test_the_sheet_is_drawn_and_the_bar_counts_what_there_is(media, tmp_path, monkeypatch):
    bars = []

    class Watched(progress.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.totals = [self.total]
            bars.append(self)

        def update(self, n=1):
            self.totals.append(self.total)
            return super().update(n)

    monkeypatch.setattr(progress, "tqdm", Watched)
    sheets = []
    for seed in (0, 1):
        evaluate(media, tmp_path / str(seed), "--dataset", media / "images", "--seed", seed)
        sheets.append(np.asarray(Image.open(tmp_path / str(seed) / "reconstructions-images.png")))
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()
    evaluate(media, tmp_path / "few", "--dataset", media / "images", "--max_frames", 7)
    assert [bar.totals[0] for bar in bars] == [20, 20, 7] and {bar.total for bar in bars} == {20, 7}
    bars.clear()
    files = sorted((media / "images").rglob("*.png"))
    rows = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    (tmp_path / "table").mkdir()
    table = Dataset.from_dict(rows, features=HFFeatures({"image": HFImage()}))
    table.to_parquet(tmp_path / "table" / "test.parquet")
    evaluate(media, tmp_path / "rows", "--dataset", tmp_path / "table")
    evaluate(media, tmp_path / "videos", "--dataset", media / "videos")
    evaluate(media, tmp_path / "first", "--dataset", media / "videos", "--frames_per_video", 2)
    assert [bar.totals[0] for bar in bars] == [20, 3 * 8, 3 * 2] and [bar.total for bar in bars] == [20, 9, 6]
    assert all(bar.n == bar.total for bar in bars) and bars[1].totals[1] == 8 + (8 - 2)  # 3 + 3 + 2 frames are done
