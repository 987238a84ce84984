"""What transformers users do, as remote code: the same calls where none of the packages can be imported.

Pipelines are also in test_pixels.py, saved models in test_saved_models.py, `datasets` in test_processing.py.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_saved_models import BLOCK

from modeling_toto import TotoConfig, TotoForImageClassification, TotoForPatchPrediction

pytest.importorskip("peft")

REMOTE = """
import copy, glob, importlib.util, sys
import torch
from accelerate import disk_offload
from peft import LoraConfig, PeftModel, get_peft_model
from torch._dynamo.backends.debugging import aot_eager
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForPreTraining, AutoProcessor, Trainer,
    TrainingArguments, pipeline,
)

root = sys.argv[1]
tensors = torch.load(root + "/tensors.pt", weights_only=True)
rows, classes = tensors["ids"], torch.tensor([0, 1, 2, 0])
TRACKERS = ["tensorboard"] if importlib.util.find_spec("tensorboard") else "none"


def load(auto, folder):
    found = auto.from_pretrained(root + "/" + folder, trust_remote_code=True)
    assert type(found).__module__.startswith("transformers_modules."), type(found)
    return found


def section(name):
    print(name, flush=True)


section("paths")
processor = load(AutoProcessor, "image")
assert torch.equal(processor(images=root + "/rose.png").input_ids, rows[:1])
try:
    processor.batch_decode(rows)
except (TypeError, ValueError) as error:
    assert "call decode(ids)" in str(error), error
else:
    raise AssertionError("ids are no text")

section("Trainer")
some = torch.arange(12) < torch.tensor([3, 12, 5, 8])[:, None]  # another number of labels in every row
INPUTS = {
    "image": (AutoModelForImageClassification, {"input_ids": rows, "labels": classes}),
    "causal": (AutoModelForCausalLM, {"input_ids": rows, "labels": rows}),
    "codes": (
        AutoModelForPreTraining,
        {"patches": tensors["patches"], "labels": tensors["codes"].masked_fill(~some, -100)},
    ),
}
for folder, (auto, inputs) in INPUTS.items():
    weights = [dict(load(auto, folder).named_parameters())]
    for batch, accumulation in ((4, 1), (1, 4)):
        settings = TrainingArguments(
            root + "/run", max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1,
            save_strategy="no", report_to=TRACKERS, use_cpu=True,
        )
        batches = [{name: values[k] for name, values in inputs.items()} for k in range(4)]
        trainer = Trainer(load(auto, folder), settings, train_dataset=batches, processing_class=processor)
        trainer.train()
        weights.append({name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[2][name], weight, atol=1e-5, rtol=1e-4, msg=folder + ": " + name)
    assert any(not torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    trainer.save_model(root + "/trained/" + folder)
    assert load(AutoProcessor, "trained/" + folder).fingerprint == processor.fingerprint
if TRACKERS != "none":
    assert glob.glob(root + "/run/**/events.out.tfevents*", recursive=True)
classify = pipeline("image-classification", model=root + "/trained/image", trust_remote_code=True, device="cpu")
scores = load(AutoModelForImageClassification, "trained/image").eval()(input_ids=rows[:1]).logits.softmax(-1)
assert abs(classify(root + "/rose.png")[0]["score"] - scores.max().item()) < 1e-4

section("PEFT")
settings = LoraConfig(r=4, modules_to_save=["pooler", "classifier"])
model = get_peft_model(load(AutoModelForImageClassification, "image"), settings).train()
optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
for _ in range(3):
    optimiser.zero_grad()
    model(input_ids=rows, labels=classes).loss.backward()
    optimiser.step()
assert any("q_proj.lora_B" in name and weight.any() for name, weight in model.named_parameters())
model.eval().save_pretrained(root + "/adapter")
again = PeftModel.from_pretrained(load(AutoModelForImageClassification, "image"), root + "/adapter").eval()
assert torch.equal(again(input_ids=rows).logits, model(input_ids=rows).logits)

section("torch.compile")
graphs = []
def backend(graph, examples):
    graphs.append(graph)
    return aot_eager(graph, examples)
model = load(AutoModelForCausalLM, "causal").train()
twin = copy.deepcopy(model)
compiled = torch.compile(twin, fullgraph=True, backend=backend)
losses = [call(input_ids=rows, labels=rows).loss for call in (model, compiled)]
sum(losses).backward()
assert len(graphs) == 1 and torch.equal(*losses)
for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
    assert torch.equal(weight.grad, other.grad), name

section("packed rows")
model = load(AutoModelForCausalLM, "causal").eval()
packed = torch.cat([tensors["clips"][:1], tensors["clips"][1:]], dim=1)
positions = torch.arange(packed.shape[1] // 2).repeat(2)[None]
assert packed.shape[1] > model.config.max_position_embeddings
with torch.no_grad():
    logits = model(packed, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits.unflatten(1, (2, -1))[0], model(tensors["clips"]).logits)

section("offloaded weights")
prompt = tensors["clips"][:, :17]
frames = model.generate_frames(prompt, 2, temperature=0)
disk_offload(model, root + "/offload", execution_device=torch.device("cpu"))
assert torch.equal(model.generate_frames(prompt, 2, temperature=0), frames)

section("AutoModelForPreTraining")
config = AutoConfig.from_pretrained(root + "/trained/causal", trust_remote_code=True)
config.architectures = None
assert type(AutoModelForPreTraining.from_config(config, trust_remote_code=True)).__name__ == "TotoForCausalLM"
model = load(AutoModelForPreTraining, "codes").eval()
model.resize_token_embeddings(64 + 80)
model.save_pretrained(root + "/resized")
again = load(AutoModelForPreTraining, "resized")
assert torch.equal(again(tensors["patches"]).logits, model(tensors["patches"]).logits)
"""


def test_the_calls_of_users_as_remote_code(model, processor, tmp_path):
    """Each call is tested with the packages importable elsewhere; here it equals itself, and pictures their ids."""
    generator = torch.Generator().manual_seed(3)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 40, 48, 3), dtype=np.uint8)
    Image.fromarray(pictures[0]).save(tmp_path / "rose.png")
    model.save_pretrained(tmp_path / "causal")
    torch.manual_seed(0)
    sizes = {k: v for k, v in model.config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    TotoForImageClassification.from_pretrained(tmp_path / "causal", num_labels=3).save_pretrained(tmp_path / "image")
    codes = TotoConfig(**sizes | {"prediction_target": "code", "patch_size": 2})
    TotoForPatchPrediction(codes).save_pretrained(tmp_path / "codes")
    processor.save_pretrained(tmp_path / "image")
    tensors = {
        "ids": processor(images=list(pictures[:4])).input_ids,
        "clips": processor(videos=pictures.reshape(2, 4, 40, 48, 3)).input_ids,
        "patches": torch.randn(4, 12, 12, generator=generator),
        "codes": torch.randint(64, (4, 12), generator=generator),
    }
    torch.save(tensors, tmp_path / "tensors.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + REMOTE, str(tmp_path)],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
