"""A model with experts in Part 4's loop: against a second loop, stopped and resumed, in micro-batches, recomputing; what is
logged; and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from part_0.cli import InputError, parse_config
from part_0.device import supported_precisions
from part_2.checkpoint import load_checkpoint
from part_4 import train as part_4_train
from part_4.checkpoint import checkpoint_files
from part_4.checkpoint import load_model as load_part_4_model
from part_5 import train
from part_5.hybrid import HybridConfig, hybrid_gpt, load_model, moe_layers
from tests.part_4.tiny_run import (
    TINY,
    Interruption,
    cosine,
    half_a_second_an_update,
    interrupt,
    make_text,
    records,
    start_quickly,
    without_clock,
)
from tests.part_4.tiny_run import config as dense_config

FIGURES = {"balance_loss", "z_loss", "load_entropy", "max_violation", "dropped"}
ALL_AT_ONCE = dict(bias_rate=0.02, noisy=True, capacity_factor=1.0, optimizer="muon", n_shared=1, score="sigmoid",
                   dropout=0.1, alpha=0.5)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    start_quickly(monkeypatch)


@pytest.fixture
def text(tmp_path):
    return make_text(tmp_path / "text.txt")


def config(text, out, **changes):
    """The flags of a tiny run with 4 experts in both layers."""
    return train.Config(**{**TINY, "n_layer": 2, "n_expert": 4, "data": str(text), "out": str(out),
                           "tokens": str(text.parent / "tokens"), **changes})


def final_weights(out):
    return load_checkpoint(checkpoint_files(out)[0])["model"]


def biases(out):
    return [value for name, value in final_weights(out).items() if name.endswith("router.bias")]


def training_records(out):
    return [record for record in records(out) if "loss" in record]


def shard(folder):
    """The ids of the training split, read by the documented layout alone: 64 bytes, then uint16."""
    [path] = folder.glob("tokens/*/train_00000.tokens")
    return torch.from_numpy(np.fromfile(path, dtype="<u2", offset=64).astype(np.int64))


def windows(data, seed, step, n, block_size):
    """Inputs and targets of the batch of a step: starts from a generator seeded with (seed, step)."""
    starts = np.random.default_rng((seed, step)).integers(len(data) - block_size, size=n)
    rows = torch.stack([data[s:s + block_size + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


def by_the_book(data, c, n_micro):
    """Final weights and biases, and the numbers of each step, of a second loop that shares only the model with the trainer:
    losses, figures and biases are computed here from what the routers were given."""
    torch.manual_seed(c.seed)
    model = hybrid_gpt(HybridConfig(280, c.block_size, c.n_layer, c.n_head, c.d_model, c.n_kv_head, qk_norm=True,
                                    n_expert=4, top_k=c.top_k, first_dense=c.first_dense, alpha=c.alpha, score=c.score,
                                    n_shared=c.n_shared, capacity_factor=c.capacity_factor))
    routers, seen = [layer.router for layer in moe_layers(model)], []
    for router in routers:
        router.register_forward_hook(lambda module, inputs, result: seen.append((inputs[0], result.experts)))
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=c.weight_decay), dict(params=others, weight_decay=0)],
                                  betas=(0.9, c.beta2), foreach=False)
    history = []
    for step in range(c.steps):
        inputs, targets = windows(data, c.seed, step, c.batch_size, c.block_size)
        model.zero_grad()
        load, total, dropped = torch.zeros(len(routers), 4), 0.0, 0
        for x, y in zip(inputs.chunk(n_micro), targets.chunk(n_micro)):
            seen.clear()
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / n_micro
            total += loss.item()
            balance, z = [], []
            for i, (router, (tokens, experts)) in enumerate(zip(routers, seen, strict=True)):
                logits = tokens @ router.gate.weight.T
                s = logits.softmax(-1) if c.score == "softmax" else logits.sigmoid()
                s = s / s.sum(-1, keepdim=True)
                counts = torch.stack([(experts == e).sum() for e in range(4)])
                load[i] += counts
                balance.append(4 * (counts / experts.numel() * s.mean(0)).sum())
                z.append(logits.exp().sum(-1).log().square().mean())
                if c.capacity_factor:
                    most = math.ceil(c.capacity_factor * experts.numel() / 4)
                    dropped += sum(max(0, int(n) - most) for n in counts)
            balance, z = sum(balance) / len(routers), sum(z) / len(routers)  # of the last micro-batch is what is logged
            (loss + (c.balance_weight * balance + c.z_weight * z) / n_micro).backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1, c.grad_clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, c)
        optimizer.step()
        for router, counts in zip(routers, load):
            for e in range(4):
                router.bias[e] += c.bias_rate * ((counts[e] < counts.mean()).int() - (counts[e] > counts.mean()).int())
        shares = (load / load.sum(-1, keepdim=True)).tolist()
        entropies = [-sum(share * math.log(share, 4) for share in row if share) for row in shares]
        history.append(dict(loss=total, grad_norm=norm, balance_loss=balance.item(), z_loss=z.item(),
                            load_entropy=sum(entropies) / len(routers), dropped=dropped / load.sum().item(),
                            max_violation=sum(4 * max(row) - 1 for row in shares) / len(routers)))
    return model.state_dict(), history


@pytest.mark.parametrize("options", [
    dict(balance_weight=0.1), dict(bias_rate=0.05, balance_weight=0.0, score="sigmoid", first_dense=1, n_shared=1),
    dict(micro_batch_size=2, balance_weight=0.5, z_weight=0.1, bias_rate=0.05, alpha=0.4),
    dict(capacity_factor=0.75, micro_batch_size=1, z_weight=0.05), dict(top_k=1, z_weight=0.0)], ids=str)
def test_the_loop_does_what_a_second_loop_written_by_the_book_does(text, tmp_path, options):
    out = tmp_path / "run"
    c = config(text, out, steps=9, lr=1e-2, min_lr=2e-3, beta2=0.9, weight_decay=0.5, grad_clip=0.3, seed=7, **options)
    train.main(c)
    theirs, expected = by_the_book(shard(tmp_path), c, 4 // (c.micro_batch_size or 4))
    ours = final_weights(out)
    assert ours.keys() == theirs.keys()
    for name in ours:  # where a gradient is nearly zero Adam makes much of its roundings: its steps are of 1e-2
        assert torch.allclose(ours[name], theirs[name], atol=5e-5), name
    logged = training_records(out)
    assert [record["loss"] for record in logged] == pytest.approx([record["loss"] for record in expected], abs=1e-6)
    for record, numbers in zip(logged, expected, strict=True):
        assert {name: record[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6), record["step"]
    assert any(record["dropped"] > 0 for record in logged) == (c.capacity_factor is not None)
    assert any(bias.abs().max() > 0 for bias in biases(out)) == (c.bias_rate > 0)
    assert max(numbers["max_violation"] for numbers in expected) > 0.05  # there was something to balance


def test_every_logged_step_has_part_4_s_numbers_and_the_layers_five_and_the_summary_is_part_4_s(text, tmp_path):
    runs = []
    for main, c in ((part_4_train.main, dense_config(text, tmp_path / "dense")),
                    (train.main, config(text, tmp_path / "experts"))):
        main(c)
        out = tmp_path / ("dense" if main is part_4_train.main else "experts")
        runs.append(({frozenset(record) for record in records(out)}, set(json.loads((out / "summary.json").read_text()))))
    (dense, dense_summary), (experts, summary) = runs
    assert dense_summary == summary >= {"val_loss", "bits_per_byte", "steps", "tokens", "params", "seconds"}
    assert experts == {record | FIGURES if "loss" in record else record for record in dense} and len(dense) == 2
    events = EventAccumulator(str(tmp_path / "experts" / "tensorboard")).Reload()
    for name in FIGURES:
        written = {record["step"]: record[name] for record in training_records(tmp_path / "experts")}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(written, rel=1e-6)


def test_the_figures_are_those_of_the_step_that_is_logged_however_seldom_that_is(text, tmp_path):
    often, seldom = (train.main(config(text, tmp_path / str(every), log_every=every, bias_rate=0.02, capacity_factor=1.0))
                     for every in (1, 5))
    expected = {record["step"]: record for record in without_clock(often[:-1]) if "loss" in record}
    found = [record for record in without_clock(seldom[:-1]) if "loss" in record]
    assert [record["step"] for record in found] == [0, 5, 10]
    assert all(record == expected[record["step"]] for record in found)


def test_without_the_hooks_no_loss_of_the_layers_is_added_and_nothing_is_logged(text, tmp_path):
    c = config(text, tmp_path / "run", balance_weight=5.0, bias_rate=0.1)
    part_4_train.main(c)
    assert not any(FIGURES & set(record) for record in records(tmp_path / "run"))
    assert all(torch.equal(bias, torch.zeros(4)) for bias in biases(tmp_path / "run"))
    train.main(config(text, tmp_path / "zero", balance_weight=0.0, z_weight=0.0))
    plain, zero = final_weights(tmp_path / "run"), final_weights(tmp_path / "zero")
    assert all(torch.allclose(plain[name], zero[name], atol=1e-7) for name in plain)


@pytest.mark.parametrize("weight", ["balance_weight", "z_weight"])
def test_each_loss_does_what_it_is_for(text, tmp_path, weight):
    figure = weight.replace("weight", "loss")
    last = {value: train.main(config(text, tmp_path / str(value), steps=40, eval_every=40, save_every=40, lr=1e-2, top_k=1,
                                     **{"balance_weight": 0.0, "z_weight": 0.0, weight: value}))[-3][figure]
            for value in (0.0, 1.0)}
    assert last[1.0] < 0.95 * last[0.0]


@pytest.mark.parametrize("options", [ALL_AT_ONCE, dict(bias_rate=0.02, moe_every=2, micro_batch_size=2)], ids=str)
def test_an_interrupted_run_that_goes_on_ends_bit_for_bit_like_one_that_was_not(text, tmp_path, monkeypatch, options):
    train.main(config(text, tmp_path / "whole", **options))
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, parts, **options))
    assert load_checkpoint(checkpoint_files(parts)[0])["step"] == 8
    history = train.main(config(text, parts, resume="yes", **options))
    assert history[0]["step"] == 8
    whole, resumed = final_weights(tmp_path / "whole"), final_weights(parts)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert without_clock(records(parts)) == without_clock(records(tmp_path / "whole"))
    assert any(bias.abs().max() > 0 for bias in biases(parts))


def test_micro_batches_are_the_batch_as_long_as_the_layers_add_nothing(text, tmp_path):
    # Balance is no mean over tokens: half a batch can be uneven where the whole is not. The z-loss is one.
    options = dict(balance_weight=0.0, z_weight=0.1, bias_rate=0.02)
    whole, parts = (train.main(config(text, tmp_path / str(size), micro_batch_size=size, **options)) for size in (None, 1))
    for record, expected in zip(without_clock(parts[:-1]), without_clock(whole[:-1]), strict=True):
        for numbers in (record, expected):  # these are the last micro-batch's
            numbers.pop("balance_loss", None), numbers.pop("z_loss", None)
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-6)
    ours, theirs = final_weights(tmp_path / "1"), final_weights(tmp_path / "None")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.parametrize("options", [dict(bias_rate=0.02, capacity_factor=0.75), ALL_AT_ONCE], ids=str)
def test_recomputing_activations_changes_nothing_though_it_counts_each_choice_twice(text, tmp_path, options):
    plain, again = (train.main(config(text, tmp_path / str(on), activation_checkpointing=on, **options))
                    for on in (False, True))
    for record, expected in zip(without_clock(again), without_clock(plain), strict=True):
        assert record.pop("device", None) == expected.pop("device", None)  # in the summary
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-7)
    ours, theirs = final_weights(tmp_path / "True"), final_weights(tmp_path / "False")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert any(bias.abs().max() > 0 for bias in biases(tmp_path / "True"))
    assert all(map(torch.equal, biases(tmp_path / "True"), biases(tmp_path / "False")))


def test_a_step_whose_update_is_skipped_is_counted_once_and_no_more(text, tmp_path, monkeypatch):
    original, loads, n_calls = part_4_train.accumulate_gradients, [], []
    after_update = train.after_update

    def accumulate_gradients(*arguments, **options):
        n_calls.append(1)
        loss = original(*arguments, **options)
        return loss * math.nan if len(n_calls) == 6 else loss

    def watched(model):
        loads.append([layer.load.sum().item() for layer in moe_layers(model)])
        return after_update(model)

    monkeypatch.setattr(part_4_train, "accumulate_gradients", accumulate_gradients)
    monkeypatch.setattr(train, "after_update", watched)
    train.main(config(text, tmp_path / "run"))
    assert loads == [[4 * 16 * 2] * 2] * 12  # tokens of a batch, two choices each
    assert [record["step"] for record in training_records(tmp_path / "run")] == [*range(5), *range(6, 12)]


@pytest.mark.parametrize("precision", [name for name in supported_precisions(torch.device("cpu")) if name != "fp32"])
def test_in_reduced_precision_it_learns_nearly_the_same(text, tmp_path, precision):
    options = dict(steps=40, eval_every=40, save_every=40, n_shared=1, alpha=0.5)
    reduced, exact = (train.main(config(text, tmp_path / name, precision=name, **options)) for name in (precision, "fp32"))
    assert reduced[0]["val_loss"] == pytest.approx(exact[0]["val_loss"], rel=1e-3)
    assert reduced[-1]["val_loss"] == pytest.approx(exact[-1]["val_loss"], rel=0.02)
    assert exact[-1]["val_loss"] < 0.95 * exact[0]["val_loss"]
    assert reduced[1]["z_loss"] == pytest.approx(exact[1]["z_loss"], rel=1e-3)


def test_mfu_counts_the_weights_that_a_token_uses(text, tmp_path, monkeypatch):
    half_a_second_an_update(monkeypatch)
    summary = train.main(config(text, tmp_path / "run", d_expert=8))[-1]
    # Two layers with 4 experts of 3 * 16 * 8 = 384 weights, of which a token uses 2; 64 tokens a step, two steps a second.
    flops = 64 * (6 * (summary["params"] - 280 * 16 - 2 * 2 * 384) + 3 * 4 * 16 * 2 * 17 / 2)
    assert [record["mfu"] for record in training_records(tmp_path / "run")] == pytest.approx([2 * flops / 2e6] * 12)


def test_every_flag_reaches_the_model(text, tmp_path):
    options = dict(n_expert=5, top_k=3, d_expert=16, n_shared=2, moe_every=2, first_dense=1, alpha=0.25, score="sigmoid",
                   noisy=True, capacity_factor=1.5, balance_weight=0.2, z_weight=0.3, bias_rate=0.4, d_hidden=24,
                   dropout=0.1, window=7, sinks=3, n_kv_head=1, tie_embeddings=True)
    train.main(config(text, tmp_path / "run", steps=1, **options))
    model, tokenizer, state = load_model(checkpoint_files(tmp_path / "run")[0])
    assert {name: state["model_config"][name] for name in options} == options
    [layer] = moe_layers(model)
    assert len(layer.experts.expand.weight) == 5 and layer.router.score == "sigmoid" and layer.capacity_factor == 1.5
    assert model.blocks[1].feed_forward.alpha == 0.25 and tokenizer.vocab_size == model.config.vocab_size == 280


def test_left_out_widths_follow_the_model_s(text, tmp_path):
    # Two of the experts together are as wide as the dense layer: 48 (8/3 of 16, rounded up to 8), or d_hidden.
    for options, expected in ((dict(), 24), (dict(d_hidden=32), 16), (dict(d_hidden=32, top_k=1), 32),
                              (dict(d_hidden=80, top_k=3, n_shared=1), 24)):
        assert config(text, tmp_path, **options).model_config(280).d_expert == expected


def test_the_final_model_gives_the_logged_loss_and_part_4_s_reader_says_that_it_is_not_its_own(text, tmp_path):
    history = train.main(config(text, tmp_path / "run", capacity_factor=0.5, noisy=True, bias_rate=0.05))
    path = checkpoint_files(tmp_path / "run")[0]
    model, *_ = load_model(path)
    [val] = tmp_path.glob("tokens/*/val_00000.tokens")
    ids = torch.from_numpy(np.fromfile(val, dtype="<u2", offset=64).astype(np.int64))
    inputs, targets = windows(ids, 0, 0, 4, 16)
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert history[-2]["val_loss"] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(InputError, match="no checkpoint of part_4/train.py") as refusal:
        load_part_4_model(path)
    assert "\n" not in str(refusal.value)
    part_4_train.main(dense_config(text, tmp_path / "dense"))
    assert moe_layers(load_model(checkpoint_files(tmp_path / "dense")[0])[0]) == []


@pytest.mark.parametrize("first, then", [("dense", "experts"), ("experts", "dense")])
def test_a_run_of_the_other_trainer_is_not_gone_on_with(text, tmp_path, first, then):
    out = tmp_path / "run"
    start = {"dense": lambda **options: part_4_train.main(dense_config(text, out, n_layer=2, steps=4, **options)),
             "experts": lambda **options: train.main(config(text, out, steps=4, **options))}
    start[first]()
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError) as refusal:
        start[then](resume="yes")
    assert "\n" not in str(refusal.value) and str(out) in str(refusal.value)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_other_experts_than_those_of_the_run_are_refused(text, tmp_path):
    train.main(config(text, tmp_path / "run", steps=4))
    with pytest.raises(InputError, match="was started with --top_k 2, not 1"):
        train.main(config(text, tmp_path / "run", steps=4, top_k=1, resume="yes"))


@pytest.mark.parametrize("flags, complaint", [
    ("--n_expert 0", "n_expert must be at least 1, not 0"),
    ("--n_expert 2 --top_k 3", "top_k must be from 1 to n_expert 2, not 3"),
    ("--top_k 0", "top_k must be from 1 to n_expert 8, not 0"), ("--d_expert 0", "d_expert must be at least 1, not 0"),
    ("--n_shared -1", "n_shared must be at least 0, not -1"), ("--moe_every 0", "moe_every must be at least 1"),
    ("--first_dense 99", "first_dense 99 leave none"), ("--alpha 1.5", "alpha must be in [0, 1], not 1.5"),
    ("--alpha nan", "alpha"), ("--score tanh", "tanh"), ("--capacity_factor 0", "capacity_factor must be above 0"),
    ("--balance_weight -1", "balance_weight must be 0 or more, not -1.0"), ("--z_weight -1", "z_weight must be 0 or more"),
    ("--bias_rate -0.1", "bias_rate must be 0 or more, not -0.1"), ("--mlp gelu", "mlp must be swiglu, not gelu"),
    ("--bias", "experts have no biases"), ("--steps 0", "--steps must be above 0")])
def test_bad_flags_end_in_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(parse_config(train.Config, "", ["--out", str(tmp_path / "run"), *flags.split()]))
    said = capsys.readouterr()
    assert end.value.code == 2 and complaint in said.err and said.err.count("\n") == 1 and said.out == ""
    assert list(tmp_path.iterdir()) == []
