"""The Toto models: the transformer, the causal language model, the classifiers and the patch predictor."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ImageClassifierOutput,
    ModelOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs, maybe_install_capturing_hooks

from .attention_toto import (
    check_backward,
    check_cache,
    check_ids,
    check_length,
    exactly_one,
    is_padding_mask,
    make_mask,
    next_token_labels,
    resolve_mode,
)
from .block_toto import TotoDecoderLayer
from .configuration_toto import TotoConfig, name_in_package
from .generation_toto import FrameGenerationMixin
from .loss_toto import next_token_losses
from .mup import attention_scaling, embedding_multiplier, init_weights, output_multiplier
from .pixels_toto import PixelInputMixin
from .pooling_toto import AttentionPooling, make_pooler, normalise

name_in_package(__name__)


class TotoPreTrainedModel(LlamaPreTrainedModel):
    """Base class of all Toto models: the configuration and the initialisation of weights."""

    config: TotoConfig
    _no_split_modules = ["TotoDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(self, module)


class TotoModel(TotoPreTrainedModel, PixelInputMixin, LlamaModel):
    """The transformer without a head: input_ids (B, L) -> last_hidden_state (B, L, D).

    With `output_hidden_states=True`, hidden_states[k] is the residual stream after block k and hidden_states[0] the
    embeddings. The last entry is taken after the final norm, as in every transformers model, unless the config sets
    `tie_last_hidden_states=False`. An integer or a list of integers selects layers; the other entries are None.
    """

    def __init__(self, config: TotoConfig):
        super(LlamaModel, self).__init__(config)  # not LlamaModel.__init__, which would build Llama's blocks
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
        pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Llama's forward with three attention modes and an early exit.

        Args:
            input_ids: Ids (B, L), or else inputs_embeds (B, L, D).
            attention_mask: (B, past + L), 0 for padding, which may be on either side.
            attention_mode, prefix_length: Override the config for this call; prefix_length may be one per row, (B,).
                Full attention uses no cache; a prefix must be passed whole in the first call of a cached sequence.
            exit_layer: Number of blocks to run; last_hidden_state is then the residual stream after them, before the
                final norm. All blocks and the norm by default.
            pixel_values: Instead of ids, images (B, 3, H, W) or clips (B, T, 3, H, W); see `ids_of_pixels`.
        Raises:
            ValueError: If ids are outside the vocabulary, the cache does not fit, the layer does not exist, or the
                attention implementation does not support the mode. Raised before anything is computed.
        """
        if pixel_values is not None:
            input_ids = self.ids_of_pixels(pixel_values, False, input_ids, inputs_embeds)
        given = exactly_one(input_ids, inputs_embeds)
        mode, prefix_length = resolve_mode(self.config, attention_mode, prefix_length)
        depth = self.config.num_hidden_layers
        if exit_layer is not None:
            self.config.check_layer("exit_layer", exit_layer)
        if mode == "full":
            if past_key_values is not None:
                raise ValueError(
                    "Full attention has no cache, because earlier tokens attend to later ones; pass the whole sequence "
                    "without past_key_values, or use attention_mode='causal' or 'prefix'."
                )
            use_cache, kwargs["is_causal"] = False, False
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


@dataclass
class TotoCausalLMOutput(CausalLMOutputWithPast):
    """Llama's output plus, with labels, the loss of every position.

    token_losses: float32 (B, L), the loss in nats of predicting labels[:, t] from the ids before t. It is 0 where
    labels is -100 and at t = 0, which is not predicted. Differentiable.
    """

    token_losses: torch.FloatTensor | None = None


class TotoForCausalLM(TotoPreTrainedModel, FrameGenerationMixin, LlamaForCausalLM, GenerationMixin):
    """The pre-training model: next-token prediction over rows of visual ids (paper Eq. 1-2)."""

    def __init__(self, config: TotoConfig):
        super(LlamaForCausalLM, self).__init__(config)  # not LlamaForCausalLM.__init__, which would build a LlamaModel
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> TotoCausalLMOutput:
        """Llama's forward with per-position losses.

        Args:
            input_ids: Ids (B, L), or else inputs_embeds (B, L, D).
            labels: Ids (B, L), not shifted; -100 where nothing is predicted. Under prefix attention the loss covers
                only the tokens after the prefix, because the prefix itself is visible.
            skip_logits: Compute only the losses and return no logits, which saves memory in training. Otherwise the
                output is Llama's, with `token_losses` added if labels are given.
            attention_mode, prefix_length: As in TotoModel.
        Raises:
            ValueError: If `skip_logits=True` is given without labels, labels are given under full attention, the
                sequence has more positions than max_position_embeddings, or TotoModel raises it.
        """
        mode, prefix_length = resolve_mode(self.config, attention_mode, prefix_length)
        length = exactly_one(input_ids, inputs_embeds).shape[1]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        check_length(length, past, self.config.max_position_embeddings, position_ids)
        if labels is not None:
            labels = next_token_labels(labels, mode, prefix_length, attention_mask, past)
        elif skip_logits:
            raise ValueError("skip_logits=True computes only the loss and needs labels; pass labels=input_ids.")
        if use_cache is None and past_key_values is None:
            use_cache = False if skip_logits or (labels is not None and self.training) else None  # no use in training
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
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
        """The mask that `generate` passes with a static cache; it cannot handle flex masks, which forward makes."""
        if config._attn_implementation == "flex_attention":
            return attention_mask
        return make_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,  # generate() looks for this parameter to accept prompts of embeddings
        attention_mode=None,
        prefix_length=None,
        **kwargs,
    ):
        """As in Llama; with a static cache the prefix mask is made here, outside the compiled forward."""
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


@dataclass
class TotoClassifierOutput(ImageClassifierOutput):
    """The output of transformers' classifiers plus, with labels, the parts of the loss.

    task_loss: (), the loss of the labels. next_token_loss: (), nats per code, if the config asks for it. `loss` is
    task_loss + next_token_loss_weight * next_token_loss.
    """

    task_loss: torch.FloatTensor | None = None
    next_token_loss: torch.FloatTensor | None = None


class TotoClassifier(TotoPreTrainedModel, PixelInputMixin):
    """Base class of the classifiers: rows of ids (B, L) -> logits (B, num_labels), read from one layer of the backbone.

    The features are the residual stream after `feature_layer` blocks, normalised without parameters and pooled over the
    codes of each row: start, end, prompt and padding ids and masked positions are excluded. A row without any code is
    pooled over all positions that are not masked. Blocks above the feature layer run only if hidden states, attentions
    or the next-token loss need them.

    Parameters that no loss reaches (the blocks above the feature layer and the final norm) are frozen; otherwise they
    would undergo weight decay, take optimiser memory and make DistributedDataParallel wait for their gradients. To
    train a deeper layer, pass `feature_layer` when creating or loading the model. A checkpoint of TotoForCausalLM loads
    with only the head newly initialised.

    With `config.next_token_loss` and labels, a next-token loss over the codes of the same rows is added: "backbone"
    trains the backbone with both losses; with "stop_gradient" the head reads detached features, so the backbone learns
    from next tokens alone and the head is a probe.
    """

    reads_clips = False  # what four-dimensional pixel_values are: images, or the frames of clips
    accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer divides by its accumulation steps
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
            maybe_install_capturing_hooks(self.model)  # every step records a layer; torch.compile cannot install them
        self.freeze_unread()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, whose loading creates new parameters: those that are not read are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unread()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttentionPooling):
            module.reset(self.config.initializer_range)

    @property
    def feature_layer(self) -> int:
        """The layer that is read by default: the config's, or half depth."""
        layer = self.config.feature_layer
        return max(1, self.config.num_hidden_layers // 2) if layer is None else layer

    def freeze_unread(self) -> None:
        """Freeze the blocks above the feature layer and the final norm, unless the next-token loss trains them."""
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
        pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TotoClassifierOutput:
        """Logits and, with labels, the loss.

        Args:
            input_ids: Ids (B, L), or else inputs_embeds (B, L, D). Embeddings do not show which positions hold codes,
                so all positions that are not masked are pooled.
            attention_mask: (B, L), 0 for padding.
            labels: Class numbers (B,), 0/1 floats (B, num_labels) or floats (B,), according to config.problem_type; if
                that is None, transformers infers it from the labels.
            feature_layer: Overrides the config's for this call.
            attention_mode, prefix_length: As in TotoModel.
            pixel_values: Instead of ids, images (B, 3, H, W) or clips (B, T, 3, H, W); see `ids_of_pixels`.
        Raises:
            ValueError: If the layer does not exist, the sequence is longer than max_position_embeddings, a next-token
                loss is wanted under full attention or with inputs_embeds, or TotoModel raises it.
        """
        config = self.config
        if pixel_values is not None:
            input_ids = self.ids_of_pixels(pixel_values, self.reads_clips, input_ids, inputs_embeds)
        layer = self.feature_layer if feature_layer is None else feature_layer
        config.check_layer("feature_layer", layer)
        given = exactly_one(input_ids, inputs_embeds)
        mode, prefix_length = resolve_mode(config, attention_mode, prefix_length)
        check_length(given.shape[1], 0, config.max_position_embeddings, position_ids)
        visible = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)  # (B, L)
        if is_padding_mask(attention_mask):
            visible = attention_mask.to(given.device).bool()
        counted = visible if input_ids is None else visible & (input_ids >= config.code_offset)
        targets = None
        if labels is not None and config.next_token_loss is not None:
            if input_ids is None:
                raise ValueError(
                    "The next-token loss needs input_ids, because inputs_embeds do not say which ids come next; pass "
                    "input_ids."
                )
            targets = next_token_labels(input_ids.masked_fill(~counted, -100), mode, prefix_length, attention_mask)

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
        counted = torch.where(counted.any(-1, keepdim=True), counted, visible)
        tokens = normalise(features).to(self.classifier.weight.dtype)  # (B, L, D)
        logits = self.classifier(self.pooler(tokens, counted.to(tokens.device)))

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

    def _run_backbone(self, layer: int, whole: bool, **inputs) -> tuple[BaseModelOutputWithPast, torch.Tensor]:
        """TotoModel's output and the residual stream after `layer` blocks, (B, L, D).

        Blocks above `layer` run only if the last hidden state (`whole`), hidden states or attentions are needed.
        """
        config = self.config
        asked = inputs.pop("output_hidden_states", None)
        asked = config.output_hidden_states if asked is None else asked
        asked_any = asked is not None and asked is not False
        attentions = inputs.get("output_attentions", config.output_attentions)
        if not (whole or asked_any or attentions):
            outputs = self.model(**inputs, exit_layer=layer, use_cache=False)
            return outputs, outputs.last_hidden_state

        # exit_layer=depth returns the last state before the final norm, which feature_layer=depth reads
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
    """Image classifier: each row holds the ids of one image and begins with the image start token."""


class TotoForVideoClassification(TotoClassifier):
    """Video classifier: each row holds the ids of all frames and begins with the video start token."""

    reads_clips = True


@dataclass
class TotoPatchPredictionOutput(ModelOutput):
    """Predictions of N patches from the start token and the patches before them.

    loss: (), the mean over the patches that count. logits: (B, N + 1, patch_dim or num_codes); logits[:, t] predicts
    patch t, and the last one the patch after the row; None with skip_logits. token_losses: float32 (B, N), the mean
    squared error or the nats of each patch, 0 where it does not count; differentiable.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    token_losses: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# MAE's, and that of `tokenization.Patches`: patches that are already normalised do not change.
PATCH_EPS = 1e-6


def normalise_patches(patches: torch.Tensor) -> torch.Tensor:
    """Each patch normalised by its mean and unbiased variance, in float32: (..., patch_dim) -> (..., patch_dim)."""
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + PATCH_EPS).sqrt()


class TotoForPatchPrediction(TotoPreTrainedModel):
    """Causal prediction of continuous patches in raster order (paper Table 3), with linear input and output layers.

    `config.prediction_target` is "patch" (patch-patch in Table 3: regression to normalised pixels) or "code"
    (patch-dVAE: classification of the dVAE code at the same place). The paper is silent on the rest. Ours: a row is a
    start embedding, as in TotoForCausalLM, followed by the patches, without an end token; the pixel loss is MAE's, the
    squared error to each normalised patch. If no codes are predicted, `vocab_size=code_offset` restricts the embeddings
    to the special ids.
    """

    main_input_name = "patches"

    def __init__(self, config: TotoConfig):
        super().__init__(config)
        if config.prediction_target == "code" and config.num_codes < 1:
            raise ValueError(
                f"prediction_target='code' needs codes, but vocab_size is {config.vocab_size} and code_offset "
                f"{config.code_offset}; set vocab_size to code_offset plus the number of codes."
            )
        self.model = TotoModel(config)
        self.patch_embedding = nn.Linear(config.patch_dim, config.hidden_size)
        self.is_regression = config.prediction_target == "patch"
        self.head = nn.Linear(config.hidden_size, config.patch_dim if self.is_regression else config.num_codes)
        self.output_multiplier = output_multiplier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        patches: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        start_token_id: int | torch.LongTensor | None = None,
        skip_logits: bool | None = None,
        attention_mode: str | None = None,
        prefix_length: int | torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TotoPatchPredictionOutput:
        """Predictions and, with labels, the loss.

        Args:
            patches: (B, N, patch_dim), normalised or not.
            attention_mask: (B, N), 0 for patches that pad a row on the right.
            labels: Targets, not shifted. "patch": (B, N, patch_dim), usually the patches themselves, which are
                normalised here. "code": code numbers (B, N) below num_codes, -100 where nothing is predicted.
            start_token_id: An id, or one per row (B,); config.bos_token_id, which starts a video, by default.
                config.image_start_token_id starts images.
            skip_logits: Return only the losses.
            attention_mode, prefix_length: As in TotoModel. The start token is the first token of a prefix, and patches
                in the prefix do not count in the loss.
            num_items_in_batch: Divisor of the loss instead of the number of patches that count: the number of labels
                that are not -100 in all micro-batches of a step, as the Trainer counts them. Where rows are padded,
                pass the labels of the padding as -100 too.
        Raises:
            ValueError: If patches, mask or labels have the wrong shape, `skip_logits=True` is given without labels,
                labels are given under full attention, the row is longer than max_position_embeddings, or TotoModel
                raises it.
        """
        config = self.config
        mode, prefix_length = resolve_mode(config, attention_mode, prefix_length)
        if patches.ndim != 3 or patches.shape[-1] != config.patch_dim:
            raise ValueError(
                f"patches has shape {tuple(patches.shape)}; pass (batch, number, {config.patch_dim}), RGB patches of "
                f"{config.patch_size} x {config.patch_size} pixels."
            )
        check_length(patches.shape[1] + 1, 0, config.max_position_embeddings, kwargs.get("position_ids"))
        if attention_mask is not None and tuple(attention_mask.shape) != tuple(patches.shape[:2]):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; pass {tuple(patches.shape[:2])}, a number "
                "for each patch and none for the start token."
            )
        if labels is None and skip_logits:
            raise ValueError("skip_logits=True computes only the loss and needs labels; pass labels.")
        mask = None if attention_mask is None else F.pad(attention_mask.long(), (1, 0), value=1)  # (B, 1 + N)
        counted = None if labels is None else self._counted(labels, patches, mask, mode, prefix_length)

        start = torch.as_tensor(config.bos_token_id if start_token_id is None else start_token_id)
        start = self.model.embed_tokens(start.to(patches.device).expand(len(patches)))[:, None]  # (B, 1, D)
        embeds = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        outputs = self.model(
            inputs_embeds=torch.cat([start.to(embeds.dtype), embeds], dim=1),
            attention_mask=mask,
            use_cache=False,
            attention_mode=mode,
            prefix_length=prefix_length,
            **kwargs,
        )
        states = outputs.last_hidden_state * self.output_multiplier
        # the logits of codes are many; the predictions of pixels are as few as the pixels
        logits = self.head(states) if self.is_regression or not skip_logits else None
        loss = token_losses = None
        if labels is not None:
            total, token_losses = self._losses(states, logits, labels, counted)
            if num_items_in_batch is None:
                num_items_in_batch = counted.sum()
            elif self.is_regression:  # the Trainer counts the values of patches
                num_items_in_batch = num_items_in_batch / config.patch_dim
            loss = total / num_items_in_batch
        return TotoPatchPredictionOutput(
            loss=loss,
            logits=None if skip_logits else logits,
            token_losses=token_losses,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True) -> nn.Embedding:
        """As in transformers; where codes are predicted, their number changes with the vocabulary."""
        if not self.is_regression and new_num_tokens is not None and new_num_tokens <= self.config.code_offset:
            raise ValueError(
                f"A vocabulary of {new_num_tokens} ids has no codes to predict; pass more than code_offset, "
                f"{self.config.code_offset}."
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.is_regression and self.config.num_codes != self.head.out_features:
            is_trained = self.head.weight.requires_grad
            self.head = self._get_resized_lm_head(self.head, self.config.num_codes, mean_resizing=mean_resizing)
            self.head.requires_grad_(is_trained)
        return embeddings

    def _counted(self, labels, patches, mask, mode, prefix_length) -> torch.BoolTensor:
        """True where a patch counts in the loss, (B, N). Raises ValueError if the labels have the wrong shape."""
        wanted = tuple(patches.shape if self.is_regression else patches.shape[:2])
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}; pass {wanted} for "
                f"prediction_target={self.config.prediction_target!r}."
            )
        rows = torch.zeros(patches.shape[0], patches.shape[1] + 1, dtype=torch.long, device=patches.device)
        counted = next_token_labels(rows, mode, prefix_length, mask)[:, 1:] != -100
        if mask is not None:
            counted = counted & mask[:, 1:].bool()
        return counted if self.is_regression else counted & (labels != -100)

    def _losses(self, states, logits, labels, counted) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum () and token_losses (B, N) from states (B, 1 + N, D), or from their logits where these were computed."""
        if self.is_regression:
            errors = (logits[:, :-1].float() - normalise_patches(labels.to(logits.device))).square().mean(-1)
            losses = errors * counted
            return losses.sum(), losses
        targets = F.pad(labels.masked_fill(~counted, -100), (1, 0), value=-100)
        scores, head = (states, self.head) if logits is None else (logits, None)
        total, losses = next_token_losses(scores, targets, head)
        return total, losses[:, 1:]


__all__ = [
    "TotoCausalLMOutput",
    "TotoClassifierOutput",
    "TotoForCausalLM",
    "TotoForImageClassification",
    "TotoForPatchPrediction",
    "TotoForVideoClassification",
    "TotoModel",
    "TotoPatchPredictionOutput",
    "TotoPreTrainedModel",
    "normalise_patches",
]
