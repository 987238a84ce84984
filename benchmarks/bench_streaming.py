"""Features of the newest frame of a stream: with kept states, against recomputing the whole row of visible frames.

Beyond the context, kept states still depend on dropped frames: how far they are from recomputed ones is measured on
clips.
"""

import sys
from types import SimpleNamespace

from timing import alternate, peak_bytes, spread

CASES = ["checkpoints/toto-nano:1", "checkpoints/toto-nano:25", "base:1"]
BEYOND = ["checkpoints/toto-motion=toyworld:motion:max_objects=5@test"]


def add_flags(parser) -> None:
    parser.add_argument(
        "--cases", nargs="*", default=CASES, help="MODEL:STREAMS, MODEL a checkpoint or a preset with random weights"
    )
    parser.add_argument("--frames", type=int, default=16, help="frames of a preset's context, of 256 tokens each")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, each of one frame")
    parser.add_argument(
        "--beyond", nargs="*", default=BEYOND, help="MODEL=DATASET@SPLIT: clips of three times the model's context"
    )
    parser.add_argument("--clips", type=int, default=12, help="clips of --beyond")


def measure(args) -> dict:
    ratios, values = {}, {}
    for case in args.cases:
        model, _, streams = case.rpartition(":")
        found = one_frame(model, int(streams), args.frames, args.rounds)
        name = f"{model.rpartition('/')[2]}_{streams}"
        ratios[f"{name}_seconds"] = found["recomputed_seconds"]["median"] / found["streamed_seconds"]["median"]
        ratios[f"{name}_peak_bytes"] = found["recomputed_peak_bytes"] / found["streamed_peak_bytes"]
        values[name] = found
    for case in args.beyond:
        model, _, clips = case.partition("=")
        dataset, _, split = clips.rpartition("@")
        values[f"{model.rpartition('/')[2]}_beyond"] = beyond(model, dataset, split, args.clips)
    return {"ratios": ratios, "values": values, "rounds": args.rounds}


def one_frame(model: str, streams: int, frames: int, rounds: int) -> dict:
    """Seconds and memory of one more frame of every stream, at the middle layer, in a context that is full with it.

    Recomputing is `TotoBackbone.grids` on the whole row with early exit at the same layer, the best that a backbone
    without kept states can do; both sides are given the codes. A checkpoint's tokenizer is timed apart. In one of
    `drop_frames` steps frames are dropped before, which is timed too: `streamed_with_drop`.

    Peak memory is that of torch's allocations during a call, without the weights; what is kept between the steps is
    added to the stream's.
    """
    import torch

    from evaluation import StreamingFeatures, load_backbone
    from evaluation.backbones.toto import TotoBackbone
    from modeling_toto import TotoConfig, TotoModel
    from tokenization.sequences import video_rows

    print(f"{model}, {streams} streams", file=sys.stderr)
    torch.manual_seed(0)
    device, sides = torch.device("cpu"), {}
    if "/" in model:
        real = load_backbone(model, device)
        pictures = torch.randint(256, (streams, real.resolution, real.resolution, 3), dtype=torch.uint8)
        sides["tokenizer"] = lambda: real.processor.encode_frames(pictures)
        network = real.model
    else:
        network = TotoModel(TotoConfig.from_preset(model, num_frames=frames))
    config = network.config
    frames, grid, layer = config.context_frames, config.grid_size, config.num_hidden_layers // 2
    codes = torch.randint(config.num_codes, (frames, streams, *grid))
    given = iter(codes)  # what the stand-in of a tokenizer returns
    processor = SimpleNamespace(
        grid=grid, num_codes=config.num_codes, resolution=1, encode_frames=lambda _: next(given)
    )
    backbone = TotoBackbone(network, processor, device=device)
    stream, blank = StreamingFeatures(backbone, layer), torch.zeros(streams, 1, 1, 3, dtype=torch.uint8)
    for _ in range(frames - 1):
        stream.step(blank)
    ids = video_rows(codes.transpose(0, 1).contiguous(), end=False)

    def step_after(past: int):
        """A step after `past` frames. What is kept is not written anew: it is as large, and takes as long."""
        nonlocal given
        for kept in stream.cache.layers[:layer]:
            kept.crop(1 + past * config.tokens_per_frame)
        stream.codes, given = list(codes[:past]), iter(codes[-1:])
        return stream.step(blank)

    def recomputed():
        return backbone.grids(ids, [layer], reduce=lambda grid: grid[:, -1])[layer]

    found = {"layer": layer, "frames": frames, "streams": streams, "drop_frames": stream.drop_frames}
    found["largest_difference"] = (step_after(frames - 1) - recomputed()).abs().max().item()
    sides["streamed"], sides["recomputed"] = lambda: step_after(frames - 1), recomputed
    sides["streamed_with_drop"] = lambda: step_after(frames)
    found |= {f"{name}_seconds": spread(seconds) for name, seconds in alternate(sides, rounds).items()}
    found["kept_bytes"] = stream.kept_bytes
    for name in ("streamed", "streamed_with_drop", "recomputed"):
        kept = 0 if name == "recomputed" else stream.kept_bytes
        found[f"{name}_peak_bytes"] = kept + peak_bytes(sides[name])
    return found


def beyond(model: str, dataset: str, split: str, clips: int) -> dict:
    """Differences of features beyond the context, at the middle layer, as root mean squares of tokens of variance 1.

    Kept states against recomputed ones, each dropping a quarter of the context at a time and one frame at a time; to
    compare with: the same frame without any context, and the frame before it with its own.

    Returns:
        For each number of dropped frames: {"kept", "alone", "before"}: the mean over clips and frames, "kept_by_clip":
        [least, most] of a clip, "kept_last_frame": the mean over clips at the last frame, and "pooled_cosine": mean
        cosine of mean tokens, kept and recomputed, without the mean over all.
    """
    import torch

    from evaluation import StreamingFeatures, load_backbone
    from tokenization import Sampling, open_source

    print(f"{model} beyond its context", file=sys.stderr)
    backbone = load_backbone(model, torch.device("cpu"))
    context, layer = backbone.model.config.context_frames, backbone.depth // 2
    sampling = Sampling(num_frames=3 * context, resolution=backbone.resolution)
    # frames (N, T, R, R, 3)
    frames = torch.stack([torch.as_tensor(clip.frames) for clip in open_source(dataset, split, sampling, limit=clips)])
    found = {"layer": layer, "context_frames": context, "frames": frames.shape[1], "clips": len(frames)}

    def run(**options) -> torch.Tensor:
        stream = StreamingFeatures(backbone, layer, **options)
        return torch.stack([stream.step(frames[:, t]) for t in range(frames.shape[1])], 1).flatten(2, 3)

    def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(N, T) of (N, T, n, D)."""
        return (a - b).square().mean((2, 3)).sqrt()

    alone = run(context_frames=1)
    for drop in (max(1, context // 4), 1):
        kept, exact = run(drop_frames=drop), run(drop_frames=drop, recompute=True)
        late = slice(context, None)
        difference = apart(kept[:, late], exact[:, late])
        pooled = [tokens[:, late].mean(2) for tokens in (kept, exact)]
        one, other = (mean - pooled[1].mean((0, 1)) for mean in pooled)
        found[f"drop_{drop}"] = {
            "kept": difference.mean().item(),
            "kept_by_clip": [difference.mean(1).min().item(), difference.mean(1).max().item()],
            "kept_last_frame": difference[:, -1].mean().item(),
            "alone": apart(alone[:, late], exact[:, late]).mean().item(),
            "before": apart(exact[:, context - 1 : -1], exact[:, late]).mean().item(),
            "pooled_cosine": torch.cosine_similarity(one, other, dim=-1).mean().item(),
        }
    return found
