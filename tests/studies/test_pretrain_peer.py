"""The peers of the probing study: what is saved is read by the probe, costs what is counted, and resumes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.backbones.load import load_backbone
from studies.probing import pretrain_peer
from studies.probing.peer_models import PEERS, MaskedAutoencoder, PixelGPT, augmented, order
from studies.probing.pretrain_peer import PeerArgs, train
from training.publish.media_seen import media_seen
from training.rows.shard_rows import is_held_out

SMALL = {
    "mae": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    | {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    | {"decoder_intermediate_size": 16, "patch_size": 8},
    "igpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, "vocab_size": 9},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """60 pictures of two colours, in halves."""
    folder = tmp_path_factory.mktemp("images") / "train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        picture = np.zeros((32, 32, 3), dtype=np.uint8)
        picture[:, : rng.integers(4, 28)] = rng.integers(0, 256, 3)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder.parent


def arguments(kind, images, output, **more) -> PeerArgs:
    settings = {"max_steps": 8, "batch_size": 6, "config": json.dumps(SMALL[kind]), "learning_rate": 1e-2} | more
    return PeerArgs(kind, str(images), str(output), **settings)


@pytest.fixture(scope="module", params=PEERS)
def trained(request, images, tmp_path_factory):
    """(kind, folder, what study.json says)"""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, folder, train(arguments(request.param, images, folder))


def test_the_probe_reads_what_is_saved(trained):
    kind, folder, study = trained
    backbone = load_backbone(str(folder), torch.device("cpu"))
    assert backbone.depth == 2 and backbone.resolution == study["resolution"]
    side = backbone.resolution
    clips = torch.randint(0, 256, (2, 1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, untrained = (
        model.grids(model.prepare(clips, image=True), [2])[2] for model in (backbone, backbone.untrained(0))
    )
    assert features.shape == untrained.shape == (2, 1, *((4, 4) if kind == "mae" else (16, 16)), 16)
    assert (features - untrained).abs().mean() > 0.1
    weights = torch.cat([parameter.flatten() for parameter in backbone.model.parameters()])
    assert len(weights) == study["probed_parameters"]


def test_study_counts_images_and_the_ledger_knows_them(trained, images):
    _, folder, study = trained
    assert study == json.loads((folder / "study.json").read_text())
    kept = sum(not is_held_out(f"train/{number:03d}.png") for number in range(60))
    assert study["images_seen"] == 48 and study["unique_images"] == min(48, kept) and 50 < kept < 60
    assert study["epochs"] == 48 / kept and study["val_images"] == 60 - kept
    assert study["cpu_seconds"] > 0 and study["flops"] > 0
    (media,) = media_seen(folder)
    assert (media.dataset, media.split, media.kind) == (images.name, "train", "image")
    assert not list(folder.glob("*.pt")) and not folder.with_name("run.partial").exists()


def test_training_lowers_the_loss(trained, images, tmp_path):
    kind, _, short = trained
    longer = train(arguments(kind, images, tmp_path / "longer", max_steps=60))
    assert longer["val_loss"] < short["val_loss"]


def test_a_killed_run_resumes_to_the_same_weights(images, trained, tmp_path, monkeypatch):
    kind, folder, study = trained
    losses = []

    def dies(loss: float) -> bool:  # in the fifth step, before its checkpoint
        losses.append(loss)
        if len(losses) == 5:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(pretrain_peer.math, "isfinite", dies)
    args = arguments(kind, images, tmp_path / "run", save_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(args)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--resume"):
        train(args)
    with pytest.raises(ValueError, match=r"--learning_rate was 0\.01"):
        train(arguments(kind, images, tmp_path / "run", learning_rate=0.1, resume=True))
    resumed = train(arguments(kind, images, tmp_path / "run", resume=True))
    assert resumed["val_loss"] == study["val_loss"] and resumed["steps"] == 8
    file = "model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (folder / file).read_bytes()


def test_budget_in_cpu_minutes_is_kept(images, tmp_path):
    study = train(arguments("mae", images, tmp_path / "run", max_steps=None, minutes=0.01))
    assert 0.6 <= study["cpu_seconds"] < 0.9 and study["steps"] > 1


def test_flops_are_those_of_the_matrices():
    """Counted by PyTorch on a forward pass, whose backward pass costs twice as much."""
    from torch.utils.flop_counter import FlopCounterMode

    for peer, pictures in (
        (MaskedAutoencoder(attn_implementation="eager"), torch.zeros(1, 32, 32, 3, dtype=torch.uint8)),
        (PixelGPT(attn_implementation="eager"), torch.zeros(1, 16, 16, dtype=torch.int16)),
    ):
        with FlopCounterMode(display=False) as counter:
            peer.loss(pictures, torch.Generator().manual_seed(0))
        counted = 3 * counter.get_total_flops()
        if isinstance(peer, PixelGPT):  # half of the pairs of a causal row need not be computed, and eager does
            counted -= 6 * 8 * 192 * 256**2
        assert peer.flops() == pytest.approx(counted, rel=0.02)
        assert 3.5e6 < peer.base.num_parameters() < 3.8e6


def test_order_is_a_permutation_of_every_epoch():
    rows = torch.cat([order(step, 4, 10, seed=1) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(order(2, 4, 10, 1), rows[8:12]) and not torch.equal(order(0, 4, 10, 2), rows[:4])


def test_augmented_pictures_are_moved_and_mirrored():
    picture = torch.arange(64).view(1, 8, 8).expand(200, 8, 8)
    still = augmented(picture, torch.Generator().manual_seed(0), shift=0)
    same, mirrored = (still == picture).all((1, 2)), (still == picture.flip(2)).all((1, 2))
    assert (same ^ mirrored).all() and 60 < same.sum() < 140
    moved = augmented(picture, torch.Generator().manual_seed(0), shift=2)
    assert moved.shape == picture.shape and len(moved.unique(dim=0)) > 20


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"kind": "vae"}, "mae or igpt"),
        ({"max_steps": None}, "either --minutes or --max_steps"),
        ({"minutes": 1.0}, "either --minutes or --max_steps"),
        ({"batch_size": 0}, "--batch_size is 0; it must be above 0"),
    ],
)
def test_nonsense_is_refused(flags, sentence):
    settings = {"kind": "mae", "dataset": "x", "output_dir": "nowhere", "max_steps": 1} | flags
    with pytest.raises(ValueError, match=sentence):
        PeerArgs(**settings)


def test_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="videos"):
        train(PeerArgs("mae", "toyworld", str(tmp_path / "run"), max_steps=1))
