"""Lesson 0.1 - what a stage of the pipeline costs, counted from N parameters and D tokens.

    forward  2 N D      every weight is multiplied once and added once for each token
    backward 4 N D      as much again for the gradient of the inputs, and again for that of the weights
    training 6 N D      (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1)

Left out: attention's own products Q K^T and A V. They grow with the context T instead of with N, and add about
T / (6 C) at model width C: a sixth at T = C, 3 % for GPT-3 (T = 2,048, C = 12,288).
"""

from typing import NamedTuple

PETAFLOP_S_DAY = 1e15 * 24 * 60 * 60  # a day at 10^15 FLOP/s: the unit of the papers, 8.64e19 FLOP

# Compute as published, in petaflop/s-days: GPT-3 175B pretraining (Brown et al. 2020, table D.1, calculated there by the
# rule above); its SFT and PPO-ptx (Ouyang et al. 2022, section 5.1). For the 6B reward model no figure was published.
PUBLISHED_PETAFLOP_S_DAYS = {"pretraining": 3640.0, "SFT": 4.9, "RL": 60.0}


def forward_flops(params, tokens):
    """FLOPs to run `tokens` tokens once through a model of `params` parameters."""
    return 2 * params * tokens


def backward_flops(params, tokens):
    """FLOPs of the backward pass that follows: twice the forward pass."""
    return 4 * params * tokens


def training_flops(params, tokens):
    """FLOPs to train on `tokens` tokens, each of which goes forward and backward once."""
    return forward_flops(params, tokens) + backward_flops(params, tokens)


def rl_flops(params, reward_params, tokens, epochs):
    """FLOPs of reinforcement learning on `tokens` rollout tokens, prompts and answers together.

    Every token is generated once by the policy (with a key-value cache, Part 3), scored once by the reference policy
    and once by the reward model of `reward_params` parameters, and trained on `epochs` times. PPO's value head is too
    small to count. Returns a dict of the four parts; the cost is their sum.
    """
    return {"generation": forward_flops(params, tokens),
            "reference": forward_flops(params, tokens),
            "reward": forward_flops(reward_params, tokens),
            "update": epochs * training_flops(params, tokens)}


class Stage(NamedTuple):
    """What a stage takes in and hands on; its tokens and FLOPs here; its FLOPs as published, None if they were not."""

    name: str
    consumes: str
    produces: str
    tokens: int
    flops: float
    published: float | None


def pipeline(params, reward_params, pretrain_tokens, sft_tokens, reward_tokens, rollout_tokens, rl_epochs):
    """The four stages in order, for a language model and a reward model of these sizes. Returns a list of Stage."""
    published = {name: days * PETAFLOP_S_DAY for name, days in PUBLISHED_PETAFLOP_S_DAYS.items()}
    return [
        Stage("pretraining", "raw text", "base model", pretrain_tokens, training_flops(params, pretrain_tokens),
              published["pretraining"]),
        Stage("SFT", "base model, instructions with answers", "SFT model", sft_tokens,
              training_flops(params, sft_tokens), published["SFT"]),
        Stage("reward model", "SFT model, pairs: better, worse answer", "a score for any answer", reward_tokens,
              training_flops(reward_params, reward_tokens), None),
        Stage("PPO or GRPO", "SFT model, reward model, prompts", "aligned model", rollout_tokens,
              sum(rl_flops(params, reward_params, rollout_tokens, rl_epochs).values()), published["RL"])]
