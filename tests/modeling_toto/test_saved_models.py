"""A checkpoint opens through the Auto classes, as a plain Llama, and where this package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    LlamaForCausalLM,
)
from transformers.dynamic_module_utils import get_imports

from modeling_toto import (
    TotoConfig,
    TotoForCausalLM,
    TotoForImageClassification,
    TotoForPatchPrediction,
    TotoForVideoClassification,
    TotoModel,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_auto_classes(saved, small_model, rows):
    assert type(AutoConfig.from_pretrained(saved)) is TotoConfig
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert type(model) is TotoForCausalLM and torch.equal(model(rows).logits, small_model(rows).logits)
    backbone = AutoModel.from_pretrained(saved)
    assert type(backbone) is TotoModel
    assert torch.equal(backbone(rows).last_hidden_state, small_model.model(rows).last_hidden_state)
    assert type(AutoModelForCausalLM.from_config(small_model.config)) is TotoForCausalLM
    # asking for remote code where the package is imported changes nothing
    assert type(AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)) is TotoForCausalLM


# What earlier versions saved, whose classes were in three files.
FORMER_MAP = {
    "AutoConfig": "configuration_toto.TotoConfig",
    "AutoModel": "modeling_toto.TotoModel",
    "AutoModelForCausalLM": "modeling_toto.TotoForCausalLM",
    "AutoModelForPreTraining": "modeling_toto.TotoForCausalLM",
    "AutoModelForImageClassification": "classification_toto.TotoForImageClassification",
    "AutoModelForVideoClassification": "classification_toto.TotoForVideoClassification",
}
FORMER_PATCH_MAP = FORMER_MAP | {"AutoModelForPreTraining": "patch_prediction_toto.TotoForPatchPrediction"}


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize(
    ("auto_class", "cls", "auto_map"),
    [
        (AutoModelForImageClassification, TotoForImageClassification, FORMER_MAP),
        (AutoModelForVideoClassification, TotoForVideoClassification, FORMER_MAP),
        (AutoModelForPreTraining, TotoForPatchPrediction, FORMER_PATCH_MAP),
        (AutoModelForPreTraining, TotoForCausalLM, FORMER_MAP),
    ],
)
def test_a_checkpoint_with_the_former_files(small_config, tmp_path, auto_class, cls, auto_map, trust_remote_code):
    """It loads with the code of this package, and is saved with the auto_map and the files of today."""
    old, new = tmp_path / "old", tmp_path / "new"
    saved = cls(small_config)
    saved.save_pretrained(old)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    for name in ("classification_toto", "patch_prediction_toto"):
        (old / f"{name}.py").write_text("raise RuntimeError('the former code ran')")
    flags = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    model = auto_class.from_pretrained(old, **flags)
    assert type(model) is cls and type(model.config) is TotoConfig
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    model.save_pretrained(new)
    again = json.loads((new / "config.json").read_text())["auto_map"]
    assert again.keys() == auto_map.keys() and again[auto_class.__name__] == f"modeling_toto.{cls.__name__}"
    assert all((new / f"{reference.split('.')[0]}.py").is_file() for reference in again.values())


def test_the_committed_checkpoint_loads_through_every_auto_class(tmp_path):
    folder = ROOT / "checkpoints" / "toto-nano"
    assert type(AutoConfig.from_pretrained(folder)) is TotoConfig
    for trust in ({}, {"trust_remote_code": True}):
        for auto_class, cls in (
            (AutoModel, TotoModel),
            (AutoModelForCausalLM, TotoForCausalLM),
            (AutoModelForPreTraining, TotoForCausalLM),
            (AutoModelForImageClassification, TotoForImageClassification),
            (AutoModelForVideoClassification, TotoForVideoClassification),
        ):
            assert type(auto_class.from_pretrained(folder, **trust)) is cls
    AutoModelForImageClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {reference.split(".")[0] for reference in saved.values()} == {"configuration_toto", "modeling_toto"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_a_plain_llama(small_config, rows, tmp_path, tied):
    small_config.tie_word_embeddings = tied
    model = TotoForCausalLM(small_config).eval()
    model.save_pretrained(tmp_path)
    llama, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(llama(rows).logits, model(rows).logits)
    ours, theirs = model(rows, labels=rows), llama(rows, labels=rows)
    assert torch.equal(ours.loss, theirs.loss)
    assert type(ours.to_tuple()[0]) is torch.Tensor and len(model(rows, return_dict=False)) == len(
        llama(rows, return_dict=False)
    )


def test_hidden_states_are_the_residual_stream(small_model, rows):
    """hidden_states[k] is after block k, 0 the embeddings; the last is normed unless the config says otherwise."""
    stream = [small_model.model.embed_tokens(rows)]
    hooks = [layer.register_forward_hook(lambda _m, _i, out: stream.append(out)) for layer in small_model.model.layers]
    states = small_model.model(rows, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert len(states) == len(stream) == 3
    assert torch.equal(states[0], stream[0]) and torch.equal(states[1], stream[1])
    assert torch.equal(states[2], small_model.model.norm(stream[2]))
    small_model.config.tie_last_hidden_states = False
    assert torch.equal(small_model.model(rows, output_hidden_states=True).hidden_states[2], stream[2])


# A developer's `pip install -e .` would make the package importable from anywhere.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_toto", "tokenization", "training", "evaluation"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
"""

REMOTE = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder, again = sys.argv[1:]
ids = torch.load(folder + "/../rows.pt", weights_only=True)
try:
    import modeling_toto
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is importable, so this proves nothing")
backbone = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
frames = model.generate_frames(ids[:, :5], 2, temperature=0)
skipped = model(ids, labels=ids, skip_logits=True)
torch.save(
    {"hidden": backbone(ids).last_hidden_state.detach(), "logits": model(ids).logits.detach(), "frames": frames,
     "losses": skipped.token_losses.detach()}, folder + "/../out.pt")
model.save_pretrained(again)
AutoModel.from_pretrained(again, trust_remote_code=True)
"""


def test_remote_code_where_the_package_is_not_installed(saved, small_model, rows, tmp_path):
    torch.save(rows, tmp_path / "rows.pt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + REMOTE, str(saved), str(again)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(out["logits"], small_model(rows).logits)
    assert torch.equal(out["hidden"], small_model.model(rows).last_hidden_state)
    assert torch.equal(out["losses"], small_model(rows, labels=rows, skip_logits=True).token_losses)
    assert torch.equal(out["frames"], small_model.generate_frames(rows[:, :5], 2, temperature=0))
    assert {path.name for path in saved.glob("*.py")} == {path.name for path in again.glob("*.py")}
    assert json.loads((again / "config.json").read_text())["auto_map"] == small_model.config.auto_map


def test_saved_code_imports_nothing_else(saved):
    files = list(saved.glob("*.py"))
    assert {"configuration_toto.py", "generation_toto.py", "modeling_toto.py"} <= {path.name for path in files}
    for path in files:
        imports = set(get_imports(path)) - sys.stdlib_module_names
        assert imports <= {"torch", "numpy", "PIL", "transformers"}, (path.name, imports)


def test_transformers_own_generate(small_model, rows):
    ids = small_model.generate(rows[:, :5], max_new_tokens=4, do_sample=False)
    assert ids.shape[0] == 2 and torch.equal(ids[:, :5], rows[:, :5])
