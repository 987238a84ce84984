"""Features in mapped files: as computed at once, from parts, after a kill, by two processes; never of other data."""

import json

import av
import numpy as np
import pytest
import torch
from backbone_zoo import save

from evaluation.backbones import extraction
from evaluation.backbones.extraction import Job, data_key, dataset_fingerprint, extract
from evaluation.backbones.floors import PixelBackbone
from evaluation.backbones.load import load_backbone
from evaluation.backbones.toto import TotoBackbone
from tokenization.sampling import Sampling
from tokenization.sources.open import open_source

CPU = torch.device("cpu")


@pytest.fixture
def backbone(model, processor):
    return TotoBackbone(model, processor, device=CPU)


def world(limit: int = 10):
    return open_source("toyworld", "train", Sampling(num_frames=4, resolution=32), limit=limit)


def assert_same(a, b):
    assert a.sources == b.sources and a.skipped == b.skipped
    assert all(np.array_equal(a.labels[column], b.labels[column]) for column in a.labels)
    for groups, others in zip(a.features, b.features, strict=True):
        for one, other in zip(groups, others, strict=True):
            assert one.layers == other.layers and torch.equal(one.pooled, other.pooled)
            assert one.tokens is other.tokens is None or torch.equal(one.tokens, other.tokens)


def test_features_are_those_of_the_grids(backbone, tmp_path):
    jobs = [Job(backbone, [1, 3], 8), Job(PixelBackbone(CPU), [0], None)]
    found = extract(world(), "train", jobs, tmp_path, batch_size=3, progress=False)
    clips = list(world())
    frames = torch.stack([torch.as_tensor(clip.frames) for clip in clips])
    grids = backbone.grids(backbone.prepare(frames), [1, 3])
    (group,) = found.features[0]
    assert group.layers == [1, 3] and group.pooled.shape == (2, 10, 32) and group.tokens.shape == (2, 10, 8, 32)
    assert group.tokens.dtype == torch.float16
    for row, layer in enumerate((1, 3)):
        mean, tokens = backbone.summarise(grids[layer], 8)
        torch.testing.assert_close(group.pooled[row], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(group.tokens[row].float(), tokens, rtol=1e-2, atol=2e-3)
    (pixels,) = found.features[1]
    assert pixels.tokens is None and pixels.pooled.shape == (1, 10, 4 * 16 * 16 * 3)
    assert found.sources == [clip.source for clip in clips]
    assert found.labels["motion"].tolist() == [clip.labels["motion"] for clip in clips]


def test_a_long_caption_costs_its_own_length_only(tmp_path):
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as Picture

    rows = {"image": [Picture.new("RGB", (40, 40))] * 6, "caption": ["short"] * 5 + ["long" * 25_000]}
    Dataset.from_dict(rows, Features({"image": Image(), "caption": Value("string")})).to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), "train", Sampling(resolution=32))
    found = extract(source, "train", [Job(PixelBackbone(CPU), [0], None)], tmp_path / "cache", progress=False)
    assert found.labels["caption"].tolist() == rows["caption"] and found.labels["caption"].nbytes < 1000


def test_the_bar_counts_what_there_is(tmp_path, monkeypatch):
    from PIL import Image as Picture

    for number in range(5):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Picture.new("RGB", (20, 16), (50 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    bars, made = [], extraction.tqdm

    def watched(*args, **options):
        bars.append(made(*args, **options))
        return bars[-1]

    monkeypatch.setattr(extraction, "tqdm", watched)
    sampling = Sampling(num_frames=2, stride=1, resolution=16)
    pixels = PixelBackbone(CPU)
    for limit in (7500, 3):
        photos = open_source(str(tmp_path / "photos"), "train", sampling, limit=limit)
        extract(photos, "train", [Job(pixels, [0], None)], tmp_path / f"images-{limit}")
    (tmp_path / "videos").mkdir()
    for number in range(2):
        with av.open(str(tmp_path / "videos" / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for _ in range(6):
                frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    videos = open_source(str(tmp_path / "videos"), "train", sampling, limit=7500)
    assert len(extract(videos, "train", [Job(pixels, [0], None)], tmp_path / "of_videos")) == 6
    assert [(bar.total, bar.n, bar.unit) for bar in bars] == [(5, 5, " images"), (3, 3, " images"), (2, 2, " videos")]
    assert bars[2].postfix == "6 clips of at most 7,500"


def test_a_second_time_nothing_runs(backbone, tmp_path, monkeypatch):
    jobs = [Job(backbone, [2], 4)]
    first = extract(world(), "train", jobs, tmp_path, progress=False)
    monkeypatch.setattr(extraction, "_fill", None)
    assert_same(first, extract(world(), "train", jobs, tmp_path, progress=False))
    assert not list(tmp_path.rglob("parts/*.safetensors"))


def test_a_killed_run_resumes_after_its_parts(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "PART_ROWS", 12)  # three clips of four frames
    jobs = [Job(backbone, [0, 3], 4), Job(PixelBackbone(CPU), [0], 4)]
    whole = extract(world(), "train", jobs, tmp_path / "whole", progress=False)
    prepared, prepare = [], TotoBackbone.prepare

    def dies(self, frames, image=False):
        if len(prepared) == 2:
            raise KeyboardInterrupt
        prepared.append(len(frames))
        return prepare(self, frames, image)

    monkeypatch.setattr(TotoBackbone, "prepare", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(world(), "train", jobs, tmp_path / "killed", progress=False)
    monkeypatch.setattr(TotoBackbone, "prepare", lambda *a, **k: prepared.append(1) or prepare(*a, **k))
    prepared.clear()
    assert_same(whole, extract(world(), "train", jobs, tmp_path / "killed", progress=False))
    assert len(prepared) == 2  # of four parts, two were there


def test_another_backbone_is_added_to_the_same_clips(backbone, tmp_path):
    extract(world(), "train", [Job(backbone, [1], None)], tmp_path, progress=False)
    both = extract(world(), "train", [Job(backbone, [1], None), Job(backbone, [2], None)], tmp_path, progress=False)
    alone = extract(world(), "train", [Job(backbone, [2], None)], tmp_path / "b", progress=False)
    assert torch.equal(both.features[1][0].pooled, alone.features[0][0].pooled)


def test_the_number_of_processes_changes_nothing(backbone, tmp_path, monkeypatch):
    """Two processes one after the other on the same folder, as they would be at once."""
    monkeypatch.setattr(extraction, "PART_ROWS", 12)
    jobs = [Job(backbone, [1, 2], 4)]
    whole = extract(world(), "train", jobs, tmp_path / "one", progress=False)
    folder = tmp_path / "two"
    folders = [folder / jobs[0].key()]
    (folders[0] / "parts").mkdir(parents=True)
    (folder / "parts").mkdir()
    for rank in (1, 0):
        state = type("State", (), {"process_index": rank, "num_processes": 2})
        work = extraction._Pass(world(), "train", folder, [(jobs[0], folders[0])], backbone.num_frames, 16)
        extraction._fill(work, state, progress=False)
    assert_same(whole, extract(world(), "train", jobs, folder, progress=False))


def test_features_of_another_precision_are_another_entry(backbone, monkeypatch):
    keys = set()
    for fast in (True, False):
        monkeypatch.setattr(extraction, "bf16_is_fast", lambda device, fast=fast: fast)
        keys.add(Job(backbone, [1], None).key())
    assert len(keys) == 2


def test_layers_of_several_widths_are_kept_apart(tmp_path):
    hiera = load_backbone(save("hiera", tmp_path / "hiera"), CPU)
    found = extract(world(4), "train", [Job(hiera, [0, 1, 2, 3], 4)], tmp_path / "cache", progress=False)
    assert [(group.layers, group.pooled.shape[-1]) for group in found.features[0]] == [([0, 1], 8), ([2, 3], 16)]


def test_rows_are_taken_in_memory_or_in_a_file(backbone, tmp_path, monkeypatch):
    found = extract(world(), "train", [Job(backbone, [1, 2], 4)], tmp_path, progress=False)
    rows = np.array([7, 2, 5])
    small = found.take(rows, "some", tmp_path)
    monkeypatch.setattr(extraction, "IN_MEMORY", 0)
    assert_same(small, found.take(rows, "some", tmp_path))
    assert small.sources == [found.sources[row] for row in rows]
    assert torch.equal(small.features[0][0].tokens, found.features[0][0].tokens[:, rows])


def test_frames_can_be_changed(backbone, tmp_path):
    jobs = [Job(backbone, [3], None)]
    plain = extract(world(), "train", jobs, tmp_path / "a", progress=False)
    turned = extract(world(), "train", jobs, tmp_path / "b", change=lambda f, name: f[::-1].copy(), progress=False)
    assert not torch.allclose(plain.features[0][0].pooled, turned.features[0][0].pooled)


def test_keys_change_with_the_data(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    first = dataset_fingerprint(str(tmp_path))
    assert dataset_fingerprint(str(tmp_path)) == first
    (tmp_path / "a.png").write_bytes(b"12")
    assert dataset_fingerprint(str(tmp_path)) != first
    keys = {
        data_key(dataset_fingerprint(name), split, {"limit": n})
        for name in ("toyworld", "toyworld:film")
        for split in "ab"
        for n in (1, 2)
    }
    assert len(keys) == 8
    assert dataset_fingerprint("user/some_dataset") is None  # offline, the data is unknown


def test_nothing_to_read(backbone, tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "broken.mp4").write_bytes(b"no video")
    source = open_source(str(tmp_path / "media"), "train", Sampling(num_frames=4, resolution=32))
    with pytest.raises(ValueError, match=r"Split train gave no clips \(1 skipped; the first: "):
        extract(source, "train", [Job(backbone, [1], None)], tmp_path / "cache", progress=False)
    assert json.loads((tmp_path / "cache" / "items.json").read_text())["sources"] == []
