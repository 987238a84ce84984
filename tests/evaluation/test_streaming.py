"""Streamed features are those of whole rows, with bounded memory."""

import pytest
import torch
from backbone_zoo import ZOO, save

from evaluation import StreamingFeatures, load_backbone

CPU = torch.device("cpu")
STREAMS = 2


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, "cpu")


@pytest.fixture(scope="module")
def frames(backbone):
    """(B, T, R, R, 3), more frames than the context holds."""
    side, count = backbone.resolution, 2 * backbone.model.config.context_frames + 1
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (STREAMS, count, side, side, 3), dtype=torch.uint8, generator=generator)


def whole(backbone, frames, layer: int) -> torch.Tensor:
    return backbone.grids(backbone.prepare(frames), [layer])[layer]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_while_the_row_fits_features_are_those_of_the_whole_row(backbone, frames, layer):
    most = backbone.model.config.context_frames
    stream = StreamingFeatures(backbone, layer)
    found = torch.stack([stream.step(frames[:, t]) for t in range(most)], dim=1)
    expected = whole(backbone, frames[:, :most], layer)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)  # bfloat16 where that is faster
    assert stream.frames_seen == most


def test_pooled_is_the_mean_token(backbone, frames):
    one, other = StreamingFeatures(backbone, 1), StreamingFeatures(backbone, 1)
    for t in range(2):
        pooled, grid = one.step(frames[:, t], pooled=True), other.step(frames[:, t].numpy())
    assert pooled.shape == (STREAMS, grid.shape[-1])
    torch.testing.assert_close(pooled, grid.mean((1, 2)))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("drop", [1, 2, None, "all"])
def test_beyond_the_context_recomputed_features_are_those_of_the_visible_frames(backbone, frames, layer, drop):
    most = backbone.model.config.context_frames
    drop = most if drop == "all" else drop
    stream = StreamingFeatures(backbone, layer, drop_frames=drop, recompute=True)
    for t in range(frames.shape[1]):
        found = stream.step(frames[:, t])
        seen = stream.frames_seen
        assert 1 <= seen <= most
        expected = whole(backbone, frames[:, t + 1 - seen : t + 1], layer)[:, -1]
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_kept_states_cost_one_frame_a_step_and_no_memory(backbone, frames):
    size, lengths = backbone.model.config.tokens_per_frame, []
    hook = backbone.blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    stream, rooms = StreamingFeatures(backbone, 1), set()
    kept, exact = [], StreamingFeatures(backbone, 1, recompute=True)
    for t in range(frames.shape[1]):
        kept.append(stream.step(frames[:, t]))
        rooms.add((stream.cache.layers[0].key_room.data_ptr(), stream.cache.layers[0].key_room.shape))
    hook.remove()
    assert lengths == [1 + size] + [size] * (frames.shape[1] - 1) and len(rooms) == 1
    assert not stream.cache.layers[1].is_initialized  # above the layer nothing is kept
    differences = [(kept[t] - exact.step(frames[:, t])).abs().max().item() for t in range(frames.shape[1])]
    most = backbone.model.config.context_frames
    assert max(differences[:most]) == 0 and max(differences[most:]) < 1  # states of upper layers still know of them


def test_blocks_above_the_layer_do_not_run(backbone, frames):
    def fail(*_):
        raise AssertionError("a block above the layer runs")

    hook = backbone.blocks[1].register_forward_pre_hook(fail)
    try:
        StreamingFeatures(backbone, 1).step(frames[:, 0])
    finally:
        hook.remove()


def test_new_streams_after_a_reset(backbone, frames):
    stream = StreamingFeatures(backbone, 2)
    first = stream.step(frames[:, 0])
    stream.step(frames[:, 1])
    stream.reset()
    torch.testing.assert_close(stream.step(frames[:1, 0]), first[:1], atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="There are 1 streams and 2 frames"):
        stream.step(frames[:, 1])


def test_mistakes_get_a_sentence(backbone, frames, tmp_path):
    with pytest.raises(ValueError, match="not 9; see --layers"):
        StreamingFeatures(backbone, 9)
    with pytest.raises(ValueError, match="drop_frames is 0; set 1 to"):
        StreamingFeatures(backbone, 1, drop_frames=0)
    with pytest.raises(ValueError, match=r"pass one frame of every stream, \(B, "):
        StreamingFeatures(backbone, 1).step(frames[0, 0])
    name = next(iter(ZOO))
    with pytest.raises(ValueError, match="only a Toto streams"):
        StreamingFeatures(load_backbone(save(name, tmp_path), CPU), 1)
