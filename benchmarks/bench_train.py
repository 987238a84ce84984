"""One optimiser step on full rows, against transformers' LlamaForCausalLM of the same config."""

from timing import alternate, spread


def train(preset: str, rows: int, rounds: int) -> dict:
    """One optimiser step on full rows: TotoForCausalLM (skip_logits) against transformers' LlamaForCausalLM."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from modeling_toto import TotoConfig, TotoForCausalLM
    from training.args import OptimArgs
    from training.device import fast_autocast
    from training.optim import make_optimizer

    config = TotoConfig.from_preset(preset)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    llama = LlamaConfig(**{name: getattr(config, name) for name in names}, attn_implementation="sdpa")
    length = 2 + config.num_frames * config.tokens_per_frame
    ids = torch.randint(64, config.vocab_size, (rows, length))

    def step_of(model, **forward):
        optimizer = make_optimizer(model, OptimArgs())

        def step():
            with fast_autocast(ids.device):
                loss = model(input_ids=ids, labels=ids, use_cache=False, **forward).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    torch.manual_seed(0)
    sides = {"toto": step_of(TotoForCausalLM(config), skip_logits=True), "llama": step_of(LlamaForCausalLM(llama))}
    seconds = alternate(sides, rounds)
    values = {}
    for name, measured in seconds.items():
        values[f"{name}_tokens_per_second"] = spread([rows * length / s for s in measured])
    ratio = values["toto_tokens_per_second"]["median"] / values["llama_tokens_per_second"]["median"]
    return {"ratios": {"tokens_vs_llama_eager": ratio}, "values": values, "preset": preset, "rows": rows}
