"""Toto as a member of transformers' Llama family, with a loss that never holds the logits of a whole row."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_toto import TotoConfig
from .generation_toto import FrameGenerationMixin

# Logits held at once by the chunked loss: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


@dataclass
class TotoCausalLMOutput(CausalLMOutputWithPast):
    """Llama's output and, when labels were given, the loss of every position.

    token_losses: float32 (B, L), nats of predicting labels[:, t] from the ids before t; 0 where labels is -100 and at
    t = 0, which nothing predicts. Differentiable.
    """

    token_losses: torch.FloatTensor | None = None


def token_cross_entropy(
    states: torch.Tensor, targets: torch.Tensor, head: nn.Module, vocab_size: int, ignore_index: int = -100
) -> torch.Tensor:
    """Cross-entropy of `head(states)` against `targets` without holding all the logits.

    states (N, D), targets (N,) -> float32 nats (N,), 0 where the target is `ignore_index`. The rows go through the head
    a chunk at a time; a chunk's logits are made again in the backward pass instead of being kept.
    """

    def chunk_loss(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(rows).float(), wanted, reduction="none", ignore_index=ignore_index)

    rows_per_chunk = max(1, CHUNK_ELEMENTS // vocab_size)
    if states.shape[0] <= rows_per_chunk:
        return chunk_loss(states, targets)
    losses = []
    for rows, wanted in zip(states.split(rows_per_chunk), targets.split(rows_per_chunk), strict=True):
        if torch.is_grad_enabled():
            losses.append(checkpoint(chunk_loss, rows, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            losses.append(chunk_loss(rows, wanted))
    return torch.cat(losses)


class TotoModel(LlamaModel):
    """The transformer without a head: input_ids (B, L) -> last_hidden_state (B, L, D).

    With `output_hidden_states=True`, hidden_states[k] is the residual stream after block k and hidden_states[0] the
    embeddings; the last one is after the final norm, as in every transformers model, unless the config sets
    `tie_last_hidden_states=False`.
    """

    config: TotoConfig


class TotoForCausalLM(FrameGenerationMixin, LlamaForCausalLM, GenerationMixin):
    """The pre-training model: next-token prediction over rows of visual ids (paper Eq. 1-2)."""

    config: TotoConfig

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs,
    ) -> TotoCausalLMOutput:
        """Llama's forward with per-position losses.

        input_ids (B, L) and labels (B, L), not shifted, -100 where nothing is to be learnt. With `skip_logits=True`
        only the losses are computed and `logits` is None: use it to train. Otherwise everything is as in Llama, and
        `token_losses` is added when labels are given. Raises ValueError for `skip_logits=True` without labels.
        """
        if not skip_logits:
            outputs = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
            token_losses = None
            if labels is not None:
                token_losses = self._token_losses(outputs.logits, labels, nn.Identity())
            return TotoCausalLMOutput(**outputs, token_losses=token_losses)

        if labels is None:
            raise ValueError("skip_logits=True computes only the loss, so it needs labels; pass labels=input_ids.")
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),  # a loss alone has no use for the keys and values
            **kwargs,
        )
        token_losses = self._token_losses(outputs.last_hidden_state, labels, self.lm_head)
        if num_items_in_batch is None:
            num_items_in_batch = (labels[:, 1:] != -100).sum()
        return TotoCausalLMOutput(
            loss=token_losses.sum() / num_items_in_batch,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_losses=token_losses,
        )

    def _token_losses(self, states: torch.Tensor, labels: torch.LongTensor, head: nn.Module) -> torch.Tensor:
        """states (B, L, D or V), labels (B, L) -> (B, L): position t holds the loss of labels[:, t]."""
        # as in transformers, the labels move and not the states: a slice of those would be a copy
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).to(states.device)
        losses = token_cross_entropy(states.flatten(0, 1), targets.flatten(), head, self.config.vocab_size)
        return nn.functional.pad(losses.view(labels.shape)[:, :-1], (1, 0))


__all__ = ["TotoCausalLMOutput", "TotoForCausalLM", "TotoModel", "token_cross_entropy"]
