"""The Toto model family. Importing this package registers Toto with the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
)

from .configuration_toto import PRESETS, TotoConfig
from .modeling_toto import (
    TotoCausalLMOutput,
    TotoClassifierOutput,
    TotoForCausalLM,
    TotoForImageClassification,
    TotoForPatchPrediction,
    TotoForVideoClassification,
    TotoModel,
    TotoPatchPredictionOutput,
    TotoPreTrainedModel,
)

AutoConfig.register(TotoConfig.model_type, TotoConfig, exist_ok=True)
AutoModel.register(TotoConfig, TotoModel, exist_ok=True)
AutoModelForCausalLM.register(TotoConfig, TotoForCausalLM, exist_ok=True)
AutoModelForImageClassification.register(TotoConfig, TotoForImageClassification, exist_ok=True)
AutoModelForVideoClassification.register(TotoConfig, TotoForVideoClassification, exist_ok=True)
# The Auto class picks the one that the checkpoint names as its architecture, or else the first.
AutoModelForPreTraining.register(TotoConfig, (TotoForCausalLM, TotoForPatchPrediction), exist_ok=True)

# Models are saved with their code, so that a pushed repository loads where this package is not installed.
TotoConfig.register_for_auto_class()
TotoModel.register_for_auto_class("AutoModel")
TotoForCausalLM.register_for_auto_class("AutoModelForCausalLM")
TotoForImageClassification.register_for_auto_class("AutoModelForImageClassification")
TotoForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")
TotoForPatchPrediction.register_for_auto_class("AutoModelForPreTraining")

__all__ = [
    "PRESETS",
    "TotoCausalLMOutput",
    "TotoClassifierOutput",
    "TotoConfig",
    "TotoForCausalLM",
    "TotoForImageClassification",
    "TotoForPatchPrediction",
    "TotoForVideoClassification",
    "TotoModel",
    "TotoPatchPredictionOutput",
    "TotoPreTrainedModel",
]
