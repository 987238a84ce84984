"""The optimiser's settings: rates by their closed form, what is decayed, betas, and clipped gradients."""

import json
import math

import pytest
import torch
from tiny_run import FLAGS

from training.args import OptimArgs
from training.engine.optim import learning_rate, make_optimizer, set_learning_rate
from training.pretrain import main


@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
def test_the_rate_rises_linearly_and_falls_as_a_cosine(low):
    args = OptimArgs(learning_rate=2.0, warmup_steps=4, min_lr_ratio=low)
    rates = [learning_rate(step, 12, args) for step in range(14)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    # 0, 1/8, 1/4, 1/2 and 1 of the way down; beyond the last step it stays
    shares = [1, (1 + math.cos(math.pi / 8)) / 2, (1 + math.sqrt(1 / 2)) / 2, 1 / 2, 0, 0]
    found = [rates[step] for step in (4, 5, 6, 8, 12, 13)]
    assert found == pytest.approx([2 * (low + (1 - low) * share) for share in shares])


def test_a_rate_without_warm_up_begins_at_its_peak():
    assert learning_rate(0, 10, OptimArgs(learning_rate=3.0, warmup_steps=0)) == 3.0
    assert learning_rate(0, 1, OptimArgs(learning_rate=3.0, warmup_steps=9)) == pytest.approx(1 / 3)


def test_a_step_is_adamws_with_these_betas_and_decay():
    """Two steps by hand, of a matrix and of a vector, which is not decayed."""
    args = OptimArgs(adam_beta1=0.5, adam_beta2=0.75, weight_decay=0.25, learning_rate=7.0)
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.fill_(1.0)
    optimizer = make_optimizer(layer, args)
    matrix, vector, mean, square = 1.0, 1.0, 0.0, 0.0
    for step, (gradient, rate) in enumerate(((2.0, 0.1), (-1.0, 0.2)), start=1):
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        mean, square = 0.5 * mean + 0.5 * gradient, 0.75 * square + 0.25 * gradient**2
        move = rate * (mean / (1 - 0.5**step)) / math.sqrt(square / (1 - 0.75**step))
        matrix, vector = matrix * (1 - rate * 0.25) - move, vector - move
        assert (layer.weight.item(), layer.bias.item()) == pytest.approx((matrix, vector), rel=1e-5)


def test_gradients_are_clipped_to_their_norm(shards, tmp_path, monkeypatch):
    """A step of AdamW hardly depends on the size of its gradient, so the gradients themselves are looked at."""
    step, norms = torch.optim.AdamW.step, []

    def watched(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    flags = [*FLAGS, "--max_steps", "2", "--logging_steps", "1", "--max_grad_norm", "0.01"]
    main([*flags, "--shards", str(shards), "--output_dir", str(tmp_path / "run")])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert all(row["grad_norm"] > 0.1 for row in rows if "loss" in row), "the log has the norm before"
