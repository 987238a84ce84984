"""Toto as a member of transformers' Llama family, with a loss that never holds the logits of a whole row."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_toto import (
    check_backward,
    check_cache,
    check_ids,
    check_length,
    is_padding_mask,
    make_mask,
    next_token_labels,
    resolve_mode,
)
from .block_toto import TotoDecoderLayer
from .configuration_toto import TotoConfig
from .generation_toto import FrameGenerationMixin
from .loss_toto import next_token_losses
from .mup import attention_scaling, embedding_multiplier, init_weights, output_multiplier

if TYPE_CHECKING:
    # Never imported here: transformers copies the files that it finds named beside a saved model, and every saved model
    # names these heads in its auto_map.
    from .classification_toto import TotoForImageClassification  # noqa: F401
    from .patch_prediction_toto import TotoForPatchPrediction  # noqa: F401


@dataclass
class TotoCausalLMOutput(CausalLMOutputWithPast):
    """Llama's output and, when labels were given, the loss of every position.

    token_losses: float32 (B, L), nats of predicting labels[:, t] from the ids before t; 0 where labels is -100 and at
    t = 0, which nothing predicts. Differentiable.
    """

    token_losses: torch.FloatTensor | None = None


class TotoPreTrainedModel(LlamaPreTrainedModel):
    """What all Toto models share: the config and how fresh weights are drawn."""

    config: TotoConfig
    _no_split_modules = ["TotoDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(self, module)


class TotoModel(TotoPreTrainedModel, LlamaModel):
    """The transformer without a head: input_ids (B, L) -> last_hidden_state (B, L, D).

    With `output_hidden_states=True`, hidden_states[k] is the residual stream after block k and hidden_states[0] the
    embeddings; the last one is after the final norm, as in every transformers model, unless the config sets
    `tie_last_hidden_states=False`. An integer or a list of integers keeps only those.
    """

    def __init__(self, config: TotoConfig):
        super(LlamaModel, self).__init__(config)  # past Llama's own, which would build its own blocks
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(TotoDecoderLayer(config, k) for k in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        for layer in self.layers:
            layer.self_attn.scaling = attention_scaling(config)
        self.embedding_multiplier = embedding_multiplier(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        attention_mode: str | None = None,
        prefix_length: int | torch.Tensor | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Llama's forward with three attention modes and an early exit.

        Args:
            input_ids (B, L) or inputs_embeds (B, L, D); attention_mask (B, past + L), 0 for padding, on either side.
            attention_mode, prefix_length: as in TotoConfig, for this call; prefix_length may differ by row, (B,).
                Full attention keeps no cache; a prefix must come whole in the first call of a cached sequence.
            exit_layer: run only this many blocks; last_hidden_state is then the residual stream after them, unnormed.
        Raises:
            ValueError: ids outside the vocabulary, a cache that does not fit, a layer that does not exist, or a mode
                that the attention implementation cannot do; all before anything is computed.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        mode, prefix_length = resolve_mode(self.config, attention_mode, prefix_length)
        depth = self.config.num_hidden_layers
        if exit_layer is not None and not 0 <= exit_layer <= depth:
            raise ValueError(f"exit_layer is {exit_layer}, but the model has layers 0 (the embeddings) to {depth}.")
        if mode == "full":
            if past_key_values is not None:
                raise ValueError(
                    "Full attention has no cache: earlier tokens would have to see the new ones. Pass the whole "
                    "sequence without past_key_values, or use attention_mode='causal' or 'prefix'."
                )
            use_cache, kwargs["is_causal"] = False, False
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, length = given.shape[:2]
        check_backward(self.config, self, given.device)
        if past_key_values is not None:
            check_cache(past_key_values, batch, length, depth, attention_mask)
        if input_ids is not None:
            check_ids(input_ids, self.embed_tokens.num_embeddings)
            inputs_embeds = self.embed_tokens(input_ids)
        if self.embedding_multiplier != 1:
            inputs_embeds = inputs_embeds * self.embedding_multiplier

        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(length, device=inputs_embeds.device) + past)[None]
        mask = make_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids, mode, prefix_length)
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers[: depth if exit_layer is None else exit_layer]:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if exit_layer is None:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class TotoForCausalLM(TotoPreTrainedModel, FrameGenerationMixin, LlamaForCausalLM, GenerationMixin):
    """The pre-training model: next-token prediction over rows of visual ids (paper Eq. 1-2)."""

    def __init__(self, config: TotoConfig):
        super(LlamaForCausalLM, self).__init__(config)  # past Llama's own, which would build a LlamaModel
        self.model = TotoModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.output_multiplier = output_multiplier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        attention_mode: str | None = None,
        prefix_length: int | torch.Tensor | None = None,
        **kwargs,
    ) -> TotoCausalLMOutput:
        """Llama's forward with per-position losses.

        input_ids (B, L) and labels (B, L), not shifted, -100 where nothing is to be learnt. With `skip_logits=True`
        only the losses are computed and `logits` is None: use it to train. Otherwise everything is as in Llama, and
        `token_losses` is added when labels are given. attention_mode and prefix_length as in TotoModel; under prefix
        attention only tokens after the prefix are counted in the loss, since those inside have been seen.

        Raises:
            ValueError: `skip_logits=True` without labels, labels under full attention, a sequence longer than
                max_position_embeddings, and what TotoModel refuses.
        """
        mode, prefix_length = resolve_mode(self.config, attention_mode, prefix_length)
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        check_length(length, past, self.config.max_position_embeddings)
        if labels is not None:
            labels = next_token_labels(labels, mode, prefix_length, attention_mask, past)
        elif skip_logits:
            raise ValueError("skip_logits=True computes only the loss, so it needs labels; pass labels=input_ids.")
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache) if skip_logits else use_cache,  # a loss alone has no use for keys and values
            attention_mode=mode,
            prefix_length=prefix_length,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if self.output_multiplier != 1:
            states = states * self.output_multiplier
        logits = loss = token_losses = None
        if skip_logits:
            total, token_losses = next_token_losses(states, labels, self.lm_head)
            if num_items_in_batch is None:
                num_items_in_batch = (labels[:, 1:] != -100).sum()
            loss = total / num_items_in_batch
        else:
            logits = self.lm_head(slice_logits_to_keep(states, logits_to_keep))
            if labels is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
                _, token_losses = next_token_losses(logits, labels, head=None)
        return TotoCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_losses=token_losses,
        )

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, position_ids=None, **kwargs):
        """`generate` makes the masks of a static cache by this; flex masks, which it cannot handle, the model makes."""
        if config._attn_implementation == "flex_attention":
            return attention_mask
        return make_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,  # generate() reads this signature to know whether a prompt may be embeddings
        attention_mode=None,
        prefix_length=None,
        **kwargs,
    ):
        """As in Llama; with a static cache masks are made before the compiled forward, so the prefix's is made here."""
        mode, prefix_length = resolve_mode(self.config, attention_mode, prefix_length)
        static = past_key_values is not None and past_key_values.is_compileable
        made = attention_mask is not None and not is_padding_mask(attention_mask)
        later = made or self.config._attn_implementation == "flex_attention"
        if mode == "prefix" and static and not later and past_key_values.get_seq_length() == 0:
            prompt = input_ids if inputs_embeds is None else inputs_embeds
            embeds = torch.empty(*prompt.shape[:2], 0, dtype=self.dtype, device=prompt.device)
            attention_mask = make_mask(self.config, embeds, attention_mask, past_key_values, None, mode, prefix_length)
        return super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            attention_mode=mode,
            prefix_length=prefix_length,
            **kwargs,
        )


__all__ = ["TotoCausalLMOutput", "TotoForCausalLM", "TotoModel", "TotoPreTrainedModel"]
