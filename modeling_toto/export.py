"""Export of a Toto to a plain Llama with the same logits, with a model card that explains its ids."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .modeling_toto import TotoForCausalLM
from .mup import attention_scaling, embedding_multiplier, output_multiplier

CARD = """\
---
library_name: transformers
tags: [llama, toto, video, vision, visual-tokens, "arxiv:2501.05453"]
---

# {source} as a plain Llama

Written by `toto export --to llama`: a LlamaForCausalLM with the logits of the Toto `{source}`. **Its ids are visual
codes, not text**: there is no text tokenizer, and none is missing.

| id | meaning |
| --- | --- |
| {config.pad_token_id} | padding |
| {config.bos_token_id} | start of a video |
| {config.eos_token_id} | end of a row |
| {config.image_start_token_id} | start of a row of images |
| other ids below {config.code_offset} | reserved |
| {config.code_offset} to {last} | the {config.num_codes:,} visual codes: code k is id {config.code_offset} + k |

A row is a start, frames of {config.tokens_per_frame} codes{grid} without separators, and an end: at most
{config.max_position_embeddings:,} ids.

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{source}")  # or the path of this folder
prompt = torch.tensor([[{config.bos_token_id}, *frame_ids]])  # frame_ids: ids of the first frames
no_code = list(range({config.code_offset}))
row = model.generate(prompt, max_new_tokens={config.tokens_per_frame}, do_sample=True, suppress_tokens=no_code)
```

The processor of `{source}` converts pixels to ids and ids to pixels: `processor(videos="clip.mp4",
add_end_token=False).input_ids` and `processor.decode(row)`. A server must accept ids instead of text (in vLLM:
`skip_tokenizer_init=True`, `prompt_token_ids`) and should sample only codes (`allowed_token_ids`).
"""


def llama_config(model: TotoForCausalLM) -> LlamaConfig:
    """The Llama part of a Toto's configuration.

    Raises:
        ValueError: If the attention mode is not causal.
    """
    config = model.config
    if config.attention_mode != "causal":
        raise ValueError(
            f"attention_mode is {config.attention_mode!r}, but a Llama is always causal, so its logits would differ; "
            "export only causal models."
        )
    known = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return LlamaConfig(**{key: value for key, value in config.to_dict().items() if key in known})


@torch.no_grad()
def to_llama(model: TotoForCausalLM, dtype: torch.dtype | None = None) -> LlamaForCausalLM:
    """The plain Llama with the same logits, tied if the Toto is tied.

    A Toto multiplies embeddings by e, logits by o and attention scores by s (see mup.py); Llama multiplies only scores,
    by 1 / sqrt(d). So e is folded into the embeddings, s * sqrt(d) into the query projections, and o into the gain of
    the final norm, divided by e if the readout is tied to the embeddings. Products are computed in float32 and rounded
    to `dtype` (the model's own by default).

    Raises:
        ValueError: If the model is not causal.
    """
    config = llama_config(model)
    state = model.state_dict()
    embedding, output = embedding_multiplier(model.config), output_multiplier(model.config)
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
        output = output / embedding
    factors = {"model.embed_tokens.weight": embedding, "model.norm.weight": output}
    scores = attention_scaling(model.config) * config.head_dim**0.5
    factors |= {name: scores for name in state if ".q_proj." in name}
    for name, factor in factors.items():
        if factor != 1:
            state[name] = (state[name].float() * factor).to(state[name].dtype if dtype is None else dtype)
    llama = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype or model.dtype)
    llama.generation_config = model.generation_config
    return llama


def write_llama(model: TotoForCausalLM, output: str | Path, source: str, dtype: torch.dtype | None = None) -> Path:
    """Write `to_llama(model, dtype)` and its card to a folder, and return its path.

    The folder is written under a temporary name and then renamed.

    Args:
        output: A folder that does not exist or is empty.
        source: Name of the Toto in the card.
    """
    output, config = Path(output).resolve(), model.config
    llama = to_llama(model, dtype)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    llama.save_pretrained(partial)
    grid = f", {config.grid_size[0]} x {config.grid_size[1]} in raster order," if config.grid_size else ""
    card = CARD.format(source=source, config=config, last=config.vocab_size - 1, grid=grid)
    (partial / "README.md").write_text(card)
    partial.rename(output)
    return output


__all__ = ["llama_config", "to_llama", "write_llama"]
