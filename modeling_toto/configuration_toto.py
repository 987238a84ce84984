"""The configuration of a Toto model, with the paper's sizes as presets."""

import importlib
import math
import sys

from transformers import LlamaConfig, PreTrainedConfig

# huggingface_hub's decorator, imported from transformers because code on the Hub may import only transformers
from transformers.configuration_utils import strict


def name_in_package(name: str) -> None:
    """Make the module `name` an attribute of its package.

    Importing does so, but not transformers' loading of remote code. Without it, dill, with which `datasets` hashes
    functions, does not find the classes of the module by name and pickles them and all that they refer to.
    `tokenization.image_processing_toto` has the same function, because neither package imports the other.
    """
    package, _, module = name.rpartition(".")
    setattr(importlib.import_module(package), module, sys.modules[name])


name_in_package(__name__)

# Where each Auto class finds its code in a pushed repository. transformers itself would list only the config and the
# class that was saved, and a repository saved from TotoForCausalLM could not be opened with AutoModel.
AUTO_MAP = {
    "AutoConfig": "configuration_toto.TotoConfig",
    "AutoModel": "modeling_toto.TotoModel",
    "AutoModelForCausalLM": "modeling_toto.TotoForCausalLM",
    "AutoModelForPreTraining": "modeling_toto.TotoForCausalLM",  # replaced when a TotoForPatchPrediction is saved
    "AutoModelForImageClassification": "modeling_toto.TotoForImageClassification",
    "AutoModelForVideoClassification": "modeling_toto.TotoForVideoClassification",
}
OWN_CLASSES = {*AUTO_MAP.values(), "modeling_toto.TotoForPatchPrediction"}
# Earlier versions saved these files as well; their classes are now in modeling_toto.py.
FORMER_FILES = ("classification_toto", "patch_prediction_toto")

ATTENTION_MODES = ("causal", "prefix", "full")
POOLERS = ("mean", "attention", "cross_attention_mlp")
NEXT_TOKEN_LOSSES = ("backbone", "stop_gradient")
PREDICTION_TARGETS = ("patch", "code")

# Ids 0..3 are padding, video start, end and image start; 4..63 are reserved for prompts; code k is id 64 + k.
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


# base, large, 1b: paper Table 1. The paper is silent on the MLP width and on tying; these are the only common choices
# that give its 120M, 280M and 1.1B parameters. a1..a6: paper Table 15 (appendix); an MLP of about 4.7 x hidden_size and
# untied embeddings of a 1k-code VQGAN give its counts. They use muP with learning rate 2^-7 (App. A.7, silent on the
# base; ours is a1). tiny is ours: for a CPU, with the 64-token frames of the tokenizer that ships.
PRESETS: dict[str, dict] = {
    "tiny": {
        "vocab_size": CODE_OFFSET + 512,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "tokens_per_frame": 64,
        "max_position_embeddings": 1026,  # 16 frames
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


def _current_reference(reference: str) -> str:
    """An entry of auto_map as this version saves it.

    A config read from the Hub has entries like "user/repo--modeling_toto.TotoModel". Without the prefix, a model saved
    from it runs the code that is saved with it instead of that repository's.
    """
    module, _, name = str(reference).split("--")[-1].rpartition(".")
    own = f"{'modeling_toto' if module in FORMER_FILES else module}.{name}"
    return own if own in OWN_CLASSES else reference


@strict
class TotoConfig(LlamaConfig):
    """Configuration of a Toto model: LlamaConfig plus the layout of a row of ids. The defaults are Toto-base.

    A row is a start token, whole frames of `tokens_per_frame` codes each, and an end token; see `row_length`.

    Args:
        tokens_per_frame: Number of codes per frame (paper Sec. 3.4: 256 = 16 x 16).
        num_frames: Number of frames, or of packed images, in a full row (paper Sec. 3.4: 16).
        grid_size: Rows and columns of a frame's codes. Derived from `tokens_per_frame` if that is a square number.
        image_start_token_id: Id of the token that starts a row of images. A video starts with `bos_token_id`, and
            both end with `eos_token_id` (paper: 3, 1 and 2).
        code_offset: Id of code 0 (paper silent; 64 leaves ids for prompts).
        attention_mode: Default attention mask: "causal", "prefix" (the first `prefix_length` tokens attend to each
            other; App. A.3) or "full" (every token attends to every token; App. A.4).
        prefix_length: Default length of the prefix in tokens.
        feature_layer: Layer that the classification heads read: the residual stream after that many blocks, 0 being
            the embeddings. None selects half depth, where the paper finds the best features (Sec. 4).
        pooler: How a classification head pools the tokens: "mean", "attention" (paper Sec. 3.5) or
            "cross_attention_mlp" (paper Table 17; silent on its depth).
        next_token_loss: Auxiliary next-token loss of the classifiers. "backbone" trains the backbone with both losses;
            "stop_gradient" trains it with the next-token loss alone, and the head on detached features. None: no such
            loss.
        next_token_loss_weight: Weight of that loss (paper silent; 1).
        patch_size: Side of an RGB patch in pixels, for TotoForPatchPrediction (paper Table 3).
        prediction_target: What TotoForPatchPrediction predicts: the next normalised "patch" or its dVAE "code".
        mup_base_width, mup_base_head_dim: Hidden size and head size at which muP (App. A.7) equals a plain Llama; at
            other sizes the same learning rate applies (see mup.py). None: standard parametrisation.
        embedding_multiplier, output_multiplier: Factors of the embeddings and of the logits (paper silent; 1).

    Raises:
        ValueError: If fields contradict each other, or a value is not one of those listed.
    """

    model_type = "toto"
    # the Trainer must not collect losses as predictions when it evaluates
    keys_to_ignore_at_inference = ["past_key_values", "token_losses", "task_loss", "next_token_loss"]

    vocab_size: int = DVAE_VOCAB
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 4098  # 16 frames
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
                    f"{self.tokens_per_frame}; set both, or omit grid_size for square frames."
                )
        elif math.isqrt(self.tokens_per_frame) ** 2 == self.tokens_per_frame:
            self.grid_size = (math.isqrt(self.tokens_per_frame),) * 2
        self._check_choices()
        if self.architectures is None:  # AutoModelForPreTraining.from_config, which chooses by them, needs a list
            self.architectures = []
        given = kwargs.pop("auto_map", None) or {}
        self.auto_map = AUTO_MAP | {auto_class: _current_reference(ref) for auto_class, ref in given.items()}
        super().__post_init__(**kwargs)

    def _check_choices(self) -> None:
        """Raise ValueError for names that are not in their lists and for layers that do not exist.

        Not a `validate_*` method: transformers would wrap its ValueError in an error of another type.
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
        if self.feature_layer is not None:
            self.check_layer("feature_layer", self.feature_layer)
        for name in ("mup_base_width", "mup_base_head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; set a positive size, or None for no muP.")

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but fields given by keyword are set before the config is validated.

        For example, `from_pretrained(path, tokens_per_frame=1024, num_frames=4, rope_theta=50_000)`, of a config or a
        model, changes the resolution and the RoPE base (paper Table 4): the grid follows from tokens_per_frame, and
        rope_theta is stored in rope_parameters.
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

    def to_dict(self) -> dict:
        """As in transformers. PEFT calls this before it looks up the modules that an adapter changes by default."""
        tables = sys.modules.get("peft.utils.constants")  # importing PEFT would take seconds
        for table in vars(tables).values() if tables else ():
            if isinstance(table, dict) and LlamaConfig.model_type in table:
                table.setdefault(self.model_type, table[LlamaConfig.model_type])
        return super().to_dict()

    def check_layer(self, name: str, layer: int) -> None:
        """Raise ValueError, naming the argument `name`, unless the model has this layer; 0 is the embeddings."""
        if not 0 <= layer <= self.num_hidden_layers:
            raise ValueError(
                f"{name} is {layer}, but the model has layers 0 (the embeddings) to {self.num_hidden_layers}; choose "
                "one of these."
            )

    def row_length(self, frames: int | None = None) -> int:
        """Number of ids in a row of `frames` frames or packed images: start token, codes, end token.

        Args:
            frames: Number of frames; `num_frames` by default. A row of one image has 1.
        """
        return 2 + (self.num_frames if frames is None else frames) * self.tokens_per_frame

    @property
    def context_frames(self) -> int:
        """Number of whole frames that fit into `max_position_embeddings` with the start and end tokens."""
        return (self.max_position_embeddings - 2) // self.tokens_per_frame

    @property
    def num_codes(self) -> int:
        """Number of codes in the visual codebook: the ids from `code_offset` on."""
        return self.vocab_size - self.code_offset

    @property
    def patch_dim(self) -> int:
        """Number of values in an RGB patch."""
        return 3 * self.patch_size**2

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "TotoConfig":
        """The configuration of a preset (tiny, base, large, 1b, a1..a6), with any fields overridden.

        Raises:
            ValueError: If there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"Preset {name!r} is unknown; choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})


__all__ = ["PRESETS", "TotoConfig"]
