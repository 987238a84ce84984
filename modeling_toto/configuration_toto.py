"""The numbers that define a Toto model, and the paper's sizes as presets."""

import math

from transformers import LlamaConfig, PreTrainedConfig

# transformers' own name for huggingface_hub's decorator: code that travels to the Hub imports only transformers here
from transformers.configuration_utils import strict

# Where each Auto class finds its code in a pushed repository. A saved model alone would only name itself and the
# config, and then a repository saved from TotoForCausalLM could not be opened with AutoModel.
AUTO_MAP = {
    "AutoConfig": "configuration_toto.TotoConfig",
    "AutoModel": "modeling_toto.TotoModel",
    "AutoModelForCausalLM": "modeling_toto.TotoForCausalLM",
    "AutoModelForPreTraining": "modeling_toto.TotoForCausalLM",  # TotoForPatchPrediction names itself when saved
    "AutoModelForImageClassification": "classification_toto.TotoForImageClassification",
    "AutoModelForVideoClassification": "classification_toto.TotoForVideoClassification",
}

ATTENTION_MODES = ("causal", "prefix", "full")
POOLERS = ("mean", "attention", "cross_attention_mlp")
NEXT_TOKEN_LOSSES = ("backbone", "stop_gradient")
PREDICTION_TARGETS = ("patch", "code")

# Ids 0..63 are pad, video start, end, image start and rows reserved for prompts; code k is id 64 + k.
CODE_OFFSET = 64
DVAE_VOCAB = CODE_OFFSET + 8192
VQGAN_1K_VOCAB = CODE_OFFSET + 1024


def _mup_family(hidden_size: int, num_hidden_layers: int, intermediate_size: int) -> dict:
    return {
        "vocab_size": VQGAN_1K_VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 16,
        "tie_word_embeddings": False,
        "mup_base_width": 256,
        "mup_base_head_dim": 16,
    }


# base, large, 1b: paper Table 1. Paper silent on the MLP width and on tying; these are the only ordinary choices that
# give its 120M, 280M and 1.1B. a1..a6: paper Table 15 (appendix); an MLP of about 4.7 x hidden and untied embeddings of
# a 1k-code VQGAN give its counts; they use muP with learning rate 2^-7 (App. A.7, silent on the base: ours is a1).
# tiny is ours: 64-token frames of the tokenizer that ships, made for a CPU.
PRESETS: dict[str, dict] = {
    "tiny": {
        "vocab_size": CODE_OFFSET + 512,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "tokens_per_frame": 64,
        "max_position_embeddings": 1 + 16 * 64 + 1,
    },
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16},
    "a1": _mup_family(256, 12, 1216),
    "a2": _mup_family(512, 16, 2432),
    "a3": _mup_family(768, 20, 3584),
    "a4": _mup_family(1024, 24, 4864),
    "a5": _mup_family(1536, 28, 7168),
    "a6": _mup_family(1792, 32, 8448),
}


@strict
class TotoConfig(LlamaConfig):
    """A Llama configuration that also knows how frames are laid out in a row of ids (defaults: Toto-base).

    Fields beyond LlamaConfig's:
        tokens_per_frame: codes of one frame (paper Sec. 3.4: 256 = 16 x 16).
        num_frames: frames of a full row (paper Sec. 3.4: 16). A row is start + frames + end.
        grid_size: (rows, columns) of a frame's codes; derived when `tokens_per_frame` is a square number.
        image_start_token_id: start of a row of images; bos_token_id starts a video (paper: 3 and 1, end 2).
        code_offset: id of code 0 (paper silent; 64 leaves room for prompt ids).
        attention_mode, prefix_length: who sees whom, unless a call says otherwise: "causal", "prefix" (the first
            `prefix_length` tokens see each other; App. A.3) or "full" (all see all; App. A.4).
        feature_layer: the layer that classification heads read: the residual stream after that block, 0 the embeddings.
            None: half depth, where the paper finds the best features (Sec. 4).
        pooler: how heads make one vector of the tokens: "mean", "attention" (paper Sec. 3.5) or "cross_attention_mlp"
            (paper Table 17, silent on its depth).
        next_token_loss: None, or a joint next-token loss of classification models: "backbone" trains both losses
            through the backbone, "stop_gradient" trains the backbone by next tokens alone, the head beside it.
        next_token_loss_weight: its factor (paper silent; 1).
        patch_size, prediction_target: of TotoForPatchPrediction (paper Table 3): RGB patches of this many pixels a side
            in, the next normalised "patch" or its dVAE "code" out.
        mup_base_width, mup_base_head_dim: with them, muP (App. A.7): at this width and head size the model is a plain
            Llama, at others it takes the same learning rate (see mup.py). None: standard parametrisation.
        embedding_multiplier, output_multiplier: factors of the embeddings and of the logits (paper silent; 1).
    Raises ValueError when sizes or names contradict each other.
    """

    model_type = "toto"
    # losses stay out of what the Trainer's evaluation collects as predictions
    keys_to_ignore_at_inference = ["past_key_values", "token_losses", "task_loss", "next_token_loss"]

    vocab_size: int = DVAE_VOCAB
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 1 + 16 * 256 + 1
    rms_norm_eps: float | int = 1e-6
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    tokens_per_frame: int = 256
    num_frames: int = 16
    grid_size: list[int] | tuple[int, int] | None = None
    image_start_token_id: int = 3
    code_offset: int = CODE_OFFSET
    attention_mode: str = "causal"
    prefix_length: int | None = None
    feature_layer: int | None = None
    pooler: str = "attention"
    next_token_loss: str | None = None
    next_token_loss_weight: float | int = 1.0
    patch_size: int = 8
    prediction_target: str = "patch"
    mup_base_width: int | None = None
    mup_base_head_dim: int | None = None
    embedding_multiplier: float | int = 1.0
    output_multiplier: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.grid_size is not None:
            self.grid_size = tuple(self.grid_size)
            if math.prod(self.grid_size) != self.tokens_per_frame:
                raise ValueError(
                    f"grid_size {self.grid_size} holds {math.prod(self.grid_size)} codes but tokens_per_frame is "
                    f"{self.tokens_per_frame}; set both, or leave grid_size out for square frames."
                )
        elif math.isqrt(self.tokens_per_frame) ** 2 == self.tokens_per_frame:
            self.grid_size = (math.isqrt(self.tokens_per_frame),) * 2
        self._check_choices()
        # A config read from the Hub says "user/repo--modeling_toto.TotoModel"; without the prefix, what is saved from
        # it runs the code saved beside it and not that of another repository.
        given = kwargs.pop("auto_map", None) or {}
        self.auto_map = AUTO_MAP | {
            auto: ref for auto, ref in given.items() if str(ref).split("--")[-1] != AUTO_MAP.get(auto)
        }
        super().__post_init__(**kwargs)

    def _check_choices(self) -> None:
        """Refuse names out of their lists and layers that do not exist, as the ValueError that it is.

        transformers would wrap what a `validate_*` method raises into an error of another kind.
        """
        choices = {
            "attention_mode": ATTENTION_MODES,
            "pooler": POOLERS,
            "next_token_loss": (None, *NEXT_TOKEN_LOSSES),
            "prediction_target": PREDICTION_TARGETS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {listed}.")
        if self.feature_layer is not None and not 0 <= self.feature_layer <= self.num_hidden_layers:
            raise ValueError(
                f"feature_layer is {self.feature_layer}, but the model has layers 0 (the embeddings) to "
                f"{self.num_hidden_layers}."
            )
        for name in ("mup_base_width", "mup_base_head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a size, or None for no muP.")

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but fields given by keyword are there from the start, so that they are checked.

        `from_pretrained(path, tokens_per_frame=1024, num_frames=4, rope_theta=50_000)`, of a config or a model, is
        another resolution and another RoPE base (paper Table 4): the grid follows from tokens_per_frame, and
        rope_theta is put into rope_parameters.
        """
        own = set(cls.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
        changes = {key: kwargs.pop(key) for key in own & set(kwargs)}
        config_dict = config_dict | changes
        if "rope_theta" in kwargs:
            rope = config_dict.get("rope_parameters") or {}
            config_dict["rope_parameters"] = rope | {"rope_theta": kwargs.pop("rope_theta")}
        if "tokens_per_frame" in changes and "grid_size" not in changes:
            config_dict.pop("grid_size", None)
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_codes(self) -> int:
        """Size of the visual codebook: the ids from `code_offset` on."""
        return self.vocab_size - self.code_offset

    @property
    def patch_dim(self) -> int:
        """Numbers of an RGB patch."""
        return 3 * self.patch_size**2

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "TotoConfig":
        """The configuration of a named size (tiny, base, large, 1b, a1..a6) with any field replaced.

        Raises ValueError for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}; the presets are {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})


__all__ = ["PRESETS", "TotoConfig"]
