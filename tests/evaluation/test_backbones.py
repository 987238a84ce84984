"""Every baseline of the paper through one contract, from tiny checkpoints on disk: shapes, layers, order of tokens."""

import json

import pytest
import torch
from backbone_zoo import ZOO, save

from evaluation.backbones.contract import normalise
from evaluation.backbones.load import load_backbone
from evaluation.backbones.vision_models import FrameBackbone
from training.engine.device import fast_autocast

CPU = torch.device("cpu")


def clips(backbone, count: int = 2, time: int = 4) -> torch.Tensor:
    side = backbone.resolution
    return torch.randint(
        0, 256, (count, time, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module", params=ZOO)
def loaded(request, tmp_path_factory):
    """(name, backbone, folder)"""
    folder = tmp_path_factory.mktemp("zoo")
    return request.param, load_backbone(save(request.param, folder), CPU), folder


def expected_depth(config: dict) -> int:
    """The number of blocks that a saved config names."""
    if "depths" in config:
        return sum(config["depths"])
    config = config.get("vision_config" if config["model_type"] == "clip" else "text_config", config)
    return config.get("num_hidden_layers") or config["n_layer"]


def test_shapes_and_layers_are_those_of_the_config(loaded):
    name, backbone, folder = loaded
    config = json.loads((folder / "config.json").read_text())
    _, _, shape, widths = ZOO[name]
    assert backbone.depth == expected_depth(config) == len(widths) - 1
    layers = list(range(backbone.depth + 1))
    grids = backbone.grids(backbone.prepare(clips(backbone)), layers)
    assert list(grids) == layers and [grid.shape[-1] for grid in grids.values()] == widths
    if shape is None:  # Hiera: 8 x 8 tokens, and 4 x 4 from the second stage on
        assert [tuple(grid.shape[1:4]) for grid in grids.values()] == [(4, 8, 8)] * 2 + [(4, 4, 4)] * 2
    else:
        assert {tuple(grid.shape) for grid in grids.values()} == {(2, *shape, 24)}
    for grid in grids.values():
        assert grid.dtype == torch.float32 and grid.isfinite().all()
        torch.testing.assert_close(grid.mean(-1), torch.zeros(grid.shape[:-1]), atol=1e-4, rtol=0)  # normalised
    assert not torch.equal(grids[0], grids[backbone.depth])


def test_early_exit_changes_nothing_and_stops(loaded):
    _, backbone, _ = loaded
    inputs = backbone.prepare(clips(backbone))
    every = backbone.grids(inputs, list(range(backbone.depth + 1)))
    ran = []
    hooks = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(backbone.blocks)]
    shallow = backbone.grids(inputs, [0, 1])
    for hook in hooks:
        hook.remove()
    assert ran == [0]
    for layer in (0, 1):
        torch.testing.assert_close(shallow[layer], every[layer])
    assert not backbone.blocks[1]._forward_pre_hooks  # the model is as it was


def test_pictures_and_the_untrained_twin(loaded):
    _, backbone, _ = loaded
    pictures = backbone.prepare(clips(backbone, time=1), image=True)
    deepest = backbone.depth
    grid = backbone.grids(pictures, [deepest])[deepest]
    assert grid.shape[0] == 2 and grid.shape[2] > 1
    state = torch.random.get_rng_state()
    twins = [backbone.untrained(seed) for seed in (7, 7, 8)]
    assert torch.equal(state, torch.random.get_rng_state())
    first, again, other = (twin.grids(pictures, [deepest])[deepest] for twin in twins)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.allclose(first, grid)
    assert twins[0].fingerprint() == twins[1].fingerprint() != twins[2].fingerprint() != backbone.fingerprint()


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("chameleon", "emu3", "janus")])
def test_tokens_are_where_their_pixels_are(name, tmp_path):
    """Changing the bottom right of the last frame changes the last token of layer 0 and no token of the first row.

    Not so of the three whose tokenizers' attention sees the whole of a small picture.
    """
    backbone = load_backbone(save(name, tmp_path), CPU)
    frames = clips(backbone)
    changed = frames.clone()
    changed[:, -1, -1, -1] ^= 255
    before, after = (backbone.grids(backbone.prepare(f), [0])[0] for f in (frames, changed))
    differs = (before != after).any(-1)
    assert differs[:, -1, -1, -1].all() and not differs[:, :, 0].any() and not differs[:, 0].any()


def test_image_gpt_is_causal(tmp_path):
    backbone = load_backbone(save("imagegpt", tmp_path), CPU)
    frames = clips(backbone, time=1)
    changed = frames.clone()
    changed[:, :, 4:] ^= 255
    before, after = (backbone.grids(f, [2])[2] for f in (frames, changed))
    assert torch.equal(before[:, :, :4], after[:, :, :4]) and not torch.equal(before[:, :, 4:], after[:, :, 4:])


def test_mae_sees_every_patch_in_order(tmp_path):
    """As the plain ViT that its encoder is."""
    backbone = load_backbone(save("vit_mae", tmp_path), CPU)
    frames = clips(backbone, time=1)
    assert torch.equal(backbone.grids(frames, [2])[2], backbone.grids(frames, [2])[2])
    model, pixels = backbone.model, backbone.pixel_values(frames[:, 0])
    with torch.no_grad(), fast_autocast(CPU):
        hidden = model.embeddings.patch_embeddings(pixels) + model.embeddings.position_embeddings[:, 1:]
        start = (model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]).expand(2, -1, -1)
        hidden = torch.cat([start, hidden], 1)
        for block in model.layers:
            hidden = block(hidden)
    expected = normalise(hidden[:, 1:]).view(2, 1, 4, 4, 24)
    torch.testing.assert_close(backbone.grids(frames, [2])[2], expected, rtol=1e-4, atol=1e-4)


def test_hiera_last_layer_is_the_models_own(tmp_path):
    backbone = load_backbone(save("hiera", tmp_path), CPU)
    frames = clips(backbone, time=1)
    with torch.no_grad(), fast_autocast(CPU):
        own = backbone.model(backbone.pixel_values(frames[:, 0]), output_hidden_states=True).reshaped_hidden_states
    for layer, stage in ((0, 0), (1, 1), (3, 2)):  # after the embeddings, the first stage and the second
        grid = backbone.grids(frames, [layer])[layer][:, 0]
        torch.testing.assert_close(grid, normalise(own[stage]), rtol=1e-4, atol=1e-4)


def test_resolution(tmp_path):
    folder = save("vit (DINO)", tmp_path / "vit")
    backbone = load_backbone(folder, CPU, resolution=48)
    assert backbone.grids(clips(backbone), [2])[2].shape == (2, 4, 6, 6, 24)
    with pytest.raises(ValueError, match="--resolution 50 is not a multiple of the 8-pixel patches"):
        load_backbone(folder, CPU, resolution=50)
    for name in ("hiera", "videomae", "aimv2"):
        with pytest.raises(ValueError, match="only frames of 32 pixels"):
            load_backbone(save(name, tmp_path / name), CPU, resolution=64)
    big = load_backbone(save("vjepa2", tmp_path / "vjepa2"), CPU, resolution=48)
    assert big.grids(clips(big), [1])[1].shape == (2, 2, 6, 6, 24)
    own = load_backbone(save("dinov2", tmp_path / "dinov2", {"crop_size": {"height": 16, "width": 16}}), CPU)
    assert own.resolution == 16  # of the preprocessor, where the position table is of 32 pixels
    assert own.grids(clips(own), [2])[2].shape == (2, 4, 2, 2, 24)


def test_statistics_of_the_preprocessor_file(tmp_path):
    file = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}
    backbone = load_backbone(save("beit", tmp_path, file), CPU)
    values = backbone.pixel_values(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


def test_what_cannot_be_probed(tmp_path):
    from transformers import (
        BertConfig,
        BertModel,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
        YolosConfig,
        YolosModel,
    )

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    YolosModel(YolosConfig(**small, image_size=[32, 32], patch_size=8)).save_pretrained(tmp_path / "yolos")
    with pytest.raises(ValueError, match="detection tokens after its patches"):
        load_backbone(tmp_path / "yolos", CPU)
    ViTModel(ViTConfig(**small, image_size=[32, 64], patch_size=8)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="use a model of square frames"):
        load_backbone(tmp_path / "wide", CPU)
    text = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="has no layers of patch tokens"):
        load_backbone(str(tmp_path / "text"), CPU)
    net = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], num_channels=3))
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="has no list of blocks whose hidden states can be probed"):
        load_backbone(str(tmp_path / "net"), CPU)
    with pytest.raises(ValueError, match="has no colour clusters"):
        load_backbone(save("imagegpt", tmp_path / "gpt", {}), CPU)
    clip = load_backbone(save("videomae", tmp_path / "videomae"), CPU)
    with pytest.raises(ValueError, match="only clips of 4 frames; leave --num_frames out"):
        clip.grids(clips(clip, time=6), [0])
    assert isinstance(load_backbone(save("aimv2", tmp_path / "aim"), CPU), FrameBackbone)
