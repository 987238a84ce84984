"""What the model is: importing this package makes the Auto classes of transformers know Toto."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_toto import PRESETS, TotoConfig
from .modeling_toto import TotoCausalLMOutput, TotoForCausalLM, TotoModel, TotoPreTrainedModel

AutoConfig.register(TotoConfig.model_type, TotoConfig, exist_ok=True)
AutoModel.register(TotoConfig, TotoModel, exist_ok=True)
AutoModelForCausalLM.register(TotoConfig, TotoForCausalLM, exist_ok=True)

# What is saved carries its code, so that a pushed repository opens where this package is not installed.
TotoConfig.register_for_auto_class()
TotoModel.register_for_auto_class("AutoModel")
TotoForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["PRESETS", "TotoCausalLMOutput", "TotoConfig", "TotoForCausalLM", "TotoModel", "TotoPreTrainedModel"]
