"""The cost of frozen features against a full pass: early exit at the middle layer, pooled features of every layer."""

from types import SimpleNamespace

from timing import alternate, spread


def add_flags(parser) -> None:
    parser.add_argument("--preset", default="base", help="size of the model, with random weights")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip, of 256 tokens each")
    parser.add_argument("--clips", type=int, default=1, help="clips in a forward pass")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")


def measure(args) -> dict:
    """One forward pass of the model, and the same clips through `evaluation.backbones.TotoBackbone.grids`.

    The full pass is the model alone, and nothing is kept. The others include the computation of features from the
    residual stream: normalising every token, and reducing each layer to its mean token and 64 tokens for attention
    probes.
    """
    import torch

    from evaluation.backbones.toto import TotoBackbone
    from modeling_toto import TotoConfig, TotoModel
    from training.engine.device import fast_autocast

    torch.manual_seed(0)
    config = TotoConfig.from_preset(args.preset)
    device = torch.device("cpu")
    # of the processor, grids() reads only the shape of a frame
    processor = SimpleNamespace(grid=config.grid_size, num_codes=config.num_codes)
    backbone = TotoBackbone(TotoModel(config), processor, device=device)
    codes = torch.randint(config.num_codes, (args.clips, args.frames * config.tokens_per_frame)) + config.code_offset
    ids = torch.nn.functional.pad(codes, (1, 0), value=config.bos_token_id)
    middle, layers = config.num_hidden_layers // 2, list(range(config.num_hidden_layers + 1))

    @torch.inference_mode()
    def full_pass():
        with fast_autocast(device):
            return backbone.model(input_ids=ids, use_cache=False)

    def pooled(wanted: list[int]):
        return backbone.grids(ids, wanted, lambda grid: backbone.summarise(grid, 64))

    sides = {
        "full_pass": full_pass,
        "early_exit": lambda: pooled([middle]),
        "all_layers_pooled": lambda: pooled(layers),
    }
    seconds = alternate(sides, args.rounds)
    values = {f"{name}_seconds": spread(measured) for name, measured in seconds.items()}
    full = values["full_pass_seconds"]["median"]
    fractions = {name: values[f"{name}_seconds"]["median"] / full for name in ("early_exit", "all_layers_pooled")}
    return {
        "ratios": {f"full_vs_{name}": 1 / fraction for name, fraction in fractions.items()},
        "values": values | {f"{name}_fraction_of_full_pass": fraction for name, fraction in fractions.items()},
        "preset": args.preset,
        "tokens": ids.shape[1],
        "clips": args.clips,
        "middle_layer": middle,
        "rounds": args.rounds,
    }
