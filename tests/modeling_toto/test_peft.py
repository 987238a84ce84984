"""PEFT's common recipes on a classifier: what is saved is whole, and the modules to change have a default."""

import pytest
import torch

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification

peft = pytest.importorskip("peft")

LABELS = torch.tensor([2, 0])


@pytest.fixture
def folder(small_config, tmp_path):
    """A pre-trained model, from which every classifier below gets a new head."""
    torch.manual_seed(0)
    config = TotoConfig(**small_config.to_dict() | {"initializer_range": 0.2})
    TotoForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def classifier(folder, pooler):
    return TotoForImageClassification.from_pretrained(folder, num_labels=3, pooler=pooler)


@pytest.mark.parametrize("saved", [["classifier"], ["pooler", "classifier"], None], ids=str)
@pytest.mark.parametrize("pooler", ["mean", "attention", "cross_attention_mlp"])
def test_an_adapter_is_whole_when_it_is_loaded(folder, rows, tmp_path, pooler, saved):
    """Saved by name or, with None, by the task; each classifier is made after other random draws."""
    if pooler == "mean" and saved and "pooler" in saved:
        saved = ["classifier"]  # a mean has no weights
    settings = peft.LoraConfig(
        r=4, modules_to_save=saved, task_type=None if saved else "SEQ_CLS", target_modules=["q_proj", "v_proj"]
    )
    model = peft.get_peft_model(classifier(folder, pooler), settings).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        model(input_ids=rows, labels=LABELS).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(5)
    again = peft.PeftModel.from_pretrained(classifier(folder, pooler), tmp_path / "adapter").eval()
    assert torch.equal(again(input_ids=rows).logits, model(input_ids=rows).logits)
    assert torch.equal(again.merge_and_unload().eval()(rows).logits.argmax(-1), model(input_ids=rows).logits.argmax(-1))


def test_new_poolers_are_equal_and_new_classifiers_are_not(folder):
    first, second = (classifier(folder, "cross_attention_mlp") for _ in range(2))
    for (name, one), two in zip(first.pooler.named_parameters(), second.pooler.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.pooler.key.weight.std().item() == pytest.approx(0.2, rel=0.1)
    assert not torch.equal(first.pooler.key.weight, first.pooler.value.weight)


def test_target_modules_have_a_default(small_config):
    for settings, names in ((peft.LoraConfig(), {"q_proj", "v_proj"}), (peft.IA3Config(), {"k_proj", "v_proj"})):
        model = peft.get_peft_model(TotoForCausalLM(small_config), settings)
        trained = [name.split(".") for name, weight in model.named_parameters() if weight.requires_grad]
        assert all(any(name in parts for parts in trained) for name in names)


def test_an_adapter_of_a_pooler_has_an_effect(folder, rows):
    """The pooler's matrices are applied by the modules that hold them, adapters included."""
    model = peft.get_peft_model(classifier(folder, "attention"), peft.LoraConfig(target_modules=["value"])).eval()
    before = model(input_ids=rows).logits
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(1.0)
    assert not torch.allclose(model(input_ids=rows).logits, before)
