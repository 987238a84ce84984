"""`--optimizer muon`: Muon for the matrices of the blocks and AdamW for the rest, exactly resumed, or refused."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import CONFIG, FLAGS

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForPatchPrediction
from training.args import PretrainOptimArgs
from training.engine.changes import changed_settings
from training.engine.optim import make_optimizer, set_learning_rate
from training.engine.progress import update_ratios
from training.plan import main as plan
from training.pretrain import main

TINY = TotoConfig.from_preset("tiny", **CONFIG)
MUON = PretrainOptimArgs(optimizer="muon")
STEPS = ["--optimizer", "muon", "--max_steps", "6", "--save_steps", "3", "--logging_steps", "1", "--val_rows", "2"]


def names_by_group(model, optimizer):
    """[(group, names of its weights)]."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(group, {names[parameter] for parameter in group["params"]}) for group in optimizer.param_groups]


def of_muon(model):
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {name for name, _ in model.named_parameters() if name.split(".")[-2] in kinds and ".layers." in name}


def made(optim=MUON, **fields):
    torch.manual_seed(0)
    model = TotoForCausalLM(TotoConfig.from_preset("tiny", **CONFIG | fields))
    return model, make_optimizer(model, optim)


def backward(model, seed):
    ids = torch.randint(64, 96, (4, 66), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("tied", [False, True])
def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(tied):
    model, optimizer = made(tie_word_embeddings=tied)
    (muon, theirs), (matrices, tables), (vectors, norms) = names_by_group(model, optimizer)
    assert theirs == of_muon(model) and len(theirs) == 7 * 2
    assert tables == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert theirs | tables | norms == {name for name, _ in model.named_parameters()}
    assert [group["weight_decay"] for group in (muon, matrices, vectors)] == [0.1, 0.1, 0.0]
    assert (muon["momentum"], muon["nesterov"], muon["adjust_lr_fn"]) == (0.95, True, "original")
    assert matrices["betas"] == vectors["betas"] == (0.9, 0.95)
    for share in (1.0, 0.1):  # one schedule for both
        set_learning_rate(optimizer, share * 3e-4)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [share * r for r in (0.02, 3e-4, 3e-4)]
        )


def test_patches_and_heads_are_not_muons():
    fields = {"prediction_target": "patch", "patch_size": 8, "vocab_size": 64, "max_position_embeddings": 65}
    model = TotoForPatchPrediction(TotoConfig.from_preset("tiny", **CONFIG | fields))
    (_, theirs), *others = names_by_group(model, make_optimizer(model, MUON))
    assert theirs == of_muon(model)
    assert {"patch_embedding.weight", "head.weight"} < set.union(*(names for _, names in others))


def test_steps_are_those_of_torchs_two_optimisers():
    """Bit for bit, after the groups and the state have been replaced, as Accelerate does."""
    args = PretrainOptimArgs(optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.03, weight_decay=0.2)
    model, optimizer = made(args)
    theirs = copy.deepcopy(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    known = of_muon(model)
    weights = dict(theirs.named_parameters())
    muon = torch.optim.Muon(
        [weights[name] for name in weights if name in known],
        weight_decay=0.2,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="original",
    )
    rest = [parameter for name, parameter in weights.items() if name not in known]
    groups = [{"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.2}]
    groups += [{"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    for step, rate in enumerate((1e-3, 2e-3, 5e-4)):
        set_learning_rate(optimizer, rate)
        muon.param_groups[0]["lr"] = rate * (0.03 / 2e-3)
        for group in adamw.param_groups:
            group["lr"] = rate
        before = weights["model.layers.0.mlp.up_proj.weight"].detach().clone()
        for each, optimizers in ((model, [optimizer]), (theirs, [muon, adamw])):
            backward(each, step)
            for one in optimizers:
                one.step()
        assert not torch.equal(before, weights["model.layers.0.mlp.up_proj.weight"])
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights[name]), name
            moments, other = optimizer.state[parameter], (muon if name in known else adamw).state[weights[name]]
            assert set(moments) == ({"momentum_buffer"} if name in known else {"step", "exp_avg", "exp_avg_sq"})
            assert all(torch.equal(moments[key], other[key]) for key in moments)


def test_update_ratios_are_how_far_the_step_went():
    model, optimizer = made()
    for step, rate in enumerate((1e-4, 3e-4, 3e-4)):
        set_learning_rate(optimizer, rate)
        backward(model, step)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        found = update_ratios(model, optimizer)
        assert set(found) == {"embedding", "attention", "mlp", "norm"}
        for part, sign in (("attention", "self_attn"), ("mlp", ".mlp."), ("embedding", "embed_tokens")):
            parts = [(before[n], p.detach()) for n, p in model.named_parameters() if sign in n]
            moved = sum((new - old).square().sum() for old, new in parts) ** 0.5
            size = sum(new.square().sum() for _, new in parts) ** 0.5
            assert found[part] == pytest.approx((moved / size).item(), rel=2e-3 if part == "embedding" else 0.02)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("muon") / "run"
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run)])
    return run


def rows_of(run):
    kept = ("step", "loss", "val_loss", "grad_norm", "update_ratio")
    return [{key: row.get(key) for key in kept} for row in map(json.loads, (run / "metrics.jsonl").open())]


def moments(run):
    (file,) = (run / "checkpoints" / "step_000006" / "training_state" / "optimizer").glob("*.safetensors")
    return load_file(file)


def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path, capsys):
    recipe = (whole / "recipe.yaml").read_text()
    assert "optimizer: muon\n" in recipe and "muon_learning_rate: 0.02\n" in recipe
    run, weights = tmp_path / "run", "checkpoints/step_000006/model.safetensors"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step_000006")
    main(["--resume", str(run)])
    assert "changes" not in capsys.readouterr().out
    assert rows_of(run) == rows_of(whole)
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    ours, theirs = moments(run), moments(whole)
    assert "model.layers.0.mlp.up_proj.weight:momentum_buffer" in ours and "model.norm.weight:exp_avg_sq" in ours
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_another_optimiser_does_not_go_on_from_these_moments(whole):
    sentence = r"--optimizer is muon, but the run was started with adamw and cannot change; .*--init_from"
    for recipe in ({"optimizer": "adamw"}, {}):  # runs older than the flag have none
        with pytest.raises(ValueError, match=sentence):
            changed_settings(recipe, MUON, weights_flag="--init_from")
    assert not changed_settings({}, PretrainOptimArgs())
    with pytest.raises(ValueError, match=r"muon_learning_rate 0\.02 would have no effect with --optimizer adamw"):
        main(["--resume", str(whole), "--optimizer", "adamw"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config", json.dumps(CONFIG | {"mup_base_width": 16})], "no rule for muP, .*has mup_base_width 16; use"),
        (["--architecture", "gpt2"], "is for the blocks of a Toto, but --architecture is gpt2; use --optimizer adamw"),
        (["--optimizer", "sgd"], "--optimizer is 'sgd'; it must be one of adamw, muon"),
        (["--muon_learning_rate", "0"], "--muon_learning_rate is 0.0; it must be above 0"),
        (["--muon_learning_rate", "0.02", "--optimizer", "adamw"], "0.02 would have no effect with --optimizer adamw"),
    ],
)
def test_what_muon_cannot_train_is_refused(shards, tmp_path, flags, sentence):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=sentence) as caught:
        main([*FLAGS, *STEPS, *flags, "--shards", str(shards), "--output_dir", str(run)])
    assert "\n" not in str(caught.value) and not run.exists()


def test_sharded_weights_and_an_older_torch_are_refused(shards, tmp_path, monkeypatch):
    flags = [*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="needs whole matrices, but FSDP shards them; train with DDP, or use"):
            main(flags)
    with monkeypatch.context() as patched:
        patched.delattr(torch.optim, "Muon")
        with pytest.raises(ValueError, match=r"needs torch 2\.9 or later, but this is torch .*; update it"):
            main(flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["finetune", "train_tokenizer"])
def test_other_trainings_do_not_offer_it(verb):
    import importlib

    with pytest.raises(ValueError, match="'--optimizer' is unknown"):
        importlib.import_module(f"training.{verb}").main(["--optimizer", "muon"])


def test_the_plan_counts_one_moment_of_a_matrix(capsys):
    flags = ["--recipe", "base", "--gpus", "8", "--json"]
    found = []
    for more in ([], ["--optimizer", "muon"]):
        plan([*flags, *more])
        found.append(json.loads(capsys.readouterr().out))
    matrices = 12 * (4 * 768**2 + 3 * 768 * 3072)
    for key in ("memory_total_gb", "memory_checkpointed_gb", "checkpoint_gb"):
        assert found[0][key] - found[1][key] == pytest.approx(4e-9 * matrices)
    assert found[1]["memory_gb"]["moments"] == pytest.approx((8 * found[1]["parameters"] - 4 * matrices) / 1e9)
    with pytest.raises(ValueError, match="FSDP shards them"):
        plan([*flags, "--optimizer", "muon", "--sharding", "fsdp2"])


def test_help_names_both(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "adamw (paper), or muon for the matrices of the blocks" in text and "(default: adamw)" in text
    assert "peak learning rate of Muon" in text and "(default with muon: 0.02)" in text
