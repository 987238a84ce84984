"""Layers are what they are called, early exit changes nothing, special tokens stay out."""

import pytest
import torch

from evaluation.backbones.contract import normalise, pooled_size, pooling_matrix
from evaluation.backbones.load import load_backbone
from evaluation.backbones.toto import TotoBackbone
from training.engine.device import fast_autocast

CPU = torch.device("cpu")
CLIPS = torch.randint(0, 256, (5, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def backbone(model, processor):
    return TotoBackbone(model, processor, device=CPU)


def manual(model, ids, blocks):
    """The residual stream after `blocks` blocks, written out, in the precision that this machine gets."""
    trunk = model.model
    with fast_autocast(CPU):
        hidden = trunk.embed_tokens(ids)
        position = trunk.rotary_emb(hidden, position_ids=torch.arange(ids.shape[1])[None])
        for block in trunk.layers[:blocks]:
            hidden = block(hidden, position_embeddings=position)
    return hidden


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@torch.no_grad()
def test_layer_k_is_the_stream_after_k_blocks(backbone, model, layer):
    ids = backbone.prepare(CLIPS)
    grid = backbone.grids(ids, [layer])[layer]
    expected = normalise(manual(model, ids, layer)[:, 1:]).view(5, 4, 4, 4, 32)
    torch.testing.assert_close(grid, expected, rtol=1e-4, atol=1e-4)


def test_layer_0_is_the_embeddings_of_the_codes(backbone, model, processor):
    grid = backbone.grids(backbone.prepare(CLIPS), [0])[0]
    codes = processor.encode_frames(CLIPS.flatten(0, 1)).view(5, 4, 4, 4)
    torch.testing.assert_close(grid, normalise(model.model.embed_tokens.weight[codes + 64]))


def test_early_exit_equals_full_run_and_runs_fewer_blocks(backbone, model):
    ids = backbone.prepare(CLIPS)
    full = backbone.grids(ids, [0, 1, 2, 3])
    ran = []
    hooks = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(model.model.layers)]
    shallow = backbone.grids(ids, [1, 2])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]
    assert list(shallow) == [1, 2]
    for layer in shallow:
        assert torch.equal(shallow[layer], full[layer])
    assert len(model.model.layers) == 3 and type(model.model.norm).__name__ == "LlamaRMSNorm"


def test_the_model_is_whole_again_after_an_error(backbone, model):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        backbone.grids(torch.full((1, 17), 10**6), [1])
    assert len(model.model.layers) == 3 and not model.model.layers[0]._forward_pre_hooks


def test_image_rows_start_with_the_image_token(backbone):
    assert backbone.prepare(CLIPS[:, :1], image=True)[:, 0].tolist() == [3] * 5
    assert backbone.prepare(CLIPS[:, :1])[:, 0].tolist() == [1] * 5
    assert backbone.prepare(CLIPS).shape == (5, 1 + 4 * 16)  # no end token


def test_unknown_layers_and_long_clips(backbone):
    with pytest.raises(ValueError, match=r"layers 0 \(embeddings\) to 3, not 4"):
        backbone.grids(backbone.prepare(CLIPS), [4])
    with pytest.raises(ValueError, match="pass --num_frames 4"):
        backbone.prepare(CLIPS.repeat(1, 2, 1, 1, 1))


def test_untrained_twin_depends_on_its_seed_only(backbone):
    ids = backbone.prepare(CLIPS)
    state = torch.random.get_rng_state()
    first, again, other = (backbone.untrained(seed).grids(ids, [3])[3] for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.allclose(first, backbone.grids(ids, [3])[3])


def test_summaries_are_the_mean_and_few_tokens(backbone):
    ids = backbone.prepare(CLIPS)
    grid = backbone.grids(ids, [1, 3])[3]
    mean, tokens = backbone.summarise(grid, 8)
    torch.testing.assert_close(mean, grid.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    blocks = grid.view(5, 2, 2, 2, 2, 2, 2, 32).mean((2, 4, 6)).flatten(1, 3)
    torch.testing.assert_close(tokens, blocks, rtol=1e-4, atol=1e-5)
    assert backbone.summarise(grid, None)[1] is None


def test_another_resolution_is_another_number_of_tokens(checkpoint, backbone):
    wide = load_backbone(checkpoint, CPU, resolution=64)
    frames = torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    assert wide.resolution == 64 and wide.grids(wide.prepare(frames), [2])[2].shape == (2, 2, 8, 8, 32)
    assert wide.fingerprint() != backbone.fingerprint()
    with pytest.raises(ValueError, match="--resolution 60 is not a multiple of the tokenizer's 8 pixels per code"):
        load_backbone(checkpoint, CPU, resolution=60)


def test_pooling_matrix_is_adaptive_average_pooling():
    assert pooled_size((16, 8, 8), 64) == (4, 4, 4)
    assert pooled_size((1, 8, 8), 64) == (1, 8, 8)
    x = torch.randn(2, 3, 5, 7, 4)  # (B, C, T, H, W)
    expected = torch.nn.functional.adaptive_avg_pool3d(x, (3, 4, 2)).flatten(2)
    torch.testing.assert_close(x.flatten(2) @ pooling_matrix((5, 7, 4), (3, 4, 2)).T, expected)


def test_load_backbone_knows_toto(checkpoint, model, processor):
    backbone = load_backbone(checkpoint, CPU)
    ids = backbone.prepare(CLIPS)
    expected = TotoBackbone(model, processor, device=CPU).grids(ids, [3])[3]
    torch.testing.assert_close(backbone.grids(ids, [3])[3], expected)
    turned = load_backbone(checkpoint, CPU, rope_base=2.0).grids(ids, [0, 3])
    torch.testing.assert_close(turned[0], backbone.grids(ids, [0])[0])  # positions enter in the blocks
    assert not torch.allclose(turned[3], expected, atol=1e-2)
