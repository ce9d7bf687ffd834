"""Lesson 8.4 - what a run of reinforcement learning begins with: the stages before it, prompts, and held-out prompts.

    part_6/train_sft.py  ->  policy and reference            part_7/train_reward_model.py  ->  reward
"""

import hashlib
import json
from typing import NamedTuple

from part_0.cli import InputError
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_6.chat_model import load_model
from part_6.evaluation import held_out_tasks
from part_6.prompt_template import END, chat_tokenizer
from part_7.reward_model import RewardModel, load_reward_model
from part_8.policy_scores import answer_scores, exact_scores, family_scores, sample_answers
from part_8.prompts import TASKS, load_prompts, read_families


class Stages(NamedTuple):
    """reference: the fine-tuned ModernGPT, frozen; reward_model: a RewardModel, frozen, or None; tokenizer: of both;
    stop_ids: the tokens that end an answer, the proper one first; prompts, held_out: lists of Prompt; tasks: held-out tasks
    of each family; data_hash: of the prompts to learn from and of the frozen weights, in hex."""

    reference: ModernGPT
    reward_model: RewardModel | None
    tokenizer: BPETokenizer
    stop_ids: tuple
    prompts: list
    held_out: list
    tasks: list
    data_hash: str


def load_fine_tuned(path, device="cpu"):
    """A fine-tuned model, its tokenizer, and the tokens that end an answer, the proper one first. InputError for a base
    model."""
    model, tokenizer, _ = load_model(path, device)
    tokenizer = chat_tokenizer(tokenizer)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(f"{path} is a base model; make a fine-tuned one with: python3 part_6/train_sft.py")
    ids = tokenizer.special_ids
    return model, tokenizer, (ids[END], *(number for name, number in ids.items() if name != END))


def load_stages(config, device, needs_reward_model=True, n_asked=None):
    """The Stages of a run.

    config: a trainer's, with sft, reward_model, data, families, n_prompts, n_held_out, n_tasks, batch_size, block_size and
    seed; n_asked: prompts of a step, batch_size if left out. InputError where a stage is missing or does not fit the others,
    or where there are too few prompts.
    """
    reference, tokenizer, stop_ids = load_fine_tuned(config.sft, device)
    reference.requires_grad_(False)
    reward_model = None
    if needs_reward_model:
        reward_model, reward_tokenizer, _ = load_reward_model(config.reward_model, device)
        reward_model.requires_grad_(False)
        if reward_tokenizer.state() != tokenizer.state():
            raise InputError(f"{config.reward_model} reads other tokens than {config.sft} writes: make one that fits with "
                             f"python3 part_7/train_reward_model.py --sft {config.sft}")
    families = read_families(config.families)
    prompts = load_prompts(config.data, "rl", config.n_prompts, config.seed, families, tokenizer)
    held_out = (load_prompts(config.data, "test", config.n_held_out, config.seed, families, tokenizer)
                if config.n_held_out else [])
    n_asked = n_asked or config.batch_size
    if n_asked > len(prompts):
        raise InputError(f"--batch_size {config.batch_size} asks {n_asked} prompts a step, and there are {len(prompts)}")
    longest = max(len(prompt.ids) for prompt in (*prompts, *held_out)) + config.block_size
    readers = [(config.sft, reference)] + ([(config.reward_model, reward_model.encoder)] if reward_model else [])
    for path, model in readers:
        if model.config.positions in ("learned", "sinusoidal") and longest > model.config.block_size:
            raise InputError(f"prompt and answer of up to {longest} tokens do not fit into the {model.config.block_size} "
                             f"positions of {path}: try a smaller --block_size")
    data_hash = hashlib.sha256(json.dumps([prompt.ids for prompt in prompts]).encode())
    for model in (reference, reward_model):
        for weight in model.state_dict().values() if model else ():
            data_hash.update(weight.cpu().numpy().tobytes())
    tasks = held_out_tasks(config.n_tasks) if config.data == TASKS else []
    return Stages(reference, reward_model, tokenizer, stop_ids, prompts, held_out, tasks, data_hash.hexdigest())


def held_out_figures(policy, stages, n_new, seed, when, reward=None):
    """The figures of a policy on held-out prompts, sampled, and on tasks, greedily: a flat dict of floats.

    n_new: most tokens of an answer; when: "before", for the reference itself, or "after", which adds the comparison with it;
    reward: called with prompts, texts and whether each ended, gives their rewards where these are not the reward model's.
    """
    figures = {}
    if stages.held_out:
        def sampled(model, seed):
            return sample_answers(model, stages.reference, stages.reward_model, stages.tokenizer, stages.held_out, n_new,
                                  stages.stop_ids, seed)

        ref = sampled(stages.reference, seed)
        shown = ref if when == "before" else sampled(policy, seed + 1)  # else the first words would often be the same
        if stages.reward_model is None:
            shown = shown._replace(rewards=reward(stages.held_out, shown.texts, shown.ended))
        figures |= answer_scores(shown, when, None if when == "before" else ref)
        figures |= family_scores(shown, stages.held_out, when)
    if stages.tasks:
        figures |= exact_scores(policy, stages.tokenizer, stages.tasks, when)
    return figures
