"""Models take pixels where their visual tokenizer is known: in transformers' vision pipelines, and as remote code."""

import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_saved_models import BLOCK
from transformers import AutoModelForImageClassification, pipeline

from modeling_toto import TotoForImageClassification, TotoForVideoClassification, TotoModel

NAMES = {0: "rose", 1: "tulip", 2: "oak"}


@pytest.fixture(scope="module")
def folders(model, processor, tmp_path_factory):
    """Folders of an image and a video classifier with their processor, a picture and a clip of 4 frames."""
    root = tmp_path_factory.mktemp("pixels")
    model.save_pretrained(root / "causal")
    torch.manual_seed(0)
    for name, cls in (("image", TotoForImageClassification), ("video", TotoForVideoClassification)):
        cls.from_pretrained(root / "causal", num_labels=3, id2label=NAMES).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
    Image.fromarray(pictures[0]).save(root / "rose.png")
    with av.open(str(root / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return root, pictures


@torch.no_grad()
def expected_scores(folder, ids) -> dict[str, float]:
    cls = TotoForVideoClassification if folder.name == "video" else TotoForImageClassification
    logits = cls.from_pretrained(folder).eval()(ids).logits[0]
    return {NAMES[k]: score for k, score in enumerate(logits.softmax(-1).tolist())}


def test_an_image_pipeline(folders, processor):
    root, pictures = folders
    classify = pipeline("image-classification", model=str(root / "image"), device="cpu")
    expected = expected_scores(root / "image", processor(images=pictures[0]).input_ids)
    for given in (str(root / "rose.png"), Image.fromarray(pictures[0])):
        assert {each["label"]: each["score"] for each in classify(given)} == pytest.approx(expected, rel=1e-5)
    both = classify([Image.fromarray(picture) for picture in pictures[:2]], batch_size=2)
    assert len(both) == 2 and both[0][0]["score"] == pytest.approx(max(expected.values()), rel=1e-5)
    half = pipeline("image-classification", model=str(root / "image"), dtype=torch.bfloat16, device="cpu")
    ids = half.model.ids_of_pixels(half.preprocess(Image.fromarray(pictures[0]))["pixel_values"], False)
    assert torch.equal(ids, processor(images=pictures[0]).input_ids)  # 8 bits survive bfloat16


def test_a_video_pipeline(folders, processor):
    root, pictures = folders
    classify = pipeline("video-classification", model=str(root / "video"), device="cpu")
    for options, frames in (({}, pictures[:4]), ({"num_frames": 3, "frame_sampling_rate": 2}, pictures[[0, 2, 5]])):
        expected = expected_scores(root / "video", processor(videos=frames).input_ids)
        found = classify(str(root / "clip.mkv"), **options)
        assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, rel=1e-4)
    both = classify([str(root / "clip.mkv")] * 2, batch_size=2)
    expected = expected_scores(root / "video", processor(videos=pictures[:4]).input_ids)
    assert [each[0]["score"] for each in both] == pytest.approx([max(expected.values())] * 2, rel=1e-4)


@torch.no_grad()
def test_a_feature_pipeline(folders, processor, model):
    root, pictures = folders
    extract = pipeline("image-feature-extraction", model=str(root / "image"), device="cpu")
    found = extract(str(root / "rose.png"), return_tensors=True)
    torch.testing.assert_close(found, model.model(processor(images=pictures[0]).input_ids).last_hidden_state)


@torch.no_grad()
def test_shapes_and_labels(folders, processor):
    """Images and clips, loaded or with a processor that is set; pixels train as ids do."""
    root, pictures = folders
    image = processor.image_processor(list(pictures[:4]), return_tensors="pt").pixel_values
    clips = image.unflatten(0, (2, 2))
    for cls in (TotoModel, TotoForImageClassification, TotoForVideoClassification):
        model = cls.from_pretrained(root / "video").eval()
        assert torch.equal(
            model(pixel_values=clips)[0], model(processor(videos=pictures[:4].reshape(2, 2, 40, 48, 3)).input_ids)[0]
        )
        ids = (
            processor(videos=pictures[:4])
            if cls is TotoForVideoClassification
            else processor(images=list(pictures[:4]))
        )
        assert torch.equal(model(pixel_values=image)[0], model(ids.input_ids)[0])
    labels = torch.tensor([1])
    assert torch.equal(model(pixel_values=image, labels=labels).loss, model(ids.input_ids, labels=labels).loss)
    assert not [name for name in model.state_dict() if "processor" in name]
    new = TotoForImageClassification(model.config.from_pretrained(root / "image")).eval()
    new.config._name_or_path = ""
    with pytest.raises(ValueError, match="not loaded from a folder, so its visual tokenizer is not known"):
        new(pixel_values=image)
    new.processor = processor
    assert new(pixel_values=image).logits.shape == (4, 3)


def test_mistakes_get_a_sentence(folders, processor, tmp_path):
    root, pictures = folders
    model = TotoForVideoClassification.from_pretrained(root / "video").eval()
    image = processor.image_processor(list(pictures), return_tensors="pt").pixel_values
    for wrong, words in (
        (image, r"hold 6 frames, which are not clips of the model's 4 frames; pass \(clips, frames, 3, H, W\)"),
        (image[0], r"pixel_values are torch.float32 \(3, 32, 32\)"),
        ((image[:4] * 255).byte(), "pixel_values are torch.uint8"),
        (image[:4] * 2 - 1, "not from 0 to 1; prepare them with the image processor"),
        (image[:4] * torch.nan, "pixel_values reach from nan to nan"),
    ):
        with pytest.raises(ValueError, match=words):
            model(pixel_values=wrong)
    with pytest.raises(ValueError, match="together with ids or embeddings"):
        model(torch.ones(1, 3, dtype=torch.long), pixel_values=image[:4])
    causal = AutoModelForImageClassification.from_pretrained(root / "causal")
    with pytest.raises(ValueError, match=r"The processor of .*causal was not loaded.*processor\.save_pretrained"):
        causal(pixel_values=image[:4])


REMOTE = """
import sys, torch
from transformers import pipeline
root = sys.argv[1]
out = {}
for folder, media in (("image", "rose.png"), ("video", "clip.mkv")):
    task = folder + "-classification"
    run = pipeline(task, model=root + "/" + folder, trust_remote_code=True, device="cpu")
    assert type(run.model).__module__.startswith("transformers_modules."), type(run.model)
    out[task] = {each["label"]: each["score"] for each in run(root + "/" + media)}
run = pipeline("image-feature-extraction", model=root + "/image", trust_remote_code=True, device="cpu")
out["features"] = run(root + "/rose.png", return_tensors=True)
torch.save(out, sys.argv[2])
"""


@torch.no_grad()
def test_pipelines_of_remote_code(folders, processor, model, tmp_path):
    """Where this package is not installed, with trust_remote_code=True."""
    root, pictures = folders
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + REMOTE, str(root), str(tmp_path / "out.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    ids = processor(images=pictures[0]).input_ids
    assert out["image-classification"] == pytest.approx(expected_scores(root / "image", ids), rel=1e-4)
    ids_of_clip = processor(videos=pictures[:4]).input_ids
    assert out["video-classification"] == pytest.approx(expected_scores(root / "video", ids_of_clip), rel=1e-4)
    torch.testing.assert_close(out["features"], model.model(ids).last_hidden_state)
