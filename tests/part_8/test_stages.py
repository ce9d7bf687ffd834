"""Lesson 8.4: what a run begins with, what it refuses, and the prompts."""

import dataclasses
import json

import pytest
import torch

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint, save_checkpoint
from part_4.bpe_tokenizer import BPETokenizer
from part_6.prompt_template import END, encode_prompt
from part_6.tasks import split_of
from part_7.reward_model import RewardModel
from part_8.ppo_config import Config
from part_8.prompts import read_families
from part_8.stages import held_out_figures, load_fine_tuned, load_stages
from tests.part_6.tiny_base import make_base, write_lines
from tests.part_8.tiny_stages import TOKENIZER, make_reward_model, make_sft, tiny_model

TINY = dict(n_prompts=12, batch_size=4, minibatch_size=4, block_size=6, n_held_out=5, n_tasks=1, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages")
    make_sft(path / "sft.pt")
    make_reward_model(path / "rm.pt")
    make_base(path / "base.pt", "none")
    return path


def load(folder, **changes):
    paths = {name: str(folder / changes.pop(name, default)) for name, default in
             (("sft", "sft.pt"), ("reward_model", "rm.pt"))}
    needs = changes.pop("needs_reward_model", True)
    return load_stages(Config(**{**TINY, **paths, **changes}), "cpu", needs)


def test_a_run_begins_with_the_models_of_the_checkpoints_frozen_and_with_prompts_that_share_nothing(folder):
    stages = load(folder)
    for model, name in ((stages.reference, "sft.pt"), (stages.reward_model, "rm.pt")):
        state = load_checkpoint(folder / name)["model"]
        assert all(torch.equal(weight, state[key]) for key, weight in model.state_dict().items())
        assert not any(weight.requires_grad for weight in model.parameters()) and not model.training
    assert stages.tokenizer.state() == TOKENIZER.state()
    assert stages.stop_ids[0] == TOKENIZER.special_ids[END]
    assert sorted(stages.stop_ids) == sorted(TOKENIZER.special_ids.values())
    assert (len(stages.prompts), len(stages.held_out)) == (12, 5)
    for prompts, split in ((stages.prompts, "rl"), (stages.held_out, "test")):
        assert all(split_of(one.task.key) == split and one.task.family == "story" for one in prompts)
        assert all(one.ids == encode_prompt(one.task.prompt, TOKENIZER) for one in prompts)
        assert all(one.messages == [{"role": "user", "content": one.task.prompt}] for one in prompts)
        assert len({one.task.prompt for one in prompts}) == len(prompts)
    assert sorted(task.family for task in stages.tasks) == sorted(read_families("all"))  # all of them, whatever is learnt


def test_what_is_not_asked_for_is_not_loaded(folder):
    stages = load(folder, reward_model="none.pt", needs_reward_model=False, n_held_out=0, n_tasks=0)
    assert (stages.reward_model, stages.held_out, stages.tasks) == (None, [], [])
    assert held_out_figures(stages.reference, stages, 4, 1, "after") == {}


def other_tokenizer(folder):
    """A reward model whose tokenizer has the same size, but two tokens the other way round."""
    first, second, *rest = sorted(TOKENIZER.ranks, key=TOKENIZER.ranks.get)
    ranks = {token: rank for rank, token in enumerate((second, first, *rest))}
    state = load_checkpoint(folder / "rm.pt")
    tokenizer = BPETokenizer(ranks, TOKENIZER.special_tokens, TOKENIZER.pattern)
    save_checkpoint(folder / "other.pt", {**state, "tokenizer": tokenizer.state()})


@pytest.mark.parametrize("changes, message", [
    ({"sft": "none.pt"}, "no checkpoint .*none.pt.*python3 part_6/train_sft.py"),
    ({"reward_model": "none.pt"}, "no checkpoint .*none.pt.*python3 part_7/train_reward_model.py"),
    ({"sft": "base.pt"}, "base.pt is a base model.*python3 part_6/train_sft.py"),
    ({"sft": "rm.pt"}, "rm.pt is no checkpoint of part_6/train_sft.py"),
    ({"reward_model": "sft.pt"}, "sft.pt is no checkpoint of part_7/train_reward_model.py"),
    ({"reward_model": "other.pt"}, "other.pt reads other tokens than .*sft.pt writes: .*train_reward_model.py --sft"),
    ({"n_prompts": 2000, "families": "add"}, "2000 prompts are too many: there are not enough different add tasks"),
    ({"n_held_out": 2000, "families": "add"}, "2000 prompts are too many"),
    ({"data": "{tmp}/none.jsonl"}, "cannot be read"), ({"data": "{tmp}/bad.jsonl"}, "line 2"),
    ({"data": "{tmp}/empty.jsonl"}, "holds nothing"),
    ({"data": "{tmp}/few.jsonl", "batch_size": 12, "n_held_out": 0},
     r"batch_size 12 asks 12 prompts a step, and there are \d"),
    ({"data": "{tmp}/one.jsonl"}, "has no prompts for test: .* 10 % are held out"),
    ({"sft": "learned.pt", "block_size": 60},
     r"prompt and answer of up to \d+ tokens do not fit into the 64 positions of .*smaller --block_size"),
    ({"sft": "sinusoidal.pt", "block_size": 60}, "do not fit into the 64 positions"),
    ({"reward_model": "short.pt"}, r"do not fit into the 20 positions of .*short.pt")])
def test_what_does_not_fit_is_refused_in_one_line(changes, message, folder, tmp_path):
    other_tokenizer(folder)
    for kind in ("learned", "sinusoidal"):
        make_sft(folder / f"{kind}.pt", tiny_model(positions=kind))
    make_reward_model(folder / "short.pt", RewardModel(tiny_model(positions="learned", block_size=20)))
    line = {"prompt": "say 1", "response": "x"}
    assert split_of(json.dumps([{"role": "user", "content": "say 1"}])) != "test"
    write_lines(tmp_path / "bad.jsonl", [line, {"prompt": "say 1"}])
    write_lines(tmp_path / "few.jsonl", [{**line, "prompt": f"say {i}"} for i in range(9)])
    write_lines(tmp_path / "one.jsonl", [line])
    (tmp_path / "empty.jsonl").touch()
    changes = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError, match=message) as refused:
        load(folder, **changes)
    assert "\n" not in str(refused.value)


def test_prompt_and_answer_that_just_fit_into_a_table_of_positions_are_taken(folder):
    make_sft(folder / "learned.pt", tiny_model(positions="learned"))
    longest = max(len(one.ids) for one in (*load(folder).prompts, *load(folder).held_out))
    load(folder, sft="learned.pt", block_size=64 - longest)
    with pytest.raises(InputError, match="up to 65 tokens do not fit into the 64"):
        load(folder, sft="learned.pt", block_size=65 - longest)
    load(folder, block_size=500)  # rotary positions have no table


def test_the_hash_changes_with_every_frozen_weight_and_every_prompt(folder):
    def changed(name, key):
        state = load_checkpoint(folder / name)
        weight = state["model"][key].clone()
        weight.view(-1)[-1] += 1e-3
        save_checkpoint(folder / "changed.pt", {**state, "model": {**state["model"], key: weight}})
        return "changed.pt"

    same = load(folder).data_hash
    assert load(folder).data_hash == same and load(folder, n_held_out=3, n_tasks=2).data_hash == same
    hashes = [same, load(folder, n_prompts=13).data_hash, load(folder, seed=2).data_hash,
              load(folder, families="add").data_hash]
    for flag, name in (("sft", "sft.pt"), ("reward_model", "rm.pt")):
        hashes += [load(folder, **{flag: changed(name, key)}).data_hash for key in load_checkpoint(folder / name)["model"]]
    assert len(set(hashes)) == len(hashes) > 20


def test_held_out_figures_compare_the_policy_with_the_reference_it_began_as(folder):
    stages, other = load(folder, n_held_out=40), tiny_model(5)
    before = held_out_figures(stages.reference, stages, 4, 1, "before")
    assert {"reward_before", "kl_before", "gold_before", "exact_match_before"} < set(before) and "win_rate" not in before
    assert before["kl_before"] == 0
    after = held_out_figures(other, stages, 4, 1, "after")
    assert after["kl_after"] > 0 and {"win_rate", "gold_gain", "exact_match_after"} < set(after)
    assert held_out_figures(other, stages, 4, 1, "after") == after
    # the reference beside itself is another draw, or everything would be a tie: its gains need not be 0
    drawn = [held_out_figures(stages.reference, stages, 4, seed, "after") for seed in range(4)]
    assert any(one["reward_after"] != before["reward_before"] for one in drawn)


def test_a_fine_tuned_model_without_the_template_in_its_tokenizer_is_a_base_model(folder):
    model, tokenizer, stop_ids = load_fine_tuned(folder / "sft.pt")
    assert tokenizer.vocab_size == model.config.vocab_size and len(set(stop_ids)) == len(TOKENIZER.special_ids)
    with pytest.raises(InputError, match="base model"):
        load_fine_tuned(folder / "base.pt")


@pytest.mark.parametrize("changes", [
    *({name: 0} for name in ("n_prompts", "steps", "batch_size", "block_size", "temperature", "epochs", "minibatch_size",
                             "kl_horizon", "clip", "lr", "value_lr", "grad_clip", "save_every", "keep_last")),
    *({name: -1} for name in ("beta", "kl_target", "kl_length", "no_end_penalty", "value_clip", "value_coef", "entropy_coef",
                              "kl_stop", "min_lr", "warmup_steps", "value_warmup", "weight_decay", "n_held_out", "n_tasks")),
    {"out": ""}, {"gamma": 1.1}, {"lam": -0.1}, {"beta2": 1.0}, {"clip": 1.0}, {"min_lr": 1.0}, {"minibatch_size": 129},
    {"batch_size": 5000}, {"kl_target": 3.0, "beta": 0.0}, {"families": "chess"},
    {"kl_horizon": 25, "kl_target": 3.0}, {"value_warmup": 40}])
def test_flags_that_make_no_sense_are_refused(changes):
    name, *_ = changes
    with pytest.raises(InputError, match=f"--{name}"):
        Config(**changes)


@pytest.mark.parametrize("changes", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_sampling_that_makes_no_sense_is_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        Config(**changes)


def test_flags_at_the_edge_of_sense_are_taken():
    zeros = dict.fromkeys(("beta", "kl_length", "no_end_penalty", "value_clip", "value_coef", "entropy_coef", "kl_stop",
                           "min_lr", "weight_decay", "gamma", "lam", "beta2"), 0.0)
    Config(**zeros, warmup_steps=0, value_warmup=0, n_held_out=0, n_tasks=0)
    Config(kl_horizon=26, kl_target=3.0, value_warmup=39)
    Config(kl_horizon=1)  # where nothing adapts
    Config(gamma=1.0, lam=1.0, min_lr=0.1, lr=0.1, n_prompts=8, batch_size=8, minibatch_size=8, top_k=1, top_p=1.0)
    assert dataclasses.asdict(Config())["beta"] > 0


def test_a_reward_model_reads_only_what_it_was_made_for(folder):
    make_reward_model(folder / "last.pt", RewardModel(tiny_model(1), "last", True))
    stages = load(folder, reward_model="last.pt")
    assert (stages.reward_model.pooling, stages.reward_model.causal) == ("last", True)
