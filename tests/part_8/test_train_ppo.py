"""Lesson 8.4: the PPO run, against updates and a loop written by the book; interrupted, resumed, and with bad rewards."""

import dataclasses
import json
import math
import os
import signal
import statistics

import numpy as np
import pytest
import torch

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files
from part_6 import chat
from part_6.chat_model import load_model
from part_6.curriculum import draw_batch
from part_6.prompt_template import END
from part_7.reward_model import load_reward_model
from part_8 import train_ppo
from part_8.experience import make_experience, rollout_figures
from part_8.policy import build_actor_critic
from part_8.policy_scores import reference_loss
from part_8.ppo_config import Config
from part_8.rewards import score_rollout
from part_8.rollout import as_rollout, collect
from part_8.stability import adapted_beta, adapted_length
from part_8.stages import load_stages
from tests.part_6.tiny_base import write_lines
from tests.part_8.tiny_stages import (
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

END_ID = TOKENIZER.special_ids[END]
TINY = dict(n_prompts=12, steps=3, batch_size=8, minibatch_size=4, block_size=5, value_warmup=1, save_every=2, lr=2e-3,
            value_lr=1e-2, n_held_out=0, n_tasks=0, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with a fine-tuned model, whose distributions are far from uniform, and a reward model."""
    path, model = tmp_path_factory.mktemp("stages"), tiny_model()
    with torch.no_grad():
        model.head.weight.mul_(15)
    make_sft(path / "sft.pt", model)
    make_reward_model(path / "rm.pt")
    return path


@pytest.fixture(autouse=True)
def quick_summary(monkeypatch):
    """Without the loss of 480 reference answers at the end; where it is looked at, the test puts it back."""
    monkeypatch.setattr(train_ppo, "reference_loss", lambda policy, tokenizer, are_tasks: {"val_loss": 1.0})


def config(stages, out, **changes):
    return Config(**{**TINY, "sft": str(stages / "sft.pt"), "reward_model": str(stages / "rm.pt"), "out": str(out),
                     **changes})


def begin(c):
    """What a run of this config begins with: stages, an ActorCritic whose values differ, and an Experience."""
    stages = load_stages(c, torch.device("cpu"))
    model = build_actor_critic(c.sft, c.critic, c.reward_model)
    with torch.no_grad():
        model.value.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    rollout = collect(model.policy, [one.ids for one in stages.prompts[:c.batch_size]], c.block_size, stages.stop_ids,
                      c.temperature, c.top_k, c.top_p, torch.Generator().manual_seed(6))
    scores = score_rollout(stages.reward_model, rollout, c.no_end_penalty)
    return model, make_experience(model, stages.reference, rollout, scores, c.beta, c.gamma, c.lam,
                                  temperature=c.temperature, top_k=c.top_k, top_p=c.top_p)


def learn(c, model, experience, lr, value_lr):
    """`train_ppo.learn` at these learning rates; returns the figures of the updates."""
    optimizers = train_ppo.build_optimizers(model, c)
    for optimizer, own in zip(optimizers, (lr, value_lr)):
        for group in optimizer.param_groups:
            group["lr"] = own
    return train_ppo.learn(model, optimizers, experience, c, np.random.default_rng(7))


def slow_loss(model, experience, rows, c):
    """The objective of a minibatch, one answer and one token at a time, without padding. Returns policy loss, value error,
    mean entropy, share that is clipped, and drift."""
    policy_losses, value_errors, entropies, clipped, drifts = [], [], [], [], []
    for row in rows:
        row = int(row)
        ids = experience.rollout.tokens[row][experience.rollout.positions[row] >= 0]
        places = experience.rollout.mask[row].nonzero()[:, 0].tolist()
        logits = model.policy(ids[None])[0]
        hidden = (model.policy if model.critic is None else model.critic).hidden_states(ids[None])[0]
        for t in places:
            z = logits[t] / c.temperature
            keep = torch.arange(len(z)) if experience.kept is None else experience.kept[row, t].nonzero()[:, 0]
            p = z[keep].exp() / z[keep].exp().sum()
            new = z[ids[t + 1]] - z[keep].exp().sum().log()
            old, advantage = experience.log_probs[row, t], experience.advantages[row, t]
            ratio = (new - old).exp()
            if advantage > 0:
                gain = ratio * advantage if ratio < 1 + c.clip else (1 + c.clip) * advantage
                clipped.append(bool(ratio > 1 + c.clip))
            else:
                gain = ratio * advantage if ratio > 1 - c.clip else (1 - c.clip) * advantage
                clipped.append(bool(ratio < 1 - c.clip))
            policy_losses.append(-gain)
            entropies.append(-(p * p.log()).sum())
            drifts.append(0.5 * (new - old).item() ** 2)
            value = model.value.weight[0] @ hidden[t] + model.value.bias[0]
            old_value, target = experience.values[row, t], experience.returns[row, t]
            error = (value - target) ** 2
            if c.value_clip:
                moved = old_value + min(max(value - old_value, torch.tensor(-c.value_clip)), torch.tensor(c.value_clip))
                error = max(error, (moved - target) ** 2)
            value_errors.append(0.5 * error)
    return (torch.stack(policy_losses).mean(), torch.stack(value_errors).mean(), torch.stack(entropies).mean(),
            statistics.fmean(clipped), statistics.fmean(drifts))


class SlowAdamW:
    """AdamW by its paper (Loshchilov & Hutter 2019, algorithm 2), with clipping of all its gradients' norm."""

    def __init__(self, named, lr, beta2, decay, max_norm):
        self.named, self.lr, self.beta2, self.decay, self.max_norm, self.t = named, lr, beta2, decay, max_norm, 0
        self.m = {name: torch.zeros_like(weight) for name, weight in named.items()}
        self.v = {name: torch.zeros_like(weight) for name, weight in named.items()}

    @torch.no_grad()
    def step(self):
        grads = {name: weight.grad for name, weight in self.named.items() if weight.grad is not None}
        norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in grads.values()))
        self.t += 1
        for name, g in grads.items():
            g = g * min(1.0, self.max_norm / (norm + 1e-6))
            weight = self.named[name]
            if weight.ndim == 2 and "embedding" not in name:
                weight *= 1 - self.lr * self.decay
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g * g
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - self.beta2**self.t)
            weight -= self.lr * m / (v.sqrt() + 1e-8)
            weight.grad = None
        return norm


@pytest.mark.parametrize("changes", [
    {}, {"temperature": 0.7, "value_clip": 0.0, "grad_clip": 0.05, "epochs": 3, "lr": 2e-2},
    {"critic": "shared", "entropy_coef": 0.05, "value_coef": 0.7, "beta2": 0.9, "weight_decay": 0.1, "lr": 1e-2},
    {"critic": "reward", "clip": 0.05, "lr": 5e-3, "minibatch_size": 3},
    {"top_k": 6, "entropy_coef": 0.01}, {"top_p": 0.5, "temperature": 1.3}])
def test_learning_does_what_updates_written_by_the_book_do(changes, stages, tmp_path):
    c = config(stages, tmp_path, kl_stop=0.0, **changes)
    model, experience = begin(c)
    theirs = learn(c, model, experience, c.lr, c.value_lr)
    slow, again = begin(c)
    assert torch.equal(again.returns, experience.returns)
    policy = dict(slow.policy.named_parameters())
    others = {name: weight for name, weight in slow.named_parameters() if not name.startswith("policy.")}
    optimizers = [SlowAdamW(own, lr, c.beta2, c.weight_decay, c.grad_clip)
                  for own, lr in ((policy, c.lr), (others, c.value_lr))]
    rng, figures = np.random.default_rng(7), []
    for _ in range(c.epochs):
        order = rng.permutation(8)
        for start in range(0, 8, c.minibatch_size):
            surrogate, error, entropy, clipped, drift = slow_loss(slow, experience, order[start:start + c.minibatch_size], c)
            weight = c.value_coef if c.critic == "shared" else 1.0
            (surrogate - c.entropy_coef * entropy + weight * error).backward()
            norms = [optimizer.step() for optimizer in optimizers]
            figures.append([surrogate.item(), error.item(), drift, clipped, *norms])
    names = ("loss", "value_error", "drift", "clip_fraction", "grad_norm", "value_grad_norm")
    for one, two in zip(theirs, figures, strict=True):
        assert [one[name] for name in names] == pytest.approx(two, rel=2e-3, abs=2e-5)
        assert one["updated"]
    assert_close(model.state_dict(), slow.state_dict(), atol=5e-4 * c.lr / 2e-3)
    assert max(one["drift"] for one in theirs) > 1e-4  # it went somewhere


def test_clipping_has_something_to_clip_where_learning_is_fast(stages, tmp_path):
    c = config(stages, tmp_path, kl_stop=0.0, epochs=4)
    updates = learn(c, *begin(c), 3e-2, 1e-2)
    assert updates[0]["clip_fraction"] == 0 and max(one["clip_fraction"] for one in updates) > 0.1


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6}, {"top_k": 6}, {"critic": "shared"}, {"top_p": 0.7}])
def test_the_first_update_sees_a_ratio_of_1_and_all_of_them_do_where_nothing_moves(changes, stages, tmp_path):
    c = config(stages, tmp_path, **changes)
    model, experience = begin(c)
    still = learn(c, model, experience, 0.0, 0.0)
    for one in (*still, learn(c, *begin(c), 1e-2, 1e-2)[0]):
        # 1e-5 between two log-probabilities is 5e-11 of half their square
        assert one["clip_fraction"] == 0 and one["drift"] < 5e-11 and one["updated"]
    assert len(still) == 4
    # at ratio 1 the loss is minus the mean advantage: over all tokens 0, as they are whitened
    tokens = [int(experience.select(torch.from_numpy(rows)).rollout.mask.sum())
              for rows in np.split(np.random.default_rng(7).permutation(8), 2)]
    assert sum(n * one["loss"] for n, one in zip(tokens, still)) == pytest.approx(0, abs=1e-4)


def test_the_end_of_the_epochs_comes_when_the_mean_drift_of_one_is_above_kl_stop(stages, tmp_path):
    c = config(stages, tmp_path, epochs=4, kl_stop=0.0)
    updates = learn(c, *begin(c), 5e-3, 1e-2)
    epochs = [statistics.fmean(one["drift"] for one in updates[i:i + 2]) for i in (0, 2, 4, 6)]
    assert len(updates) == 8 and epochs[0] < epochs[1] < epochs[2]
    for kl_stop, n in ((epochs[0] * 0.9, 2), (epochs[0] * 1.1, 4), (epochs[1] * 1.1, 6)):
        assert len(learn(dataclasses.replace(c, kl_stop=kl_stop), *begin(c), 5e-3, 1e-2)) == n


@pytest.mark.parametrize("changes", [
    dict(schedule="linear", warmup_steps=2, scale_scores=True, no_end_penalty=0.4, temperature=0.8),
    dict(schedule="constant", value_warmup=0, seed=3, kl_target=0.05, kl_horizon=30, kl_length=0.05, lam=0.5, gamma=0.9,
         whiten_rewards=False, whiten_advantages=False, critic="reward", block_size=8, lr=1e-2)])
def test_the_loop_does_what_a_second_loop_made_of_the_same_parts_does(changes, stages, tmp_path):
    c = config(stages, tmp_path / "run", **{"steps": 4, **changes})
    train_ppo.main(c)
    loaded = load_stages(c, torch.device("cpu"))
    model = build_actor_critic(c.sft, c.critic, c.reward_model)
    optimizers = train_ppo.build_optimizers(model, c)
    beta, n_new, tokens, seen = c.beta, c.block_size, 0, []
    for step, record in enumerate(records(tmp_path / "run")):
        rng = np.random.default_rng([c.seed, step])
        chosen = draw_batch("uniform", [0] * 12, [0] * 12, c.seed, step, 4, 8)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        rollout = collect(model.policy, [loaded.prompts[i].ids for i in chosen], n_new, loaded.stop_ids, c.temperature,
                          generator=generator)
        scores = score_rollout(loaded.reward_model, rollout, c.no_end_penalty)
        seen += scores.tolist()
        spread = statistics.pstdev(seen) if c.scale_scores else 1.0
        experience = make_experience(model, loaded.reference, rollout, scores / spread, beta, c.gamma, c.lam,
                                     c.whiten_rewards, c.whiten_advantages, c.temperature)
        # linear: half of it, then all, then down in a straight line to min_lr, a hundredth, at step 4
        share = [0.5, 1.0, 1.0, 0.5 + 0.5 * c.min_lr / c.lr][step] if c.schedule == "linear" else 1.0
        for optimizer, lr in zip(optimizers, (0.0 if step < c.value_warmup else share * c.lr, share * c.value_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr
        updates = train_ppo.learn(model, optimizers, experience, c, rng)
        tokens += int(rollout.mask.sum())
        expected = {**rollout_figures(experience), "score": scores.mean().item(),
                    "score_std": scores.std(correction=0).item(), "beta": beta, "n_new": n_new,
                    "tokens": tokens, "lr": 0.0 if step < c.value_warmup else share * c.lr, "n_updates": len(updates)}
        values, returns = (part[rollout.mask].tolist() for part in (experience.values, experience.returns))
        errors = [one - two for one, two in zip(returns, values)]
        expected["explained_variance"] = 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        for name in ("loss", "value_error", "drift", "clip_fraction", "grad_norm", "value_grad_norm"):
            mean = statistics.fmean(update[name] for update in updates)
            assert record[name] == pytest.approx(mean, rel=1e-3, abs=1e-6), name
        if c.kl_target and step >= c.value_warmup:
            beta = adapted_beta(beta, expected["kl"], c.kl_target, c.kl_horizon, 8)
            n_new = adapted_length(n_new, expected["kl"], c.kl_length, 4, c.block_size)
    assert_close(weights(tmp_path / "run" / "step_00000004.pt"), model.state_dict(), atol=1e-5)
    assert (beta != c.beta) == bool(c.kl_target) and (n_new != c.block_size) == bool(c.kl_length)


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_in_the_value_warm_up_the_critic_alone_learns(critic, stages, tmp_path):
    train_ppo.main(config(stages, tmp_path, steps=3, value_warmup=2, save_every=1, keep_last=9, critic=critic,
                          weight_decay=0.1))
    home = load_checkpoint(stages / "sft.pt")["model"]
    for step in (1, 2, 3):
        state = weights(tmp_path / f"step_0000000{step}.pt")
        moved = [not torch.equal(state[f"policy.{name}"], weight) for name, weight in home.items()]
        assert any(moved) == (step == 3)
        assert state["value.weight"].abs().max() > 0 and state["value.bias"].abs() > 0
        if critic == "policy":
            assert not torch.equal(state["critic.blocks.0.attention.qkv.weight"], home["blocks.0.attention.qkv.weight"])
        else:
            assert not any(name.startswith("critic.") for name in state)


@pytest.mark.parametrize("changes, stop_at, number", [
    ({}, 3, signal.SIGINT),
    (dict(kl_target=0.05, kl_horizon=20, kl_length=0.05, scale_scores=True, lr=1e-2, block_size=8), 3, signal.SIGTERM),
    (dict(value_warmup=3, critic="shared", top_k=20), 2, signal.SIGTERM)])
def test_a_stopped_and_resumed_run_ends_bit_for_bit_like_one_that_was_not(changes, stop_at, number, stages, tmp_path,
                                                                          monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"steps": 5, "n_held_out": 3, **changes}
    train_ppo.main(config(stages, whole, **changes))
    draw, calls = draw_batch, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == stop_at:
            os.kill(os.getpid(), number)
        return draw(*arguments)

    monkeypatch.setattr(train_ppo, "draw_batch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_ppo.main(config(stages, parts, **changes))
    assert stopped.value.code == 128 + number and checkpoint_files(parts)[0].name == f"step_0000000{stop_at}.pt"
    assert f"stopped at step {stop_at}, which is saved" in capsys.readouterr().out
    assert not (parts / "summary.json").exists() and not (parts / "best.pt").exists()
    state = load_checkpoint(checkpoint_files(parts)[0])
    if "kl_target" in changes:  # all that adapts has left where it began
        assert state["beta"] != 0.15 and state["n_new"] < 8 and state["spread"]["n"] == 8 * stop_at
    measure, asked = train_ppo.held_out_figures, []
    monkeypatch.setattr(train_ppo, "held_out_figures", lambda *arguments: asked.append(arguments[-1]) or measure(*arguments))
    history = train_ppo.main(config(stages, parts, resume="auto", **changes))
    assert asked == ["after"]  # what was before is in the checkpoint
    assert_equal(weights(parts / "step_00000005.pt"), weights(whole / "step_00000005.pt"))
    assert_equal(weights(parts / "best.pt"), weights(whole / "best.pt"))
    assert list(map(without_clock, records(parts))) == list(map(without_clock, records(whole)))
    assert (parts / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert without_clock(history[-1]) == without_clock(json.loads((whole / "summary.json").read_text()))


def test_what_a_killed_run_logged_after_its_checkpoint_comes_again_once(stages, tmp_path):
    for name in ("whole", "killed"):
        train_ppo.main(config(stages, tmp_path / name))
    checkpoint_files(tmp_path / "killed")[0].unlink()  # of step 3: the logs go further than the checkpoint of step 2
    train_ppo.main(config(stages, tmp_path / "killed", resume="auto"))
    assert list(map(without_clock, records(tmp_path / "killed"))) == list(map(without_clock, records(tmp_path / "whole")))
    assert_equal(weights(tmp_path / "killed" / "best.pt"), weights(tmp_path / "whole" / "best.pt"))


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(stages, tmp_path):
    runs = [list(map(without_clock, train_ppo.main(config(stages, tmp_path / f"{number}", seed=seed, steps=2))))
            for number, seed in enumerate((1, 1, 2, -1))]
    assert runs[0] == runs[1] and len({str(run) for run in runs}) == 3
    assert_equal(weights(tmp_path / "0" / "best.pt"), weights(tmp_path / "1" / "best.pt"))


def test_a_run_directory_holds_all_that_was_promised(stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_ppo, "reference_loss", reference_loss)
    out = tmp_path / "run"
    c = config(stages, out, n_held_out=6, n_tasks=1)
    history = train_ppo.main(c)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.jsonl", "samples.jsonl", "tensorboard", "step_00000002.pt", "step_00000003.pt", "best.pt",
        "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    assert [record["step"] for record in records(out)] == [0, 1, 2]
    for record in records(out):
        assert {"score", "gold", "kl", "kl_per_token", "entropy", "drift", "clip_fraction", "explained_variance",
                "value_error", "length", "ended", "grad_norm", "value_grad_norm", "seconds_generation", "seconds_scoring",
                "seconds_learning", "beta", "n_new", "lr", "n_updates", "tokens", "seconds", "loss"} < set(record)
        assert 1 <= record["length"] <= 5 and 0 <= record["ended"] <= 1 and record["entropy"] > 0
        assert record["beta"] == 0.15 and record["n_new"] == 5 and record["n_updates"] == 4
    first = records(out)[0]
    assert first["kl"] == 0 and first["explained_variance"] == 0 and first["drift"] < 1e-12  # nothing is learnt so far
    both = ("reward", "gold", "kl", "length", "ended", "correct", "exact_match")
    assert {"val_loss", "bits_per_byte", "steps", "tokens", "params", "seconds", "tokens_per_second", "win_rate",
            "win_rate_low", "win_rate_high", "gold_gain", "exact_match_before_add", "exact_match_after_story",
            *(f"{name}_{when}" for name in both for when in ("before", "after"))} < set(summary)
    policy = load_model(out / "best.pt")[0]
    assert summary["steps"] == 3 and summary["params"] == policy.n_params()
    assert summary["tokens"] == records(out)[-1]["tokens"] == round(sum(8 * record["length"] for record in records(out)))
    assert summary["kl_before"] == 0 < summary["kl_after"] and 0 <= summary["win_rate"] <= 1
    assert math.isfinite(summary["val_loss"]) and math.isfinite(summary["bits_per_byte"])
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples] == [0, 1, 2] and all(" -> " in one["text"] for one in samples)
    # the held-out figures are those of the policy that was saved
    loaded = load_stages(c, torch.device("cpu"))
    again = train_ppo.held_out_figures(policy, loaded, 5, c.seed, "after")
    assert {name: summary[name] for name in again} == again
    # chat.py answers with it, and says of a numbered checkpoint that it is none for it, as --sft does
    capsys.readouterr()
    chat.main(chat.Config(checkpoint=str(out / "best.pt"), prompt="What is 2 + 3?", n_new=4, device="cpu"))
    assert "> What is 2 + 3?" in capsys.readouterr().out
    numbered = str(out / "step_00000003.pt")
    with pytest.raises(InputError, match="step_00000003.pt is no checkpoint of"):
        chat.main(chat.Config(checkpoint=numbered, device="cpu"))
    with pytest.raises(InputError, match="step_00000003.pt is no checkpoint of"):
        train_ppo.main(config(stages, tmp_path / "other", sft=numbered))
    assert not (tmp_path / "other").exists()
    # best.pt is a fine-tuned model, from which another run can start
    history = train_ppo.main(config(stages, tmp_path / "next", sft=str(out / "best.pt"), steps=1, value_warmup=0))
    assert history[0]["kl"] == 0


def test_best_pt_is_the_policy_at_the_end(stages, tmp_path):
    train_ppo.main(config(stages, tmp_path))
    last = weights(tmp_path / "step_00000003.pt")
    assert_equal(weights(tmp_path / "best.pt"), {name.removeprefix("policy."): weight for name, weight in last.items()
                                                 if name.startswith("policy.")})


def test_a_reward_that_can_be_hacked_is_and_a_price_on_divergence_holds_that_back(stages, tmp_path, monkeypatch):
    favourites = []

    def share(model, rollout, *rest):
        """The share of one token: of the one that the first answers have most often."""
        if not favourites:
            favourites.append(statistics.mode(sum(rollout.answers(), [])))
        return torch.tensor([ids.count(favourites[0]) / len(ids) for ids in rollout.answers()])

    monkeypatch.setattr(train_ppo, "score_rollout", share)
    score, kl = {}, {}
    for beta in (0.0, 0.3):
        history = train_ppo.main(config(stages, tmp_path / f"{beta}", steps=8, n_prompts=32, batch_size=32,
                                        minibatch_size=16, lr=5e-3, beta=beta, value_warmup=0, temperature=0.5))[:-1]
        score[beta], kl[beta] = ([record[name] for record in history] for name in ("score", "kl"))
    assert score[0.0][0] == score[0.3][0] < 0.15 and kl[0.0][0] == 0
    assert statistics.fmean(score[0.0][-3:]) > 0.3 > 0.2 > statistics.fmean(score[0.3][-3:])
    assert statistics.fmean(kl[0.0][-3:]) > 5 > statistics.fmean(kl[0.3][-3:])  # that is how it was bought


def with_nan(monkeypatch, bad_rows, steps=None):
    """Rewards that are nan for the first `bad_rows` answers, in the steps named, or all."""
    calls = []

    def scores(*arguments):
        found = score_rollout(*arguments)
        if steps is None or len(calls) in steps:
            found[:bad_rows] = math.nan
        calls.append(found)
        return found

    monkeypatch.setattr(train_ppo, "score_rollout", scores)
    return calls


def test_answers_whose_score_is_no_number_are_left_out_and_reported(stages, tmp_path, monkeypatch, capsys):
    calls = with_nan(monkeypatch, 3)
    seen, make = [], make_experience

    def watch(*arguments):
        seen.append(arguments[2])
        return make(*arguments)

    monkeypatch.setattr(train_ppo, "make_experience", watch)
    history = train_ppo.main(config(stages, tmp_path, scale_scores=True))
    said = capsys.readouterr().out
    assert all(f"step {step}: 3 of 8 scores are no numbers; these answers are left out" in said for step in range(3))
    assert [len(rollout.ended) for rollout in seen] == [5, 5, 5]
    for record, rollout, scores in zip(history, seen, calls):
        assert record["score"] == pytest.approx(scores[3:].mean().item())
        assert record["length"] == pytest.approx(rollout.mask.sum().item() / 5) and record["n_updates"] == 4
        assert math.isfinite(record["grad_norm"]) and math.isfinite(record["gold"])
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path / "best.pt").values())


def test_a_step_without_one_usable_score_learns_nothing_and_the_run_goes_on(stages, tmp_path, monkeypatch, capsys):
    with_nan(monkeypatch, 8, {1})
    history = train_ppo.main(config(stages, tmp_path, save_every=1, keep_last=9, value_warmup=0))
    assert "step 1: 8 of 8 scores are no numbers" in capsys.readouterr().out
    assert [record["n_updates"] for record in history[:-1]] == [4, 0, 4]
    assert "score" not in history[1] and "score" in history[2] and history[1]["tokens"] == history[0]["tokens"]
    assert_equal(weights(tmp_path / "step_00000001.pt"), weights(tmp_path / "step_00000002.pt"))


def test_infinite_scores_are_no_numbers_either(stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_ppo, "score_rollout", lambda *arguments: torch.tensor([math.inf, -math.inf] + [1.0, 2.0] * 3))
    history = train_ppo.main(config(stages, tmp_path, steps=1, value_warmup=0))
    assert "2 of 8 scores" in capsys.readouterr().out and history[0]["score"] == 1.5


def test_more_than_twenty_steps_without_an_update_end_the_run_and_one_good_one_starts_the_count_anew(stages, tmp_path,
                                                                                                     monkeypatch):
    changes = dict(steps=40, block_size=2, batch_size=2, minibatch_size=2, epochs=1, save_every=99)
    with_nan(monkeypatch, 2)
    with pytest.raises(InputError, match="no number in 21 steps in a row, at step 20: look at .*rm.pt.*--lr than 0.002"):
        train_ppo.main(config(stages, tmp_path / "bad", **changes))
    with_nan(monkeypatch, 2, set(range(24)) - {11})
    history = train_ppo.main(config(stages, tmp_path / "stumbling", **{**changes, "steps": 26}))
    assert history[-1]["steps"] == 26


def test_a_gradient_that_is_no_number_changes_no_weight(stages, tmp_path, monkeypatch):
    def broken(*arguments):
        experience = make_experience(*arguments)
        return experience._replace(advantages=torch.full_like(experience.advantages, math.nan))

    monkeypatch.setattr(train_ppo, "make_experience", broken)
    with pytest.raises(InputError, match="no number in 21 steps"):
        train_ppo.main(config(stages, tmp_path, steps=30, block_size=2, batch_size=2, minibatch_size=2, save_every=4,
                              value_warmup=0))
    home, state = load_checkpoint(stages / "sft.pt")["model"], weights(checkpoint_files(tmp_path)[0])
    assert all(torch.equal(state[f"policy.{name}"], weight) for name, weight in home.items())
    assert state["value.weight"].abs().max() == 0


@pytest.mark.parametrize("score", [0.1, -3.7, 0.0])
def test_scores_that_are_all_the_same_are_reported(score, stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_ppo, "score_rollout", lambda model, rollout, *rest: torch.full((len(rollout.ended),), score))
    history = train_ppo.main(config(stages, tmp_path, steps=2, batch_size=12))
    said = capsys.readouterr().out
    assert all(f"step {step}: all answers have the score {score:.3f}: there is nothing to prefer" in said for step in (0, 1))
    assert all(math.isfinite(record["grad_norm"]) for record in history[:-1])


@pytest.mark.parametrize("block_size", [1, 2])
def test_answers_that_are_all_cut_off_are_learnt_from(block_size, stages, tmp_path):
    history = train_ppo.main(config(stages, tmp_path, block_size=block_size, n_held_out=3, value_warmup=0))
    assert all(record["length"] == block_size and record["ended"] == 0 for record in history[:-1])
    assert all(math.isfinite(record["grad_norm"]) for record in history[:-1]) and history[-1]["ended_before"] == 0
    penalised = train_ppo.main(config(stages, tmp_path / "more", block_size=block_size, no_end_penalty=3.0, steps=1,
                                      value_warmup=0))
    assert penalised[0]["score"] == pytest.approx(history[0]["score"] - 2.0, abs=1e-5)  # 3 instead of 1


def test_answers_that_are_their_end_token_alone_are_learnt_from(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(train_ppo, "collect", lambda policy, prompts, *rest: as_rollout(
        prompts, [[END_ID]] * len(prompts), END_ID))
    history = train_ppo.main(config(stages, tmp_path, value_warmup=0))
    assert all(record["length"] == record["ended"] == 1 for record in history[:-1])
    monkeypatch.setattr(train_ppo, "score_rollout", lambda model, rollout, *rest: torch.ones(len(rollout.ended)))
    same = train_ppo.main(config(stages, tmp_path / "same", value_warmup=0, steps=1))
    assert "explained_variance" not in same[0]  # all returns are the same: there is nothing to explain
    assert all(math.isfinite(record["grad_norm"]) and math.isfinite(record["gold"]) for record in history[:-1])


def test_answers_get_shorter_where_they_stray_but_never_longer_than_block_size(stages, tmp_path):
    for block_size, kl_length in ((2, 1e3), (8, 1e-9)):
        history = train_ppo.main(config(stages, tmp_path / f"{block_size}", block_size=block_size, kl_length=kl_length,
                                        lr=1e-2, value_warmup=0))
        assert all(record["n_new"] <= block_size and record["length"] <= record["n_new"] for record in history[:-1])
    assert [record["n_new"] for record in history[1:-1]] != [8, 8]


def test_a_step_whose_policy_moves_too_far_ends_its_epochs(stages, tmp_path):
    history = train_ppo.main(config(stages, tmp_path, steps=2, kl_stop=1e-8, epochs=3))
    assert [record["n_updates"] for record in history[:-1]] == [6, 2]  # in the warm-up nothing moves


def test_prompts_of_one_s_own_have_no_gold(stages, tmp_path):
    lines = [{"prompt": f"say {i}", "response": "x"} for i in range(80)]
    history = train_ppo.main(config(stages, tmp_path / "run", data=str(write_lines(tmp_path / "x.jsonl", lines)),
                                    n_held_out=4, n_tasks=3))
    assert not any("gold" in name or "exact" in name or "win" in name for record in history for name in record)
    assert {"reward_before", "reward_after", "kl_after", "length_after", "ended_after"} < set(history[-1])
    changed = write_lines(tmp_path / "x.jsonl", [{**line, "prompt": line["prompt"] + "!"} for line in lines])
    with pytest.raises(InputError, match="other prompts, another --sft or another --reward_model"):
        train_ppo.main(config(stages, tmp_path / "run", data=str(changed), n_held_out=4, n_tasks=3, resume="yes"))


def test_prompts_of_one_s_own_have_no_reference_loss(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(train_ppo, "reference_loss", reference_loss)
    data = write_lines(tmp_path / "x.jsonl", [{"prompt": f"say {i}", "response": "x"} for i in range(20)])
    summary = train_ppo.main(config(stages, tmp_path / "run", data=str(data), steps=1, value_warmup=0))[-1]
    assert summary["val_loss"] is None and summary["bits_per_byte"] is None


@pytest.mark.parametrize("changes", [
    {"critic": "shared", "entropy_coef": 0.01}, {"critic": "reward"}, {"top_k": 10}, {"top_p": 0.8}])
def test_every_way_to_run_moves_the_policy(changes, stages, tmp_path):
    history = train_ppo.main(config(stages, tmp_path, steps=2, **changes))
    assert all(math.isfinite(record[name]) for record in history[:-1] for name in ("grad_norm", "value_grad_norm", "loss"))
    home = load_checkpoint(stages / "sft.pt")["model"]
    new = weights(tmp_path / "best.pt")
    assert not torch.equal(new["blocks.0.attention.qkv.weight"], home["blocks.0.attention.qkv.weight"])


def test_in_bf16_it_learns_too_and_the_weights_stay_fp32(stages, tmp_path):
    history = train_ppo.main(config(stages, tmp_path, steps=2, precision="bf16"))
    exact = train_ppo.main(config(stages, tmp_path / "exact", steps=2))
    assert history[0]["score"] == pytest.approx(exact[0]["score"], abs=0.1) and history[0]["score"] != exact[0]["score"]
    assert history[0]["clip_fraction"] < 0.05 and all(math.isfinite(record["grad_norm"]) for record in history[:-1])
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "best.pt").values())


def test_a_critic_from_the_reward_model_begins_as_its_encoder(stages, tmp_path):
    encoder = load_reward_model(stages / "rm.pt")[0].encoder.state_dict()
    critic = build_actor_critic(stages / "sft.pt", "reward", stages / "rm.pt").critic.state_dict()
    assert_equal(critic, encoder)


def test_resuming_with_other_flags_or_stages_is_refused_and_nothing_is_lost(stages, tmp_path):
    out = tmp_path / "run"
    train_ppo.main(config(stages, out, steps=2))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="--beta"):
        train_ppo.main(config(stages, out, steps=2, resume="yes", beta=0.2))
    other = make_sft(tmp_path / "sft.pt", tiny_model(8))
    with pytest.raises(InputError, match="another --sft"):
        train_ppo.main(config(stages, out, steps=2, resume="yes", sft=str(other)))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    train_ppo.main(config(stages, out, steps=2))  # the same once more: the first one is kept
    assert (tmp_path / "run.previous" / "best.pt").exists()


def test_positions_too_few_for_the_reference_answers_cost_their_loss_alone(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(train_ppo, "reference_loss", reference_loss)
    short = make_sft(tmp_path / "short.pt", tiny_model(positions="learned"))
    summary = train_ppo.main(config(stages, tmp_path / "run", sft=str(short), steps=1, value_warmup=0))[-1]
    assert summary["val_loss"] is None and summary["steps"] == 1


def test_what_is_refused_leaves_nothing_behind(stages, tmp_path):
    for changes, message in (({"sft": str(tmp_path / "none.pt")}, "python3 part_6/train_sft.py"),
                             ({"reward_model": str(tmp_path / "none.pt")}, "python3 part_7/train_reward_model.py"),
                             ({"resume": "yes"}, "no checkpoint")):
        with pytest.raises(InputError, match=message):
            train_ppo.main(config(stages, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_signal_before_the_first_step_ends_the_run_without_a_checkpoint(stages, tmp_path, monkeypatch, capsys):
    start = train_ppo.start_run

    def interrupted(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(config)

    monkeypatch.setattr(train_ppo, "start_run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_ppo.main(config(stages, tmp_path / "run"))
    assert stopped.value.code == 128 + signal.SIGTERM and not checkpoint_files(tmp_path / "run")
    assert "stopped at step 0; go on" in capsys.readouterr().out
