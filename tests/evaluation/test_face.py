"""`import evaluation` is quick, and what it hands on does what the commands do."""

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from backbone_zoo import save
from PIL import Image

import evaluation
from evaluation import continue_clip, extract_features, fit_probe, load_backbone
from evaluation import generate as generate_module
from evaluation.backbones.extraction import Job, extract
from tokenization import Clip, Sampling, open_source

CPU = torch.device("cpu")
CLIPS = np.random.default_rng(0).integers(0, 256, (5, 4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, "cpu")


@pytest.mark.parametrize("package", ["evaluation", "training"])
def test_importing_the_package_imports_nothing_heavy(package):
    code = f"import {package}, sys; print(*sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


@pytest.mark.parametrize("package", ["evaluation", "training", "tokenization"])
def test_every_name_of_the_face_is_there_typed_and_documented(package):
    module = __import__(package)
    assert set(dir(module)) == set(module.__all__)
    source = Path(module.__file__).read_text()
    for name in module.__all__:
        found = getattr(module, name)
        assert inspect.getdoc(found), name
        assert f"import {name} as {name}\n" in source, f"type checkers do not see {package}.{name}"
        if inspect.isfunction(found):
            parameters = inspect.signature(found).parameters.values()
            assert all(p.annotation is not p.empty for p in parameters), name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    assert (Path(module.__file__).parent / "py.typed").is_file()


def test_help_reads_like_an_api_page():
    page = pydoc.render_doc(evaluation, renderer=pydoc.plaintext)
    for name in ("continue_clip", "extract_features", "fit_probe", "load_backbone"):
        start = page.index(f"\n    {name}(")
        assert "Args:" in page[start : start + 3000] and "Raises:" in page[start : start + 3000]
    assert "__getattr__" not in page  # one class and four functions
    assert page.count("\n    class ") == 1 and "\n    class StreamingFeatures(" in page


# --- backbones and features


def test_a_run_stands_for_its_newest_checkpoint(backbone, checkpoint, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000003").symlink_to(checkpoint)
    found = load_backbone(tmp_path, CPU)
    assert torch.equal(extract_features(found, CLIPS).pooled, extract_features(backbone, CLIPS).pooled)
    assert found.name.endswith("step_000003")
    with pytest.raises(FileNotFoundError, match="neither a run folder"):
        load_backbone(tmp_path / "checkpoints", CPU)


def test_features_are_those_of_the_data_set(backbone, tmp_path):
    """Of the same clips, in another number of batches."""
    source = open_source("toyworld", "test", Sampling(4, resolution=32), limit=5)
    (expected,) = extract(source, "test", [Job(backbone, [1, 3], 8)], tmp_path, progress=False).features[0]
    found = extract_features(backbone, source, [1, 3], max_tokens=8, batch_size=2)
    assert found.layers == expected.layers and found.tokens.dtype == torch.float16
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-2, atol=1e-2)


def test_every_layer_by_default_and_in_the_order_that_is_asked(backbone):
    every = extract_features(backbone, CLIPS)
    assert every.layers == [0, 1, 2, 3] and every.pooled.shape == (4, 5, 32) and every.tokens is None
    assert torch.equal(extract_features(backbone, CLIPS, [3, 1]).pooled, every.pooled[[3, 1]])


def test_clips_of_any_form_and_size(backbone, tmp_path):
    expected = extract_features(backbone, CLIPS).pooled
    forms = [
        torch.from_numpy(CLIPS),
        list(CLIPS),
        [list(clip) for clip in CLIPS],
        [Clip(clip, "clip") for clip in CLIPS],
        CLIPS.repeat(2, axis=2).repeat(2, axis=3).astype(np.float32) / 255,
    ]
    for form in forms[:-1]:
        assert torch.equal(extract_features(backbone, form).pooled, expected)
    assert extract_features(backbone, forms[-1]).pooled.shape == expected.shape


def test_images_have_the_start_token_of_images(backbone, tmp_path):
    pictures = CLIPS[:, 0]
    backbone_rows = backbone.grids(backbone.prepare(pictures[:, None], image=True), [2])[2]
    Image.fromarray(pictures[2]).save(tmp_path / "picture.png")
    mixed = [Image.fromarray(pictures[0]), pictures[1], tmp_path / "picture.png", *pictures[3:]]
    found = extract_features(backbone, mixed, [2])
    torch.testing.assert_close(found.pooled[0], backbone_rows.flatten(1, 3).mean(1), rtol=1e-4, atol=1e-4)


def test_videos_by_path(backbone, video):
    found = extract_features(backbone, [video], [1])
    assert found.pooled.shape == (1, 1, 32)
    clip = next(iter(open_source(str(video), None, Sampling(4, resolution=32))))
    assert torch.equal(found.pooled, extract_features(backbone, [clip], [1]).pooled)


@pytest.mark.parametrize(
    ("clips", "sentence"),
    [
        ([], "There are no clips"),
        (CLIPS[0], r"An array of clips is \(N, T, H, W, 3\)"),
        ("picture.png", "pass a list of them"),
        ([CLIPS[0], CLIPS[1][:2]], "Clip 1 has 2 frames and clip 0 has 4"),
        (np.concatenate([CLIPS, CLIPS], axis=1), "reads at most 4 frames"),
    ],
)
def test_clips_that_are_refused(backbone, clips, sentence):
    with pytest.raises(ValueError, match=sentence):
        extract_features(backbone, clips)


def test_layers_of_other_widths_are_refused(tmp_path):
    hiera = load_backbone(save("hiera", tmp_path), CPU)
    clips = [np.zeros((hiera.resolution, hiera.resolution, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"one width at a time: \[0"):
        extract_features(hiera, clips)
    assert extract_features(hiera, clips, [0]).pooled.shape[:2] == (1, 1)


# --- a probe


def test_a_probe_of_features_at_hand(backbone):
    """Two kinds of clips that the mean colour separates."""
    clips = np.concatenate([CLIPS // 4, 192 + CLIPS // 4] * 4)
    labels = np.array(([0] * 5 + [1] * 5) * 4)
    features = extract_features(backbone, clips)
    rows = torch.arange(40).split([20, 10, 10])
    parts = [part for each in rows for part in (features.take(each), labels[each])]
    probe = fit_probe(*parts, head="ridge")
    assert probe.accuracy == 1.0 and (probe.predictions == labels[30:]).all()
    assert probe.layer in probe.val_accuracies and probe.val_accuracies[probe.layer] == probe.val_accuracy
    assert fit_probe(*parts[:4], head="ridge").accuracy is None


# --- continuing a clip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """16 frames of 40 x 32 pixels."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for level in range(16):
            picture = np.full((32, 40, 3), 15 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_continued_clip_is_that_of_the_command(model, processor, checkpoint):
    expected = generate_module.draw_continuation(model, processor, CLIPS[0], 2, 2, seed=5, top_k=8)["generated"][0]
    options = {"num_prompt_frames": 2, "seed": 5, "top_k": 8}
    found = continue_clip((model, processor), CLIPS[0], 2, **options)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert np.array_equal(continue_clip(checkpoint, CLIPS[0], 2, **options), expected)
    assert not np.array_equal(continue_clip((model, processor), CLIPS[0], 2, **options | {"seed": 6}), expected)


def test_defaults_are_half_of_the_models_frames(model, processor, video):
    found = continue_clip((model, processor), video)
    assert found.shape == (4, 32, 32, 3)
    frames = next(iter(open_source(str(video), None, Sampling(2, resolution=32)))).frames
    assert np.array_equal(found, continue_clip((model, processor), frames))
    assert continue_clip((model, processor), CLIPS[0][:1], 5).shape[0] == 6  # a shorter clip, beyond the context
    assert processor.num_frames == 16  # the caller's processor is left as it was


def test_continuations_that_are_refused(model, processor):
    with pytest.raises(ValueError, match="The clip has 1 frames, and the prompt needs 2"):
        continue_clip((model, processor), CLIPS[0][:1], num_prompt_frames=2)
    with pytest.raises(ValueError, match="The clip has 0 frames"):
        continue_clip((model, processor), CLIPS[0][:0])
    with pytest.raises(ValueError, match="the context of the model has only 4 frames"):
        continue_clip((model, processor), CLIPS[0], num_prompt_frames=5)
    with pytest.raises(ValueError, match="A TotoModel generates no frames"):
        continue_clip((model.model, processor), CLIPS[0])
    assert evaluation.continue_clip is continue_clip
