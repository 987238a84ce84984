"""The loss made in chunks is the ordinary loss, its gradients too, and each position's is in its place."""

import copy

import pytest
import torch
from torch.nn import functional as F

import modeling_toto.loss_toto as source
from modeling_toto import TotoConfig, TotoForCausalLM


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(source, "CHUNK_ELEMENTS", 5 * 96)  # 5 of 34 rows: the last chunk is not full


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_chunked_equals_plain(small_chunks, small_config, rows, tied, gradient_checkpointing):
    small_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = TotoForCausalLM(small_config).train()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    labels = rows.clone()
    labels[1, 9:] = -100
    plain_loss, plain = gradients(copy.deepcopy(model), input_ids=rows, labels=labels)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    loss, chunked = gradients(model, input_ids=rows, labels=labels, skip_logits=True)
    torch.testing.assert_close(loss, plain_loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(chunked[name], gradient, msg=name)


@pytest.mark.parametrize("skip_logits", [True, False])
def test_token_losses_are_aligned_with_labels(small_chunks, small_model, rows, skip_logits):
    labels = rows.clone()
    labels[0, 5] = labels[1, -1] = -100
    with torch.no_grad():
        output = small_model(rows, labels=labels, skip_logits=skip_logits)
        log_probabilities = F.log_softmax(small_model(rows).logits, -1)
    assert output.token_losses.shape == rows.shape and output.token_losses.dtype == torch.float32
    expected = torch.zeros(rows.shape)
    for row in range(2):
        for t in range(1, rows.shape[1]):
            if labels[row, t] != -100:
                expected[row, t] = -log_probabilities[row, t - 1, labels[row, t]]
    torch.testing.assert_close(output.token_losses, expected)
    torch.testing.assert_close(output.loss, expected.sum() / (labels[:, 1:] != -100).sum())
    assert (output.logits is None) == skip_logits


def test_weighted_token_losses_train(small_chunks, small_model, rows):
    weights = torch.rand(rows.shape)
    (small_model(rows, labels=rows, skip_logits=True).token_losses * weights).sum().backward()
    chunked = small_model.lm_head.weight.grad.clone()
    small_model.zero_grad()
    (small_model(rows, labels=rows).token_losses * weights).sum().backward()
    torch.testing.assert_close(chunked, small_model.lm_head.weight.grad)


def test_no_tensor_as_large_as_the_logits(monkeypatch, small_config):
    """What autograd keeps for the backward pass stays below the size of the logits."""
    config = TotoConfig(**{**small_config.to_dict(), "vocab_size": 4096, "max_position_embeddings": 258})
    model = TotoForCausalLM(config)
    monkeypatch.setattr(source, "CHUNK_ELEMENTS", 16 * 4096)
    ids = torch.randint(64, 4096, (2, 258))
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, labels=ids, skip_logits=True)
    assert max(kept) <= model.lm_head.weight.numel() < 514 * 4096
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, labels=ids)
    assert max(kept) >= 514 * 4096


def test_num_items_in_batch_as_the_trainer_passes_it(small_model, rows):
    ours = small_model(rows, labels=rows, skip_logits=True, num_items_in_batch=7).loss
    torch.testing.assert_close(ours, small_model(rows, labels=rows, num_items_in_batch=7).loss)


def test_autocast_bfloat16(small_chunks, small_model, rows):
    exact = small_model(rows, labels=rows, skip_logits=True).loss
    with torch.autocast("cpu", torch.bfloat16):
        output = small_model(rows, labels=rows, skip_logits=True)
    assert output.token_losses.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, rtol=0.02, atol=0.0)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in small_model.parameters())


def test_padding_on_either_side(small_chunks, small_model, rows):
    alone = small_model(rows[:1, :9], labels=rows[:1, :9], skip_logits=True).token_losses
    for side in ("left", "right"):
        pad = (9, 0) if side == "left" else (0, 9)
        ids, mask = F.pad(rows[:1, :9], pad), F.pad(torch.ones(1, 9, dtype=torch.long), pad)
        labels = F.pad(rows[:1, :9], pad, value=-100)
        if side == "left":  # nothing real stands before the first id
            labels[:, 9] = -100
        losses = small_model(ids, attention_mask=mask, labels=labels, skip_logits=True).token_losses
        torch.testing.assert_close(losses[mask == 1], alone[0], rtol=1e-4, atol=1e-4)
        assert (losses[mask == 0] == 0).all()


def test_skip_logits_without_labels(small_model, rows):
    with pytest.raises(ValueError, match="needs labels"):
        small_model(rows, skip_logits=True)
