"""The trainer's loop against a second one, what a run leaves, and what it does with a loss that is no number."""

import base64
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from part_0.cli import InputError
from part_0.device import DTYPES, supported_precisions
from part_2.checkpoint import load_checkpoint
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4 import run_evaluation, train
from part_4.checkpoint import checkpoint_files, load_model
from tests.part_4.tiny_run import (
    Interruption,
    config,
    cosine,
    half_a_second_an_update,
    interrupt,
    make_text,
    records,
    start_quickly,
    without_clock,
)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    start_quickly(monkeypatch)


@pytest.fixture
def text(tmp_path):
    return make_text(tmp_path / "text.txt")


def shard(folder, split):
    """The ids of a split, read by the documented layout alone: 64 bytes, then uint16."""
    [path] = folder.glob(f"tokens/*/{split}_00000.tokens")
    return torch.from_numpy(np.fromfile(path, dtype="<u2", offset=64).astype(np.int64))


def windows(data, seed, step, n, block_size):
    """Inputs and targets of the batch of a step: starts from a generator seeded with (seed, step)."""
    starts = np.random.default_rng((seed, step)).integers(len(data) - block_size, size=n)
    rows = torch.stack([data[s:s + block_size + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


def final_weights(out):
    return load_checkpoint(checkpoint_files(out)[0])["model"]


def test_a_run_directory_holds_all_that_was_promised(text, tmp_path):
    out = tmp_path / "run"
    history = train.main(config(text, out, n_layer=2))
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.jsonl", "samples.jsonl", "tensorboard", "step_00000008.pt", "step_00000012.pt", "best.pt",
        "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    assert {"val_loss", "bits_per_byte", "steps", "tokens", "params", "seconds", "tokens_per_second"} <= set(summary)
    assert summary["steps"] == 12 and summary["tokens"] == 12 * 4 * 16
    assert summary["tokens_per_second"] == pytest.approx(12 * 4 * 16 / summary["seconds"])
    assert json.loads((out / "config.json").read_text())["n_layer"] == 2
    model, tokenizer, state = load_model(checkpoint_files(out)[0])
    assert state["step"] == 12 and tokenizer.vocab_size == model.config.vocab_size == 280
    # Embedding and head 280 * 16 each. A block: norms 2 * 16, qkv 16 * 48 (2 heads, 2 for keys, 2 for values, of 8), QK-norm
    # 2 * 8, project 16 * 16, SwiGLU 3 * 16 * d_hidden. The last norm 16.
    d_hidden = model.config.d_hidden
    assert summary["params"] == 2 * 280 * 16 + 2 * (32 + 768 + 16 + 256 + 48 * d_hidden) + 16


def test_every_logged_step_has_all_its_numbers(text, tmp_path):
    train.main(config(text, tmp_path / "run", log_every=5))
    training = [record for record in records(tmp_path / "run") if "val_loss" not in record]
    assert [record["step"] for record in training] == [0, 5, 10]
    for record in training:
        assert set(record) == {"step", "tokens", "seconds", "loss", "lr", "grad_norm", "update_ratio", "tokens_per_second",
                               "mfu", "memory_gib"}
        assert record["tokens"] == (record["step"] + 1) * 4 * 16 and record["memory_gib"] > 0.01


def test_evaluations_and_samples_stand_at_their_interval_and_at_the_end(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out, steps=10))
    assert [r["step"] for r in records(out) if "val_loss" in r] == [0, 4, 8, 10]
    assert [r["tokens"] for r in records(out) if "val_loss" in r] == [0, 4 * 64, 8 * 64, 10 * 64]
    samples = records(out, "samples.jsonl")
    assert [sample["step"] for sample in samples] == [0, 4, 8, 10]
    assert [s["val_loss"] for s in samples] == [r["val_loss"] for r in records(out) if "val_loss" in r]
    assert all(sample["text"].startswith("The") and len(sample["text"]) > 20 for sample in samples)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in events.Images("attention")] == [0, 4, 8, 10]
    assert [event.step for event in events.Tensors("sample/text_summary")] == [0, 4, 8, 10]


def test_tensorboard_s_events_say_what_metrics_jsonl_says(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "val_loss", "lr", "grad_norm", "update_ratio", "mfu"):
        written = {record["step"]: record[name] for record in records(tmp_path / "run") if name in record}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(written, rel=1e-6)


def test_the_final_figures_are_those_of_the_validation_tokens(text, tmp_path):
    summary = train.main(config(text, tmp_path / "run", eval_tokens=101))[-1]
    model, _, state = load_model(checkpoint_files(tmp_path / "run")[0])
    ids = shard(tmp_path, "val")[:101]
    losses = []
    for start in range(0, 100, 16):  # windows end to end, the last one of 4
        row = ids[start:start + 17]
        with torch.no_grad():
            losses.append(F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item())
    assert summary["val_loss"] == pytest.approx(sum(losses) / 100, rel=1e-5)
    assert summary["perplexity"] == pytest.approx(math.exp(sum(losses) / 100), rel=1e-4)
    # The bytes that each id stands for, from the lines of the tokenizer's file; the first id is not predicted.
    n_bytes = [len(base64.b64decode(line.split()[0])) for line in state["tokenizer"]["ranks"].splitlines()]
    bytes_predicted = sum(n_bytes[id] for id in ids[1:])
    assert bytes_predicted > 100  # else tokens and bytes could not be told apart
    assert summary["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / bytes_predicted, rel=1e-5)


def test_the_evaluation_windows_are_fixed_ones_whatever_the_seed(text, tmp_path):
    for seed in (1, 2):
        out = tmp_path / str(seed)
        train.main(config(text, out, seed=seed, eval_windows=5))
        inputs, targets = windows(shard(tmp_path, "val"), 0, 0, 5, 16)
        model, _, state = load_model(checkpoint_files(out)[0])
        with torch.no_grad():
            expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
        assert records(out)[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_text_that_repeats_is_learned_to_nearly_zero_loss(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_text("ab cd ef gh " * 500, encoding="utf-8")
    # No pair of neighbouring bytes is merged at 257 ids (256 bytes and <|endoftext|>): a cycle of 12 tokens.
    summary = train.main(config(path, tmp_path / "run", steps=150, lr=1e-2, vocab_size=257, eval_every=150))[-1]
    # Only the first token of a window tells where in the cycle it is (a blank only with what follows): little is unknown.
    assert summary["val_loss"] < 0.2


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(text, tmp_path):
    first, again, other = (train.main(config(text, tmp_path / name, dropout=0.2, seed=seed))
                           for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert without_clock(first) == without_clock(again)
    assert first[-1]["val_loss"] != other[-1]["val_loss"]


def by_the_book(data, c):
    """Final weights, loss and gradient norm of each step with config `c`, from a second loop that shares only the model
    with the trainer: torch's plain AdamW, its cross-entropy on whole batches, and each rule written out once more."""
    torch.manual_seed(c.seed)
    model = ModernGPT(ModernGPTConfig(280, c.block_size, c.n_layer, c.n_head, c.d_model, c.n_kv_head, qk_norm=True,
                                      tie_embeddings=c.tie_embeddings))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=c.weight_decay), dict(params=others, weight_decay=0)],
                                  betas=(0.9, c.beta2), foreach=False)
    losses, norms = [], []
    for step in range(c.steps):
        inputs, targets = windows(data, c.seed, step, c.batch_size, c.block_size)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))
        for p in model.parameters():
            p.grad *= min(1, c.grad_clip / norms[-1])
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, c)
        optimizer.step()
    return model.state_dict(), losses, norms


@pytest.mark.parametrize("options", [dict(), dict(tie_embeddings=True), dict(micro_batch_size=2), dict(micro_batch_size=1),
                                     dict(activation_checkpointing=True)], ids=str)
def test_the_loop_does_what_a_second_loop_written_by_the_book_does(text, tmp_path, options):
    out = tmp_path / "run"
    c = config(text, out, steps=9, lr=1e-2, min_lr=2e-3, beta2=0.9, weight_decay=0.5, grad_clip=0.3, seed=7, **options)
    train.main(c)
    theirs, losses, norms = by_the_book(shard(tmp_path, "train"), c)
    ours = final_weights(out)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=3e-6), name
    training = [record for record in records(out) if "loss" in record]
    assert [record["loss"] for record in training] == pytest.approx(losses, abs=1e-5)
    assert [record["grad_norm"] for record in training] == pytest.approx(norms, rel=1e-4)  # before clipping
    assert max(norms) > 0.3  # some were clipped


def test_the_learning_rate_begins_at_the_warm_up_s_first_value_and_follows_the_schedule(text, tmp_path):
    c = config(text, tmp_path / "run", lr=3e-3, min_lr=1e-4, warmup_steps=3)
    train.main(c)
    rates = [record["lr"] for record in records(tmp_path / "run") if "lr" in record]
    assert rates[:4] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])
    assert rates == pytest.approx([cosine(step, c) for step in range(12)])


def test_the_first_update_is_as_large_as_the_warm_up_says(text, tmp_path):
    train.main(config(text, tmp_path / "run", steps=1, lr=3e-3, warmup_steps=3, grad_clip=1e9))
    # Adam's first update is +-lr, whatever the gradient; a norm's scale starts at one and does not decay.
    moved = final_weights(tmp_path / "run")["norm.weight"] - 1
    assert moved.abs().tolist() == pytest.approx([1e-3] * 16, rel=1e-3)


def test_every_flag_of_the_model_reaches_it(text, tmp_path):
    options = dict(n_kv_head=1, norm="layernorm", positions="none", rope_base=99.0, mlp="gelu", qk_norm=False, bias=True,
                   window=7, sinks=3, dropout=0.2, tie_embeddings=True, d_hidden=24)
    train.main(config(text, tmp_path / "run", steps=1, **options))
    assert load_checkpoint(checkpoint_files(tmp_path / "run")[0])["model_config"] == dict(
        vocab_size=280, block_size=16, n_layer=1, n_head=2, d_model=16, norm_eps=1e-5, rope_scale=1.0, rope_pairing="half",
        **options)


@pytest.mark.parametrize("precision", supported_precisions(torch.device("cpu")))
def test_matrix_products_run_in_the_precision_asked_for(text, tmp_path, monkeypatch, precision):
    seen, original = set(), F.linear

    def linear(x, weight, bias=None):
        result = original(x, weight, bias)
        if torch.is_grad_enabled():
            seen.add(result.dtype)
        return result

    monkeypatch.setattr(F, "linear", linear)
    train.main(config(text, tmp_path / "run", precision=precision, steps=1))
    assert seen == {DTYPES[precision]}


def test_best_is_the_checkpoint_with_the_lowest_validation_loss_also_across_a_resume(text, tmp_path, monkeypatch):
    out, losses = tmp_path / "run", iter([9.0, 3.0, 5.0, 4.0])  # at the steps 0, 4, 8 and 12
    monkeypatch.setattr(run_evaluation, "windows_loss", lambda *arguments: next(losses))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, out))
    assert load_checkpoint(out / "best.pt")["step"] == 4
    losses = iter([5.0, 4.0])  # step 8 once more, then 12
    summary = train.main(config(text, out, resume="yes"))[-1]
    assert summary["best_val_loss"] == 3.0
    assert load_checkpoint(out / "best.pt")["step"] == 4  # though step_00000004.pt is long gone
    assert [path.name for path in checkpoint_files(out)] == ["step_00000012.pt", "step_00000008.pt"]


def test_the_loss_before_training_is_no_best_one(text, tmp_path, monkeypatch):
    losses = iter([1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(run_evaluation, "windows_loss", lambda *arguments: next(losses))
    assert train.main(config(text, tmp_path / "run"))[-1]["best_val_loss"] == 2.0
    assert load_checkpoint(tmp_path / "run" / "best.pt")["step"] == 8


def test_a_best_one_between_two_saves_is_saved(text, tmp_path, monkeypatch):
    losses = iter([9.0, 5.0, 4.0, 6.0, 7.0])  # at 0, 3, 6, 9 and 12
    monkeypatch.setattr(run_evaluation, "windows_loss", lambda *arguments: next(losses))
    train.main(config(text, tmp_path / "run", eval_every=3, save_every=100, keep_last=5))
    assert [path.stem for path in checkpoint_files(tmp_path / "run")] == ["step_00000012", "step_00000006", "step_00000003"]
    assert load_checkpoint(tmp_path / "run" / "best.pt")["step"] == 6


def test_seconds_are_those_of_training_alone_and_go_on_after_a_resume(text, tmp_path, monkeypatch):
    clock, out = [0.0], tmp_path / "run"
    gradients, evaluation, save = train.accumulate_gradients, run_evaluation.windows_loss, train.save_numbered

    def slowly(function, seconds):
        def slow(*arguments, **options):
            clock[0] += seconds
            return function(*arguments, **options)
        return slow

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(run_evaluation, "windows_loss", slowly(evaluation, 1000))
    monkeypatch.setattr(train, "save_numbered", slowly(save, 100))
    monkeypatch.setattr(train, "accumulate_gradients", slowly(gradients, 1))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, out))
    summary = train.main(config(text, out, resume="yes"))[-1]
    assert summary["seconds"] == 12 and summary["tokens_per_second"] == 4 * 16
    assert all(r["seconds"] == r["step"] + ("loss" in r) for r in records(out))
    assert all(r["tokens_per_second"] == 64 for r in records(out) if "loss" in r)
    # Saves at 4, 8 and 12. What a checkpoint holds was counted before its own save, so the one resumed from lacks 100.
    assert summary["save_seconds"] == 200


def test_mfu_is_the_share_of_the_machine_s_peak(text, tmp_path, monkeypatch):
    half_a_second_an_update(monkeypatch)
    train.main(config(text, tmp_path / "run", log_every=3))
    model, *_ = load_model(checkpoint_files(tmp_path / "run")[0])
    # 64 tokens a step, two steps a second: 6 FLOPs for each weight but the embedding's, 3 * 4 C (T + 1) / 2 for attention.
    flops = 64 * (6 * (model.n_params() - 280 * 16) + 3 * 4 * 16 * 17 / 2)
    training = [record for record in records(tmp_path / "run") if "loss" in record]
    assert [record["mfu"] for record in training] == pytest.approx([2 * flops / 2e6] * 4)


def test_an_earlier_run_in_the_same_place_is_kept_aside(text, tmp_path, capsys):
    out = tmp_path / "run"
    train.main(config(text, out))
    old = checkpoint_files(out)[0].read_bytes()
    train.main(config(text, out, seed=5))
    assert "run.previous" in capsys.readouterr().out
    assert (tmp_path / "run.previous" / "step_00000012.pt").read_bytes() == old
    assert json.loads((out / "config.json").read_text())["seed"] == 5


@pytest.mark.parametrize("options, complaint", [
    (dict(micro_batch_size=3), "--micro_batch_size 3 must divide the 4 windows"),
    (dict(block_size=4096, eval_tokens=5000), "too few for --block_size 4096"), (dict(data="nowhere.txt"), "nowhere.txt"),
    (dict(tokenizer="nowhere.tiktoken"), "no tokenizer nowhere.tiktoken"), (dict(vocab_size=100), r"\b100\b"),
    (dict(resume="yes"), "there is no checkpoint in"), (dict(wandb=True), "--wandb needs its package: pip install wandb")])
def test_what_cannot_be_trained_is_refused_before_the_run_directory_is_made(text, tmp_path, monkeypatch, options, complaint):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ValueError, match=complaint) as refusal:
        train.main(config(text, tmp_path / "run", **options))
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


# A loss or a gradient that is no number.

def spoil(monkeypatch, steps, how):
    """Make the updates numbered in `steps` useless; returns the weights and moments before each update, and at the end."""
    original, seen = train.accumulate_gradients, []

    def accumulate_gradients(model, *arguments, **options):
        loss = original(model, *arguments, **options)
        seen.append([weight.detach().clone() for weight in model.parameters()])
        if len(seen) - 1 in steps:
            if how == "gradient":
                model.token_embedding.weight.grad[3, 2] = math.nan
            elif how == "infinite gradient":
                model.head.weight.grad[1, 2] = math.inf
            else:
                return torch.tensor(float(how))
        return loss

    monkeypatch.setattr(train, "accumulate_gradients", accumulate_gradients)
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("how", ["gradient", "infinite gradient", "nan", "inf"])
def test_an_update_from_no_number_is_skipped_and_the_count_starts_anew(text, tmp_path, monkeypatch, optimizer, how):
    out = tmp_path / "run"
    weights = spoil(monkeypatch, {2, 5, 6, 11}, how)
    train.main(config(text, out, optimizer=optimizer, max_skips=2))
    weights.append(list(final_weights(out).values()))
    for step in range(12):
        same = all(map(torch.equal, weights[step], weights[step + 1])) if step < 11 else all(
            any(torch.equal(w, final) for final in weights[12]) for w in weights[11])
        assert same == (step in {2, 5, 6, 11}), step
    assert all(torch.isfinite(weight).all() for weight in weights[12])
    assert {r["step"]: r["skipped"] for r in records(out) if "skipped" in r} == {2: 1, 5: 1, 6: 2, 11: 1}
    assert [r["step"] for r in records(out) if "loss" in r] == [0, 1, 3, 4, 7, 8, 9, 10]
    moments = load_checkpoint(checkpoint_files(out)[0])["optimizer"]["state"]
    assert {state["step"].item() for state in moments.values() if "step" in state} == {8}  # as many as there were good ones
    assert all(torch.isfinite(value).all() for state in moments.values() for value in state.values())


def test_too_many_skips_in_a_row_end_the_run_and_name_the_newest_checkpoint(text, tmp_path, monkeypatch):
    out = tmp_path / "run"
    spoil(monkeypatch, {1, 2, 3, 6, 7, 8, 9}, "nan")
    with pytest.raises(InputError, match=r"4 times in a row, at step 9: .*--lr than 0.003.*step_00000008.pt") as refusal:
        train.main(config(text, out, max_skips=3, save_every=2))  # three are forgiven, the fourth is not
    assert "\n" not in str(refusal.value)
    assert load_model(checkpoint_files(out)[0])[2]["step"] == 8
    with monkeypatch.context() as patch:
        patch.setattr(train, "accumulate_gradients", lambda *arguments, **options: torch.tensor(math.nan))
        with pytest.raises(InputError, match="checkpoint is none"):
            train.main(config(text, tmp_path / "other", max_skips=1))


def test_the_count_of_skips_survives_a_resume(text, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 4)
        spoil(patch, {2, 3}, "nan")
        train.main(config(text, out))
    with monkeypatch.context() as patch, pytest.raises(InputError, match="4 times in a row, at step 5"):
        spoil(patch, {0, 1, 2, 3}, "nan")
        train.main(config(text, out, resume="yes", max_skips=3))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_under_a_gradient_scaler_a_skipped_update_changes_no_weight_either(text, tmp_path, monkeypatch, optimizer):
    scaler = torch.amp.GradScaler("cpu", 64.0)
    monkeypatch.setattr(train, "grad_scaler", lambda *arguments: scaler)
    out = tmp_path / "run"
    weights = spoil(monkeypatch, {3}, "gradient")
    train.main(config(text, out, optimizer=optimizer))
    assert all(map(torch.equal, weights[3], weights[4]))
    assert all(torch.isfinite(weight).all() for weight in final_weights(out).values())
    assert scaler.get_scale() == 32  # lowered by half once
    assert load_checkpoint(checkpoint_files(out)[0])["scaler"]["scale"] == 32


def test_a_gradient_scaler_changes_nothing_but_roundings(text, tmp_path, monkeypatch):
    train.main(config(text, tmp_path / "plain"))
    monkeypatch.setattr(train, "grad_scaler", lambda *arguments: torch.amp.GradScaler("cpu", 64.0, growth_interval=3))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 9)
        train.main(config(text, tmp_path / "scaled"))
    train.main(config(text, tmp_path / "scaled", resume="yes"))
    plain, scaled = final_weights(tmp_path / "plain"), final_weights(tmp_path / "scaled")
    assert all(torch.allclose(plain[name], scaled[name], atol=1e-6) for name in plain)
    # Twice as large after every 3 good updates, 12 in all, the resume included.
    assert load_checkpoint(checkpoint_files(tmp_path / "scaled")[0])["scaler"]["scale"] == 64 * 2**4


def test_a_table_of_positions_that_is_shorter_than_a_sample_ends_the_sample(text, tmp_path):
    train.main(config(text, tmp_path / "run", steps=1, positions="learned", block_size=8))
    assert records(tmp_path / "run", "samples.jsonl")[0]["text"].startswith("The")


def test_evaluation_in_parts_is_evaluation(text, tmp_path):
    whole, parts = (train.main(config(text, tmp_path / name, steps=1, eval_windows=5, micro_batch_size=size))
                    for name, size in (("whole", None), ("parts", 2)))  # windows of 2, 2 and 1
    assert parts[0]["val_loss"] == pytest.approx(whole[0]["val_loss"], rel=1e-6)
    assert parts[-1]["val_loss"] == pytest.approx(whole[-1]["val_loss"], rel=1e-6)
