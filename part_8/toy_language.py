"""Lesson 8.3 - a language small enough to list: with every sequence known, each estimate has an exact value beside it.

    E[f] = sum over all sequences y of  pi(y) f(y)            pi*(y) = pi_ref(y) exp(r(y) / beta) / Z

A vocabulary of a few tokens, one of which ends a sequence, and at most `length` of them. A table of logits, a row for each
prefix, is the policy: it can become any distribution over the sequences, so it can reach pi*, the optimum of the reward with
a KL penalty (Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference", section 3).
"""

import itertools

import torch
from torch import nn


class ToyLanguage:
    """All sequences over tokens 0 ... vocab_size - 1, of which the last one ends a sequence, of at most `length` tokens.

    sequences: list of tuples, with their end token, or of full length without; prefixes: list of tuples, all states.
    """

    def __init__(self, vocab_size=3, length=4):
        self.vocab_size, self.length, self.end = vocab_size, length, vocab_size - 1
        bodies = [body for n in range(length + 1) for body in itertools.product(range(self.end), repeat=n)]
        self.prefixes = [body for body in bodies if len(body) < length]
        self.sequences = [body if len(body) == length else (*body, self.end) for body in bodies]
        self.tokens = torch.zeros(len(bodies), length, dtype=torch.long)
        self.states = torch.zeros_like(self.tokens)
        self.mask = torch.zeros_like(self.tokens, dtype=torch.bool)
        place = {prefix: i for i, prefix in enumerate(self.prefixes)}
        for row, sequence in enumerate(self.sequences):
            for t, token in enumerate(sequence):
                self.tokens[row, t], self.states[row, t], self.mask[row, t] = token, place[sequence[:t]], True


class TablePolicy(nn.Module):
    """Logits for the token after each prefix, and V of each prefix; all free parameters."""

    def __init__(self, language, seed=0):
        super().__init__()
        self.language = language
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(len(language.prefixes), language.vocab_size, generator=generator))
        self.values = nn.Parameter(torch.zeros(len(language.prefixes)))

    def forward(self, rows):
        """The log-probability of each token and the value of the state before it, of sequences of the language: two
        (N, length), of no meaning behind the end, where language.mask[rows] is False. rows: (N,) their numbers."""
        states, tokens = self.language.states[rows], self.language.tokens[rows]
        return self.logits.log_softmax(-1)[states].gather(-1, tokens[..., None])[..., 0], self.values[states]

    def probabilities(self):
        """The probability of every sequence of the language, in its order: they add up to 1."""
        rows = torch.arange(len(self.language.sequences))
        return torch.where(self.language.mask, self(rows)[0], 0.0).sum(-1).exp()


def optimum(reference, rewards, beta):
    """The distribution with the highest E[r] - beta KL(pi || reference): (N,). reference, rewards: (N,), beta above 0."""
    return (reference.log() + rewards / beta).softmax(0)


def total_variation(p, q):
    """Half the sum of |p - q|, from 0 to 1, a float: the most by which the two differ on any event. p, q: (N,)."""
    return 0.5 * (p - q).abs().sum().item()
