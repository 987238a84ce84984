"""The losses of pre-training: micro-batches add up to a step's mean; validation is weighted as the mixture."""

from types import SimpleNamespace

import pytest
import torch
from tiny_run import CONFIG

from modeling_toto import TotoConfig, TotoForCausalLM
from training.architectures import losses, make_model
from training.next_tokens import validate

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)


def test_the_validation_loss_is_weighted_as_the_mixture():
    torch.manual_seed(0)
    model = TotoForCausalLM(CONFIG)
    draw = torch.Generator().manual_seed(0)
    sources = {}
    for name, rows, codes in (("many", 3, (64, 96)), ("few", 1, (64, 66))):
        ids = torch.randint(*codes, (rows, 66), generator=draw)
        ids[:, 0], ids[:, -1] = 1, 2
        sources[name] = list(ids)
    alone = SimpleNamespace(
        unwrap_model=lambda model: model,
        process_index=0,
        num_processes=1,
        device=torch.device("cpu"),
        reduce=lambda tensor, _: tensor,
    )
    row, maps = validate(alone, model, sources, [0.3, 0.9], batch_size=2)
    assert model.training
    model.eval()
    found = {}
    for name, rows in sources.items():
        ids = torch.stack(rows)
        with torch.no_grad():
            logits = model(ids).logits[:, :-2].transpose(1, 2)  # code tokens only, without the end
        found[name] = torch.nn.functional.cross_entropy(logits, ids[:, 1:-1], reduction="none").mean(0)
        assert row["val_losses"][name] == pytest.approx(found[name].mean().item(), rel=1e-5)
        assert maps[name].tolist() == pytest.approx(found[name].tolist(), rel=1e-5)
    mean = 0.25 * found["many"] + 0.75 * found["few"]  # whatever the numbers of rows
    assert row["val_loss"] == pytest.approx(mean.mean().item(), rel=1e-5)
    assert row["val_loss"] != pytest.approx(sum(row["val_losses"].values()) / 2, rel=1e-3)
    assert row["val_frame_losses"] == pytest.approx(mean.view(4, 16).mean(1).tolist(), rel=1e-5)
    assert row["val_rows"] == 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "patches"])
def test_the_losses_of_micro_batches_add_up_to_the_mean_of_the_step(architecture):
    """With AdamW, whose steps hardly depend on the size of a gradient, a loss that is not divided would train alike."""
    torch.manual_seed(0)
    patches = {"prediction_target": "patch", "patch_size": 4, "vocab_size": 64, "max_position_embeddings": 65}
    config = TotoConfig.from_preset("tiny", **CONFIG.to_diff_dict() | patches) if architecture == "patches" else CONFIG
    model, device = make_model(architecture, config).eval(), torch.device("cpu")
    rows = list(torch.randint(64, 96, (4, 66)))
    if architecture == "patches":
        rows = [{"patches": torch.randn(64, 48)} for _ in range(4)]
    whole = losses(model, rows, device, accumulation=1)
    parts = [losses(model, rows[k : k + 2], device, accumulation=2) for k in (0, 2)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-4)
    counted = whole.codes | whole.ends
    assert whole.loss.item() == pytest.approx(whole.token_losses[counted].mean().item(), rel=1e-4)
