"""Lesson 8.1 - policy and critic: what is said next, and what is to be expected of it.

    log pi(a_t | s_t) = log_softmax(z_t / temperature)[a_t]        z_t: logits after s_t, the prompt and the answer so far
    V(s_t) = v . h_t + c                                           h_t: hidden state after s_t; v and c are zero at first

The policy is the fine-tuned model. Its value head reads the policy's own hidden states, or those of a critic of its own,
which can learn fast without touching what the policy says. Both work without dropout: it would make the ratio of new and
old probabilities (lesson 8.3) a random number even before anything is learnt.
"""

import torch
from torch import nn

from part_0.cli import InputError
from part_2.sampling import filter_logits
from part_6.chat_model import load_model
from part_7.reward_model import load_reward_model

CRITICS = ("policy", "reward", "shared")


class ActorCritic(nn.Module):
    """A policy, a ModernGPT, with V(s_t). Always in eval mode: without dropout."""

    def __init__(self, policy, critic=None):
        """critic: a ModernGPT of its own for the values, whose head is dropped; None: the value head sits on the policy."""
        super().__init__()
        self.policy, self.critic = policy, critic
        if critic is not None:
            critic.head = nn.Identity()
        self.value = nn.Linear(policy.config.d_model, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.train(False)

    def train(self, mode=True):
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, tokens):
        """tokens: (B, T) int64, padded on the right, where causal attention never looks from a token of the text. Returns
        logits (B, T, V) and values (B, T), fp32."""
        hidden = self.policy.hidden_states(tokens)
        read = hidden if self.critic is None else self.critic.hidden_states(tokens)
        # a sum and not a product of matrices, which autocast would round to bf16
        return self.policy.head(hidden), (read.float() * self.value.weight[0]).sum(-1) + self.value.bias

    def learners(self):
        """What learns on its own: the policy, and all that only the values depend on; two modules."""
        return self.policy, nn.ModuleList([self.value] if self.critic is None else [self.value, self.critic])


def build_actor_critic(sft, critic="policy", reward=None, device="cpu"):
    """An ActorCritic that says what the fine-tuned model says, with values of 0.

    sft: its checkpoint; critic: of CRITICS, a second copy of the policy, the encoder of the reward model (checkpoint
    `reward`; it is read causally here), or "shared", none of its own. InputError where a checkpoint is missing, or where
    the reward model's encoder has another width or vocabulary.
    """
    policy = load_model(sft, device)[0]
    own = None
    if critic == "policy":
        own = load_model(sft, device)[0]
    elif critic == "reward":
        own = load_reward_model(reward, device)[0].encoder
        if (own.config.d_model, own.config.vocab_size) != (policy.config.d_model, policy.config.vocab_size):
            raise InputError(f"--critic reward: {reward} has other sizes than {sft}")
    return ActorCritic(policy, own).to(device)


@torch.no_grad()
def kept_tokens(logits, tokens, temperature, top_k=None, top_p=None):
    """What top-k and top-p leave of the vocabulary: (B, T - 1, V) bool, None where neither is asked for.

    logits: (B, T, V) of the policy that sampled `tokens`, (B, T). A sampled token is always kept: near the border another
    pass over the same text may round it out.
    """
    if top_k is None and top_p is None:
        return None
    kept = filter_logits(logits[:, :-1], temperature, top_k, top_p) > float("-inf")
    return kept.scatter(-1, tokens[:, 1:, None], True)


def distributions(logits, temperature=1.0, kept=None):
    """The log-probabilities that tokens were drawn from: (B, T - 1, V) fp32, of each place but the last.

    logits: (B, T, V); temperature, kept: as in sampling, and for every model whose probabilities are compared; else their
    ratio would compare different ways of drawing.
    """
    logits = logits[:, :-1].float() / temperature
    if kept is not None:
        logits = logits.masked_fill(~kept, float("-inf"))
    return logits.log_softmax(-1)


def action_log_probs(log_probs, tokens):
    """The log-probability of each token given those before it: (B, T - 1), of tokens[:, 1:].

    log_probs: (B, T - 1, V) from `distributions`; tokens: (B, T). One pass over the whole text gives them all.
    """
    return log_probs.gather(-1, tokens[:, 1:, None])[..., 0]


def entropies(log_probs):
    """The entropy in nats of each distribution: (...) for (..., V) log-probabilities."""
    finite = torch.where(log_probs == float("-inf"), 0.0, log_probs)  # 0 times infinity, and its gradient, are no numbers
    return -(log_probs.exp() * finite).sum(-1)


def divergences(log_probs, ref_log_probs):
    """KL(pi || pi_ref) in nats of each pair of distributions: (...) for (..., V), exact, as it sums over the vocabulary."""
    ratio = torch.where(log_probs == float("-inf"), 0.0, log_probs - ref_log_probs)
    return (log_probs.exp() * ratio).sum(-1)
