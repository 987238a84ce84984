"""Features of a stream of frames: each new frame costs its own tokens only, and memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from evaluation.backbones.toto import TotoBackbone
from modeling_toto.decoding_toto import RoomyLayer, frames_to_drop
from modeling_toto.pooling_toto import normalise
from tokenization.sequences import video_rows
from training.engine.device import fast_autocast


class StreamingFeatures:
    """Features of the newest frame of each of B streams, as `Backbone.grids` defines them, in the context of the last.

    The keys and values of earlier frames are kept, and blocks above `layer` neither run nor keep anything. While all
    frames fit into the context, features equal those of the whole row up to the rounding of the computation, bfloat16
    where that is faster and float32 elsewhere; keys and values are kept in the same dtype, in which attention reads
    them, so keeping them adds no rounding. Beyond the context the oldest frames are dropped, as in `generate_frames`:
    by default the states of the others are kept and their keys rotated, so they still depend on dropped frames
    (benchmarks/streaming.md has the differences); with `recompute` the others are encoded again, which gives exactly
    the features of the visible frames and costs as much as a whole row each time.

    All streams start with the same step; `keep` goes on without those that have ended, such as episodes of a robot.

        stream = StreamingFeatures(load_backbone("checkpoints/toto-nano"), layer=4)
        for frames in camera:  # uint8 (B, R, R, 3)
            features = stream.step(frames, pooled=True)  # (B, D)

    Args:
        backbone: a Toto with causal attention.
        layer: k, the residual stream after block k; 0 are the embeddings.
        context_frames: frames that are visible at most, the newest included; as many as fit into the model by default.
            Memory grows with it.
        drop_frames: oldest frames to drop at a time, a quarter of the context by default.
        recompute: encode the remaining frames again whenever some are dropped.
    Raises:
        ValueError: another backbone, full attention, a layer that it does not have, context_frames or drop_frames out
            of range.
    """

    def __init__(
        self,
        backbone: TotoBackbone,
        layer: int,
        *,
        context_frames: int | None = None,
        drop_frames: int | None = None,
        recompute: bool = False,
    ):
        if not isinstance(backbone, TotoBackbone):
            raise ValueError(f"{backbone.name} is not a Toto; only a Toto streams, since its attention is causal.")
        config = backbone.model.config
        if config.attention_mode != "causal":
            raise ValueError(
                f"{backbone.name} has {config.attention_mode} attention, under which earlier features change with each "
                "new frame; load it with attention_mode='causal'."
            )
        backbone.check_layers([layer])
        most = config.context_frames
        context = most if context_frames is None else context_frames
        if not 1 <= context <= most:
            raise ValueError(f"context_frames is {context}; set 1 to {most}, the frames that fit into the model.")
        drop = frames_to_drop(config, drop_frames, context)
        if not 1 <= drop <= context:
            raise ValueError(f"drop_frames is {drop}; set 1 to {context}, the frames of the context.")
        self.backbone, self.layer, self.recompute = backbone, layer, recompute
        self.context_frames, self.drop_frames = context, drop
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one starts new streams, of which there may be another number."""
        config = self.backbone.model.config
        self.cache = DynamicCache()
        room = config.row_length(self.context_frames) - 1  # without the end token
        # one for every block, as the model demands; memory is taken when one is first used, below `layer` only
        self.cache.layers = [RoomyLayer(room) for _ in range(config.num_hidden_layers)]
        self.codes: list[torch.Tensor] = []  # of the visible frames, (B, h, w) each

    @property
    def frames_seen(self) -> int:
        """Frames that the newest features can depend on through the visible context, itself included."""
        return len(self.codes)

    @property
    def kept_bytes(self) -> int:
        """Memory of the kept keys and values: from the first frame on that of a full context, later no more."""
        return sum(layer.kept_bytes for layer in self.cache.layers)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> None:
        """Go on with some of the streams only, and free the memory of the others.

        The streams that stay are not changed; `step` then expects one frame of each.

        Args:
            rows: their numbers (n,), in their new order, or bool (B,), True for those that stay.
        Raises:
            ValueError: nothing has been read yet, no stream is left, or there is no such stream.
        """
        if not self.codes:
            raise ValueError("No stream has begun; call step() before keep().")
        streams, rows = len(self.codes[0]), torch.as_tensor(rows)
        if rows.dtype == torch.bool and rows.shape == (streams,):
            rows = rows.nonzero().flatten()
        if rows.numel() == 0:
            raise ValueError("No stream is left; call reset() to start new ones.")
        if rows.dtype != torch.long or rows.ndim != 1 or not 0 <= rows.min() <= rows.max() < streams:
            raise ValueError(
                f"rows is {rows.tolist()}; pass numbers of streams, 0 to {streams - 1}, or True or False for each."
            )
        self.codes = [codes[rows] for codes in self.codes]
        self.cache.batch_select_indices(rows.to(self.backbone.device))

    @torch.inference_mode()
    def step(self, frames: np.ndarray | torch.Tensor, pooled: bool = False) -> torch.Tensor:
        """Features of one new frame of every stream.

        Args:
            frames: uint8 (B, R, R, 3), R the backbone's resolution.
            pooled: return the mean token.
        Returns:
            float32 (B, h, w, D), each token normalised without parameters, or their mean (B, D).
        Raises:
            ValueError: frames of another shape, or another number of streams than before.
        """
        frames, side = torch.as_tensor(frames), self.backbone.resolution
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (side, side, 3):
            raise ValueError(
                f"frames has the shape {tuple(frames.shape)}; pass one frame of every stream, (B, {side}, {side}, 3)."
            )
        if self.codes and len(self.codes[0]) != len(frames):
            raise ValueError(
                f"There are {len(self.codes[0])} streams and {len(frames)} frames; pass one of each, or reset() first."
            )
        if len(self.codes) == self.context_frames:
            self._drop()
        encoded = self.backbone.processor.encode_frames(frames).cpu()
        self.codes.append(encoded.view(len(frames), *self.backbone.grid))
        with fast_autocast(self.backbone.device):
            grid = normalise(self._forward().unflatten(1, self.backbone.grid))
        return grid.flatten(1, 2).mean(1) if pooled else grid

    def _drop(self) -> None:
        config = self.backbone.model.config
        self.codes = self.codes[self.drop_frames :]
        for layer in self.cache.layers[: self.layer]:
            if self.recompute or not self.codes:
                layer.crop(0)
            else:
                layer.drop(self.drop_frames * config.tokens_per_frame, self.backbone.model.rotary_emb.inv_freq)

    def _forward(self) -> torch.Tensor:
        """The residual stream (B, h * w, D) of the newest frame."""
        size = self.backbone.model.config.tokens_per_frame
        ids = video_rows(torch.stack(self.codes, dim=1), end=False).to(self.backbone.device)
        new = ids[:, self.cache.get_seq_length() :] if self.layer else ids[:, -size:]
        return self.backbone.model(
            new, past_key_values=self.cache if self.layer else None, use_cache=bool(self.layer), exit_layer=self.layer
        ).last_hidden_state[:, -size:]
