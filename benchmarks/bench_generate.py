"""One frame of 256 codes after a prompt of 4 frames: `generate_frames` against `generate` of transformers' Llama."""

import time

from timing import spread


def add_flags(parser) -> None:
    parser.add_argument("--preset", default="base", help="the model's size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows drawn at a time")
    parser.add_argument("--prompt_frames", type=int, default=4, help="frames of the prompt")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each batch, after one unmeasured")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of both sides' weights")


class Clock:
    """Records when the logits of each token arrive; the first ones end the prefill, which is not counted."""

    def __init__(self):
        self.times = []

    def __call__(self, *arguments):
        """A logits processor of transformers: (ids, scores) -> scores."""
        self.times.append(time.perf_counter())
        return arguments[-1]

    def rate(self, rows: int) -> float:
        """Tokens per second in all steps after the first; a step is a forward pass of one token per row, and a draw."""
        return rows * (len(self.times) - 1) / (self.times[-1] - self.times[0])


def measure(args) -> dict:
    """Decoding time only, on both sides from the logits of the first token to those of the last: 255 of 256 steps.

    Both sides have the same weights and prompts and temperature 1 without top-k, and alternate in one process. Llama
    uses sdpa and its default cache. Our time includes a new layout of the weights, once per call.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import modeling_toto.generation_toto as ours
    from modeling_toto import TotoConfig, TotoForCausalLM

    dtype = getattr(torch, args.dtype)
    config = TotoConfig.from_preset(args.preset)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    torch.manual_seed(0)
    toto = TotoForCausalLM(config).to(dtype).eval()
    llama_config = LlamaConfig(**{name: getattr(config, name) for name in names}, attn_implementation="sdpa")
    llama = LlamaForCausalLM(llama_config).to(dtype).eval()
    llama.load_state_dict(toto.state_dict())
    llama.generation_config.eos_token_id = None  # special ids may be drawn but do not end the generation
    steps = config.tokens_per_frame
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def toto_rate(prompt):
        clock = Clock()
        draw = ours.draw
        ours.draw = lambda logits, *options: draw(clock(logits), *options)
        try:
            toto.generate_frames(prompt, 1)
        finally:
            ours.draw = draw
        return clock.rate(len(prompt))

    def llama_rate(prompt):
        clock = Clock()
        llama.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=steps,
            logits_processor=[clock],
            pad_token_id=0,
            **sampling,
        )
        return clock.rate(len(prompt))

    ratios, values = {}, {}
    for rows in args.batches:
        prompt = torch.randint(config.code_offset, config.vocab_size, (rows, 1 + args.prompt_frames * steps))
        prompt[:, 0] = config.bos_token_id
        values[f"batch{rows}_same_logits"] = agreement(toto, llama, prompt)
        rates = {"toto": [], "llama": []}
        for turn in range(args.rounds + 1):
            for name, rate in (("toto", toto_rate), ("llama", llama_rate)):
                measured = rate(prompt)
                if turn:
                    rates[name].append(measured)
                log(f"batch {rows}, round {turn}/{args.rounds}: {name} {measured:.1f} tok/s")
        for name, measured in rates.items():
            values[f"batch{rows}_{name}_tokens_per_second"] = spread(measured)
        medians = [spread(rates[name])["median"] for name in ("toto", "llama")]
        ratios[f"batch{rows}_vs_llama_generate"] = medians[0] / medians[1]
    about = {"preset": args.preset, "dtype": args.dtype, "prompt_frames": args.prompt_frames, "rounds": args.rounds}
    return {"ratios": ratios, "values": values} | about


def agreement(toto, llama, prompt) -> dict:
    """Compares teacher-forced logits of codes for the prompt's last 32 ids, by our decoding steps and by Llama.

    Returns the largest difference; the largest difference between Llama's own cached steps and a single pass of Llama
    in the same dtype, which is due to rounding alone; and the share of equal most likely codes.
    """
    import torch
    from transformers import DynamicCache

    from modeling_toto.decoding_toto import FrameWindow

    offset, length = toto.config.code_offset, prompt.shape[1]
    with torch.no_grad():
        whole = llama(prompt, logits_to_keep=32).logits[:, :, offset:].float()  # (B, 32, codes)
        window = FrameWindow(toto, prompt)
        if not window.fast:
            raise SystemExit("the fast decode step was not taken")
        cache = DynamicCache(config=llama.config)
        llama(prompt[:, : length - 32], past_key_values=cache, logits_to_keep=1)
        window.plain_logits(length - 32, 1)
        ours, theirs = [], []
        for end in range(length - 31, length + 1):
            ours.append(window.code_logits(end).float())
            theirs.append(llama(prompt[:, end - 1 : end], past_key_values=cache).logits[:, 0, offset:].float())
        ours, theirs = torch.stack(ours, 1), torch.stack(theirs, 1)
    return {
        "largest_difference": (ours - theirs).abs().max().item(),
        "of_llama_with_itself": (whole - theirs).abs().max().item(),
        "largest_logit": theirs.abs().max().item(),
        "equal_argmax": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
    }


def log(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
