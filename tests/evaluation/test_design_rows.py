"""GPT-2, Mamba and patches (paper Tables 3 and 6), from what pre-training saves to features of every layer."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluation.backbones.contract import normalise
from evaluation.backbones.load import load_backbone
from modeling_toto import TotoConfig, TotoForPatchPrediction
from tokenization.patches import Patches
from training.architectures import peer_config
from training.engine.device import fast_autocast

CPU = torch.device("cpu")
CLIPS = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory):
    """name -> (folder, model); in the layout of rows of the Toto `model`."""
    home, found = tmp_path_factory.mktemp("rows"), {}
    for name in ("gpt2", "mamba"):
        torch.manual_seed(0)
        found[name] = AutoModelForCausalLM.from_config(peer_config(name, model.config)).eval()
        processor.save_pretrained(home / name)
    config = TotoConfig.from_dict(model.config.to_dict() | {"patch_size": 8, "prediction_target": "patch"})
    found["patches"] = TotoForPatchPrediction(config).eval()
    for name, each in found.items():
        each.save_pretrained(home / name)
    return {name: (str(home / name), each) for name, each in found.items()}


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_layers_are_the_hidden_states(saved, processor, name):
    """Layers below the deepest equal what transformers returns; its last hidden state has gone through a norm."""
    folder, peer = saved[name]
    backbone = load_backbone(folder, CPU)
    assert backbone.resolution == 32 and backbone.num_frames == 4 and backbone.depth == peer.config.num_hidden_layers
    ids = backbone.prepare(CLIPS)
    assert ids.shape == (2, 65) and (ids[:, 0] == 1).all()
    grids = backbone.grids(ids, list(range(backbone.depth + 1)))
    with torch.no_grad(), fast_autocast(CPU):
        own = peer(input_ids=ids, output_hidden_states=True).hidden_states
        if name == "mamba":  # whose first one comes after the first block
            own = (peer.get_input_embeddings()(ids), *own)
    for layer in range(backbone.depth):
        expected = normalise(own[layer][:, 1:]).view(2, 4, 4, 4, -1)
        torch.testing.assert_close(grids[layer], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(grids[backbone.depth], grids[backbone.depth - 1], atol=1e-2)
    images = backbone.prepare(CLIPS[:, :1], image=True)
    assert (images[:, 0] == 3).all() and images.shape == (2, 17)


def test_patches_are_where_their_pixels_are(saved):
    folder, model = saved["patches"]
    backbone = load_backbone(folder, CPU)
    assert backbone.resolution == 32 and backbone.depth == model.config.num_hidden_layers
    inputs = backbone.prepare(CLIPS)
    deepest = backbone.depth
    grids = backbone.grids(inputs, [0, deepest])
    with torch.no_grad(), fast_autocast(CPU):
        patches = Patches(8).encode(CLIPS.permute(0, 1, 4, 2, 3).float() / 255).values
        expected = normalise(model.patch_embedding(patches))
    torch.testing.assert_close(grids[0], expected, rtol=1e-3, atol=1e-3)
    changed = CLIPS.clone()
    changed[:, 2, 8:16, 16:24] = 255 - changed[:, 2, 8:16, 16:24].flip(1)  # row 1, column 2 of the third frame
    after = backbone.grids(backbone.prepare(changed), [0, deepest])
    at = (slice(None), 2, 1, 2)
    differs = (grids[0] != after[0]).any(-1)
    assert differs[at].all() and differs.sum() == 2
    causal = (grids[deepest] != after[deepest]).any(-1).flatten(1)
    assert not causal[:, : 2 * 16 + 6].any() and causal[:, 2 * 16 + 6].all()
    picture = CLIPS[:, :1]  # a picture has another start token, which its tokens see
    as_image, as_clip = (
        backbone.grids(backbone.prepare(picture, image), [deepest])[deepest] for image in (True, False)
    )
    assert not torch.allclose(as_image, as_clip, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "mamba", "patches"])
def test_twins_and_refusals(saved, name):
    folder, _ = saved[name]
    backbone = load_backbone(folder, CPU)
    inputs, deepest = backbone.prepare(CLIPS), backbone.depth
    first, again, other = (backbone.untrained(seed).grids(inputs, [deepest])[deepest] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-2)
    with pytest.raises(ValueError, match="reads at most 4 frames, and the clips have 6; pass --num_frames 4"):
        backbone.prepare(CLIPS.repeat(1, 2, 1, 1, 1)[:, :6])
    with pytest.raises(ValueError, match="reads only frames of 32 pixels; leave --resolution out"):
        load_backbone(folder, CPU, resolution=64)


def test_a_model_of_text_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a gpt2 of text; name one that toto pretrain --architecture gpt2 has"):
        load_backbone(str(tmp_path), CPU)
