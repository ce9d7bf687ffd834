"""Lesson 6.2: the fine-tuning run, against a second loop by the book; interrupted, resumed, with adapters and experts."""

import dataclasses
import json
import math
import os
import random
import signal

import pytest
import torch
import torch.nn.functional as F

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files
from part_4.lr_schedule import warmup_cosine
from part_4.token_dataset import get_batch
from part_5.hybrid import HybridConfig, hybrid_gpt
from part_6 import train_sft
from part_6.chat_data import turn
from part_6.chat_model import load_model, resize_vocabulary
from part_6.collator import shift
from part_6.curriculum import draw_batch
from part_6.prompt_template import chat_tokenizer, encode_chat
from part_6.sft_config import Config
from part_6.sft_data import TASKS, base_text, join_turns, task_conversation
from part_6.sft_scores import answer_figures, answer_losses
from part_6.task_families import FAMILIES
from part_6.tasks import make_tasks, verify
from tests.part_6.tiny_base import WORLD, make_base, write_lines

TINY = dict(n_examples=96, steps=12, batch_size=8, block_size=160, warmup_steps=3, eval_every=4, save_every=4, log_every=1,
            n_tasks=2, replay=0, optimizer="adamw", lr=3e-3, min_lr=1e-4, weight_decay=0.01, device="cpu", precision="fp32")
CLOCK = {"seconds", "tokens_per_second"}  # what differs between equal runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "world.txt").write_text(WORLD, encoding="utf-8")
    make_base(folder / "base.pt", folder / "world.txt")
    return folder / "base.pt"


@pytest.fixture(autouse=True)
def few_validation_tasks(monkeypatch):
    monkeypatch.setattr("part_6.sft_data.N_VAL", 16)
    monkeypatch.setattr("part_6.evaluation.answer.__defaults__", (0.0, 12, 256, 0))  # answers of at most 12 tokens


def config(base, out, **changes):
    return Config(**{**TINY, "base": str(base), "out": str(out), **changes})


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_clock(record):
    return {name: value for name, value in record.items() if name not in CLOCK}


def weights(path):
    return load_checkpoint(path)["model"]


def assert_equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, **tolerance, msg=name)


def test_a_run_directory_holds_all_that_was_promised(base, tmp_path):
    out = tmp_path / "run"
    history = train_sft.main(config(base, out))
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.jsonl", "tensorboard", "step_00000008.pt",
                                                     "step_00000012.pt", "best.pt", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    scores = {f"{sampled}exact_match_{when}{family}" for sampled in ("", "sampled_") for when in ("before", "after")
              for family in ("", *(f"_{name}" for name in FAMILIES))}
    assert set(summary) == scores | {"val_loss", "perplexity", "bits_per_byte", "best_val_loss", "steps", "tokens", "params",
                                     "seconds", "tokens_per_second", "device", "base_val_loss_before", "base_val_loss_after"}
    lengths = [len(ids) - 1 for ids, _ in encode_conversations(make_tasks("train", 96, 1))[0]]
    drawn = [draw_batch("uniform", lengths, lengths, 1, step, 12, 8) for step in range(12)]
    assert summary["tokens"] == sum(lengths[i] for batch in drawn for i in batch)
    n_old = sum(weight.numel() for weight in weights(base).values())
    assert summary["params"] == n_old + 2 * 4 * 16  # four rows of embedding and head, 16 wide
    assert [r["step"] for r in records(out) if "val_loss" in r] == [0, 4, 8, 12]
    assert [r["step"] for r in records(out) if "val_loss" not in r] == list(range(12))


TOKENIZERS = {}


def encode_conversations(tasks):
    """(ids, learnt) of the conversations that a run with seed 1 makes of the tasks, and their difficulties."""
    if not TOKENIZERS:
        from part_4.bpe_tokenizer import BPETokenizer
        from part_4.bpe_training import count_chunks, train_bpe
        TOKENIZERS["chat"] = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([WORLD]), 400, 1)[1]))
    lengths = [len(encode_chat(task_conversation(task), TOKENIZERS["chat"])[0]) for task in tasks]
    groups = [[tasks[i] for i in group] for group in join_turns(lengths, 0.3, 160, random.Random(1))]
    told = [sum((task_conversation(task) for task in group), []) for group in groups]
    return ([encode_chat(messages, TOKENIZERS["chat"]) for messages in told],
            [sum(task.difficulty for task in group) / len(group) for group in groups])


@pytest.mark.parametrize("packing, max_rows, curriculum, replay", [
    (True, None, "uniform", 0), (True, 1, "hard_first", 3), (False, 3, "short_first", 1)])
def test_the_loop_does_what_a_second_loop_written_by_the_book_does(packing, max_rows, curriculum, replay, base, tmp_path):
    summary = train_sft.main(config(base, tmp_path / "run", packing=packing, max_rows=max_rows, curriculum=curriculum,
                                    replay=replay, n_tasks=0))[-1]
    model, tokenizer, state = load_model(base)
    tokenizer = chat_tokenizer(tokenizer)
    # New rows are the mean of the old ones; embedding and head are lengthened by hand here.
    n_old, n_new = model.config.vocab_size, tokenizer.vocab_size
    larger = hybrid_gpt(dataclasses.replace(model.config, vocab_size=n_new))
    grown = model.state_dict()
    for name in ("token_embedding.weight", "head.weight"):
        grown[name] = torch.cat([grown[name]] + [grown[name].mean(0, keepdim=True)] * (n_new - n_old))
    larger.load_state_dict(grown)
    decayed = [p for name, p in larger.named_parameters() if p.ndim == 2 and name != "token_embedding.weight"]
    others = [p for name, p in larger.named_parameters() if p.ndim != 2 or name == "token_embedding.weight"]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95))
    conversations, difficulties = encode_conversations(make_tasks("train", 96, 1))
    lengths = [len(ids) for ids, _ in conversations]
    text = torch.tensor(tokenizer.encode(base_text(base.parent / "world.txt", "train", 4_000_000)))
    losses = []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, 12, 3e-3, 1e-4, 3)
        total, n = 0.0, 0
        for i in draw_batch(curriculum, difficulties, lengths, 1, step, 12, 8):  # one after the other, no padding
            ids, learnt = conversations[i]
            logits = larger(torch.tensor([ids[:-1]]))[0]
            for place in range(len(ids) - 1):
                if learnt[place + 1]:
                    total, n = total - logits[place].log_softmax(-1)[ids[place + 1]], n + 1
        for inputs, targets in zip(*get_batch(text, 1, step, replay, 160)) if replay else ():  # every token is learnt
            total, n = total + F.cross_entropy(larger(inputs[None])[0], targets, reduction="sum"), n + 160
        optimizer.zero_grad()
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(larger.parameters(), 1.0)
        optimizer.step()
        losses.append((total / n).item())
    assert [r["loss"] for r in records(tmp_path / "run") if "loss" in r] == pytest.approx(losses, rel=1e-4)
    drawn = [draw_batch(curriculum, difficulties, lengths, 1, step, 12, 8) for step in range(12)]
    assert summary["tokens"] == sum(lengths[i] - 1 for batch in drawn for i in batch) + 12 * replay * 160
    ours = weights(tmp_path / "run" / "step_00000012.pt")
    for name, theirs in larger.state_dict().items():
        assert torch.allclose(ours[name], theirs, atol=1e-4), name


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"lora_rank": 2, "replay": 1}, {"curriculum": "easy_first"}])
def test_a_stopped_and_resumed_run_ends_bit_for_bit_like_one_that_was_not(changes, base, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_sft.main(config(base, whole, **changes))
    draw, calls = draw_batch, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(*arguments)

    monkeypatch.setattr(train_sft, "draw_batch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_sft.main(config(base, parts, **changes))
    assert stopped.value.code == 128 + signal.SIGINT and checkpoint_files(parts)[0].name == "step_00000006.pt"
    history = train_sft.main(config(base, parts, resume="yes", **changes))
    assert_equal(weights(parts / "step_00000012.pt"), weights(whole / "step_00000012.pt"))
    assert list(map(without_clock, records(parts))) == list(map(without_clock, records(whole)))
    summary = json.loads((whole / "summary.json").read_text())
    assert without_clock(history[-1]) == without_clock(summary)


def test_what_a_killed_run_logged_after_its_checkpoint_comes_again_once(base, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        train_sft.main(config(base, out, n_tasks=0))
    checkpoint_files(killed)[0].unlink()  # of step 12: the logs go further than the checkpoint of step 8
    train_sft.main(config(base, killed, n_tasks=0, resume="auto"))
    assert list(map(without_clock, records(killed))) == list(map(without_clock, records(whole)))
    assert_equal(weights(killed / "step_00000012.pt"), weights(whole / "step_00000012.pt"))


def test_the_seed_decides_the_adapters_first_weights(base, tmp_path):
    first = {seed: weights_of_run(base, tmp_path / str(seed), seed) for seed in (1, 2)}
    assert not torch.allclose(first[1], first[2], atol=1e-2)  # steps of 1e-9 have moved nothing


def weights_of_run(base, out, seed):
    train_sft.main(config(base, out, seed=seed, lora_rank=2, lr=1e-9, min_lr=0.0, n_tasks=0))
    return weights(out / "best.pt")["blocks.0.attention.qkv.A"]


def test_a_kill_between_a_save_and_its_second_name_loses_no_best_checkpoint(base, tmp_path):
    out = tmp_path / "run"
    train_sft.main(config(base, out, n_tasks=0))
    newest = checkpoint_files(out)[0]
    assert load_checkpoint(newest)["progress"]["best_step"] == 12  # the loss of so short a run only falls
    os.replace(checkpoint_files(out)[1], out / "best.pt")  # as if the name still belonged to the one before
    train_sft.main(config(base, out, n_tasks=0, resume="yes"))
    assert load_checkpoint(out / "best.pt")["step"] == 12


def test_resuming_with_other_flags_or_conversations_is_refused_and_nothing_is_lost(base, tmp_path):
    data = write_lines(tmp_path / "x.jsonl", [{"prompt": f"q{i}", "response": "a"} for i in range(60)])
    out = tmp_path / "run"
    train_sft.main(config(base, out, data=str(data)))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="--lr"):
        train_sft.main(config(base, out, data=str(data), resume="yes", lr=1e-3))
    write_lines(data, [{"prompt": f"q{i}", "response": "b"} for i in range(60)])
    with pytest.raises(InputError, match="other conversations"):
        train_sft.main(config(base, out, data=str(data), resume="yes"))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_file_of_one_s_own_is_learnt_and_needs_no_tasks(base, tmp_path):
    data = write_lines(tmp_path / "x.jsonl", [{"prompt": f"say {i}", "response": "Tom smiled."} for i in range(60)])
    summary = train_sft.main(config(base, tmp_path / "run", data=str(data), steps=60, lr=1e-2, eval_every=20))[-1]
    assert summary["val_loss"] < 0.5 and not any("exact_match" in name for name in summary)
    model, tokenizer, _ = load_model(tmp_path / "run" / "best.pt")
    from part_6.evaluation import answer
    assert answer(model, tokenizer, ["say 7"], n_new=12) == [("Tom smiled.", True)]


def test_adapters_learn_while_the_matrices_stay_and_the_checkpoint_loads_merged(base, tmp_path):
    train_sft.main(config(base, tmp_path / "run", lora_rank=2, n_tasks=0))
    old, raw = weights(base), weights(tmp_path / "run" / "step_00000012.pt")
    for name, weight in old.items():
        if name.startswith("blocks") and weight.ndim == 2:
            assert torch.equal(raw[name.replace(".weight", ".linear.weight")], weight)
    model, _, state = load_model(tmp_path / "run" / "step_00000012.pt")
    name = "blocks.0.attention.qkv"
    expected = old[f"{name}.weight"] + 16 / 2 * raw[f"{name}.B"] @ raw[f"{name}.A"]  # alpha / r
    assert torch.allclose(model.state_dict()[f"{name}.weight"], expected, atol=1e-6)
    assert not torch.allclose(expected, old[f"{name}.weight"], atol=1e-5)


def test_a_base_model_with_experts_is_fine_tuned_too(base, tmp_path):
    shape = HybridConfig(vocab_size=400, block_size=32, n_layer=2, n_head=2, d_model=16, n_expert=4, top_k=2)
    make_base(tmp_path / "moe.pt", base.parent / "world.txt", hybrid_gpt(shape))
    summary = train_sft.main(config(tmp_path / "moe.pt", tmp_path / "run", n_tasks=0))[-1]
    assert records(tmp_path / "run")[1]["load_entropy"] > 0.5 and summary["val_loss"] < 6
    assert load_model(tmp_path / "run" / "best.pt")[0].config.n_expert == 4


def test_the_experts_own_losses_are_learnt_from(base, tmp_path):
    routers = []
    for balance_weight in (0.0, 10.0):
        shape = HybridConfig(vocab_size=400, block_size=32, n_layer=2, n_head=2, d_model=16, n_expert=4, top_k=2,
                             balance_weight=balance_weight)
        torch.manual_seed(0)
        make_base(tmp_path / "moe.pt", base.parent / "world.txt", hybrid_gpt(shape))
        weights_before = weights(tmp_path / "moe.pt")
        train_sft.main(config(tmp_path / "moe.pt", tmp_path / str(balance_weight), n_tasks=0))
        after = weights(tmp_path / str(balance_weight) / "best.pt")
        routers.append({name: after[name] - weights_before[name] for name in after if "router.gate" in name})
    assert routers[0] and all(not torch.allclose(routers[0][name], routers[1][name], atol=1e-3) for name in routers[0])


def test_what_is_scored_and_loaded_later_is_the_best_checkpoint(base, tmp_path, monkeypatch):
    losses = iter(range(1, 99))  # of the validation answers: they only rise
    monkeypatch.setattr(train_sft, "answer_losses", lambda *arguments: torch.tensor([float(next(losses))]))
    asked = []
    monkeypatch.setattr("part_6.sft_scores.answer", lambda model, tokenizer, prompts, temperature: asked.append(
        model.state_dict()) or [("wrong", True)] * len(prompts))
    summary = train_sft.main(config(base, tmp_path / "run"))[-1]
    assert summary["best_val_loss"] == 2.0 and load_checkpoint(tmp_path / "run" / "best.pt")["step"] == 4
    assert_equal(asked[-1], weights(tmp_path / "run" / "best.pt"))


def test_evaluation_is_without_dropout_and_leaves_the_mode(base):
    model = make_base(base.parent / "dropout.pt", "none", dropout=0.5).train()
    examples = [([1, 2, 3], [-100, 3, 4])] * 3
    first, second = (answer_losses(model, examples, 16) for _ in range(2))
    assert torch.equal(first, second) and model.training and len(first) == 6


def test_bits_per_byte_count_the_answers_bytes_and_the_ends_losses(base):
    model, tokenizer, _ = load_model(base)
    tokenizer = chat_tokenizer(tokenizer)
    model = resize_vocabulary(model, tokenizer.vocab_size)
    answers = ["Tom smiled.", "h\u00e9"]
    examples = [shift(*encode_chat(turn("Say", text), tokenizer)) for text in answers]
    figures = answer_figures(model, tokenizer, examples, 64)
    losses = []
    for inputs, targets in examples:
        with torch.no_grad():
            logits = model(torch.tensor([inputs]))[0].log_softmax(-1)
        losses += [-logits[place, target].item() for place, target in enumerate(targets) if target != -100]
    n_bytes = sum(len((" " + text).encode()) for text in answers)  # 12 and 4
    assert n_bytes == 16
    assert figures["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / 16, rel=1e-4)
    assert figures["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_scores_are_those_of_the_saved_model_on_held_out_tasks(base, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("part_6.sft_scores.answer", lambda model, tokenizer, prompts, temperature: asked.append(
        (model.state_dict(), temperature, prompts)) or [(task.answer if i % 2 else "wrong", True)
                                                        for i, task in enumerate(tasks)])
    tasks = [task for family in FAMILIES for task in make_tasks("test", 2, families=(family,), distinct=True)]
    assert all(verify(task, task.answer) for task in tasks)
    summary = train_sft.main(config(base, tmp_path / "run"))[-1]
    assert [temperature for _, temperature, _ in asked] == [0.0, 1.0, 0.0, 1.0]
    assert all(prompts == [task.prompt for task in tasks] for *_, prompts in asked)
    assert summary["exact_match_after"] == 0.5 and summary["sampled_exact_match_before_where"] == 0.5
    assert_equal(asked[0][0], asked[1][0])
    assert_equal(asked[2][0], weights(tmp_path / "run" / "best.pt"))


def test_what_is_forgotten_is_the_loss_on_the_base_s_own_validation_text(base, tmp_path):
    summary = train_sft.main(config(base, tmp_path / "run", n_tasks=0))[-1]
    for path, when in ((base, "before"), (tmp_path / "run" / "best.pt", "after")):
        model, tokenizer, _ = load_model(path)
        ids = tokenizer.encode(base_text(base.parent / "world.txt"))
        losses = []
        for start in range(0, len(ids) - 1, 32):
            row = torch.tensor([ids[start:start + 33]])
            with torch.no_grad():
                losses.append(F.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="none"))
        assert summary[f"base_val_loss_{when}"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_without_the_base_s_text_the_run_goes_on_and_says_so(base, tmp_path, capsys):
    make_base(tmp_path / "base.pt", tmp_path / "gone.txt")
    summary = train_sft.main(config(tmp_path / "base.pt", tmp_path / "run", n_tasks=0))[-1]
    assert "base_val_loss_before" not in summary and "base_val_loss_after" not in summary
    assert "gone.txt" in capsys.readouterr().out


def test_replay_without_the_base_s_text_is_refused_before_anything_is_written(base, tmp_path):
    make_base(tmp_path / "base.pt", tmp_path / "gone.txt")
    with pytest.raises(InputError, match="--replay 2.*--replay 0.*gone.txt"):
        train_sft.main(config(tmp_path / "base.pt", tmp_path / "run", replay=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes, message", [
    ({"base": "{tmp}/none.pt"}, "python3 part_4/train.py"), ({"data": "{tmp}/none.jsonl"}, "cannot be read"),
    ({"batch_size": 97}, "97 is more than the [678]. conversations"),
    ({"block_size": 20}, "--block_size 20"), ({"resume": "yes"}, "no checkpoint")])
def test_what_cannot_be_run_is_refused_before_anything_is_written(changes, message, base, tmp_path):
    changes = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        train_sft.main(config(**{"base": base, "out": tmp_path / "run", **changes}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [
    {"lora_rank": 4, "optimizer": "muon"}, {"lora_rank": -1}, {"min_lr": 1.0}, {"beta2": 1.0}, {"max_rows": 0}, {"out": ""},
    {"n_tasks": -1}, {"multi_turn": 1.0}, {"replay": -1}, {"lora_alpha": 0.0}, {"n_examples": 0}])
def test_flags_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        Config(**changes)


def test_a_loss_that_is_no_number_is_skipped_and_ends_the_run_after_twenty(base, tmp_path, monkeypatch):
    gradients = train_sft.accumulate_gradients

    def diverged(model, *arguments, **options):
        loss = gradients(model, *arguments, **options)
        for weight in model.parameters():
            weight.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(train_sft, "accumulate_gradients", diverged)
    with pytest.raises(InputError, match="no number 21 times in a row, at step 20"):
        train_sft.main(config(base, tmp_path / "run", steps=40, n_tasks=0))
    new = weights(checkpoint_files(tmp_path / "run")[0])
    assert torch.equal(new["blocks.0.attention.qkv.weight"], weights(base)["blocks.0.attention.qkv.weight"])


def test_the_default_data_are_the_tasks():
    assert Config().data == TASKS and Config().worked_steps
