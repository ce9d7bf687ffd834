"""Lesson 9.3 - GRPO's objective: PPO's clipped surrogate without a critic, and three ways to average over tokens.

    sequence   1/B sum_i 1/|a_i| sum_t l_it         GRPO      every answer weighs the same, so a token of a long one less
    token      sum_it l_it / sum_i |a_i|            DAPO      every token weighs the same           (Yu et al. 2025, eq. 8)
    constant   sum_it l_it / (B longest)            Dr. GRPO  ... and a batch of short answers less (Liu et al. 2025, 3.1)

l_it: the loss of token t of answer i, of |a_i| tokens; B: answers of an update. Under "sequence" each token of a wrong
answer is punished less the longer the answer is: long wrong answers are what one gets. The other two have no such leaning.
"""

from part_8.ppo_loss import clipped_surrogate
from part_9.kl import kl_estimates

AGGREGATIONS = ("sequence", "token", "constant")


def token_weights(mask, how, longest):
    """What each token's loss is multiplied with before all are added up: (B, T) fp32, 0 where `mask` is False.

    mask: (B, T) bool, all answers of an update; how: of AGGREGATIONS; longest: most tokens of an answer, for "constant".
    Rows without a token count as answers that are left out. ValueError for another `how`.
    """
    lengths = mask.sum(1, keepdim=True)
    n = (lengths > 0).sum().clamp(min=1)
    if how == "sequence":
        weights = 1 / (n * lengths.clamp(min=1))
    elif how == "token":
        weights = 1 / lengths.sum().clamp(min=1).expand_as(lengths)
    elif how == "constant":
        weights = 1 / (n * longest).expand_as(lengths)
    else:
        raise ValueError(f"the aggregation must be one of {', '.join(AGGREGATIONS)}, not {how}")
    return mask * weights


def grpo_losses(new, old, ref, advantages, beta=0.0, estimator="k3", weighted=False, clip=0.2, clip_high=None):
    """The loss of each token, and whether it is clipped: (B, T) fp32 and bool.

    new, old, ref: (B, T) log-probabilities of policy, sampling policy and reference; advantages: (B,); beta, estimator: of
    the KL penalty, weighted: in the importance-weighted form; clip, clip_high: as of `clipped_surrogate`.
    """
    losses, clipped = clipped_surrogate(new, old, advantages[:, None], clip, clip_high)
    if beta:
        losses = losses + beta * kl_estimates(new, ref, estimator, old if weighted else None)
    return losses, clipped


def overlong_penalty(lengths, longest, margin):
    """What is taken off the score of answers near the limit: (B,), 0 up to longest - margin tokens, then in a straight line
    up to 1 at `longest` (Yu et al. 2025, equation 13). lengths: (B,)."""
    return ((lengths - (longest - margin)) / margin).clamp(0.0, 1.0)
