"""`toto probe --stream` reports what the cached probe reports, keeps ids only, and both say what they need on disk."""

import contextlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_zoo import save
from PIL import Image

from evaluation.backbones import contract
from evaluation.backbones.inputs import KeptInputs, ReadInputs, input_jobs
from evaluation.backbones.load import load_backbone
from evaluation.backbones.toto import TotoBackbone
from evaluation.probe import plan, run
from evaluation.probe.args import ProbeArgs
from evaluation.probe.command import main
from evaluation.probe.plan import bytes_of_clip
from tokenization.sampling import Sampling
from tokenization.sources.open import ClipSource, open_source
from training.engine.device import EVALUATION_LIMIT

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(contract, "fast_autocast", lambda device: contextlib.nullcontext())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    """Two classes that differ in brightness and overlap: 40 + 24 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 24)):
        for number in range(count):
            name, base = (("bright", 60), ("dark", 20))[number % 2]
            path = folder / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((base + rng.integers(0, 160, (40, 32, 3))).astype(np.uint8)).save(path)
    return str(folder)


def probe(model: str, dataset: str, folder, *flags: str) -> dict:
    folder.mkdir()
    where = ("--output", str(folder / "probe.json"), "--feature_cache", str(folder / "cache"))
    main(["--model", model, "--dataset", dataset, *where, "--predictions", "--epochs", "4", *flags])
    assert [path.name for path in folder.glob("probe.*")] and not (folder / "probe.partial").exists()
    return json.loads((folder / "probe.json").read_text())


def check_same(streamed: dict, kept: dict) -> None:
    """Layers, rates, accuracies and the predictions for every item, of the model and of its baselines."""
    assert streamed["tasks"].keys() == kept["tasks"].keys() and streamed["data"] == kept["data"]
    for label, task in kept["tasks"].items():
        ours = streamed["tasks"][label]
        assert ours["predictions"] == task["predictions"]
        for a, b in [(ours["layers"], task["layers"])] + [
            (ours["baselines"][name].get("layers", [ours["baselines"][name]]), each.get("layers", [each]))
            for name, each in task["baselines"].items()
        ]:
            assert a == b and len(a) > 0
        assert ours["best"] == task["best"]


TOY = ("--max_train", "60", "--max_eval", "40", "--num_frames", "2", "--label_column", "motion", "texture")


def test_clips_of_a_toto(checkpoint, tmp_path, capsys):
    """With the baselines that read ids and small pictures, on a Toto whose codes are kept in two bytes each."""
    flags = (*TOY, "--baselines", "pixels", "untrained", "histogram")
    kept = probe(checkpoint, "toyworld", tmp_path / "kept", *flags)
    assert "streamed" not in capsys.readouterr().out
    streamed = probe(checkpoint, "toyworld", tmp_path / "streamed", *flags, "--stream")
    check_same(streamed, kept)
    told = capsys.readouterr().out
    # 110 clips of 33 ids of two bytes and of 2 x 32 x 32 x 3 pixels; no features
    assert "inputs of the backbones add 683 kB" in told and "features would add" in told
    arrays = [np.load(file, mmap_mode="r") for file in (tmp_path / "streamed").rglob("*.npy")]
    assert {(array.dtype.name, array.shape[2:]) for array in arrays} == {("int16", (33,)), ("uint8", (2, 32, 32, 3))}
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).rglob("*.npy")) for name in ("streamed", "kept")]
    assert sizes[0] < 720_000 < sizes[1] / 2


def test_pictures_of_a_vision_model_are_read_again(pictures, tmp_path, capsys):
    """Nothing is kept of them. Layers have two widths, and validation is carved from the training pictures."""
    model = str(save("hiera", tmp_path / "hiera"))
    flags = ("--baselines", "none", "--layers", "0", "1", "3")
    kept = probe(model, pictures, tmp_path / "kept", *flags)
    streamed = probe(model, pictures, tmp_path / "streamed", *flags, "--stream")
    check_same(streamed, kept)
    assert "inputs of the backbones add 0 kB" in capsys.readouterr().out
    assert not list((tmp_path / "streamed").rglob("*.npy"))


def test_a_second_model_reads_the_same_ids(checkpoint, tmp_path, monkeypatch):
    probe(checkpoint, "toyworld", tmp_path / "first", *TOY, "--stream", "--baselines", "none")
    encoded = []
    prepare = TotoBackbone.prepare
    monkeypatch.setattr(TotoBackbone, "prepare", lambda *a, **k: encoded.append(len(a[1])) or prepare(*a, **k))
    shutil.move(tmp_path / "first" / "cache", tmp_path / "cache")
    (tmp_path / "second").mkdir()
    other = ["--rope_base", "500", "--output", str(tmp_path / "second" / "probe.json"), "--epochs", "1"]
    where = ["--model", checkpoint, "--dataset", "toyworld", "--feature_cache", str(tmp_path / "cache")]
    main([*where, *other, *TOY, "--stream", "--baselines", "none", "--heads", "linear"])
    assert all(count == 1 for count in encoded), "only black clips, to learn the sizes"


def test_clips_are_read_again_in_any_order(pictures):
    """Crops of one picture share its name; frames are changed as before."""
    source = open_source(pictures, "test", Sampling(resolution=32, views=(1, 2)), limit=48)
    clips = list(source)
    inputs = ReadInputs(source, [clip.source for clip in clips], torch.as_tensor, lambda frames, name: 255 - frames)
    rows = torch.tensor([47, 0, 3, 2])
    expected = 255 - torch.as_tensor(np.stack([clips[row].frames for row in rows.tolist()]))
    assert torch.equal(inputs.read(rows), expected)
    assert torch.equal(inputs.take(rows).read(torch.tensor([3, 1])), expected[[3, 1]])
    assert inputs.facts() != inputs.take(rows).facts()
    gone = ReadInputs(source, [clips[0].source] * 3, torch.as_tensor, None)
    with pytest.raises(ValueError, match="has changed since the probe began"):
        gone.read(torch.tensor([2]))


def test_kept_inputs_are_taken_again_and_again():
    """Where test and validation are both carved from train."""
    inputs = KeptInputs(torch.arange(20, dtype=torch.int16).view(10, 2))
    taken = inputs.take(torch.tensor([9, 4, 7, 1])).take(torch.tensor([2, 0, 3]))
    assert len(taken) == 3 and taken.read(torch.tensor([1, 2])).tolist() == [[18, 19], [2, 3]]
    assert taken.read(torch.tensor([0])).dtype == torch.int64 and taken.facts() != inputs.facts()


def test_rows_of_tables_and_drawn_clips_are_kept(pictures, tmp_path):
    hiera = load_backbone(save("hiera", tmp_path / "hiera"), CPU)
    sampling = Sampling(num_frames=2, resolution=32)
    for dataset, kept in ((pictures, False), ("toyworld", True)):
        (job,) = input_jobs([hiera], open_source(dataset, "train", sampling, limit=8))
        assert job.kept == kept


def full(monkeypatch, free: int) -> None:
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - free, free))


def test_features_that_do_not_fit_are_refused_before_anything_is_read(checkpoint, pictures, tmp_path, monkeypatch):
    """32 + 8 + 24 pictures, 4 layers of 32 wide tokens; the training pictures twice while they are merged."""
    full(monkeypatch, 100_000)
    flags = ("--baselines", "none", "--max_tokens", "4")
    sentence = r"The features take 98.3 kB \(160 kB while it is merged\) and .* has 100 kB free; add --stream"
    with pytest.raises(ValueError, match=sentence):
        probe(checkpoint, pictures, tmp_path / "kept", *flags)
    assert not list((tmp_path / "kept").rglob("*.safetensors"))
    full(monkeypatch, 200_000)
    assert probe(checkpoint, pictures, tmp_path / "fits", *flags)["n_test"] == 24
    full(monkeypatch, 5_000)
    assert probe(checkpoint, pictures, tmp_path / "streamed", *flags, "--stream")["n_test"] == 24
    full(monkeypatch, 1_000)
    with pytest.raises(ValueError, match=r"The inputs take 2.18 kB \(3.54 kB .* has 1 kB free; name a fold"):
        probe(checkpoint, pictures, tmp_path / "x", *flags, "--stream")


def test_features_that_are_there_need_no_room(checkpoint, pictures, tmp_path, monkeypatch):
    flags = ["--model", checkpoint, "--dataset", pictures, "--baselines", "none", "--epochs", "1"]
    flags += ["--feature_cache", str(tmp_path / "cache"), "--output", str(tmp_path / "a.json")]
    main(flags)
    full(monkeypatch, 0)
    main(flags)


def test_an_unknown_number_of_clips_is_a_warning(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ClipSource, "count_clips", lambda source: None)
    full(monkeypatch, 1_000)
    probe(checkpoint, "toyworld", tmp_path / "a", *TOY, "--baselines", "none", "--heads", "linear")
    assert "warning: The features take at most " in capsys.readouterr().out


def test_clips_are_counted(checkpoint, pictures, tmp_path):
    sampling = Sampling(num_frames=2, resolution=32)
    views = replace(sampling, views=(1, 3))
    assert open_source(pictures, "train", sampling, limit=100).count_clips() == 40
    assert open_source(pictures, "train", sampling, limit=30).count_clips() == 30
    assert open_source(pictures, "train", views, limit=100).count_clips() == 100
    assert open_source(pictures, "train", views).count_clips() == 120
    assert open_source("toyworld", "train", sampling, limit=7).count_clips() == 7
    pixels = run.open_backbones(ProbeArgs(model=checkpoint, output="x.json"), CPU)["pixels"]
    assert bytes_of_clip(pixels, sampling, is_image=True) == 4 * 32 * 32 * 3 + 2 * 16 * 192


def test_processes_wait_longer_than_a_merge(checkpoint, monkeypatch):
    asked = {}

    def state(**options):
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "PartialState", state)
    with pytest.raises(KeyboardInterrupt):
        main(["--model", checkpoint, "--output", "x.json"])
    assert asked["timeout"] == EVALUATION_LIMIT and EVALUATION_LIMIT.total_seconds() >= 24 * 3600


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--heads", "linear", "knn"), "--stream keeps no features, which the heads knn read; leave out either"),
        (("--group_by", "x", "--leave_one_group_out"), "trains on kept features only; leave --stream out"),
    ],
)
def test_what_needs_kept_features_is_refused(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        main(["--model", "m", "--output", "x.json", "--stream", *flags])
