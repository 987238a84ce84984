"""Features of the newest frame of a stream: with kept states, against recomputing the whole row of 16 frames."""

from types import SimpleNamespace

from timing import alternate, spread


def add_flags(parser) -> None:
    parser.add_argument("--preset", default="base", help="size of the model, with random weights")
    parser.add_argument("--frames", type=int, default=16, help="frames of the context, of 256 tokens each")
    parser.add_argument("--streams", type=int, default=1, help="streams that are read together")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, each of one frame")


def measure(args) -> dict:
    """One new frame after a full context less one frame, at the middle layer, without the tokenizer.

    Recomputing is `TotoBackbone.grids` on the whole row with early exit at the same layer, the best that a backbone
    without kept states can do. The states' memory is that of keys and values of the blocks that run; recomputing holds
    them and the activations of a whole row only while it runs.
    """
    import torch

    from evaluation.backbones.streaming import StreamingFeatures
    from evaluation.backbones.toto import TotoBackbone
    from modeling_toto import TotoConfig, TotoModel

    torch.manual_seed(0)
    config = TotoConfig.from_preset(args.preset, num_frames=args.frames)
    device, grid = torch.device("cpu"), config.grid_size
    codes = torch.randint(config.num_codes, (args.frames, args.streams, *grid))
    given = iter(())  # the codes that the stand-in of a tokenizer returns
    processor = SimpleNamespace(
        grid=grid, num_codes=config.num_codes, resolution=1, encode_frames=lambda _: next(given)
    )
    backbone = TotoBackbone(TotoModel(config), processor, device=device)
    layer = config.num_hidden_layers // 2
    stream, blank = StreamingFeatures(backbone, layer), torch.zeros(args.streams, 1, 1, 3, dtype=torch.uint8)
    given = iter(codes)
    for _ in range(args.frames - 1):
        stream.step(blank)
    from tokenization.sequences import video_rows

    ids = video_rows(codes.transpose(0, 1).contiguous(), end=False)

    def streamed():
        nonlocal given
        for kept in stream.cache.layers[:layer]:
            kept.length = 1 + (args.frames - 1) * config.tokens_per_frame  # the last frame is taken back
        del stream.codes[args.frames - 1 :]
        given = iter(codes[-1:])
        return stream.step(blank)

    def recomputed():
        return backbone.grids(ids, [layer])[layer][:, -1]

    farthest = (streamed() - recomputed()).abs().max().item()
    seconds = alternate({"streamed": streamed, "recomputed": recomputed}, args.rounds)
    values = {f"{name}_seconds": spread(measured) for name, measured in seconds.items()}
    rooms = [room for kept in stream.cache.layers[:layer] for room in (kept.key_room, kept.value_room)]
    values["kept_bytes"] = sum(room.numel() * room.element_size() for room in rooms)
    values["largest_difference"] = farthest
    return {
        "ratios": {
            "recomputed_vs_streamed": values["recomputed_seconds"]["median"] / values["streamed_seconds"]["median"]
        },
        "values": values,
        "preset": args.preset,
        "layer": layer,
        "frames": args.frames,
        "streams": args.streams,
        "rounds": args.rounds,
    }
