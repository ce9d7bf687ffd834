"""Lesson 7.2: the reward model's run, against a second loop by the book; interrupted, resumed, with pairs of one's own."""

import hashlib
import json
import os
import random
import signal

import pytest
import torch

from part_0.cli import InputError
from part_0.device import set_seed
from part_2.checkpoint import load_checkpoint, save_checkpoint
from part_2.tinyworld import ENDINGS, MIDDLES, fill, parse_sentence
from part_4.checkpoint import checkpoint_files
from part_4.lr_schedule import warmup_cosine
from part_6.chat_model import load_model, resize_vocabulary
from part_6.curriculum import draw_batch
from part_6.prompt_template import chat_tokenizer
from part_6.tasks import make_tasks
from part_7 import train_reward_model
from part_7.losses import bradley_terry_loss
from part_7.preference_data import make_pairs
from part_7.reward_config import POLICY, Config
from part_7.reward_figures import correlations, sample_stories
from part_7.reward_model import RewardModel, load_reward_model
from tests.part_6.tiny_base import make_base, write_lines

TINY = dict(n_stories=20, n_exact=21, n_test=14, steps=12, batch_size=8, n_micro=3, warmup_steps=3, eval_every=4,
            save_every=4, log_every=1, optimizer="adamw", lr=3e-3, min_lr=1e-4, weight_decay=0.01, device="cpu",
            precision="fp32")
CLOCK = {"seconds", "tokens_per_second"}  # what differs between equal runs
ASKED = []  # the models that were asked for answers


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.pt"
    make_base(path, "none")
    return path


@pytest.fixture(scope="module")
def sft(base):
    """A tiny model with room for the template's tokens, as part_6/train_sft.py would save it; it is not trained."""
    path = base.parent / "sft.pt"
    model, tokenizer, state = load_model(base)
    tokenizer = chat_tokenizer(tokenizer)
    model = resize_vocabulary(model, tokenizer.vocab_size)
    with torch.no_grad():  # so that no two rows of the embedding are the same
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    sizes = {**state["model_config"], "vocab_size": tokenizer.vocab_size}
    save_checkpoint(path, {**state, "model": model.state_dict(), "model_config": sizes, "tokenizer": tokenizer.state()})
    return path


def tell(model, tokenizer, prompts, temperature=0.0, n_new=80, batch_size=256, seed=0):
    """In place of an untrained model's answers: short stories about the prompt, some without an end, and guesses."""
    ASKED.append(model)
    assert temperature == 1.0
    answers = []
    for number, prompt in enumerate(prompts):
        rng = random.Random(f"{seed} {number} {prompt}")
        if prompt.startswith("Tell a story. "):
            given = parse_sentence(prompt.removeprefix("Tell a story. "))[1]
            templates = rng.sample(MIDDLES, rng.randrange(2)) + [rng.choice(ENDINGS[rng.choice(list(ENDINGS))])]
            answers.append((" ".join(fill(template, rng, **given) for template in templates), rng.random() < 0.8))
        else:
            answers.append((rng.choice(("Tom", "1", "red cup", "Tom saw a red cup.")), True))
    return answers


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch):
    monkeypatch.setattr("part_7.preference_data.answer", tell)
    ASKED.clear()


def config(sft, out, **changes):
    return Config(**{**TINY, "sft": str(sft), "out": str(out), **changes})


def own_file(path, n=160):
    """A file of preferences in both forms, which a word decides, with three lines to be dropped."""
    said = [(f"say {i}", "Tom smiled.", f"Tom cried {i % 3}.") for i in range(n)]
    lines = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in said[:n // 2]]
    lines += [dict(zip(("chosen", "rejected"), (f"\n\nHuman: {prompt}\n\nAssistant: {text}" for text in (good, bad))))
              for prompt, good, bad in said[n // 2:]]
    lines.insert(3, {"prompt": "x", "chosen": "same", "rejected": "same"})
    lines.insert(9, {"prompt": "y", "chosen": "same", "rejected": "same"})
    lines.append({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"})
    return write_lines(path, lines)


def share_of(prompt):
    """Where lesson 6.1 puts a prompt on its ruler from 0 to 1."""
    key = json.dumps([{"role": "user", "content": prompt}])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_clock(record):
    return {name: value for name, value in record.items() if name not in CLOCK}


def weights(path):
    return load_checkpoint(path)["model"]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def row(prompt, response, tokenizer, block_size=None):
    """Prompt and answer as ids, and where the answer begins, by hand."""
    special, (text, ended) = tokenizer.special_ids, response
    before = [special["<|user|>"], *tokenizer.encode(" " + prompt), special["<|end|>"], special["<|assistant|>"]]
    ids = before + tokenizer.encode(" " + text) + ([special["<|end|>"]] if ended else [])
    start = len(before)
    if block_size is not None and len(ids) > block_size:
        ids, start = ids[-block_size:], max(0, start - (len(ids) - block_size))
    return ids, start


def reward(model, ids, start, pooling="mean", causal=False):
    """The reward of one row alone, without padding."""
    hidden = model.encoder.hidden_states(torch.tensor([ids]), torch.arange(len(ids))[None], causal=causal)[0]
    pooled = hidden[start:].mean(0) if pooling == "mean" else hidden[-1]
    return model.gain * (model.score.weight[0] @ pooled) + model.bias


def both_rewards(model, pair, tokenizer, block_size=None, **options):
    return [reward(model, *row(pair.prompt[-1]["content"], one, tokenizer, block_size), **options)
            for one in (pair.chosen, pair.rejected)]


def pairs_of(sft, split, n_stories, n_exact, seed=1, temperature=0.4):
    policy, tokenizer, _ = load_model(sft)
    return make_pairs(policy, tokenizer, split, n_stories, n_exact, temperature, seed).pairs, tokenizer


def test_a_run_directory_holds_all_that_was_promised(sft, tmp_path):
    out = tmp_path / "run"
    history = train_reward_model.main(config(sft, out))
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "step_00000008.pt", "step_00000012.pt", "best.pt",
        "train_pairs.jsonl", "val_pairs.jsonl", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    assert json.loads((out / "config.json").read_text())["n_stories"] == 20
    assert {"val_loss", "bits_per_byte", "best_step", "steps", "tokens", "params", "seconds", "tokens_per_second",
            "pairwise_accuracy", "pairwise_accuracy_policy", "agreement_all", "consistency_all", "spearman",
            "length_correlation", "above_cut_off"} < set(summary)
    assert summary["bits_per_byte"] is None and summary["steps"] == 12
    old = weights(sft)
    assert summary["params"] == sum(old[name].numel() for name in old if name != "head.weight") + 16  # w is 16 wide
    pairs, tokenizer = pairs_of(sft, "train", 20, 21)
    rows = [[len(row(pair.prompt[0]["content"], one, tokenizer)[0]) for one in (pair.chosen, pair.rejected)]
            for pair in pairs]
    lengths = [max(both) for both in rows]
    drawn = [draw_batch("uniform", lengths, lengths, 1, step, 12, 8) for step in range(12)]
    steps = [r for r in records(out) if "loss" in r]
    assert summary["tokens"] == sum(sum(rows[i]) for batch in drawn for i in batch)
    assert steps[0]["tokens"] == sum(sum(rows[i]) for i in drawn[0])
    assert [r["step"] for r in steps] == list(range(12))
    assert [r["step"] for r in records(out) if "val_loss" in r] == [0, 4, 8, 12]
    assert_equal({name: value for name, value in ASKED[0].state_dict().items()}, old)  # the policy is the fine-tuned model
    assert not any(model.training for model in ASKED)


@pytest.mark.parametrize("loss, changes", [
    ("bradley_terry", dict(n_micro=1, centring=0.0)),
    ("bradley_terry", dict(n_micro=3, pooling="last", seed=2, temperature=2.0, margin=0.5, label_smoothing=0.1)),
    ("margin_ranking", dict(n_micro=3, causal=True, block_size=24, beta2=0.9, grad_clip=0.1)),
    ("margin_ranking", dict(n_micro=1, lr=1e-2, margin=2.0, centring=0.3))])
def test_the_loop_does_what_a_second_loop_written_by_the_book_does(loss, changes, sft, tmp_path):
    out = tmp_path / "run"
    c = config(sft, out, **{"loss": loss, "eval_every": 6, "n_stories": 10, "n_exact": 14, **changes})
    train_reward_model.main(c)
    pairs, tokenizer = pairs_of(sft, "train", 10, 14, c.seed, c.temperature)
    val, _ = pairs_of(sft, "val", 10, 10, c.seed, c.temperature)
    how = dict(tokenizer=tokenizer, block_size=c.block_size, pooling=c.pooling, causal=c.causal)

    def loss_of(chosen, rejected):
        return (1 + (rejected - chosen).exp()).log() if loss == "bradley_terry" else (1 - chosen + rejected).clamp(min=0)

    def loss_to_learn(chosen, rejected):
        if loss == "bradley_terry":
            lead, margin, e = chosen - rejected, c.margin or 0, c.label_smoothing
            one = (1 - e) * (1 + (margin - lead).exp()).log() + e * (1 + (margin + lead).exp()).log()
        else:
            one = ((c.margin or 1) - chosen + rejected).clamp(min=0)
        return one + c.centring * (chosen + rejected) ** 2

    def differ(pair):  # within the block
        return row("", pair.chosen, tokenizer, c.block_size) != row("", pair.rejected, tokenizer, c.block_size)

    set_seed(c.seed)
    model = RewardModel(load_model(sft)[0])
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embedding" in name]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
                                  betas=(0.9, c.beta2))
    pairs, val = list(filter(differ, pairs)), list(filter(differ, val))
    lengths, losses, val_losses, accuracies = [0] * len(pairs), [], [], []
    for step in range(13):
        if step % 6 == 0:
            with torch.no_grad():
                rewards = [both_rewards(model, pair, **how) for pair in val]
            val_losses.append(sum(loss_of(*both).item() for both in rewards) / len(val))
            accuracies.append(sum(bool(chosen > rejected) for chosen, rejected in rewards) / len(val))
        if step == 12:
            break
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, 12, c.lr, 1e-4, 3)
        batch = draw_batch("uniform", lengths, lengths, c.seed, step, 12, 8)
        mean = torch.stack([loss_to_learn(*both_rewards(model, pairs[i], **how)) for i in batch]).mean()
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip)
        optimizer.step()
        losses.append(mean.item())
    assert [r["loss"] for r in records(out) if "loss" in r] == pytest.approx(losses, rel=1e-4)
    assert [r["val_loss"] for r in records(out) if "val_loss" in r] == pytest.approx(val_losses, rel=1e-3)
    assert [r["val_accuracy"] for r in records(out) if "val_loss" in r] == pytest.approx(accuracies, abs=1e-6)
    ours = weights(out / "step_00000012.pt")
    for name, theirs in model.state_dict().items():
        assert torch.allclose(ours[name], theirs, atol=1e-4), name


def test_the_first_weights_are_the_fine_tuned_model_s_and_a_new_row_near_zero(sft, tmp_path):
    rows = []
    for seed in (1, 2):
        train_reward_model.main(config(sft, tmp_path / str(seed), seed=seed, lr=1e-9, min_lr=0.0))
        new = weights(tmp_path / str(seed) / "step_00000012.pt")
        for name, weight in weights(sft).items():
            assert name == "head.weight" or torch.allclose(new[f"encoder.{name}"], weight, atol=1e-6), name
        rows.append(new["score.weight"])
    assert not torch.allclose(*rows, atol=1e-3) and max(row.abs().max() for row in rows) < 0.05


@pytest.mark.parametrize("changes, number", [({}, signal.SIGINT), ({"optimizer": "muon", "n_micro": 1}, signal.SIGTERM)])
def test_a_stopped_and_resumed_run_ends_bit_for_bit_like_one_that_was_not(changes, number, sft, tmp_path, monkeypatch,
                                                                          capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_reward_model.main(config(sft, whole, **changes))
    draw, calls = draw_batch, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return draw(*arguments)

    monkeypatch.setattr(train_reward_model, "draw_batch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_reward_model.main(config(sft, parts, **changes))
    assert stopped.value.code == 128 + number and checkpoint_files(parts)[0].name == "step_00000006.pt"
    assert "stopped at step 6, which is saved" in capsys.readouterr().out and not (parts / "summary.json").exists()
    history = train_reward_model.main(config(sft, parts, resume="yes", **changes))
    assert_equal(weights(parts / "step_00000012.pt"), weights(whole / "step_00000012.pt"))
    assert_equal(weights(parts / "best.pt"), weights(whole / "best.pt"))
    assert list(map(without_clock, records(parts))) == list(map(without_clock, records(whole)))
    assert without_clock(history[-1]) == without_clock(json.loads((whole / "summary.json").read_text()))
    for name in ("train_pairs.jsonl", "val_pairs.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_what_a_killed_run_logged_after_its_checkpoint_comes_again_once(sft, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        train_reward_model.main(config(sft, out))
    checkpoint_files(killed)[0].unlink()  # of step 12: the logs go further than the checkpoint of step 8
    train_reward_model.main(config(sft, killed, resume="auto"))
    assert list(map(without_clock, records(killed))) == list(map(without_clock, records(whole)))
    assert_equal(weights(killed / "step_00000012.pt"), weights(whole / "step_00000012.pt"))


def test_a_kill_between_a_save_and_its_second_name_loses_no_best_checkpoint(sft, tmp_path):
    out, changes = tmp_path / "run", dict(lr=1e-3, steps=8)
    train_reward_model.main(config(sft, out, **changes))
    assert load_checkpoint(checkpoint_files(out)[0])["progress"]["best_step"] == 8  # so slow a run only falls
    os.replace(checkpoint_files(out)[1], out / "best.pt")  # as if the name still belonged to the one before
    train_reward_model.main(config(sft, out, resume="yes", **changes))
    assert load_checkpoint(out / "best.pt")["step"] == 8


def test_best_pt_has_the_lowest_validation_loss_and_gives_the_policy_s_stories_mean_0_and_spread_1(sft, tmp_path,
                                                                                                   monkeypatch):
    values = iter((1.0, 3.0, 2.0, 4.0))  # the validation losses; the untrained model's does not count

    def loss(chosen, rejected, **options):
        return bradley_terry_loss(chosen, rejected) if chosen.requires_grad else torch.tensor(next(values))

    monkeypatch.setitem(train_reward_model.LOSSES, "bradley_terry", loss)
    out = tmp_path / "run"
    summary = train_reward_model.main(config(sft, out, save_every=100, keep_last=9))[-1]  # the best are saved besides
    assert [path.name for path in checkpoint_files(out)] == [f"step_000000{step}.pt" for step in ("12", "08", "04")]
    model, tokenizer, state = load_reward_model(out / "best.pt")
    assert summary["val_loss"] == 2.0 and summary["best_step"] == state["step"] == 8
    plain, best = weights(out / "step_00000008.pt"), dict(state["model"])
    assert plain.pop("gain") == 1 and plain.pop("bias") == 0 and best.pop("gain") != 1 and best.pop("bias") != 0
    assert_equal(best, plain)
    policy = load_model(sft)[0]
    tasks = make_tasks("val", 20, 1, ("story",), distinct=True)
    told = tell(policy, tokenizer, [task.prompt for task in tasks for _ in range(4)], 1.0, seed=1)
    with torch.no_grad():
        rewards = torch.stack([reward(model, *row(tasks[i // 4].prompt, one, tokenizer)) for i, one in enumerate(told)])
    assert rewards.mean().item() == pytest.approx(0, abs=1e-4) and rewards.std().item() == pytest.approx(1, abs=1e-4)


def test_a_finished_run_that_is_resumed_keeps_its_scale(sft, tmp_path):
    out = tmp_path / "run"
    summary = train_reward_model.main(config(sft, out))[-1]
    first = weights(out / "best.pt")
    again = train_reward_model.main(config(sft, out, resume="auto"))[-1]
    torch.testing.assert_close(weights(out / "best.pt"), first, rtol=1e-4, atol=1e-4)
    assert again["pairwise_accuracy"] == summary["pairwise_accuracy"]


def test_the_final_figures_are_those_of_the_saved_model_on_held_out_pairs_and_stories(sft, tmp_path):
    out = tmp_path / "run"
    summary = train_reward_model.main(config(sft, out, temperature=1.5))[-1]
    model, tokenizer, _ = load_reward_model(out / "best.pt")
    pairs, _ = pairs_of(sft, "test", 14, 14, temperature=1.5)
    with torch.no_grad():
        ahead = [bool(chosen > rejected) for chosen, rejected in (both_rewards(model, pair, tokenizer) for pair in pairs)]
        assert summary["pairwise_accuracy"] == pytest.approx(sum(ahead) / len(pairs))
        tasks, responses, utilities = sample_stories(load_model(sft)[0], tokenizer, 14, 4, seed=2)
        rewards = torch.stack([torch.stack([reward(model, *row(task.prompt, one, tokenizer)) for one in own])
                               for task, own in zip(tasks, responses)])
    assert summary["spearman"] == pytest.approx(correlations(rewards, utilities, responses)["spearman"], abs=1e-3)


def test_a_file_of_one_s_own_in_both_forms_is_learnt_and_needs_no_policy(sft, tmp_path, capsys):
    data, out = own_file(tmp_path / "x.jsonl"), tmp_path / "run"
    summary = train_reward_model.main(config(sft, out, data=str(data), steps=40, lr=1e-2, eval_every=20, save_every=20))[-1]
    assert summary["pairwise_accuracy"] == 1.0 and summary["val_loss"] < 0.2
    assert not ASKED and not (out / "train_pairs.jsonl").exists() and not any("agreement" in name for name in summary)
    said = capsys.readouterr().out
    assert "dropped 2 pairs: both answers are the same" in said and "dropped 1 pairs: no common prompt" in said
    model, tokenizer, _ = load_reward_model(out / "best.pt")
    val = [i for i in range(160) if 0.7 <= share_of(f"say {i}") < 0.75]
    with torch.no_grad():
        rewards = torch.stack([reward(model, *row(f"say {i}", (text, True), tokenizer)) for i in val
                               for text in ("Tom smiled.", f"Tom cried {i % 3}.")])
    assert rewards.mean().item() == pytest.approx(0, abs=1e-4) and rewards.std().item() == pytest.approx(1, abs=1e-4)


def test_the_accuracy_of_a_file_is_over_its_test_pairs(sft, tmp_path):
    data = own_file(tmp_path / "x.jsonl")
    summary = train_reward_model.main(config(sft, tmp_path / "run", data=str(data), steps=4, lr=1e-5, min_lr=0.0))[-1]
    model, tokenizer, _ = load_reward_model(tmp_path / "run" / "best.pt")
    with torch.no_grad():
        ahead = [reward(model, *row(f"say {i}", ("Tom smiled.", True), tokenizer))
                 > reward(model, *row(f"say {i}", (f"Tom cried {i % 3}.", True), tokenizer))
                 for i in range(160) if 0.75 <= share_of(f"say {i}") < 0.85]
    assert summary["pairwise_accuracy"] == pytest.approx(sum(map(bool, ahead)) / len(ahead)) and len(ahead) > 10


def test_nothing_but_the_train_pairs_is_trained_on(sft, tmp_path, monkeypatch):
    seen, make = set(), train_reward_model.reward_batch  # only the loop's: evaluation has its own

    def watch(rows, device):
        seen.update(tuple(ids) for ids, _ in rows)
        return make(rows, device)

    monkeypatch.setattr(train_reward_model, "reward_batch", watch)
    train_reward_model.main(config(sft, tmp_path / "run", data=str(own_file(tmp_path / "x.jsonl")), steps=40))
    tokenizer = load_model(sft)[1]
    expected = {tuple(row(f"say {i}", (text, True), tokenizer)[0]) for i in range(160) for text in
                ("Tom smiled.", f"Tom cried {i % 3}.") if not 0.7 <= share_of(f"say {i}") < 0.85}
    assert seen == expected  # 40 steps of 8 are more than two epochs


def test_the_pairs_that_a_run_wrote_down_can_be_given_to_data(sft, tmp_path):
    train_reward_model.main(config(sft, tmp_path / "run", n_stories=60, n_test=7))
    path = tmp_path / "run" / "train_pairs.jsonl"
    loaded, dropped = train_reward_model.load_preferences(path)
    made, _ = pairs_of(sft, "train", 60, 21)
    assert sorted(map(repr, sum(loaded.values(), []))) == sorted(map(repr, made)) and not dropped
    assert any(not pair.chosen.ended or not pair.rejected.ended for pair in made)
    summary = train_reward_model.main(config(sft, tmp_path / "again", data=str(path)))[-1]
    assert 0 <= summary["pairwise_accuracy"] <= 1 and summary["steps"] == 12


def test_a_run_that_goes_on_judges_no_answers_anew(sft, tmp_path, monkeypatch):
    out = tmp_path / "run"
    history = train_reward_model.main(config(sft, out))
    monkeypatch.setattr(train_reward_model, "make_pairs", None)  # on another device the answers might be others
    for name in ("step_00000012.pt", "best.pt"):
        (out / name).unlink()
    again = train_reward_model.main(config(sft, out, resume="yes"))
    assert without_clock(again[-1]) == without_clock(history[-1])
    lines = (out / "val_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "val_pairs.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(InputError, match="other pairs"):
        train_reward_model.main(config(sft, out, resume="yes"))


@pytest.mark.parametrize("changes", [pytest.param({"n_test": 5000}, marks=pytest.mark.slow),
                                     pytest.param({"n_stories": 40_000}, marks=pytest.mark.slow), {"n_exact": 400_000}])
def test_more_prompts_than_there_are_are_refused_before_training(changes, sft, tmp_path):
    with pytest.raises(InputError, match="too many"):
        train_reward_model.main(config(sft, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_flags_or_pairs_is_refused_and_nothing_is_lost(sft, tmp_path):
    data, out = own_file(tmp_path / "x.jsonl"), tmp_path / "run"
    train_reward_model.main(config(sft, out, data=str(data)))
    before = files(out)
    with pytest.raises(InputError, match="--lr"):
        train_reward_model.main(config(sft, out, data=str(data), resume="yes", lr=1e-3))
    data.write_text(data.read_text().replace("smiled", "laughed"))
    with pytest.raises(InputError, match="other pairs"):
        train_reward_model.main(config(sft, out, data=str(data), resume="yes"))
    assert files(out) == before


def test_another_run_in_the_same_folder_is_kept(sft, tmp_path, capsys):
    data, out = own_file(tmp_path / "x.jsonl"), tmp_path / "run"
    for _ in range(2):
        train_reward_model.main(config(sft, out, data=str(data), steps=4))
    assert (tmp_path / "run.previous" / "best.pt").exists() and "run.previous" in capsys.readouterr().out


def test_a_base_model_is_refused_with_the_command_that_makes_a_fine_tuned_one(base, tmp_path):
    with pytest.raises(InputError, match="is a base model.*python3 part_6/train_sft.py"):
        train_reward_model.main(config(base, tmp_path / "run"))
    assert not (tmp_path / "run").exists() and not ASKED


@pytest.mark.parametrize("changes, message", [
    ({"sft": "{tmp}/none.pt"}, "python3 part_6/train_sft.py"), ({"data": "{tmp}/none.jsonl"}, "cannot be read"),
    ({"data": "{tmp}/few.jsonl"}, "no pairs for val and test"), ({"data": "{tmp}/bad.jsonl"}, "line 2"),
    ({"batch_size": 1000}, "1000 is more than the 1?[0-9][0-9] pairs"), ({"resume": "yes"}, "no checkpoint"),
    ({"data": "{tmp}/equal.jsonl"}, "no pairs for train and val and test")])
def test_what_cannot_be_run_is_refused_before_anything_is_written(changes, message, sft, tmp_path):
    pair = {"prompt": "say 1", "chosen": "a", "rejected": "b"}  # on the ruler among train
    assert share_of("say 1") < 0.7
    write_lines(tmp_path / "few.jsonl", [pair] * 30)
    write_lines(tmp_path / "bad.jsonl", [pair, {"prompt": "say 1", "chosen": "a"}])
    write_lines(tmp_path / "equal.jsonl", [{**pair, "rejected": "a"}])
    changes = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        train_reward_model.main(config(**{"sft": sft, "out": tmp_path / "run", **changes}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [
    *({name: 0} for name in ("n_stories", "n_exact", "n_test", "temperature", "steps", "batch_size", "block_size", "n_micro",
                             "lr", "grad_clip", "eval_every", "save_every", "keep_last", "log_every")),
    {"out": ""}, {"warmup_steps": -1}, {"min_lr": -1e-9}, {"weight_decay": -0.1}, {"min_lr": 1.0}, {"beta2": 1.0},
    {"beta2": -0.1}, {"n_micro": 41}, {"margin": -1.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1},
    {"centring": -0.1}, {"label_smoothing": 0.1, "loss": "margin_ranking"}])
def test_flags_that_make_no_sense_are_refused(changes):
    name, *_ = changes
    with pytest.raises(InputError, match=f"--{name}"):
        Config(**changes)


def test_flags_at_the_edge_of_sense_are_taken():
    Config(warmup_steps=0, min_lr=0.0, weight_decay=0.0, beta2=0.0, n_micro=40, batch_size=40)
    Config(min_lr=0.005, lr=0.005)


def test_pairs_that_block_size_makes_equal_are_dropped_and_counted(sft, tmp_path, capsys):
    lines = [{"prompt": f"say {i}", "chosen": f"a {i} Tom smiled at the cup", "rejected": f"b {i} Tom {end} the cup"}
             for i in range(160) for end in ("cried at", "smiled at")]
    tokenizer = load_model(sft)[1]
    longest = len(tokenizer.encode(" at the cup")) + 3  # with the end and a little of "cried" and "smiled"
    data = write_lines(tmp_path / "x.jsonl", lines)
    train_reward_model.main(config(sft, tmp_path / "run", data=str(data), block_size=longest))
    n_train = sum(not 0.7 <= share_of(f"say {i}") < 0.85 for i in range(160))
    assert f"dropped {n_train} pairs of train: the same within --block_size {longest}" in capsys.readouterr().out


@pytest.mark.parametrize("split, low, high", [("val", 0.7, 0.75), ("test", 0.75, 0.85)])
def test_pairs_of_a_split_that_are_all_dropped_are_refused(split, low, high, sft, tmp_path):
    lines = [{"prompt": f"say {i}", "chosen": "Tom smiled.", "rejected": "Tom was sad" + ".. Tom smiled." * equal}
             for i in range(160) for equal in [low <= share_of(f"say {i}") < high]]
    data = write_lines(tmp_path / "x.jsonl", lines)
    with pytest.raises(InputError, match=f"no pairs for {split} .*--block_size 4"):
        train_reward_model.main(config(sft, tmp_path / "run", data=str(data), block_size=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_number_that_is_none_is_skipped_and_ends_the_run_after_twenty(bad, sft, tmp_path, monkeypatch):
    def diverged(chosen, rejected, **options):
        loss = bradley_terry_loss(chosen, rejected)
        if not loss.requires_grad:
            return loss
        if bad == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setitem(train_reward_model.LOSSES, "bradley_terry", diverged)
    with pytest.raises(InputError, match="no number 21 times in a row, at step 20.*--lr than 0.003"):
        train_reward_model.main(config(sft, tmp_path / "run", steps=40, n_stories=5, n_exact=7))
    new, old = weights(checkpoint_files(tmp_path / "run")[0]), weights(sft)
    assert torch.equal(new["encoder.blocks.0.attention.qkv.weight"], old["blocks.0.attention.qkv.weight"])
    assert not any("loss" in record for record in records(tmp_path / "run"))


def test_twenty_bad_steps_with_a_good_one_among_them_do_not_end_the_run(sft, tmp_path, monkeypatch):
    calls = []

    def stumbling(chosen, rejected, **options):
        loss = bradley_terry_loss(chosen, rejected)
        if loss.requires_grad:
            calls.append(loss)
            return loss * (1.0 if len(calls) % 15 == 0 else float("nan"))
        return loss

    monkeypatch.setitem(train_reward_model.LOSSES, "bradley_terry", stumbling)
    history = train_reward_model.main(config(sft, tmp_path / "run", steps=32, n_micro=1, n_stories=5, n_exact=7,
                                             eval_every=8))
    assert [r["step"] for r in history if "loss" in r] == [14, 29]


def test_a_signal_before_the_first_step_ends_the_run_without_a_checkpoint(sft, tmp_path, monkeypatch, capsys):
    start = train_reward_model.start_run

    def interrupted(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(config)

    monkeypatch.setattr(train_reward_model, "start_run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_reward_model.main(config(sft, tmp_path / "run"))
    assert stopped.value.code == 128 + signal.SIGTERM and not checkpoint_files(tmp_path / "run")
    assert "stopped at step 0; go on" in capsys.readouterr().out


def test_the_default_data_are_the_policy_s_own_answers():
    assert Config().data == POLICY
