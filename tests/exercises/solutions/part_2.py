"""Reference answers to the exercises of Part 2."""

import torch


def every_window(tokens, block_size):
    """N - T windows: each spans T + 1 tokens, the last of them a target only."""
    windows = tokens.unfold(0, block_size + 1, 1)  # (N - T, T + 1)
    return windows[:, :-1], windows[:, 1:]


def cross_entropy(logits, targets):
    """logsumexp(z) - z[target], with the maximum taken off before anything is exponentiated."""
    highest = logits.amax(dim=-1)  # (N,)
    log_sum = (logits - highest[:, None]).exp().sum(dim=-1).log() + highest
    return (log_sum - logits[torch.arange(len(targets)), targets]).mean()


def nucleus(probabilities, p):
    """A token is in as long as the better ones have not reached p without it."""
    ranked, order = probabilities.sort(descending=True)
    kept = torch.empty(len(probabilities), dtype=torch.bool)
    kept[order] = ranked.cumsum(0) - ranked < p
    return kept
