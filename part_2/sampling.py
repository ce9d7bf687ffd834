"""Lesson 2.5 - from logits to the next token: temperature, top-k, top-p, in this order, and then a draw.

    temperature  z / t            t < 1 sharpens, t > 1 flattens, t = 0 is the argmax
    top-k        the k best       (Fan et al. 2018)
    top-p        the smallest set of best tokens whose probabilities reach p   (Holtzman et al. 2020, "nucleus")

Each step takes logits and gives logits, -inf where a token is ruled out; so they compose. Top-p looks at the
probabilities that temperature and top-k have left.
"""

import torch

from part_0.cli import InputError


def apply_temperature(logits, temperature):
    """logits: (..., V); temperature above 0. Returns logits / temperature."""
    return logits / temperature


def apply_top_k(logits, k):
    """Keep the k largest logits of each row (all of them where k >= V), rule out the rest. logits: (..., V)."""
    if k >= logits.shape[-1]:
        return logits
    kept = logits.topk(k, dim=-1).indices  # by index and not by value, so that ties cannot let more than k through
    return torch.full_like(logits, float("-inf")).scatter(-1, kept, logits.gather(-1, kept))


def apply_top_p(logits, p):
    """Keep the most probable tokens until their sum reaches p, *with* the one that crosses it. logits: (..., V)."""
    if p >= 1:  # all of them: a rounded sum must not cut the tail
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ranked.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the better tokens have reached without this one
    ranked = ranked.masked_fill(before >= p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, order, ranked)


def filter_logits(logits, temperature=1.0, top_k=None, top_p=None):
    """Temperature, then top-k, then top-p. logits: (..., V). Returns logits; their softmax is what is drawn from."""
    logits = apply_temperature(logits.float(), temperature)
    if top_k is not None:
        logits = apply_top_k(logits, top_k)
    if top_p is not None:
        logits = apply_top_p(logits, top_p)
    return logits


def check_sampling(temperature, top_k, top_p):
    """InputError unless temperature >= 0, top_k >= 1 and 0 < top_p <= 1 (None leaves top_k or top_p out)."""
    if temperature < 0:
        raise InputError(f"temperature must be 0 (argmax) or above, not {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, not {top_p}")


def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw one token a row. logits: (B, V). Returns (B,) int64."""
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filter_logits(logits, temperature, top_k, top_p).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.no_grad()
def generate(model, tokens, n_new, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Continue each row of `tokens` by `n_new` tokens; the model sees the last block_size of them.

    tokens: (B, T) int64 with T >= 1; generator: torch.Generator on the tokens' device. Returns (B, T + n_new). Dropout
    is off while it runs, and the model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    for _ in range(n_new):
        logits = model(tokens[:, -model.config.block_size:])[:, -1]  # (B, V) after the last token
        tokens = torch.cat((tokens, sample(logits, temperature, top_k, top_p, generator)[:, None]), dim=1)
    model.train(was_training)
    return tokens
