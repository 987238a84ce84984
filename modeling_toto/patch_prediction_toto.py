"""Next-patch prediction: continuous patches in, the next normalised patch or its dVAE code out (paper Table 3)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .attention_toto import check_length, next_token_labels, resolve_mode
from .configuration_toto import TotoConfig
from .loss_toto import next_token_losses
from .modeling_toto import TotoModel, TotoPreTrainedModel
from .mup import output_multiplier

# As in MAE, and as tokenization's normalised patches, which this leaves unchanged.
EPS = 1e-6


@dataclass
class TotoPatchPredictionOutput(ModelOutput):
    """Predictions of N patches from the start token and the patches before them.

    loss: () mean over the patches that count. logits (B, N + 1, patch_dim or num_codes): logits[:, t] predicts patch t,
    the last one the patch after the row; None with skip_logits. token_losses: float32 (B, N), the mean squared error
    or the nats of each patch, 0 where it does not count; differentiable.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    token_losses: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def normalise_patches(patches: torch.Tensor) -> torch.Tensor:
    """Each patch by its own mean and unbiased variance, float32: (..., patch_dim) -> (..., patch_dim)."""
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + EPS).sqrt()


class TotoForPatchPrediction(TotoPreTrainedModel):
    """Causal prediction of patches in raster order, one linear layer before and one after the transformer.

    `config.prediction_target` is "patch" (Table 3's patch-patch: regression to normalised pixels) or "code"
    (patch-dVAE: classification of the dVAE's code of the same place). The paper is silent on all else. Ours: a row is
    one start embedding, the one of TotoForCausalLM's rows, and the patches, without an end token; the loss of pixels is
    MAE's, the squared error to each patch normalised by itself. `vocab_size=code_offset` keeps the embeddings to the
    special ids where codes are not predicted.
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
        self.head = nn.Linear(
            config.hidden_size, config.patch_dim if config.prediction_target == "patch" else config.num_codes
        )
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
        **kwargs,
    ) -> TotoPatchPredictionOutput:
        """Predictions and, with labels, the loss.

        Args:
            patches: (B, N, patch_dim), pixels or normalised ones.
            attention_mask: (B, N), 0 for patches that pad a row on the right.
            labels: what is predicted, not shifted. "patch": (B, N, patch_dim), usually the patches themselves, which
                are normalised here. "code": code numbers (B, N) below num_codes, -100 where nothing is to be learnt.
            start_token_id: an id, or one per row (B,): default config.bos_token_id, which starts a video;
                config.image_start_token_id starts images.
            skip_logits: compute the loss alone.
            attention_mode, prefix_length: as in TotoModel; the start counts as the first token of a prefix. Patches of
                the prefix are not counted in the loss.
        Raises:
            ValueError: patches of another size, labels of another shape, `skip_logits=True` without labels, labels
                under full attention, a row longer than max_position_embeddings, and what TotoModel refuses.
        """
        config = self.config
        mode, prefix_length = resolve_mode(config, attention_mode, prefix_length)
        if patches.ndim != 3 or patches.shape[-1] != config.patch_dim:
            raise ValueError(
                f"patches must be (batch, number, {config.patch_dim}), RGB patches of {config.patch_size} x "
                f"{config.patch_size} pixels, not {tuple(patches.shape)}."
            )
        batch, number = patches.shape[:2]
        check_length(number + 1, 0, config.max_position_embeddings)
        if labels is None and skip_logits:
            raise ValueError("skip_logits=True computes only the loss, so it needs labels.")
        mask = None if attention_mask is None else F.pad(attention_mask.long(), (1, 0), value=1)  # (B, 1 + N)
        counted = None if labels is None else self._counted(labels, patches, mask, mode, prefix_length)

        start = torch.as_tensor(config.bos_token_id if start_token_id is None else start_token_id)
        start = self.model.embed_tokens(start.to(patches.device).expand(batch))[:, None]  # (B, 1, D)
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
        is_regression = config.prediction_target == "patch"
        logits = self.head(states) if is_regression or not skip_logits else None
        loss = token_losses = None
        if labels is not None:
            if is_regression:
                errors = (logits[:, :-1].float() - normalise_patches(labels.to(logits.device))).square().mean(-1)
                token_losses = errors * counted
                total = token_losses.sum()
            else:
                targets = F.pad(labels.masked_fill(~counted, -100), (1, 0), value=-100)
                scores, head = (states, self.head) if logits is None else (logits, None)
                total, token_losses = next_token_losses(scores, targets, head)
                token_losses = token_losses[:, 1:]
            loss = total / counted.sum()
        return TotoPatchPredictionOutput(
            loss=loss,
            logits=None if skip_logits else logits,
            token_losses=token_losses,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _counted(self, labels, patches, mask, mode, prefix_length) -> torch.BoolTensor:
        """Which patches count in the loss (B, N); refuses labels that do not fit."""
        wanted = tuple(patches.shape if self.config.prediction_target == "patch" else patches.shape[:2])
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"labels of prediction_target={self.config.prediction_target!r} must be {wanted}, not "
                f"{tuple(labels.shape)}."
            )
        rows = torch.zeros(patches.shape[0], patches.shape[1] + 1, dtype=torch.long, device=patches.device)
        rows = next_token_labels(rows, mode, prefix_length, mask)
        counted = rows[:, 1:] != -100
        if mask is not None:
            counted = counted & mask[:, 1:].bool()
        return counted if labels.ndim == 3 else counted & (labels != -100)


__all__ = ["TotoForPatchPrediction", "TotoPatchPredictionOutput", "normalise_patches"]
