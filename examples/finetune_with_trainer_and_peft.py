# %% [markdown]
# # Fine-tune with transformers' Trainer, and with PEFT
#
# A Toto is a transformers model: `Trainer` fine-tunes all of it, and PEFT trains small low-rank matrices (LoRA) in its
# place. `DATA` is a folder with one folder of photos for each class; without it, pictures of the embedded world are
# drawn, labelled by their texture. It takes three minutes on a laptop CPU. (`toto finetune` adds the paper's
# augmentation and exact resuming.)

# %%
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Trainer, TrainingArguments

from evaluation.demo import NANO
from modeling_toto import TotoForImageClassification
from tokenization import Sampling, ToyWorld, open_source

DATA = os.environ.get("DATA")
MODEL = os.environ.get("MODEL", str(NANO))
OUT = Path(os.environ.get("OUT", "out/finetune"))
MAX_PHOTOS = int(os.environ.get("MAX_PHOTOS", 800))
STEPS = int(os.environ.get("STEPS", 60))
OUT.mkdir(parents=True, exist_ok=True)

if DATA is None:
    world = ToyWorld("train", resolution=64, num_frames=1)
    for number in range(MAX_PHOTOS):
        item = world.clip(number)
        folder = OUT / "photos" / world.label_names["texture"][item["texture"]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(item["video"][0]).save(folder / f"{number:04d}.png")
    DATA = str(OUT / "photos")

# %% [markdown]
# ## Data
# The processor turns a photo into a row of ids. They are made once, since the visual tokenizer stays as it is.

# %%
processor = AutoProcessor.from_pretrained(MODEL)
sampling = Sampling(resolution=processor.resolution)
source = open_source(DATA, sampling=sampling, limit=MAX_PHOTOS, kind="image", shuffle_seed=0)
photos = list(source)
names = source.label_names["label"]
rows = processor(images=[photo.frames[0] for photo in photos])["input_ids"]  # (photos, ids)
examples = [{"input_ids": row, "labels": photo.labels["label"]} for row, photo in zip(rows, photos, strict=True)]
held_out = len(examples) // 5
train, test = examples[held_out:], examples[:held_out]
print(f"{len(train)} photos to train on, {len(test)} to test on, {len(names)} classes, {rows.shape[1]} ids a photo")


def new_classifier() -> TotoForImageClassification:
    torch.manual_seed(0)  # of the head, which is new
    return TotoForImageClassification.from_pretrained(
        MODEL, num_labels=len(names), id2label=dict(enumerate(names)), dtype=torch.float32
    )


def fit(model: torch.nn.Module, name: str, learning_rate: float) -> Trainer:
    """Train a classifier and print its accuracy on the photos that it has not seen."""
    settings = TrainingArguments(
        str(OUT / name), max_steps=STEPS, per_device_train_batch_size=16, learning_rate=learning_rate,
        lr_scheduler_type="cosine", save_strategy="no", logging_steps=max(1, STEPS // 5), report_to="none",
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=train)
    trainer.train()
    predicted = trainer.predict(test)
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    accuracy = np.mean(predicted.predictions.argmax(-1) == predicted.label_ids)
    print(f"{name}: {accuracy:.1%} right on test, {weights:,} weights trained")
    return trainer


# %% [markdown]
# ## All weights

# %%
fit(new_classifier(), "all weights", 5e-4).save_model(str(OUT / "classifier"))

# %% [markdown]
# ## LoRA
# `pip install peft`. Only the low-rank matrices and the head are trained and saved.

# %%
try:
    from peft import LoraConfig, PeftModel, get_peft_model
except ImportError:
    raise SystemExit("LoRA needs PEFT: pip install peft") from None

lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["pooler", "classifier"])
fit(get_peft_model(new_classifier(), lora), "LoRA", 2e-3).save_model(str(OUT / "adapter"))
classifier = PeftModel.from_pretrained(new_classifier(), OUT / "adapter").eval()

# %%
found = classifier(input_ids=rows[:8]).logits.argmax(-1).tolist()
print("the first test photos are", ", ".join(names[number] for number in found))
Image.fromarray(np.concatenate([photo.frames[0] for photo in photos[:8]], axis=1)).save(OUT / "photos.png")
print(f"wrote {OUT / 'photos.png'}, {OUT / 'classifier'} and {OUT / 'adapter'}")
Image.open(OUT / "photos.png")
