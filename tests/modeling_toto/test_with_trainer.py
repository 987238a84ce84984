"""transformers' Trainer trains every head as a plain loop does, whatever the gradient accumulation."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForImageClassification, AutoProcessor, Trainer, TrainingArguments

from modeling_toto import (
    TotoConfig,
    TotoForCausalLM,
    TotoForImageClassification,
    TotoForPatchPrediction,
    TotoForVideoClassification,
)

GENERATOR = torch.Generator().manual_seed(3)
ROWS = torch.cat(
    [torch.full((8, 1), 1), torch.randint(64, 96, (8, 16), generator=GENERATOR), torch.full((8, 1), 2)], dim=1
)
PATCHES = torch.randn(8, 12, 12, generator=GENERATOR)
CODES = torch.randint(32, (8, 12), generator=GENERATOR)
SOME = torch.arange(12) < torch.arange(5, 13)[:, None]  # another number of patches in every row
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
EARLY = ROWS.masked_fill(torch.arange(18) > torch.arange(6, 14)[:, None], -100)

HEADS = {
    "next tokens": (TotoForCausalLM, {}, {"input_ids": ROWS, "labels": EARLY}),
    "images": (TotoForImageClassification, {}, {"input_ids": ROWS, "labels": CLASSES}),
    "videos": (TotoForVideoClassification, {}, {"input_ids": ROWS, "labels": CLASSES}),
    "joint": (TotoForVideoClassification, {"next_token_loss": "backbone"}, {"input_ids": ROWS, "labels": CLASSES}),
    "patches": (TotoForPatchPrediction, {}, {"patches": PATCHES, "labels": PATCHES}),
    "padded patches": (
        TotoForPatchPrediction,
        {},
        {
            "patches": PATCHES,
            "attention_mask": SOME.long(),
            "labels": PATCHES.masked_fill(~SOME[..., None], -100.0),
        },
    ),
    "codes": (
        TotoForPatchPrediction,
        {"prediction_target": "code"},
        {"patches": PATCHES, "labels": CODES.masked_fill(~SOME, -100)},
    ),
}


@pytest.fixture(autouse=True)
def no_state_is_left():
    """Trainer leaves one behind, which refuses another precision to the next Accelerator of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make(small_config, cls, fields):
    torch.manual_seed(0)
    sizes = {k: v for k, v in small_config.to_dict().items() if k not in ("id2label", "label2id")}
    return cls(TotoConfig(**sizes | {"patch_size": 2, "num_labels": 3, "initializer_range": 0.2} | fields))


def after_one_step(model, inputs, folder, batch: int, accumulation: int):
    """The weights after one step of SGD with rate 0.1 over all eight rows, and the loss that the Trainer reports."""
    settings = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=8, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    rows = [{name: values[k] for name, values in inputs.items()} for k in range(8)]
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.train()
    reported = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return dict(model.named_parameters()), reported, evaluated


@pytest.mark.parametrize("name", HEADS)
def test_accumulation_changes_nothing(small_config, tmp_path, name):
    """8 rows at once, 2 rows 4 times, and a plain loop: the same loss and the same step."""
    cls, fields, inputs = HEADS[name]
    plain = make(small_config, cls, fields).train()
    loss = plain(**inputs).loss
    loss.backward()
    with torch.no_grad():
        for weight in plain.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    expected = dict(plain.named_parameters())
    for batch, accumulation in ((8, 1), (2, 4)):
        model = make(small_config, cls, fields)
        found, reported, evaluated = after_one_step(model, inputs, tmp_path, batch, accumulation)
        np.testing.assert_allclose([reported, evaluated], loss.item(), rtol=1e-3)
        for key, weight in found.items():
            torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=1e-4, msg=f"{key}, {batch} rows")


def test_a_processor_is_saved_whole_and_special_tokens_stay(model, processor, tmp_path):
    """`Trainer(processing_class=processor)`: checkpoints and the final folder take pictures and clips."""
    model.save_pretrained(tmp_path / "causal")
    classifier = TotoForImageClassification.from_pretrained(
        tmp_path / "causal", num_labels=3, bos_token_id=3, eos_token_id=[2, 5]
    )
    pictures = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    ids = processor(images=list(pictures)).input_ids
    settings = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_steps=1
    )
    rows = [{"input_ids": row, "labels": k % 3} for k, row in enumerate(ids)]
    trainer = Trainer(classifier, settings, train_dataset=rows, processing_class=processor)
    trainer.train()
    assert classifier.config.bos_token_id == 3 and classifier.config.eos_token_id == [2, 5]
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-1"):
        loaded = AutoProcessor.from_pretrained(folder)
        assert type(loaded) is type(processor) and loaded.fingerprint == processor.fingerprint
        again = AutoModelForImageClassification.from_pretrained(folder).eval()
        expected = classifier.eval()(input_ids=ids).logits
        pixels = loaded.image_processor(list(pictures), return_tensors="pt").pixel_values
        torch.testing.assert_close(again(pixel_values=pixels).logits, expected)
