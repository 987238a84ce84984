"""Streamed features are those of whole rows, with bounded memory."""

import contextlib

import numpy as np
import pytest
import torch
from backbone_zoo import ZOO, save

from evaluation import StreamingFeatures, load_backbone
from evaluation.backbones import contract, streaming
from modeling_toto import decoding_toto

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


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request, monkeypatch):
    """The dtype of the computation, whichever is faster on this machine, and the tolerance of its rounding."""
    half = request.param == "bfloat16"
    for module in (contract, streaming):
        monkeypatch.setattr(
            module,
            "fast_autocast",
            lambda device: torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext(),
        )
    return (torch.bfloat16, 2e-2) if half else (torch.float32, 1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_while_the_row_fits_features_are_those_of_the_whole_row(backbone, frames, layer, precision):
    most = backbone.model.config.context_frames
    stream = StreamingFeatures(backbone, layer)
    found = torch.stack([stream.step(frames[:, t]) for t in range(most)], dim=1)
    expected = whole(backbone, frames[:, :most], layer)
    torch.testing.assert_close(found, expected, atol=precision[1], rtol=precision[1])
    assert stream.frames_seen == most


def test_what_is_kept_has_the_dtype_of_the_computation_and_no_room_to_spare(backbone, frames, precision):
    config, layer = backbone.model.config, 2
    stream = StreamingFeatures(backbone, layer, context_frames=3)
    assert stream.kept_bytes == 0
    stream.step(frames[:, 0])
    kept = stream.cache.layers[0]
    assert kept.key_room.dtype == kept.value_room.dtype == precision[0]
    tokens, width = 1 + 3 * config.tokens_per_frame, config.num_key_value_heads * config.head_dim
    assert stream.kept_bytes == 2 * layer * STREAMS * tokens * width * precision[0].itemsize
    before = stream.kept_bytes
    for t in range(1, frames.shape[1]):
        stream.step(frames[:, t])
        assert stream.frames_seen <= 3
    assert stream.kept_bytes == before


def test_keeping_bfloat16_adds_no_rounding(backbone, frames, monkeypatch):
    """Attention reads keys in the dtype of autocast, so a float32 copy of them gives the same features."""
    for module in (contract, streaming):
        monkeypatch.setattr(module, "fast_autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    half, full = StreamingFeatures(backbone, 2), StreamingFeatures(backbone, 2)
    found = [half.step(frames[:, t]) for t in range(backbone.model.config.context_frames)]
    monkeypatch.setattr(decoding_toto, "kept_dtype", lambda x: torch.float32)
    for t, expected in enumerate(found):
        assert torch.equal(full.step(frames[:, t]), expected)
    assert full.kept_bytes == 2 * half.kept_bytes


def test_pooled_is_the_mean_token(backbone, frames):
    one, other = StreamingFeatures(backbone, 1), StreamingFeatures(backbone, 1)
    for t in range(2):
        pooled, grid = one.step(frames[:, t], pooled=True), other.step(frames[:, t].numpy())
    assert pooled.shape == (STREAMS, grid.shape[-1])
    torch.testing.assert_close(pooled, grid.mean((1, 2)))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("drop", [1, 2, None, "all"])
@pytest.mark.parametrize("context", [None, 2])
def test_beyond_the_context_recomputed_features_are_those_of_the_visible_frames(backbone, frames, layer, drop, context):
    most = context or backbone.model.config.context_frames
    drop = most if drop == "all" else drop
    stream = StreamingFeatures(backbone, layer, context_frames=context, drop_frames=drop, recompute=True)
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


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([True, False, True]), np.array([1])])
def test_streams_that_end_leave_and_the_others_do_not_notice(backbone, frames, rows, precision, recompute):
    three = torch.cat([frames, frames[:1].flip(2)])  # (3, T, R, R, 3)
    stays = torch.as_tensor(rows)
    stays = stays.nonzero().flatten() if stays.dtype == torch.bool else stays
    stream, alone = (StreamingFeatures(backbone, 2, recompute=recompute) for _ in range(2))
    for t in range(3):
        stream.step(three[:, t])
        alone.step(three[stays, t])
    stream.keep(rows)
    assert stream.kept_bytes == alone.kept_bytes
    for t in range(3, three.shape[1]):  # also beyond the context
        found = stream.step(three[stays, t])
        torch.testing.assert_close(found, alone.step(three[stays, t]), atol=precision[1], rtol=precision[1])


def test_mistaken_rows_get_a_sentence(backbone, frames):
    stream = StreamingFeatures(backbone, 1)
    with pytest.raises(ValueError, match=r"No stream has begun; call step\(\)"):
        stream.keep([0])
    stream.step(frames[:, 0])
    with pytest.raises(ValueError, match="No stream is left"):
        stream.keep([])
    with pytest.raises(ValueError, match="No stream is left"):
        stream.keep(torch.zeros(STREAMS, dtype=torch.bool))
    for rows in ([0, 2], [-1], [[0]], [0.5], [True]):
        with pytest.raises(ValueError, match="pass numbers of streams, 0 to 1, or True or False for each"):
            stream.keep(rows)
    stream.step(frames[:, 1])  # nothing has changed


def test_mistakes_get_a_sentence(backbone, frames, tmp_path):
    with pytest.raises(ValueError, match="not 9; see --layers"):
        StreamingFeatures(backbone, 9)
    with pytest.raises(ValueError, match="drop_frames is 0; set 1 to"):
        StreamingFeatures(backbone, 1, drop_frames=0)
    with pytest.raises(ValueError, match="drop_frames is 3; set 1 to 2"):
        StreamingFeatures(backbone, 1, drop_frames=3, context_frames=2)
    for context in (0, 5):
        with pytest.raises(ValueError, match=f"context_frames is {context}; set 1 to 4"):
            StreamingFeatures(backbone, 1, context_frames=context)
    with pytest.raises(ValueError, match=r"pass one frame of every stream, \(B, "):
        StreamingFeatures(backbone, 1).step(frames[0, 0])
    name = next(iter(ZOO))
    with pytest.raises(ValueError, match="only a Toto streams"):
        StreamingFeatures(load_backbone(save(name, tmp_path), CPU), 1)
