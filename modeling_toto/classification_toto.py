"""Classification heads on any layer: pooled code features, a linear layer, and next tokens learnt beside them."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast, ImageClassifierOutput
from transformers.utils import can_return_tuple

from .attention_toto import check_length, is_padding_mask, next_token_labels, resolve_mode
from .configuration_toto import TotoConfig
from .loss_toto import next_token_losses
from .modeling_toto import TotoModel, TotoPreTrainedModel
from .mup import output_multiplier
from .pooling_toto import AttentionPooling, CrossAttentionPooling, MeanPooling, normalise


@dataclass
class TotoClassifierOutput(ImageClassifierOutput):
    """The output of transformers' classifiers and, with labels, the parts of the loss.

    task_loss: () of the labels. next_token_loss: () nats per code, where the config asks for it. `loss` is task_loss,
    plus next_token_loss_weight times next_token_loss.
    """

    task_loss: torch.FloatTensor | None = None
    next_token_loss: torch.FloatTensor | None = None


def make_pooler(config: TotoConfig) -> nn.Module:
    """The pooling that the config names: tokens (B, N, D), mask (B, N) -> (B, D)."""
    if config.pooler == "mean":
        return MeanPooling()
    if config.pooler == "attention":
        return AttentionPooling(config.hidden_size)
    return CrossAttentionPooling(config.hidden_size, config.num_attention_heads)


class TotoClassifier(TotoPreTrainedModel):
    """What both heads are: rows of ids (B, L) -> logits (B, num_labels), read at one layer of the backbone.

    Features are the residual stream after `feature_layer` blocks (the config's; None: half depth), normalised without
    parameters and pooled over the codes of a row: start, end, prompt and pad ids, and what attention_mask hides, do not
    count. A row without any code is pooled over all that is not hidden. Blocks above do not run unless hidden states,
    attentions or the next-token loss need them.

    What neither loss reaches, the blocks above and the final norm, is frozen: it would take weight decay and
    optimiser memory, and DistributedDataParallel would wait for its gradients. To train a deeper layer, give
    `feature_layer` when the model is made or loaded. A checkpoint of TotoForCausalLM loads with only the head new.

    With `config.next_token_loss`, labels add a next-token loss over the codes of the same rows: "backbone" sends both
    through the backbone; with "stop_gradient" the head reads detached features, so that the backbone learns from next
    tokens alone and the head is a probe beside it.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch: transformers' Trainer divides by its accumulation
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: TotoConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TotoModel(config)
        self.pooler = make_pooler(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.output_multiplier = output_multiplier(config)
        if config.next_token_loss is not None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self._tied_weights_keys = LlamaForCausalLM._tied_weights_keys
        self.post_init()
        if config.next_token_loss is not None:
            self._tp_plan = self._tp_plan | LlamaForCausalLM._tp_plan
            self._fsdp_plan = self._fsdp_plan | LlamaForCausalLM._fsdp_plan
        self.freeze_unread()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, whose loading makes new parameters: what is not read is frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unread()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttentionPooling):
            module.reset_query()

    @property
    def feature_layer(self) -> int:
        """The layer that is read unless a call says otherwise."""
        layer = self.config.feature_layer
        return max(1, self.config.num_hidden_layers // 2) if layer is None else layer

    def freeze_unread(self) -> None:
        """Take the blocks above the feature layer and the final norm out of training, unless next tokens need them."""
        if self.config.next_token_loss is None:
            self.model.layers[self.feature_layer :].requires_grad_(False)
            self.model.norm.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        feature_layer: int | None = None,
        attention_mode: str | None = None,
        prefix_length: int | torch.Tensor | None = None,
        **kwargs,
    ) -> TotoClassifierOutput:
        """Logits and, with labels, the loss.

        Args:
            input_ids (B, L), or inputs_embeds (B, L, D), in which codes cannot be told from other ids: everything that
                attention_mask does not hide is then pooled. attention_mask (B, L), 0 for padding.
            labels: (B,) class numbers, (B, num_labels) 0/1 floats or (B,) floats, as config.problem_type or, without
                it, transformers' rule for classifiers says.
            feature_layer: another layer than the config's, for this call.
            attention_mode, prefix_length: as in TotoModel.
        Raises:
            ValueError: a layer that does not exist, a sequence longer than max_position_embeddings, a next-token loss
                under full attention or with inputs_embeds, and what TotoModel refuses.
        """
        config = self.config
        layer, depth = self.feature_layer if feature_layer is None else feature_layer, config.num_hidden_layers
        if not 0 <= layer <= depth:
            raise ValueError(f"feature_layer is {layer}, but the model has layers 0 (the embeddings) to {depth}.")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        mode, prefix_length = resolve_mode(config, attention_mode, prefix_length)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_length(given.shape[1], 0, config.max_position_embeddings)
        counts = self._counted(given, attention_mask)
        targets = None
        if labels is not None and config.next_token_loss is not None:
            if input_ids is None:
                raise ValueError("The next-token loss needs input_ids: inputs_embeds do not say which ids come next.")
            targets = next_token_labels(input_ids.masked_fill(~counts, -100), mode, prefix_length, attention_mask)

        outputs, features = self._run_backbone(
            layer,
            whole=targets is not None,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            attention_mode=mode,
            prefix_length=prefix_length,
            **kwargs,
        )
        if config.next_token_loss == "stop_gradient":
            features = features.detach()
        counts = torch.where(counts.any(-1, keepdim=True), counts, self._unmasked(given, attention_mask))
        tokens = normalise(features).to(self.classifier.weight.dtype)  # (B, L, D)
        logits = self.classifier(self.pooler(tokens, counts.to(tokens.device)))

        loss = task_loss = next_token_loss = None
        if labels is not None:
            loss = task_loss = self.loss_function(labels=labels, pooled_logits=logits, config=config)
        if targets is not None:
            total, _ = next_token_losses(outputs.last_hidden_state * self.output_multiplier, targets, self.lm_head)
            next_token_loss = total / (targets[:, 1:] != -100).sum()
            loss = task_loss + config.next_token_loss_weight * next_token_loss
        return TotoClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            task_loss=task_loss,
            next_token_loss=next_token_loss,
        )

    def _unmasked(self, given: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """True where a row of ids (B, L) or embeddings (B, L, D) is not padding: (B, L)."""
        if is_padding_mask(attention_mask):
            return attention_mask.to(given.device).bool()
        return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)

    def _counted(self, given: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """True where a row of ids (B, L) holds a code that is not hidden, or where embeddings are not: (B, L)."""
        unmasked = self._unmasked(given, attention_mask)
        return unmasked & (given >= self.config.code_offset) if given.ndim == 2 else unmasked

    def _run_backbone(self, layer: int, whole: bool, **inputs) -> tuple[BaseModelOutputWithPast, torch.Tensor]:
        """TotoModel's output and the residual stream after `layer` blocks (B, L, D).

        Early exit after those blocks, unless the last hidden state (`whole`), hidden states or attentions are wanted.
        """
        config = self.config
        asked = inputs.pop("output_hidden_states", None)
        asked = config.output_hidden_states if asked is None else asked
        asked_any = asked is not None and asked is not False
        attentions = inputs.get("output_attentions", config.output_attentions)
        if not (whole or asked_any or attentions):
            outputs = self.model(**inputs, exit_layer=layer, use_cache=False)
            return outputs, outputs.last_hidden_state

        # The model's own last hidden state would be normed: it is read before that, and normed here.
        depth = config.num_hidden_layers
        outputs = self.model(
            **inputs, exit_layer=depth, use_cache=False, output_hidden_states=True if asked_any else [layer]
        )
        states = list(outputs.hidden_states)
        features, outputs.last_hidden_state = states[layer], self.model.norm(outputs.last_hidden_state)
        if getattr(config, "tie_last_hidden_states", None) is not False:
            states[depth] = outputs.last_hidden_state
        if asked_any and asked is not True:
            kept = {k % (depth + 1) for k in ([asked] if isinstance(asked, int) else asked)}
            states = [state if k in kept else None for k, state in enumerate(states)]
        outputs.hidden_states = tuple(states) if asked_any else None
        return outputs, features


class TotoForImageClassification(TotoClassifier):
    """A classifier of images: rows of one image's ids, image start first."""


class TotoForVideoClassification(TotoClassifier):
    """A classifier of videos: rows of all frames' ids, video start first."""


__all__ = ["TotoClassifierOutput", "TotoForImageClassification", "TotoForVideoClassification"]
