"""The mistakes of Part 8 do what is said of them, and nothing else."""

import math

import pytest
import torch
from torch import nn

from part_8.bugs import end_not_scored, scored_at_temperature_1
from part_8.experience import make_experience
from part_8.rollout import as_rollout


class Says(nn.Module):
    """Token 0 is always twice as probable as token 1; values, if any, are 0."""

    def __init__(self, has_values):
        super().__init__()
        self.has_values = has_values

    def forward(self, tokens):
        logits = torch.tensor([math.log(2), 0.0]).expand(*tokens.shape, 2)
        return (logits, torch.zeros(tokens.shape)) if self.has_values else logits


@pytest.mark.parametrize("how", ["by name", "by place"])
def test_the_old_probability_is_that_at_temperature_1_wherever_the_temperature_stands(how):
    # at temperature 1/2 the logits count twice: 4 to 1; at 1 they are 2 to 1
    rollout = as_rollout([[0]], [[0, 1]], end=1)
    given = (Says(True), Says(False), rollout, torch.zeros(1), 0.0)
    more, named = ((), {"temperature": 0.5}) if how == "by name" else ((1.0, 0.95, True, True, 0.5), {})
    right = make_experience(*given, *more, **named)
    wrong = scored_at_temperature_1(make_experience)(*given, *more, **named)
    assert right.log_probs[0].exp().tolist() == pytest.approx([4 / 5, 1 / 5])
    assert wrong.log_probs[0].exp().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert (right.log_probs - wrong.log_probs)[0].exp().tolist() == pytest.approx([6 / 5, 3 / 5])  # what should be 1
    assert wrong.rollout is rollout


def test_the_end_token_is_left_out_of_the_mask_and_ends_the_answer_all_the_same():
    prompts, answers = [[5, 6], [8], [2]], [[1, 2], [9, 4], [2, 1, 2]]
    wrong, right = end_not_scored(as_rollout)(prompts, answers, 2), as_rollout(prompts, answers, 2)
    assert right.mask.int().tolist() == [[0, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert wrong.mask.int().tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert wrong.ended.tolist() == right.ended.tolist() == [True, False, True]
    assert torch.equal(wrong.tokens, right.tokens) and torch.equal(wrong.positions, right.positions)
