"""Pictures of any kind become pixels, pixels become rows, rows become frames; the whole saves, loads and travels."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from media import make_video, tiny_processor, tiny_tokenizer
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from tokenization import TotoDVAEConfig, TotoDVAEModel, TotoImageProcessor, TotoProcessor
from tokenization.image_processing_toto import resize_and_crop, to_rgb


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 30, 3), dtype=np.uint8)


# --- pixels


def test_pixel_values_are_rgb_in_zero_one():
    pixels = TotoImageProcessor(resolution=16)(
        Image.new("RGB", (40, 20), (255, 0, 51)), return_tensors="pt"
    ).pixel_values
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, :, 5, 5], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (8, 8), 100), 100),
        (Image.new("1", (8, 8), 1), 255),
        (Image.new("RGBA", (8, 8), (100, 100, 100, 0)), 100),
        (Image.new("LA", (8, 8), (100, 9)), 100),
        (Image.new("I;16", (8, 8), 257 * 100), 100),
        (Image.new("I", (8, 8), 257 * 100), 100),
        (Image.new("F", (8, 8), 0.4), 102),
        (Image.new("F", (8, 8), 99.6), 100),
        (Image.new("CMYK", (8, 8), (155, 155, 155, 0)), 100),
        (Image.new("RGB", (8, 8), (100, 100, 100)).convert("P"), 100),
        (np.full((8, 8), 100, np.uint8), 100),
        (np.full((8, 8, 1), 257 * 100, np.uint16), 100),
        (np.full((8, 8, 4), 100, np.uint8), 100),
        (np.full((3, 8, 8), 0.4, np.float32), 102),
        (np.full((8, 8, 3), 100, np.int64), 100),
        (torch.full((3, 8, 8), 0.4), 102),
        (np.ones((8, 8), bool), 255),
    ],
)
def test_every_kind_of_picture_becomes_rgb(picture, expected):
    rgb = np.asarray(to_rgb(picture))
    assert rgb.shape == (8, 8, 3) and rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - expected).max() <= 2  # a palette rounds


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((8, 8, 3), 200.0), r"lie in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"lie in \[0, 1\]"),
        (np.full((8, 8, 3), 300), r"lie in 0\.\.255"),
        (np.zeros((8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        ("cat.png", "not str"),
        (Image.new("I", (8, 8), 2**16), r"lie in 0\.\.255; pass uint8, uint16"),
        (Image.new("I", (8, 8), -1), r"lie in 0\.\.255"),
        (Image.new("F", (8, 8), 256.0), r"lie in \[0, 1\]"),
        (Image.new("F", (8, 8), np.nan), r"lie in \[0, 1\]"),
    ],
)
def test_other_things_are_one_sentence(picture, words):
    with pytest.raises(ValueError, match=words):
        to_rgb(picture)


def reopened(picture, kind, **options):
    """`picture` saved and opened again, in memory."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_are_looked_up():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 100, 100, 100])
    for transparency in (1, bytes([255, 0])):
        assert (np.asarray(to_rgb(reopened(picture, "PNG", transparency=transparency))) == 100).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in (100, 200)]
    picture = reopened(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert picture.n_frames == 2 and (np.asarray(to_rgb(picture)) == 100).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_rotated_pictures_are_set_upright(kind):
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left is up
    rgb = np.asarray(to_rgb(reopened(picture, kind, exif=exif)))
    assert rgb.shape == (64, 32, 3) and rgb[:24, :, 0].min() > 200 and rgb[40:].max() < 50
    assert np.asarray(to_rgb(reopened(picture, kind))).shape == (32, 64, 3)


def test_sixteen_bit_files_are_scaled_not_clipped():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for kind in ("PNG", "TIFF"):
        rgb = np.asarray(to_rgb(reopened(Image.fromarray(ramp), kind)))
        assert np.array_equal(rgb[..., 0], ramp // 257)


def test_resize_and_crop_equals_resizing_all_and_cropping():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8)).resize((120, 60))
    ours = resize_and_crop(smooth, 30).astype(int)
    whole = np.asarray(smooth.resize((60, 30), Image.Resampling.BICUBIC)).astype(int)[:, 15:45]
    assert np.abs(ours - whole)[2:-2, 2:-2].max() <= 1  # at the cut border the filter sees the box only
    assert not np.array_equal(resize_and_crop(smooth, 30, (0, 0)), resize_and_crop(smooth, 30, (0, 1)))
    assert np.array_equal(resize_and_crop(ours.astype(np.uint8), 30), ours)  # frames of the right size are left alone


def test_steps_and_sizes_as_in_other_image_processors(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (24, 30, 4), dtype=np.uint8)
    plain = TotoImageProcessor(resolution=16)(picture, return_tensors="pt").pixel_values
    for size in (16, (16, 16), {"height": 16, "width": 16}, {"shortest_edge": 16}):
        processor = TotoImageProcessor(size=size)
        assert processor.resolution == 16 and torch.equal(processor(picture, return_tensors="pt").pixel_values, plain)
    assert processor(picture, size=8, return_tensors="np").pixel_values.shape == (1, 3, 8, 8)
    assert processor(picture, resolution=8, return_tensors="np").pixel_values.shape == (1, 3, 8, 8)
    rgba = processor(picture, do_convert_rgb=False, return_tensors="pt").pixel_values
    assert rgba.shape == (1, 4, 16, 16)
    grey = processor(picture[..., 0], do_convert_rgb=False, do_resize=False, return_tensors="pt").pixel_values
    assert grey.shape == (1, 1, 24, 30)
    bytes_ = processor(picture, do_rescale=False, return_tensors="pt").pixel_values
    assert bytes_.max() > 1 and torch.equal(bytes_ / 255, plain)
    normal = processor(picture, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3, return_tensors="pt")
    torch.testing.assert_close(normal.pixel_values, (plain - 0.5) / 0.25)
    processor.save_pretrained(tmp_path)
    assert TotoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    "sizes", [{"size": {"height": 8, "width": 9}}, {"resolution": 8, "size": 9}, {"size": 20, "crop_size": 18}]
)
def test_sizes_that_are_not_square_are_one_sentence(sizes):
    with pytest.raises(ValueError, match=r"The result is one square, but .* pass only resolution"):
        TotoImageProcessor(**sizes)


# --- rows


def test_a_video_is_one_row_and_images_are_one_each(processor, pictures):
    assert processor.grid == (4, 4) and processor.num_codes == 32
    video = processor(videos=pictures)
    assert video.input_ids.shape == (1, 1 + 5 * 16 + 1) and video.input_ids[0, 0] == 1 and video.input_ids[0, -1] == 2
    assert video.attention_mask.all()
    images = processor(images=list(pictures))
    assert images.input_ids.shape == (5, 18) and (images.input_ids[:, 0] == 3).all()
    assert torch.equal(images.input_ids[:, 1:-1].flatten(), video.input_ids[0, 1:-1])
    assert processor(images=pictures[0]).input_ids.shape == (1, 18)
    assert processor(images=Image.fromarray(pictures[0]), add_end_token=False).input_ids.shape == (1, 17)
    assert len(video.input_ids.unique()) > 10, "the tiny tokenizer should use many codes"


def test_ways_to_pass_videos(processor, pictures, tmp_path):
    row = processor(videos=pictures).input_ids
    assert torch.equal(processor(videos=[pictures, pictures]).input_ids, row.repeat(2, 1))
    assert torch.equal(processor(videos=np.stack([pictures, pictures])).input_ids, row.repeat(2, 1))
    assert torch.equal(processor(videos=[Image.fromarray(p) for p in pictures]).input_ids, row)
    assert torch.equal(processor(videos=list(pictures)).input_ids, row)
    assert torch.equal(processor(videos=torch.from_numpy(pictures)).input_ids, row)
    path = make_video(tmp_path / "a.mp4", frames=20)
    assert processor(videos=path).input_ids.shape == processor(videos=[str(path)], fps=12.5).input_ids.shape == (1, 66)
    assert isinstance(processor(videos=pictures, return_tensors="np").input_ids, np.ndarray)


def test_ways_to_pass_images(processor, pictures, tmp_path):
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{k} rose.png")
    rows = processor(images=list(pictures)).input_ids
    paths = [tmp_path / f"{k} rose.png" for k in range(5)]
    assert torch.equal(processor(images=str(paths[0])).input_ids, rows[:1])
    assert torch.equal(processor(images=paths).input_ids, rows)
    assert torch.equal(processor(images=[str(paths[0]), pictures[1]]).input_ids, rows[:2])
    assert torch.equal(processor(videos=[paths]).input_ids, processor(videos=pictures).input_ids)  # frames of a clip
    pixels = processor.image_processor(pictures[0], return_tensors="pt").pixel_values
    assert torch.equal(processor.image_processor(str(paths[0]), return_tensors="pt").pixel_values, pixels)
    clip = make_video(tmp_path / "a.mp4", frames=2)
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:900])
    for wrong in (clip, tmp_path / "nothing.png", tmp_path, tmp_path / "cut.png"):
        with pytest.raises(ValueError, match=r"is not a picture that PIL can read .*; pass clips, .* as `videos`"):
            processor(images=wrong)


def test_ids_are_no_text(processor, pictures):
    with pytest.raises(ValueError, match=r"pictures, not text; call decode\(ids\)"):
        processor.batch_decode(processor(images=pictures[0]).input_ids)
    assert processor.tokenizer.pad_token_id is None


def test_shorter_rows_are_padded_on_the_right(processor, pictures):
    batch = processor(videos=[pictures, pictures[:2]])
    assert batch.attention_mask.sum(1).tolist() == [82, 34]
    assert (batch.input_ids[1, 34:] == 0).all() and batch.input_ids[1, 33] == 2


def test_images_and_videos_in_one_call(processor, pictures):
    """Rows of images first; every argument alone, or with those of its kind."""
    both = processor(images=list(pictures[:2]), videos=pictures, add_end_token=False)
    assert both.input_ids[:, 0].tolist() == [3, 3, 1] and both.attention_mask.sum(1).tolist() == [17, 17, 81]
    assert torch.equal(both.input_ids[2:], processor(videos=pictures, add_end_token=False).input_ids)
    top, middle = (processor(images=pictures[0], crop_position=(0, x)).input_ids for x in (0, 0.5))
    assert not torch.equal(top, middle) and torch.equal(middle, processor(images=pictures[0]).input_ids)
    assert torch.equal(top, processor(images=pictures[0], images_kwargs={"crop_position": [0, 0]}).input_ids)
    with pytest.raises(ValueError, match="nothing to encode; pass images or videos"):
        processor()
    with pytest.raises(TypeError, match=r"does not accept num_frames, strid; it accepts add_end_token, .*stride"):
        processor(videos=pictures, strid=2, num_frames=3)


def test_the_shipped_tokenizer_is_the_default(processor):
    shipped = TotoProcessor(TotoImageProcessor())
    assert shipped.fingerprint == TotoProcessor.default().fingerprint != processor.fingerprint
    assert shipped.grid == (8, 8) and shipped.model_input_names == ["input_ids", "attention_mask"]


def test_settings_of_the_image_processor_at_loading_time(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = TotoProcessor.from_pretrained(tmp_path, resolution=24, num_frames=2)
    assert loaded.grid == (6, 6) and loaded.num_frames == 2 and loaded.fingerprint == processor.fingerprint
    replaced = TotoProcessor.from_pretrained(tmp_path, image_processor=TotoImageProcessor(resolution=8))
    assert replaced.grid == (2, 2)
    again = TotoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.astype(np.float32), r"Float pictures must lie in \[0, 1\]"),
        (lambda p: p / 255 - 0.5, r"Float pictures must lie in \[0, 1\]"),
        (lambda p: np.where(p == p[0, 0, 0, 0], np.nan, p / 255), r"Float pictures must lie in \[0, 1\]"),
        (lambda p: p.astype(np.int64) * 2, r"int64 pictures must lie in 0\.\.255"),
        (lambda p: p[..., :2], "1, 3 or 4 channels"),
    ],
    ids=["floats to 255", "below 0", "NaN", "integers above 255", "two channels"],
)
def test_wrong_pictures_are_one_sentence(processor, pictures, change, words):
    wrong = change(pictures)
    for inputs in ({"images": wrong}, {"videos": wrong}):
        with pytest.raises(ValueError, match=words) as error:
            processor(**inputs)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"frames must be uint8 \(N, 16, 16, 3\)"):
        processor.encode_frames(np.resize(wrong, (2, 16, 16, wrong.shape[-1])))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p(images=[]), "There is no picture to encode"),
        (lambda p: p(images=np.empty((0, 8, 8, 3), np.uint8)), "There is no picture to encode"),
        (lambda p: p(images=np.empty((0, 8, 3), np.uint8)), "There is no picture to encode"),
        (lambda p: p(images=np.empty((8, 0, 3), np.uint8)), "A picture must have pixels"),
        (lambda p: p(images=np.full((8, 8, 3), 1j)), "A picture must hold numbers, .* not complex128"),
        (lambda p: p(images=np.full((8, 8, 3), None)), "A picture must hold numbers, .* not object"),
        (lambda p: p(videos=[]), "There is no video to encode"),
        (lambda p: p(videos=3), "A video must be a path, an array .* not int"),
        (lambda p: p.encode_frames(None), "frames must be a uint8 array .* not NoneType"),
        (lambda p: p.encode_frames(np.zeros((1, 16, 16, 3))), r"must be uint8 \(N, 16, 16, 3\), not float64"),
        (lambda p: p.encode_frames(np.zeros((1, 8, 8, 3), np.uint8)), r"not uint8 \(1, 8, 8, 3\); call the processor"),
        (lambda p: p.decode([1.5, 64.0]), "ids must be integers, not torch.float32"),
    ],
)
def test_things_that_are_not_pictures_are_one_sentence(processor, call, words):
    with pytest.raises(ValueError, match=words):
        call(processor)


def test_bfloat16_pictures_are_pictures(processor):
    assert to_rgb(torch.full((3, 8, 8), 0.5, dtype=torch.bfloat16)).getpixel((0, 0)) == (128, 128, 128)


def test_codes_do_not_depend_on_the_batch(processor, pictures):
    frames = np.stack([resize_and_crop(p, 16) for p in pictures])
    together = processor.encode_frames(frames)
    assert together.shape == (5, 4, 4) and together.dtype == torch.int64 and not together.is_inference()
    assert torch.equal(together, torch.cat([processor.encode_frames(frame[None]) for frame in frames]))
    assert torch.equal(together, processor.encode_frames(torch.from_numpy(frames), batch_size=2))
    assert processor.encode_frames(frames[:0]).shape == (0, 4, 4)
    with pytest.raises(ValueError, match=r"uint8 \(N, 16, 16, 3\)"):
        processor.encode_frames(pictures)


def test_decode_gives_the_tokenizers_pictures_back(processor, pictures):
    ids = processor(videos=pictures).input_ids
    frames = processor.decode(ids)
    assert frames.shape == (1, 5, 16, 16, 3) and frames.dtype == np.uint8
    assert np.array_equal(processor.decode(ids[0]), frames[0])
    with torch.no_grad():
        direct = processor.visual_tokenizer.decode(ids[:, 1:-1].view(5, 4, 4) - 64)
    assert np.abs(frames[0].astype(int) - direct.permute(0, 2, 3, 1).numpy() * 255).max() <= 0.51
    assert np.array_equal(processor.decode(torch.cat([ids, ids[:, 1:17]], 1)), frames), (
        "what follows the end is not a frame"
    )
    with pytest.raises(ValueError, match="whole number"):
        processor.decode(ids[:, :20])
    with pytest.raises(ValueError, match=r"within the codebook 0\.\.31, got values from 32 to 32"):
        processor.decode(torch.full((16,), 64 + 32))


def test_the_fingerprint_is_of_class_and_weights():
    assert (
        tiny_processor().fingerprint == tiny_processor(num_frames=8).fingerprint != tiny_processor(seed=1).fingerprint
    )
    assert len(tiny_processor().fingerprint) == 16


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="multiple of the visual tokenizer's stride"):
        TotoProcessor(TotoImageProcessor(resolution=18), tiny_tokenizer())
    assert tiny_processor().with_sizes(resolution=24, num_frames=2).grid == (6, 6)


# --- saving, loading, travelling


def test_a_processor_is_saved_next_to_a_model(processor, pictures, tmp_path):
    """A model's own files and the processor's share a folder, in either order of saving."""
    model = tiny_tokenizer(seed=5)  # any model will do: it writes config.json and model.safetensors at the top
    model.save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    processor.save_pretrained(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    model.save_pretrained(tmp_path)
    for loaded in (TotoProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is TotoProcessor
        assert loaded.fingerprint == processor.fingerprint and loaded.num_frames == 4 and loaded.resolution == 16
        assert torch.equal(loaded(videos=pictures).input_ids, processor(videos=pictures).input_ids)
    assert AutoImageProcessor.from_pretrained(tmp_path).resolution == 16
    assert AutoModel.from_pretrained(tmp_path / "visual_tokenizer").config.num_codes == 32
    assert (tmp_path / "visual_tokenizer" / "model.safetensors").is_file()


def test_a_tokenizer_folder_or_a_processor_folder_will_do(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "visual_tokenizer"):
        assert TotoProcessor.from_visual_tokenizer(folder).fingerprint == processor.fingerprint
    config = json.loads((tmp_path / "visual_tokenizer" / "config.json").read_text())
    (tmp_path / "visual_tokenizer" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="holds no visual tokenizer: its model_type is 'llama'"):
        TotoProcessor.from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in it"):
        TotoProcessor.from_visual_tokenizer(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TotoProcessor.from_visual_tokenizer(tmp_path / "nothing")


def test_it_loads_as_remote_code_where_this_package_is_not_installed(processor, pictures, tmp_path):
    folder = tmp_path / "repo"
    processor.save_pretrained(folder)
    code = {"processing_toto.py", "image_processing_toto.py", "sequences.py", "video.py"}
    code |= {f"{part}_{model}.py" for part in ("configuration", "modeling") for model in ("vqgan", "dvae")}
    assert code <= {file.name for file in folder.iterdir()}, "remote code must be flat in the root"
    np.save(tmp_path / "video.npy", pictures)
    script = f"""
import sys
sys.modules["tokenization"] = None  # as where this package is not installed
import numpy as np
from transformers import AutoImageProcessor, AutoProcessor
folder = {str(folder)!r}
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules")
ids = processor(videos=np.load({str(tmp_path / "video.npy")!r}))["input_ids"]
assert AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).resolution == 16
processor.save_pretrained({str(tmp_path / "again")!r})  # what was loaded as remote code is saved with its code
print(processor.fingerprint, ids[0].tolist())
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{processor.fingerprint} {processor(videos=pictures).input_ids[0].tolist()}"
    assert code <= {file.name for file in (tmp_path / "again").iterdir()}
    assert TotoProcessor.from_pretrained(tmp_path / "again").fingerprint == processor.fingerprint


# --- pickling


def test_equal_processors_have_equal_hashes(processor, pictures, tmp_path):
    """Before and after use, in memory and from two folders; another tokenizer, size or setting has another hash."""
    first = Hasher.hash(processor)
    processor(videos=pictures)
    assert Hasher.hash(processor) == first == Hasher.hash(pickle.loads(pickle.dumps(processor)))
    for folder in (tmp_path / "a", tmp_path / "b"):
        processor.save_pretrained(folder)
        loaded = TotoProcessor.from_pretrained(folder)
        assert Hasher.hash(loaded) == first
    loaded.encode_frames(np.zeros((1, 16, 16, 3), np.uint8), exact=False)
    assert Hasher.hash(loaded) == first
    others = [tiny_processor(seed=1), processor.with_sizes(resolution=24), processor.with_sizes(num_frames=2)]
    assert len({first, *map(Hasher.hash, others)}) == 4


def test_a_copy_is_whole(processor, pictures):
    state = torch.get_rng_state()
    for copied in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        assert copied.fingerprint == processor.fingerprint
        assert (copied.resolution, copied.num_frames) == (processor.resolution, processor.num_frames)
        assert not copied.visual_tokenizer.training and copied.visual_tokenizer is not processor.visual_tokenizer
        assert torch.equal(copied(videos=pictures).input_ids, processor(videos=pictures).input_ids)
    assert torch.equal(torch.get_rng_state(), state)


MAP = """
import sys, time
for name in ("tokenization", "modeling_toto", "training", "evaluation"):
    sys.modules[name] = None  # as where this package is not installed
import multiprocessing, numpy as np
from functools import partial
from datasets import Dataset, disable_progress_bars
from datasets.fingerprint import Hasher
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
disable_progress_bars()
folder, cache = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
alone = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pictures = np.random.default_rng(0).integers(0, 256, (6, 24, 30, 3), dtype=np.uint8).tolist()
rows = Dataset.from_dict({"image": pictures})
def encode(row):
    return {"ids": processor(images=np.array(row["image"], np.uint8)).input_ids[0].tolist()}
def encode_with(row, processor):
    return {"ids": processor(images=np.array(row["image"], np.uint8)).input_ids[0].tolist()}
began = time.process_time()
hashes = [Hasher.hash(each) for each in (processor, alone, encode, partial(encode_with, processor=processor))]
assert time.process_time() - began < 20, "seconds of the processor, whatever else runs"
ids = rows.map(encode)["ids"]
assert hashes == [Hasher.hash(each) for each in (processor, alone, encode, partial(encode_with, processor=processor))]
assert ids == rows.map(encode, num_proc=2, new_fingerprint="two")["ids"]
print(*hashes, sum(map(sum, ids)))
"""


def test_datasets_hash_and_map_with_remote_code(processor, tmp_path):
    """The same hashes in two processes with other seeds of Python's hash, so that `map` finds its cache."""
    folder = tmp_path / "repo"
    processor.save_pretrained(folder)
    printed = []
    for seed in ("1", "2"):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONHASHSEED": seed}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        run = subprocess.run(
            [sys.executable, "-c", MAP, str(folder), str(tmp_path / "cache")],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        printed.append(run.stdout.split())
    assert printed[0] == printed[1] and len(set(printed[0])) == 5


def test_push_to_hub_uploads_the_tokenizers_weights_too(processor, tmp_path, monkeypatch):
    """transformers lists folders one level deep: enough for visual_tokenizer/, as long as that stays flat."""
    from transformers.utils import hub

    uploaded = []

    class Api:
        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})

        def create_commit(self, operations, **kwargs):
            uploaded.extend(Path(operation.path_in_repo).as_posix() for operation in operations)

    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *a, **k: hub.ModelCard("# toto"))
    processor.push_to_hub("user/toto")
    expected = {"processor_config.json", "processing_toto.py", "sequences.py", "README.md"}
    assert expected | {"visual_tokenizer/config.json", "visual_tokenizer/model.safetensors"} <= set(uploaded)
    uploaded.clear()
    processor.save_pretrained(tmp_path / "toto", push_to_hub=True, repo_id="user/toto")
    assert "visual_tokenizer/model.safetensors" in uploaded


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_a_batch_reads_nothing_back_before_its_codes(kind, exact, monkeypatch):
    def read(*_):
        raise AssertionError("a value is read, for which a GPU would be waited for")

    model = tiny_tokenizer() if kind == "vqgan" else TotoDVAEModel(TotoDVAEConfig(n_hid=16, n_init=8, num_codes=32))
    processor = TotoProcessor(TotoImageProcessor(resolution=16), model)
    frames = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, read)
        codes = processor.encode_batch(frames, exact)
        with pytest.raises(AssertionError, match="a value is read"):  # as it is for other pictures
            processor.visual_tokenizer.encode(torch.zeros(3, 3, 16, 16))
    assert torch.equal(codes, processor.encode_frames(frames, exact=exact))
