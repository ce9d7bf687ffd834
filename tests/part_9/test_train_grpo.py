"""Lesson 9.5: the GRPO run, against updates and a loop written by the book; interrupted, resumed, and with bad rewards."""

import dataclasses
import json
import math
import os
import random
import re
import runpy
import signal
import statistics
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files
from part_4.distributed import Process
from part_6 import chat
from part_6.chat_data import turn
from part_6.chat_model import load_model
from part_6.collator import pad, shift
from part_6.prompt_template import END, encode_chat
from part_6.tasks import make_tasks, result
from part_8.experience import gold_figures, rollout_figures
from part_8.policy_scores import reference_loss
from part_8.rewards import score_rollout
from part_8.rollout import as_rollout
from part_8.stages import load_stages
from part_9 import group_experience, reward_functions, train_grpo
from part_9.group_experience import Groups, gather_groups, make_group_experience
from part_9.grpo_config import Config
from part_9.reward_functions import Reward
from tests.part_6.tiny_base import write_lines
from tests.part_8.tiny_stages import (
    CLOCK,
    TOKENIZER,
    assert_close,
    assert_equal,
    make_reward_model,
    make_sft,
    records,
    tiny_model,
    weights,
    without_clock,
)
from tests.repository import ROOT

END_ID = TOKENIZER.special_ids[END]
CPU = torch.device("cpu")
TINY = dict(n_prompts=12, steps=3, batch_size=8, group_size=4, minibatch_size=4, block_size=4, overlong_margin=2,
            save_every=2, lr=2e-3, n_held_out=0, n_tasks=0, families="compare,count", device="cpu")


def short_answers(unsure=0.0):
    """A model that has learnt to answer comparisons and counts with a name or a digit and the end token, seldom the right
    one; or, so often, with a question mark."""
    model, rng = tiny_model(d_model=32, n_layer=1), random.Random(0)
    tasks = make_tasks("train", 200, 0, ("compare", "count"), (1,), distinct=True)
    examples = [shift(*encode_chat(turn(task.prompt, "?" if rng.random() < unsure else result(task.answer)), TOKENIZER))
                for task in tasks]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        batch = pad(rng.sample(examples, 16))
        F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=-100).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with a fine-tuned model and a reward model."""
    path = tmp_path_factory.mktemp("stages")
    make_sft(path / "sft.pt", short_answers())
    make_reward_model(path / "rm.pt")
    return path


@pytest.fixture(autouse=True)
def quick_summary(monkeypatch):
    """Without the loss of 480 reference answers at the end; where it is looked at, the test puts it back."""
    monkeypatch.setattr(train_grpo, "reference_loss", lambda policy, tokenizer, are_tasks: {"val_loss": 1.0})


def config(stages, out, **changes):
    return Config(**{**TINY, "sft": str(stages / "sft.pt"), "reward_model": str(stages / "rm.pt"), "out": str(out),
                     **changes})


def write_reward(path, body):
    """A file with a reward function `reward` of this body; returns what --reward names it by."""
    path.write_text(f"import pathlib\ndef reward(prompts, answers):\n    {body}\n", encoding="utf-8")
    return f"{path}:reward"


def begin(c):
    """A policy that has left its reference, that reference, and the groups of a first step."""
    loaded = load_stages(c, CPU)
    policy, generator = load_model(c.sft)[0], torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    reward = Reward(c.reward, loaded.tokenizer, loaded.reward_model, c.no_end_penalty)
    return policy, loaded.reference, gather_groups(policy, loaded, reward, c, 0, Process())


def experience_of(policy, reference, groups, c):
    return make_group_experience(policy, reference, groups, c, END_ID, torch.float32, Process())


def learn(policy, experience, c, lr=None):
    """`train_grpo.learn` at this learning rate; returns the figures of the updates."""
    optimizers = [torch.optim.AdamW(policy.parameters(), lr=c.lr if lr is None else lr, betas=(0.9, c.beta2),
                                    weight_decay=c.weight_decay)]
    return train_grpo.learn(policy, optimizers, experience, c, np.random.default_rng(7), Process())


# ------------------------------------------------------------------------------------------------ learning


def slow_log_probs(model, prompt, answer, temperature):
    """log pi of each token of one answer, and the distributions' entropies, without padding."""
    logits = model(torch.tensor([prompt.ids + answer]))[0, len(prompt.ids) - 1:-1] / temperature
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    return logs[torch.arange(len(answer)), answer], -(logs.exp() * logs).sum(1)


def slow_grpo(policy, reference, groups, c):
    """GRPO on one batch by the book, an answer and a token at a time. Returns loss and gradient norm of each update."""
    G, figures, learnt = c.group_size, [], []
    for answer, score in zip(groups.answers, groups.scores.tolist()):
        over = len(answer) - (c.block_size - c.overlong_margin) if c.overlong == "penalty" else 0
        learnt.append(score - min(max(over / c.overlong_margin, 0.0), 1.0))
    advantages = []
    for start in range(0, len(learnt), G):
        own = learnt[start:start + G]
        spread = statistics.pstdev(own) + 1e-4 if c.normalise else 1.0
        advantages += [(one - statistics.fmean(own)) / spread for one in own]
    with torch.no_grad():
        old, ref = ([slow_log_probs(model, prompt, answer, c.temperature)[0]
                     for prompt, answer in zip(groups.prompts, groups.answers)] for model in (policy, reference))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay)
    rng = np.random.default_rng(7)
    for _ in range(c.epochs):
        order = rng.permutation(len(learnt)).tolist()
        for start in range(0, len(order), c.minibatch_size):
            rows = [i for i in order[start:start + c.minibatch_size]
                    if c.overlong != "mask" or groups.answers[i][-1] == END_ID]
            n_tokens, loss = sum(len(groups.answers[i]) for i in rows), 0.0
            for i in rows:
                new, entropy = slow_log_probs(policy, groups.prompts[i], groups.answers[i], c.temperature)
                for t, token in enumerate(new):
                    ratio, difference = (token - old[i][t]).exp(), token - ref[i][t]
                    high = 1 + (c.clip if c.clip_high is None else c.clip_high)
                    gain = min(ratio * advantages[i], min(max(ratio, 1 - c.clip), high) * advantages[i])
                    kl = {"k1": difference, "k2": difference**2 / 2, "k3": (-difference).exp() - 1 + difference}[c.kl]
                    penalty = c.beta * (ratio * kl if c.kl_weighted else kl)
                    share = {"token": 1 / n_tokens, "sequence": 1 / (len(rows) * len(new)),
                             "constant": 1 / (len(rows) * c.block_size)}[c.aggregation]
                    loss = loss + share * (penalty - gain - c.entropy_coef * entropy[t])
            optimizer.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(weight.grad.double().square().sum().item() for weight in policy.parameters()))
            for weight in policy.parameters():
                weight.grad *= min(1.0, c.grad_clip / (norm + 1e-6))
            optimizer.step()
            figures.append((loss.item(), norm))
    return figures


@pytest.mark.parametrize("changes", [
    {}, {"aggregation": "sequence", "temperature": 0.7, "kl": "k2", "lr": 1e-2, "grad_clip": 0.05, "weight_decay": 0.1},
    {"aggregation": "constant", "kl": "k1", "clip": 0.05, "normalise": False, "epochs": 3, "entropy_coef": 0.03},
    {"kl_weighted": True, "beta": 0.7, "clip_high": 0.02, "minibatch_size": 8, "beta2": 0.9, "lr": 1e-2},
    {"overlong": "penalty", "block_size": 2, "no_end_penalty": 0.5, "aggregation": "sequence"},
    {"overlong": "mask", "block_size": 2, "aggregation": "sequence", "minibatch_size": 8, "kl_weighted": True, "kl": "k1"},
    {"overlong": "mask", "block_size": 2, "aggregation": "constant", "minibatch_size": 8, "beta": 0.0}])
def test_learning_does_what_grpo_by_the_book_does(changes, stages, tmp_path):
    c = config(stages, tmp_path, **changes)
    policy, reference, groups = begin(c)
    slow = load_model(c.sft)[0]
    slow.load_state_dict(policy.state_dict())
    home = {name: weight.clone() for name, weight in policy.state_dict().items()}
    updates = learn(policy, experience_of(policy, reference, groups, c), c)
    expected = slow_grpo(slow, reference, groups, c)
    assert len(updates) == c.epochs * 8 // c.minibatch_size
    for update, (loss, norm) in zip(updates, expected, strict=True):
        assert (update["loss"], update["grad_norm"]) == pytest.approx((loss, norm), rel=2e-3, abs=2e-5)
        assert update["updated"]
    assert_close(policy.state_dict(), slow.state_dict(), atol=5e-4 * c.lr / 2e-3)
    assert updates[-1]["drift"] > 1e-4 and not torch.allclose(policy.head.weight, home["head.weight"], atol=c.lr / 2)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6}, {"overlong": "mask", "block_size": 2}])
def test_the_first_update_sees_a_ratio_of_1_and_all_of_them_do_where_nothing_moves(changes, stages, tmp_path):
    c = config(stages, tmp_path, **changes)
    policy, reference, groups = begin(c)
    experience = experience_of(policy, reference, groups, c)
    still = learn(policy, experience, c, lr=0.0)
    moving = learn(policy, experience, c, lr=1e-2)
    for update in (*still, moving[0]):
        # 1e-5 between two log-probabilities is 5e-11 of half their square
        assert update["clip_fraction"] == 0 and update["drift"] < 5e-11 and update["updated"]
    assert len(still) == 4 and moving[-1]["drift"] > 1e-4


def test_clipping_has_something_to_clip_where_learning_is_fast(stages, tmp_path):
    c = config(stages, tmp_path, epochs=4)
    policy, reference, groups = begin(c)
    updates = learn(policy, experience_of(policy, reference, groups, c), c, lr=3e-2)
    assert updates[0]["clip_fraction"] == 0 and max(update["clip_fraction"] for update in updates) > 0.1
    assert all(0 <= update["clip_fraction"] <= 1 for update in updates)


def test_every_choice_of_the_objective_makes_a_difference_and_those_that_are_none_make_none(stages, tmp_path):
    base = config(stages, tmp_path, epochs=3, block_size=3, grad_clip=1e6)
    policy, reference, groups = begin(base)
    lengths = [2, 3, 1, 3, 2, 3, 3, 2]  # the last of three tokens is an end token in every other answer of three
    groups = groups._replace(answers=[[20 + i] * (n - 1) + [77 if i in (1, 5) else END_ID] for i, n in enumerate(lengths)])
    home = {name: weight.clone() for name, weight in policy.state_dict().items()}

    def after(**changes):
        c = dataclasses.replace(base, **changes)
        policy.load_state_dict(home)
        learn(policy, experience_of(policy, reference, groups, c), c)
        return {name: weight.clone() for name, weight in policy.state_dict().items()}

    ends = [after(**changes) for changes in (
        {}, {"aggregation": "sequence"}, {"aggregation": "constant"}, {"kl": "k1"}, {"kl": "k2"}, {"kl_weighted": True},
        {"kl": "k2", "kl_weighted": True}, {"beta": 0.0}, {"clip_high": 1.0}, {"clip": 0.01}, {"entropy_coef": 0.1},
        {"normalise": False}, {"overlong": "mask"}, {"overlong": "penalty"}, {"temperature": 0.8}, {"precision": "bf16"})]
    for i, one in enumerate(ends):
        assert all(torch.isfinite(weight).all() for weight in one.values())
        for other in ends[:i]:
            assert not torch.allclose(one["head.weight"], other["head.weight"], atol=1e-6)
    for changes, i in (({"clip_high": base.clip}, 0), ({"beta": 0.0, "kl": "k1"}, 7), ({"overlong_margin": 1}, 0),
                       ({"beta": 0.0, "kl_weighted": True}, 7), ({"no_end_penalty": 2.0}, 0)):  # the scores are given here
        assert_equal(after(**changes), ends[i])


def test_the_gradient_of_a_better_answer_makes_it_more_probable_and_of_a_worse_one_less(stages, tmp_path):
    c = config(stages, tmp_path, beta=0.0, epochs=1, minibatch_size=8, normalise=False)
    policy, reference, groups = begin(c)
    answers = [TOKENIZER.encode(text) + [END_ID] for text in ("0", "1", "2", "3")]
    groups = Groups([groups.prompts[0]] * 4, answers, torch.tensor([1.0, 0.0, 0.0, 0.0]), 1, 1, 0)
    experience = experience_of(policy, reference, groups, c)
    learn(policy, experience, c, lr=1e-3)
    after = experience_of(policy, reference, groups, c)
    gains = torch.where(experience.mask, after.log_probs - experience.log_probs, 0.0).sum(1)
    assert gains[0] > 0 and gains[0] > gains[1:].max()


@pytest.mark.parametrize("changes", [
    dict(schedule="linear", warmup_steps=2, no_end_penalty=0.4, temperature=0.8),
    dict(schedule="constant", seed=3, resample=1, reward="verifier", batch_size=12, minibatch_size=5, overlong="mask",
         block_size=3)])
def test_the_loop_does_what_a_second_loop_made_of_the_same_parts_does(changes, stages, tmp_path):
    c = config(stages, tmp_path / "run", **{"steps": 4, **changes})
    train_grpo.main(c)
    loaded = load_stages(c, CPU)
    reward = Reward(c.reward, loaded.tokenizer, loaded.reward_model, c.no_end_penalty)
    policy, tokens = load_model(c.sft)[0], 0
    optimizers = [torch.optim.AdamW(policy.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=0.0)]
    for step, record in enumerate(records(tmp_path / "run")):
        groups = gather_groups(policy, loaded, reward, c, step, Process())
        experience = make_group_experience(policy, loaded.reference, groups, c, loaded.stop_ids[0], torch.float32, Process())
        # linear: half of it, then all, then down in a straight line to min_lr, a hundredth, at step 4
        lr = c.lr * ([0.5, 1.0, 1.0, 0.5 + 0.5 * c.min_lr / c.lr][step] if c.schedule == "linear" else 1.0)
        for group in optimizers[0].param_groups:
            group["lr"] = lr
        updates = train_grpo.learn(policy, optimizers, experience, c, np.random.default_rng([c.seed, step]), Process())
        tokens += sum(map(len, groups.answers))
        expected = {**rollout_figures(experience), **gold_figures(experience, groups.prompts, TOKENIZER), "lr": lr,
                    "tokens": tokens, "n_updates": len(updates), "n_answers": len(groups.answers),
                    "spread": groups.n_spread / groups.n_asked, "score": groups.asked_scores.mean().item(),
                    **{name: statistics.fmean(update[name] for update in updates) for name in updates[0]}}
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert set(record) - set(expected) == {"step", *CLOCK} - {"tokens_per_second"}
    assert_close(weights(tmp_path / "run" / "step_00000004.pt"), policy.state_dict(), atol=1e-5)


# ------------------------------------------------------------------------------------------------ stop and go on


@pytest.mark.parametrize("changes, stop_at, number", [
    ({}, 3, signal.SIGINT),
    (dict(resample=2, reward="verifier", rollout_size=4, save_every=9, seed=2, schedule="cosine"), 2, signal.SIGTERM)])
def test_a_stopped_and_resumed_run_ends_bit_for_bit_like_one_that_was_not(changes, stop_at, number, stages, tmp_path,
                                                                          monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"steps": 5, "n_held_out": 3, **changes}
    train_grpo.main(config(stages, whole, **changes))
    gather, calls = gather_groups, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == stop_at:
            os.kill(os.getpid(), number)
        return gather(*arguments)

    monkeypatch.setattr(train_grpo, "gather_groups", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_grpo.main(config(stages, parts, **changes))
    assert stopped.value.code == 128 + number and checkpoint_files(parts)[0].name == f"step_0000000{stop_at}.pt"
    assert f"stopped at step {stop_at}, which is saved; go on with the same command and" in capsys.readouterr().out
    assert not (parts / "summary.json").exists() and not (parts / "best.pt").exists()
    measure, asked = train_grpo.held_out_figures, []
    monkeypatch.setattr(train_grpo, "held_out_figures", lambda *arguments: asked.append(arguments[4]) or measure(*arguments))
    history = train_grpo.main(config(stages, parts, resume="auto", **changes))
    assert asked == ["after"]  # what was before is in the checkpoint
    assert_equal(weights(parts / "step_00000005.pt"), weights(whole / "step_00000005.pt"))
    assert_equal(weights(parts / "best.pt"), weights(whole / "best.pt"))
    assert list(map(without_clock, records(parts))) == list(map(without_clock, records(whole)))
    assert (parts / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert without_clock(history[-1]) == without_clock(json.loads((whole / "summary.json").read_text()))


def test_what_a_killed_run_logged_after_its_checkpoint_comes_again_once(stages, tmp_path):
    for name in ("whole", "killed"):
        train_grpo.main(config(stages, tmp_path / name))
    checkpoint_files(tmp_path / "killed")[0].unlink()  # of step 3: the logs go further than the checkpoint of step 2
    train_grpo.main(config(stages, tmp_path / "killed", resume="auto"))
    assert list(map(without_clock, records(tmp_path / "killed"))) == list(map(without_clock, records(tmp_path / "whole")))
    assert_equal(weights(tmp_path / "killed" / "best.pt"), weights(tmp_path / "whole" / "best.pt"))


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(stages, tmp_path):
    changes = dict(steps=2, n_held_out=2)
    runs = [list(map(without_clock, train_grpo.main(config(stages, tmp_path / f"{number}", seed=seed, **changes))))
            for number, seed in enumerate((1, 1, 2, -1))]
    assert runs[0] == runs[1] and len({str(run) for run in runs}) == 3
    assert_equal(weights(tmp_path / "0" / "best.pt"), weights(tmp_path / "1" / "best.pt"))


def test_a_signal_before_the_first_step_ends_the_run_without_a_checkpoint(stages, tmp_path, monkeypatch, capsys):
    start = train_grpo.start_run

    def interrupted(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(config)

    monkeypatch.setattr(train_grpo, "start_run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_grpo.main(config(stages, tmp_path / "run"))
    assert stopped.value.code == 128 + signal.SIGTERM and not checkpoint_files(tmp_path / "run")
    assert "stopped at step 0; go on" in capsys.readouterr().out


def test_resuming_with_other_flags_or_stages_is_refused_and_nothing_is_lost(stages, tmp_path):
    out = tmp_path / "run"
    train_grpo.main(config(stages, out, steps=2))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for changes, complaint in (({"group_size": 2}, "--group_size"), ({"reward": "verifier"}, "--reward"),
                               ({"sft": str(make_sft(tmp_path / "sft.pt", tiny_model(8)))}, "another --sft"),
                               ({"reward_model": str(make_reward_model(tmp_path / "rm.pt", None))}, None)):
        if complaint is None:  # another file with the same weights is the same
            train_grpo.main(config(stages, out, steps=2, resume="yes", **changes))
        else:
            with pytest.raises(InputError, match=complaint):
                train_grpo.main(config(stages, out, steps=2, resume="yes", **changes))
            assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    train_grpo.main(config(stages, out, steps=2))  # the same once more: the first one is kept
    assert (tmp_path / "run.previous" / "best.pt").exists()


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_a_run_directory_holds_all_that_was_promised(stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_grpo, "reference_loss", reference_loss)
    out = tmp_path / "run"
    c = config(stages, out, n_held_out=6, n_tasks=1)
    history = train_grpo.main(c)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.jsonl", "samples.jsonl", "tensorboard", "step_00000002.pt", "step_00000003.pt", "best.pt",
        "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    assert [record["step"] for record in records(out)] == [0, 1, 2]
    for record in records(out):
        assert {"score", "score_std", "gold", "kl", "kl_per_token", "entropy", "drift", "clip_fraction", "length", "ended",
                "spread", "n_answers", "grad_norm", "updated", "loss", "lr", "n_updates", "tokens", "seconds",
                "seconds_generation", "seconds_scoring", "seconds_learning"} < set(record)
        assert 1 <= record["length"] <= 4 and 0 <= record["ended"] <= 1 and record["entropy"] > 0
        assert record["n_answers"] == 8 and record["n_updates"] == 4 and 0 <= record["spread"] <= 1
    first = records(out)[0]
    assert first["kl"] == first["kl_per_token"] == 0 and records(out)[2]["kl"] != 0
    both = ("reward", "gold", "kl", "length", "ended", "correct", "exact_match", "exact_match_add", "exact_match_story",
            "correct_x_compare", "correct_x_count")
    names = {name.replace("_x", f"_{when}") if "_x" in name else f"{name}_{when}" for name in both
             for when in ("before", "after")}
    names = {re.sub(r"exact_match_(add|story)_(before|after)", r"exact_match_\2_\1", name) for name in names}
    assert names | {"val_loss", "bits_per_byte", "steps", "tokens", "params", "seconds", "tokens_per_second", "win_rate",
                    "win_rate_low", "win_rate_high", "gold_gain", "gold_gain_low", "gold_gain_high"} < set(summary)
    policy = load_model(out / "best.pt")[0]
    assert summary["steps"] == 3 and summary["params"] == policy.n_params()
    assert summary["tokens"] == records(out)[-1]["tokens"] == round(sum(8 * record["length"] for record in records(out)))
    assert summary["kl_before"] == 0 < summary["kl_after"] and 0 <= summary["win_rate"] <= 1
    assert math.isfinite(summary["val_loss"]) and math.isfinite(summary["bits_per_byte"])
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples] == [0, 1, 2] and all(" -> " in one["text"] for one in samples)
    # the held-out figures are those of the policy that was saved
    loaded = load_stages(c, CPU)
    again = train_grpo.held_out_figures(policy, loaded, c.block_size, c.seed, "after")
    assert {name: summary[name] for name in again} == again
    capsys.readouterr()
    chat.main(chat.Config(checkpoint=str(out / "best.pt"), prompt="What is 2 + 3?", n_new=4, device="cpu"))
    assert "> What is 2 + 3?" in capsys.readouterr().out
    # best.pt is the policy at the end, a fine-tuned model from which another run can start
    assert_equal(weights(out / "best.pt"), weights(out / "step_00000003.pt"))
    history = train_grpo.main(config(stages, tmp_path / "next", sft=str(out / "best.pt"), steps=1))
    assert history[0]["kl"] == 0


def test_prompts_of_one_s_own_have_no_gold_and_their_answers_any_reward(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(train_grpo, "reference_loss", reference_loss)
    lines = [{"prompt": f"say {i}", "response": "x"} for i in range(80)]
    options = dict(data=str(write_lines(tmp_path / "x.jsonl", lines)), n_held_out=4, n_tasks=3, steps=2,
                   reward=write_reward(tmp_path / "mine.py", "return [-len(answer) for answer in answers]"))
    history = train_grpo.main(config(stages, tmp_path / "run", **options))
    assert not any(word in name for record in history for name in record for word in ("gold", "exact", "win", "correct"))
    assert {"reward_before", "reward_after", "kl_after", "length_after", "ended_after"} < set(history[-1])
    assert history[-1]["val_loss"] is None and history[-1]["reward_before"] < 0
    with pytest.raises(InputError, match="--reward verifier is for --data tasks"):
        config(stages, tmp_path / "run", **{**options, "reward": "verifier"})
    changed = write_lines(tmp_path / "x.jsonl", [{**line, "prompt": line["prompt"] + "!"} for line in lines])
    with pytest.raises(InputError, match="other prompts, another --sft or another --reward_model"):
        train_grpo.main(config(stages, tmp_path / "run", resume="yes", **{**options, "data": str(changed)}))


def test_a_step_needs_as_many_prompts_as_groups_and_not_as_answers(stages, tmp_path):
    # 16 answers in groups of 4 are 4 prompts
    history = train_grpo.main(config(stages, tmp_path / "run", n_prompts=4, batch_size=16, steps=2))
    assert [record["n_answers"] for record in history[:-1]] == [16, 16]
    lines = [{"prompt": f"say {i}", "response": "x"} for i in range(12)]
    data = str(write_lines(tmp_path / "x.jsonl", lines))  # of them 10 % are held out
    with pytest.raises(InputError, match="prompts"):
        train_grpo.main(config(stages, tmp_path / "more", data=data, n_prompts=50, batch_size=64))
    assert not (tmp_path / "more").exists()


# ------------------------------------------------------------------------------------------------ rewards


def test_a_function_of_one_s_own_is_learnt(stages, tmp_path):
    spec = write_reward(tmp_path / "mine.py", "return [answer.count('e') / max(len(answer), 1) for answer in answers]")
    history = train_grpo.main(config(stages, tmp_path / "run", reward=spec, steps=10, batch_size=24, group_size=6, lr=5e-3,
                                     n_prompts=24, minibatch_size=12, beta=0.0, save_every=99, n_held_out=20))
    scores = [record["score"] for record in history[:-1]]
    assert scores[0] < 0.2 and statistics.fmean(scores[-3:]) > scores[0] + 0.1
    summary = history[-1]
    assert summary["reward_after"] > summary["reward_before"] + 0.1 and summary["reward_before"] < 0.2
    assert history[-2]["kl"] > 0.5  # that is how it was bought


def test_right_answers_are_learnt_from_the_verifier_in_families_that_are_mixed(stages, tmp_path):
    # The policy says ? in seven of ten answers, which is never right.
    sft = str(make_sft(tmp_path / "sft.pt", short_answers(unsure=0.7)))
    history = train_grpo.main(config(stages, tmp_path / "run", reward="verifier", sft=sft, steps=12, batch_size=64,
                                     group_size=8, minibatch_size=32, n_prompts=64, lr=4e-3, beta=0.0, save_every=99,
                                     n_held_out=40))
    scores, summary = [record["score"] for record in history[:-1]], history[-1]
    assert statistics.fmean(scores[:3]) < 0.1 and statistics.fmean(scores[-4:]) > statistics.fmean(scores[:3]) + 0.02
    prompts, doubt = load_stages(config(stages, tmp_path, n_prompts=64), CPU).prompts, TOKENIZER.encode(" ?") + [END_ID]
    before, after = (statistics.fmean(slow_log_probs(model, prompt, doubt, 1.0)[0].sum().exp().item() for prompt in prompts)
                     for model in (load_model(path)[0] for path in (sft, tmp_path / "run" / "best.pt")))
    assert before > 0.6 and after < 0.4
    assert any(0 < record["spread"] < 1 for record in history[:-1])
    for record in history[:-1]:
        if record["ended"] == 1:  # the gold of these families is 1 for a right answer, else -1
            assert record["gold"] == pytest.approx(2 * record["score"] - 1, abs=1e-5)
    for when in ("before", "after"):  # as many prompts of either family
        assert summary[f"reward_{when}"] == pytest.approx(summary[f"correct_{when}"]) == pytest.approx(statistics.fmean(
            summary[f"correct_{when}_{family}"] for family in ("compare", "count")))


def test_a_high_price_on_divergence_keeps_the_policy_at_home(stages, tmp_path):
    spec = write_reward(tmp_path / "mine.py", "return [ord(answer[-1:] or 'a') % 7 for answer in answers]")
    changes = dict(reward=spec, steps=6, lr=5e-3, n_held_out=20, save_every=99, batch_size=12, minibatch_size=12)
    free, dear = (train_grpo.main(config(stages, tmp_path / f"{beta}", beta=beta, **changes))[-1]["kl_after"]
                  for beta in (0.0, 5.0))
    assert 0 < dear < free / 2


def breaking(tmp_path, after):
    """A reward that breaks after so many calls while a file is there. Returns its name for --reward, and that file."""
    switch = tmp_path / "broken"
    switch.touch()
    spec = write_reward(tmp_path / "mine.py", f"""calls.append(len(answers))
    if len(calls) > {after} and pathlib.Path({str(switch)!r}).exists():
        raise LookupError("no colour")
    return [float(len(answer)) for answer in answers]
calls = []""")
    return spec, switch


def test_a_function_that_breaks_in_the_middle_costs_nothing_but_the_rest(stages, tmp_path, monkeypatch, capsys):
    out, (spec, switch) = tmp_path / "run", breaking(tmp_path, 3)
    c = config(stages, out, reward=spec, steps=5, save_every=99)
    flags = [f"--{name}={value}" for name, value in {**TINY, "sft": c.sft, "reward": spec, "out": out, "steps": 5,
                                                     "save_every": 99}.items()]
    monkeypatch.setattr(sys, "argv", ["train_grpo.py", *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "part_9" / "train_grpo.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert re.fullmatch(r"train_grpo\.py: error: the reward function raised LookupError: no colour, for the prompt '.+' and "
                        r"the answer '.*'\n", said)
    assert [path.name for path in checkpoint_files(out)] == ["step_00000003.pt"] and len(records(out)) == 3
    switch.unlink()
    train_grpo.main(dataclasses.replace(c, resume="auto"))
    train_grpo.main(dataclasses.replace(c, out=str(tmp_path / "whole")))
    assert list(map(without_clock, records(out))) == list(map(without_clock, records(tmp_path / "whole")))
    assert_equal(weights(out / "best.pt"), weights(tmp_path / "whole" / "best.pt"))


def test_a_function_that_breaks_on_held_out_prompts_ends_the_run_before_anything_is_written(stages, tmp_path):
    spec, _ = breaking(tmp_path, 0)
    with pytest.raises(InputError, match="LookupError: no colour, for the prompt"):
        train_grpo.main(config(stages, tmp_path / "run", reward=spec, n_held_out=2))
    assert not (tmp_path / "run").exists()


def test_a_function_that_breaks_at_the_very_end_loses_nothing(stages, tmp_path):
    spec, switch = breaking(tmp_path, 4)  # before, three steps, and then the held-out prompts again
    c = config(stages, tmp_path / "run", reward=spec, n_held_out=2)
    with pytest.raises(InputError, match="LookupError"):
        train_grpo.main(c)
    switch.unlink()
    saved = weights(tmp_path / "run" / "best.pt")
    history = train_grpo.main(dataclasses.replace(c, resume="auto"))
    assert_equal(weights(tmp_path / "run" / "best.pt"), saved)
    assert history[-1]["steps"] == 3 and "reward_after" in history[-1]


def with_nan(monkeypatch, rows, steps=None, value=math.nan):
    """Rewards that are no numbers for these answers, in the steps named, or all."""
    calls = []

    def scores(*arguments):
        found = score_rollout(*arguments)
        if steps is None or len(calls) in steps:
            found[rows] = value
        calls.append(found)
        return found

    monkeypatch.setattr(reward_functions, "score_rollout", scores)
    return calls


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_groups_with_a_reward_that_is_no_number_are_left_out_and_reported(value, stages, tmp_path, monkeypatch, capsys):
    calls = with_nan(monkeypatch, [1, 2], value=value)
    history = train_grpo.main(config(stages, tmp_path, batch_size=12))
    said = capsys.readouterr().out
    for step, (record, scores) in enumerate(zip(history, calls)):
        assert f"step {step}: 4 answers are left out, in whose groups a reward was no number" in said
        assert record["n_answers"] == 8 and record["n_updates"] == 4 and math.isfinite(record["grad_norm"])
        assert record["score"] == pytest.approx(scores[4:].mean().item(), abs=1e-6)
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path / "best.pt").values())


def test_a_step_without_one_usable_group_learns_nothing_and_the_run_goes_on(stages, tmp_path, monkeypatch, capsys):
    with_nan(monkeypatch, [0, 4], {1})
    history = train_grpo.main(config(stages, tmp_path, save_every=1, keep_last=9))
    assert "step 1: 8 answers are left out" in capsys.readouterr().out
    assert [record["n_updates"] for record in history[:-1]] == [4, 0, 4]
    assert [record["n_answers"] for record in history[:-1]] == [8, 0, 8]
    assert "score" not in history[1] and "score" in history[2] and history[1]["tokens"] == history[0]["tokens"]
    assert_equal(weights(tmp_path / "step_00000001.pt"), weights(tmp_path / "step_00000002.pt"))


def test_more_than_twenty_steps_without_an_update_end_the_run_and_one_good_one_starts_the_count_anew(stages, tmp_path,
                                                                                                     monkeypatch):
    changes = dict(steps=40, block_size=2, batch_size=2, group_size=2, minibatch_size=2, epochs=1, save_every=99)
    with_nan(monkeypatch, [0])
    with pytest.raises(InputError, match="in 21 steps in a row nothing .* up to step 20.*metrics.jsonl") as end:
        train_grpo.main(config(stages, tmp_path / "bad", **changes))
    assert "\n" not in str(end.value) and len(records(tmp_path / "bad")) == 20
    with_nan(monkeypatch, [0], set(range(24)) - {11})
    history = train_grpo.main(config(stages, tmp_path / "stumbling", **{**changes, "steps": 26}))
    assert history[-1]["steps"] == 26


def test_a_gradient_that_is_no_number_changes_no_weight(stages, tmp_path, monkeypatch):
    def broken(*arguments):
        experience = make_group_experience(*arguments)
        return experience._replace(advantages=torch.full_like(experience.advantages, math.nan))

    monkeypatch.setattr(train_grpo, "make_group_experience", broken)
    history = train_grpo.main(config(stages, tmp_path, steps=2))
    assert [record["updated"] for record in history[:-1]] == [0, 0]
    assert_equal(weights(tmp_path / "best.pt"), load_checkpoint(stages / "sft.pt")["model"])


@pytest.mark.parametrize("resample", [0, 1])
def test_groups_whose_answers_are_all_scored_alike_teach_nothing_and_are_survived(resample, stages, tmp_path):
    spec = write_reward(tmp_path / "mine.py", "return [0.1 for _ in answers]")  # whose mean may be rounded
    history = train_grpo.main(config(stages, tmp_path / "run", reward=spec, beta=0.0, resample=resample))
    for record in history[:-1]:
        assert record["spread"] == 0 and record["n_answers"] == record["n_updates"] * 2 == (0 if resample else 8)
        assert resample or record["loss"] == record["grad_norm"] == 0
    assert_equal(weights(tmp_path / "run" / "best.pt"), load_checkpoint(stages / "sft.pt")["model"])
    if resample:  # asking for others in vain ends the run at last
        with pytest.raises(InputError, match="no group's rewards differed"):
            train_grpo.main(config(stages, tmp_path / "long", reward=spec, beta=0.0, resample=1, steps=25, block_size=1,
                                   overlong_margin=1, save_every=99))


def test_with_resampling_all_that_is_learnt_from_differs(stages, tmp_path):
    spec = write_reward(tmp_path / "mine.py", "return [float(answer < 'L') for answer in answers]")
    plain, more = (train_grpo.main(config(stages, tmp_path / f"{n}", reward=spec, resample=n, batch_size=16, n_prompts=16,
                                          group_size=2, minibatch_size=8, steps=2, families="compare")) for n in (0, 8))
    assert plain[0]["spread"] < 1 and [record["n_answers"] for record in plain[:-1]] == [16, 16]
    assert more[0]["n_answers"] == 16 and more[0]["score_std"] == 0.5  # of two answers that differ one is right
    assert more[0]["spread"] < 1 and more[0]["tokens"] == sum(record["n_answers"] * record["length"] for record in more[:1])


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("block_size", [1, 2])
def test_answers_that_are_all_cut_off_are_learnt_from(block_size, stages, tmp_path):
    changes = dict(block_size=block_size, overlong_margin=1, families="story", steps=2, n_held_out=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_experience, "collect", lambda policy, prompts, n_new, *rest, n_samples, **options: as_rollout(
            [prompt for prompt in prompts for _ in range(n_samples)],
            [[20 + i] * n_new for i in range(len(prompts) * n_samples)], END_ID))
        history = train_grpo.main(config(stages, tmp_path / "run", **changes))
        assert all(record["length"] == block_size and record["ended"] == 0 for record in history[:-1])
        assert all(math.isfinite(record["grad_norm"]) and record["updated"] for record in history[:-1])
        penalised = train_grpo.main(config(stages, tmp_path / "more", no_end_penalty=3.0, **changes))
        assert penalised[0]["score"] == pytest.approx(history[0]["score"] - 3.0, abs=1e-5)
        assert penalised[0]["loss"] == pytest.approx(history[0]["loss"], abs=1e-4)  # within a group it is nothing
        masked = train_grpo.main(config(stages, tmp_path / "masked", overlong="mask", **changes))
        assert all(record["loss"] == record["grad_norm"] == 0 for record in masked[:-1])


def test_answers_that_are_their_end_token_alone_are_learnt_from(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(group_experience, "collect", lambda policy, prompts, *rest, n_samples, **options: as_rollout(
        [prompt for prompt in prompts for _ in range(n_samples)], [[END_ID]] * len(prompts) * n_samples, END_ID))
    history = train_grpo.main(config(stages, tmp_path, reward="verifier"))
    assert all(record["length"] == record["ended"] == 1 and record["score"] == 0 for record in history[:-1])
    assert all(math.isfinite(record["grad_norm"]) for record in history[:-1])


def test_in_bf16_it_learns_too_and_the_weights_stay_fp32(stages, tmp_path):
    history = train_grpo.main(config(stages, tmp_path, steps=2, precision="bf16"))
    exact = train_grpo.main(config(stages, tmp_path / "exact", steps=2))
    assert history[0]["score"] == pytest.approx(exact[0]["score"], abs=0.1) and history[0]["score"] != exact[0]["score"]
    assert all(math.isfinite(record["grad_norm"]) and record["updated"] for record in history[:-1])
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "best.pt").values())
    # where nothing moves the ratio is 1 but for the precision
    still = train_grpo.main(config(stages, tmp_path / "still", steps=1, precision="bf16", lr=1e-9, min_lr=0.0))
    assert still[0]["clip_fraction"] == 0 and still[0]["drift"] < 1e-3


def test_a_policy_that_was_made_with_dropout_learns_without(stages, tmp_path):
    sft = str(make_sft(tmp_path / "sft.pt", tiny_model(dropout=0.5)))
    [record, _] = train_grpo.main(config(stages, tmp_path / "run", sft=sft, steps=1, lr=1e-9, min_lr=0.0))
    assert record["clip_fraction"] == 0 and record["drift"] < 1e-10 and record["kl"] == 0  # by chance they would differ


def test_the_reference_stays_what_it_was(stages, tmp_path, monkeypatch):
    seen, load = [], load_stages

    def watch(*arguments):
        seen.append(load(*arguments))
        return seen[-1]

    monkeypatch.setattr(train_grpo, "load_stages", watch)
    train_grpo.main(config(stages, tmp_path))
    assert_equal(seen[0].reference.state_dict(), load_checkpoint(stages / "sft.pt")["model"])
    assert_equal(seen[0].reward_model.state_dict(), load_checkpoint(stages / "rm.pt")["model"])
    assert not torch.equal(weights(tmp_path / "best.pt")["head.weight"], seen[0].reference.head.weight)


@pytest.mark.parametrize("changes, complaint", [
    (dict(group_size=1), "--group_size must be at least 2, not 1"), (dict(group_size=0), "--group_size"),
    (dict(batch_size=10), "--batch_size 10 must be a multiple of --group_size 4"),
    (dict(rollout_size=6), "--rollout_size 6 must be a multiple of --group_size 4"),
    (dict(rollout_size=0), "--rollout_size"), (dict(minibatch_size=9), "--minibatch_size 9, --batch_size 8"),
    (dict(n_prompts=1), "--n_prompts times --group_size 4"), (dict(beta=-0.1), "--beta must not be negative"),
    (dict(clip=1.0), "--clip must be below 1, not 1.0"),
    (dict(clip_high=0.0), "--clip_high must be above 0, not 0.0"), (dict(min_lr=1.0), "--min_lr"),
    (dict(overlong="penalty", overlong_margin=5), "--overlong_margin 5"), (dict(overlong_margin=0), "--overlong_margin"),
    (dict(resample=-1), "--resample"), (dict(families="chess"), "chess"), (dict(temperature=0.0), "--temperature"),
    (dict(entropy_coef=-1.0), "--entropy_coef"), (dict(beta2=1.0), "--beta2")])
def test_flags_without_a_meaning_are_refused_with_their_values(changes, complaint, stages, tmp_path):
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        config(stages, tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_a_run_without_a_directory_is_refused():
    with pytest.raises(InputError, match="--out must not be empty"):
        Config(out="")


def test_a_margin_that_is_not_used_refuses_nothing(stages, tmp_path):
    assert config(stages, tmp_path, block_size=4, overlong_margin=8).overlong == "score"


def test_what_is_refused_leaves_nothing_behind(stages, tmp_path):
    missing = str(tmp_path / "none.pt")
    for changes, message in (({"sft": missing}, "python3 part_6/train_sft.py"),
                             ({"reward_model": missing}, "python3 part_7/train_reward_model.py"),
                             ({"resume": "yes"}, "no checkpoint"), ({"reward": "mine.py:f"}, "names no function"),
                             ({"data": str(tmp_path / "none.jsonl")}, "cannot be read")):
        with pytest.raises(InputError, match=message):
            train_grpo.main(config(stages, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
    # a reward that needs no model is not asked for one
    train_grpo.main(config(stages, tmp_path / "run", reward_model=missing, reward="verifier", steps=1))
