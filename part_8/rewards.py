"""Lesson 8.2 - rewards: the reward model's verdict at the end, and at each token the price of leaving the reference.

    r_t = -beta (log pi(a_t | s_t) - log pi_ref(a_t | s_t))  +  [a_t is the last token] score

Their sum over an answer is score - beta (log pi(a) - log pi_ref(a)), whose expectation is E[score] - beta KL(pi || pi_ref)
(Ziegler et al. 2019, equation 2): the reference, the fine-tuned model, is what keeps the text a text. The reward model reads
the very ids that were sampled: text that is decoded and encoded again need not give the same ones.
"""

import torch

from part_0.device import autocast
from part_0.onednn import packed_weights


@torch.no_grad()
def score_rollout(model, rollout, no_end_penalty=0.0, dtype=torch.float32):
    """The score of each answer, (B,) fp32: the RewardModel's, less the penalty where there is no end token.

    rollout: a Rollout, whose tokens the model reads as they are; dtype: the matrix products' precision.
    """
    answer = torch.zeros_like(rollout.tokens, dtype=torch.bool)
    answer[:, 1:] = rollout.mask
    with autocast(rollout.tokens.device, dtype), packed_weights(model):
        scores = model(rollout.tokens, rollout.positions, answer).float()
    return scores - no_end_penalty * ~rollout.ended


def token_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """The reward of each choice: (B, T), 0 where `mask` is False.

    scores: (B,); log_probs, ref_log_probs: (B, T) of the choices; mask: (B, T) bool, at least one True in each row.
    """
    rewards = torch.where(mask, -beta * (log_probs - ref_log_probs), 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(1)
    return rewards.scatter_add(1, last[:, None], scores[:, None])
