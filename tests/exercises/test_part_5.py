"""Checks of the exercises of Part 5: one for each function, named for it."""

import torch

from part_5.balancing import load_balancing_loss
from part_5.moe import MoE
from part_5.router import route
from tests.exercises.compare import check


def test_gate_weights(answers):
    # Logits of ln 4, ln 2, 0, 0 have the softmax 1/2, 1/4, 1/8, 1/8; all of them ten lower have the same.
    logits = torch.tensor([[4.0, 2, 1, 1], [1, 2, 1, 4]]).log() - torch.tensor([[0.0], [10]])
    top = logits.topk(2)
    check("gate_weights([[ln 4, ln 2, 0, 0], [-10, ln 2 - 10, -10, ln 4 - 10]], top_k=2)", answers.gate_weights(logits, 2),
          [[2 / 3, 1 / 3, 0, 0], [0, 1 / 3, 0, 2 / 3]],
          {"the K weights are not divided by their sum": [[1 / 2, 1 / 4, 0, 0], [0, 1 / 4, 0, 1 / 2]],
           "logits, not softmax scores, are divided by their sum":
           torch.zeros(2, 4).scatter(-1, top.indices, top.values / top.values.sum(-1, keepdim=True)),
           "every expert is used": logits.softmax(-1)})
    check("gate_weights of the same logits, top_k=1", answers.gate_weights(logits, 1), [[1 / 2, 0, 0, 0], [0, 0, 0, 1 / 2]],
          {"a single expert's weight is divided by itself": [[1, 0, 0, 0], [0, 0, 0, 1]]})
    torch.manual_seed(0)
    logits = torch.randn(6, 8)
    top = logits.topk(3)  # Mixtral's order: the K largest logits, then the softmax over these
    check("gate_weights(torch.randn(6, 8), top_k=3)", answers.gate_weights(logits, 3),
          torch.zeros(6, 8).scatter(-1, top.indices, top.values.softmax(-1)))


def test_balance_loss(answers):
    # Choices 0 1, 0 1, 0 2, 0 3: f = 4/8, 2/8, 1/8, 1/8. With P = 0.4, 0.3, 0.2, 0.1: 4 (0.2 + 0.075 + 0.025 + 0.0125)
    probabilities, experts = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4), torch.tensor([[0, 1], [0, 1], [0, 2], [0, 3]])
    check("balance_loss([[0.4, 0.3, 0.2, 0.1]] * 4, [[0, 1], [0, 1], [0, 2], [0, 3]])",
          answers.balance_loss(probabilities, experts), 1.25,
          {"the number of experts is left out": 1.25 / 4, "only the first choices are counted": 1.6,
           "choices are divided by the tokens, not by all choices": 2.5,
           "the probabilities are summed over tokens, not averaged": 5})
    torch.manual_seed(0)
    routing = route(torch.randn(50, 8) - torch.arange(8), 2)  # the last expert is chosen by no token
    assert routing.experts.max() < 7
    check("balance_loss of 50 tokens and 8 experts, top_k=2", answers.balance_loss(routing.probabilities, routing.experts),
          load_balancing_loss(routing.probabilities, routing.experts))
    even = torch.full((4, 8), 1 / 8)
    check("balance_loss where only experts 0 to 3 are chosen, with even probabilities",
          answers.balance_loss(even, torch.arange(4)[:, None]), 1)


def test_layer_weights(answers):
    for d_model, d_expert, n_expert, top_k, n_shared in ((16, 24, 8, 2, 1), (8, 40, 4, 1, 0)):
        layer = MoE(d_model, d_expert, n_expert, top_k, n_shared)
        whole = sum(weight.numel() for weight in layer.parameters())
        expert, router = 3 * d_model * d_expert, d_model * n_expert
        asked = f"layer_weights(d_model={d_model}, d_expert={d_expert}, {n_expert=}, {top_k=}, {n_shared=})"
        check(asked, answers.layer_weights(d_model, d_expert, n_expert, top_k, n_shared), (whole, whole - layer.n_idle),
              {"an expert has two matrices": [whole - (n_expert + n_shared) * expert // 3,
                                              whole - layer.n_idle - (top_k + n_shared) * expert // 3],
               "the router is left out": [whole - router, whole - layer.n_idle - router],
               "a token uses the router's weights of its own experts alone":
               [whole, whole - layer.n_idle - (n_expert - top_k) * d_model]})
