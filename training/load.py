"""A trained model and its processor, loaded by the name of the run, folder or Hub repository that holds them."""

from pathlib import Path

from transformers import PreTrainedModel

from tokenization.processing_toto import TotoProcessor


def load_run(name_or_path: str | Path) -> tuple[PreTrainedModel, TotoProcessor]:
    """(model, processor) of a run, of a Hugging Face folder, or of a Hub id.

    The model is of the class that was trained or fine-tuned, in float32, in eval mode, on the CPU.

    Args:
        name_or_path: a run folder stands for its newest valid checkpoint, or for the one that a fine-tuning was tested
            with.
    Raises:
        FileNotFoundError: a folder without a model.
        ValueError: a model that is neither a Toto nor a peer of one (GPT-2, Mamba).
        OSError: no processor next to the model.
    """
    import torch
    import transformers

    import modeling_toto
    import tokenization
    from training.find_model import resolve_model

    tokenization.register()
    path = resolve_model(str(name_or_path))
    config = transformers.AutoConfig.from_pretrained(path)
    (kind,) = config.architectures or ["TotoForCausalLM"]
    if config.model_type not in ("toto", "gpt2", "mamba"):
        raise ValueError(f"{name_or_path} is a {kind}, not a model of this project; load it with transformers.")
    model_class = getattr(modeling_toto, kind, None) or getattr(transformers, kind)
    model = model_class.from_pretrained(path, dtype=torch.float32).eval()
    return model, TotoProcessor.from_pretrained(path)
