"""One optimisation step on full rows, against transformers' LlamaForCausalLM of the same config and weights.

Speed: eager and compiled, in alternation in one process. Memory: the increase of the resident set over that with only
model and optimiser, at its peak, in a new process for each side. Curve: losses of both over some steps from the same
weights. Graphs: how many torch.compile makes of a training step, and the bytes that a compiled block moves.
"""

import argparse
import gc
import json
import subprocess
import sys
import threading
import time

from timing import alternate, spread

LLAMA_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLAMA_FIELDS += ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


def add_flags(parser) -> None:
    parser.add_argument("--preset", default="base", help="size of the model (TotoConfig.from_preset)")
    parser.add_argument("--config", default="{}", help="JSON of TotoConfig fields that replace the preset's")
    parser.add_argument("--rows", type=int, default=1, help="rows per step (base: 16 frames, 4,098 ids each)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"), help="autocast to bf16, or none")
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=("speed", "compile", "memory", "curve", "graphs"), help="leave out"
    )
    parser.add_argument("--curve_steps", type=int, default=20, help="steps of the loss curves")
    parser.add_argument("--curve_preset", default="tiny", help="size of the loss curves' models")
    parser.add_argument(
        "--memory_of", choices=("toto", "llama"), help="(used by itself) measure one side's peak memory"
    )


def configs(args):
    from transformers import LlamaConfig

    from modeling_toto import TotoConfig

    config = TotoConfig.from_preset(args.preset, **json.loads(args.config))
    llama = LlamaConfig(**{name: getattr(config, name) for name in LLAMA_FIELDS}, attn_implementation="sdpa")
    return config, llama


def make_side(name: str, args, compiled: bool = False, device: str = "cpu", backend: str = "inductor"):
    """(model, step) of "toto" or "llama"; step(ids) makes an optimisation step and returns the loss."""
    import torch
    from transformers import LlamaForCausalLM

    from modeling_toto import TotoForCausalLM

    config, llama = configs(args)
    torch.manual_seed(0)
    model = (TotoForCausalLM(config) if name == "toto" else LlamaForCausalLM(llama)).train().to(device)
    # The peer has the same fused optimiser; one group is enough, as rates and decay do not matter here.
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = {"skip_logits": True} if name == "toto" else {}
    call = model
    if compiled and name == "toto":  # as `toto pretrain --compile`: block by block
        for layer in model.model.layers:
            layer.compile(dynamic=False, backend=backend)
    elif compiled:
        call = torch.compile(model, dynamic=False, backend=backend)

    def step(ids):
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = call(input_ids=ids, labels=ids, use_cache=False, **forward).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return model, step


def with_torch_attention(step, ids):
    """A step of our blocks with torch's kernel in place of ours for CPUs."""
    from unittest.mock import patch

    from modeling_toto import block_toto

    with patch.object(block_toto, "cpu_kernel", lambda q, k: None):
        return step(ids)


def random_ids(config, rows: int, seed: int = 0):
    import torch

    shape = (rows, config.row_length())
    return torch.randint(64, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def speed(args) -> tuple[dict, dict]:
    config, _ = configs(args)
    ids = random_ids(config, args.rows)
    kinds = ["eager"] if "compile" in args.skip else ["eager", "compiled"]
    calls = {}
    for kind in kinds:
        for name in ("toto", "llama"):
            _, step = make_side(name, args, compiled=kind == "compiled")
            calls[f"{name}_{kind}"] = lambda step=step: step(ids)
            if name == "toto" and kind == "eager":
                calls["toto_with_torch_attention"] = lambda step=step: with_torch_attention(step, ids)
    seconds = alternate(calls, args.rounds)
    rates = {name: spread([ids.numel() / s for s in taken]) for name, taken in seconds.items()}
    ratios = {
        f"tokens_vs_llama_{kind}": rates[f"toto_{kind}"]["median"] / rates[f"llama_{kind}"]["median"] for kind in kinds
    }
    ratios["tokens_vs_torch_attention"] = rates["toto_eager"]["median"] / rates["toto_with_torch_attention"]["median"]
    return ratios, {f"{name}_tokens_per_second": rate for name, rate in rates.items()}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak_of_one_step(args) -> dict:
    """Peak resident memory above that of model and optimiser, in megabytes, in two steps, sampled every 2 ms."""
    config, _ = configs(args)
    ids = random_ids(config, args.rows)
    _, step = make_side(args.memory_of, args)
    gc.collect()
    before, peak, done = resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        step(ids)
    done.set()
    watcher.join()
    return {"mb": (peak - before) / 2**20}


def memory(args) -> tuple[dict, dict]:
    """Peak memory of both sides, and of ours with four times the codes."""

    def fresh(name: str, **fields) -> float:
        flags = ["--preset", args.preset, "--rows", str(args.rows), "--precision", args.precision]
        flags += ["--config", json.dumps(json.loads(args.config) | fields), "--memory_of", name]
        done = subprocess.run(
            [sys.executable, sys.argv[0], "train", *flags], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)["values"]["mb"]
        print(f"{name} {fields or ''}: {found:.0f} MB", file=sys.stderr)
        return found

    config, _ = configs(args)
    more = 64 + 4 * config.num_codes
    ours, theirs, ours_more = fresh("toto"), fresh("llama"), fresh("toto", vocab_size=more)
    # Gradient and moments of the added rows: 12 bytes per weight, for any implementation of the loss.
    state = 12 * (more - config.vocab_size) * config.hidden_size / 2**20
    values = {"toto_peak_mb": ours, "llama_peak_mb": theirs, f"toto_peak_mb_vocabulary_{more}": ours_more}
    values["of_which_gradient_and_moments_of_the_added_rows_mb"] = state
    return {"memory_vs_llama": theirs / ours}, values


def curve(args) -> dict:
    """Largest difference of the two loss curves, in fp32 and under bf16 autocast, and bf16's own distance from fp32."""
    import torch

    args = type(args)(**vars(args) | {"preset": args.curve_preset, "config": "{}"})
    losses = {}
    for precision in ("fp32", "bf16"):
        args.precision = precision
        weights = None
        for name in ("toto", "llama"):
            model, step = make_side(name, args)
            if weights is None:
                weights = {key: value.clone() for key, value in model.state_dict().items()}
            model.load_state_dict(weights)
            config, _ = configs(args)
            # Few rows, repeated so that the loss falls.
            rows = [step(random_ids(config, args.rows, seed=k % 4)) for k in range(args.curve_steps)]
            losses[f"{name}_{precision}"] = torch.tensor(rows, dtype=torch.float64)
    apart = {p: (losses[f"toto_{p}"] - losses[f"llama_{p}"]).abs().max().item() for p in ("fp32", "bf16")}
    return {
        "curve_preset": args.preset,
        "curve_first_and_last_loss": losses["toto_fp32"][[0, -1]].tolist(),
        "curve_largest_difference_fp32": apart["fp32"],
        "curve_largest_difference_bf16": apart["bf16"],
        "curve_llama_bf16_from_fp32": (losses["llama_bf16"] - losses["llama_fp32"]).abs().max().item(),
    }


def compiled_bytes(block, llama, length: int) -> tuple[float, float]:
    """Bytes that a compiled block reads and writes for a row of `length` tokens, forward and backward.

    Returns:
        (all, those beside products and attention): inductor's own count of the kernels that it makes for a CPU. The
        kernels are neither compiled nor run, so that this takes seconds.
    """
    from unittest.mock import patch

    import torch
    from torch._inductor import config as inductor
    from torch._inductor import metrics
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.scheduler import ExternKernelSchedulerNode
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    torch._dynamo.reset()
    metrics.reset()
    torch._logging.set_logs(inductor_metrics=True)  # without it nothing is counted
    hidden = torch.zeros(1, length, llama.hidden_size, requires_grad=True)
    tables = LlamaRotaryEmbedding(llama)(hidden, torch.arange(length)[None])
    try:
        with (
            inductor.patch({"force_disable_caches": True, "cpp.vec_isa_ok": True}),  # no trial of the C++ compiler
            patch.object(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None),
            torch.autocast("cpu", torch.bfloat16),
        ):
            torch.compile(block, fullgraph=True, dynamic=False)(hidden, position_embeddings=tables).sum().backward()
    finally:
        torch._logging.set_logs()
        torch._dynamo.reset()
    elementwise = [count for node, count in metrics.nodes_num_elem if not isinstance(node, ExternKernelSchedulerNode)]
    return metrics.num_bytes_accessed, 4 * sum(elementwise)  # counts are of four bytes each


def graphs(args) -> tuple[dict, dict]:
    """Graphs and breaks of a step of the whole model, and bytes per token that a compiled block reads and writes.

    With products, attention and the block's weights (read once for all tokens of a row); and without them, by the
    difference of two lengths of the row.
    """
    import torch
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from modeling_toto.block_toto import TotoDecoderLayer

    config, llama = configs(args)
    values, length = {}, min(1024, config.row_length())
    for name, kind in (("toto", TotoDecoderLayer), ("llama", LlamaDecoderLayer)):
        block = kind(llama, 0).train()
        whole, half = (compiled_bytes(block, llama, tokens) for tokens in (length, length // 2))
        values[f"{name}_compiled_bytes_per_token_and_layer"] = whole[0] / length
        values[f"{name}_compiled_bytes_beside_products"] = (whole[1] - half[1]) / (length - length // 2)
    model, _ = make_side("toto", argparse.Namespace(**vars(args) | {"preset": "tiny", "config": "{}"}))
    ids = random_ids(model.config, 1)
    found = torch._dynamo.explain(model)(input_ids=ids, labels=ids, use_cache=False, skip_logits=True)
    values |= {"toto_graphs": found.graph_count, "toto_graph_breaks": found.graph_break_count}
    ratios = {}
    for ratio, value in (("", "per_token_and_layer"), ("_beside_products", "beside_products")):
        ours, theirs = (values[f"{name}_compiled_bytes_{value}"] for name in ("toto", "llama"))
        ratios[f"compiled_bytes{ratio}_vs_llama"] = ours / theirs
    return ratios, values


def measure(args) -> dict:
    import torch

    from modeling_toto.block_toto import product_dtype

    if args.memory_of:
        return {"values": peak_of_one_step(args)}
    ratios, values = {}, {}
    for name, part in (("speed", speed), ("memory", memory), ("graphs", graphs)):
        if name not in args.skip:
            found = part(args)
            ratios, values = ratios | found[0], values | found[1]
    if "curve" not in args.skip:
        values |= curve(args)
    kept = torch.bfloat16 if args.precision == "bf16" else torch.float32
    # On some CPUs, our products of bf16 activations are computed in fp32; the result records this.
    values["toto_products_in"] = str(product_dtype(kept, torch.device("cpu"))).removeprefix("torch.")
    settings = {"preset": args.preset, "rows": args.rows, "rounds": args.rounds, "precision": args.precision}
    return {"ratios": ratios, "values": values, **settings}
