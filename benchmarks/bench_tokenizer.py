"""Pictures to codes with a dVAE of the published shape and random weights, against the `dall-e` package's encoder."""

from timing import alternate, spread


def add_flags(parser) -> None:
    parser.add_argument("--frames", type=int, default=8, help="frames per batch")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")


def measure(args) -> dict:
    """Frames to codes at 128 pixels: `TotoProcessor.encode_frames`, exact and in bf16, against dall_e's encoder.

    The peer gets prepared pixels; ours starts from 8-bit frames. If bfloat16 is not fast on this machine, bf16 is not
    timed (its ratio is null), and its agreement is estimated by rounding every convolution to bf16.
    """
    import torch

    frames = args.frames
    try:
        import dall_e
    except ImportError as error:
        raise SystemExit("the peer is missing: make .venv installs it") from error

    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.image_processing_toto import TotoImageProcessor
    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.precision import bf16_is_fast
    from tokenization.processing_toto import TotoProcessor

    torch.manual_seed(0)
    model = TotoDVAEModel(TotoDVAEConfig()).eval()
    # Smooth random noise, so that not every patch gets the same code.
    noise = torch.rand(frames, 3, 16, 16)
    pixels = torch.nn.functional.interpolate(noise, size=128, mode="bilinear")
    pictures = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    pixels = pictures.permute(0, 3, 1, 2).float().contiguous() / 255
    with torch.no_grad():  # random networks favour a few codes; with centred logits, many codes occur
        model.encoder.blocks.output.conv.bias.sub_(model.encode_logits(pixels[:1]).mean(dim=(0, 2, 3)))
    theirs = dall_e.Encoder().eval()
    theirs.load_state_dict(
        {
            name.removeprefix("encoder.").replace(".weight", ".w").replace(".bias", ".b"): value
            for name, value in model.state_dict().items()
            if name.startswith("encoder.")
        }
    )
    processor = TotoProcessor(TotoImageProcessor(resolution=128), model)
    fast = bf16_is_fast(torch.device("cpu"))

    @torch.inference_mode()
    def peer():
        return theirs(dall_e.map_pixels(pixels)).argmax(dim=1)

    sides = {"dall_e": peer, "exact": lambda: processor.encode_frames(pictures, batch_size=frames)}
    if fast:
        sides["bf16"] = lambda: processor.encode_frames(pictures, batch_size=frames, exact=False)
    seconds = alternate(sides, args.rounds)
    rates = {name: spread([frames / s for s in measured]) for name, measured in seconds.items()}

    with torch.inference_mode():
        logits = theirs(dall_e.map_pixels(pixels))
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    exact = sides["exact"]()
    if fast:
        rounded = sides["bf16"]()
    else:
        handles = [handle for part in model.modules() for handle in rounded_to_bf16(part)]
        rounded = sides["exact"]()
        for handle in handles:
            handle.remove()
    codes = logits.argmax(1)
    values = {f"{name}_frames_per_second": rate for name, rate in rates.items()}
    values["distinct_codes"] = len(codes.unique())
    values["near_ties"] = int((~clear).sum())
    values["exact_codes_equal_beyond_near_ties"] = bool(torch.equal(exact[clear], codes[clear]))
    values["exact_code_agreement"] = (exact == codes).float().mean().item()
    values["bf16_code_agreement"] = (rounded == exact).float().mean().item()
    values["bf16_agreement_is_emulated"] = not fast
    ratios = {f"dvae_{name}_vs_dall_e": None for name in ("bf16", "exact")}
    for name in sides.keys() - {"dall_e"}:
        ratios[f"dvae_{name}_vs_dall_e"] = rates[name]["median"] / rates["dall_e"]["median"]
    return {"ratios": ratios, "values": values, "frames": frames, "rounds": args.rounds}


def rounded_to_bf16(module) -> list:
    """Hooks that round inputs, weights and outputs of convolutions to bfloat16, as bf16 inference does."""
    import torch

    from tokenization.modeling_dvae import TotoDVAECodeLogits

    if not isinstance(module, torch.nn.Conv2d) or isinstance(module, TotoDVAECodeLogits):
        return []
    weight = module.weight.data

    def before(_, inputs):
        module.weight.data = weight.bfloat16().float()
        return tuple(x.bfloat16().float() for x in inputs)

    def after(_, inputs, output):
        module.weight.data = weight
        return output.bfloat16().float()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
