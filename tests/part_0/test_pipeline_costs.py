"""The costs of the pipeline against hand-worked numbers, torch's own FLOP counter and the published figures."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from part_0.pipeline_costs import PETAFLOP_S_DAY, backward_flops, forward_flops, pipeline, rl_flops, training_flops


def test_6nd_is_what_torch_counts_for_a_stack_of_matrices():
    # Two products of 16 x 16; the input needs a gradient too, as it does behind an embedding.
    layers = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    tokens = torch.randn(10, 16, requires_grad=True)
    params = sum(weight.numel() for weight in layers.parameters())
    with FlopCounterMode(display=False) as forward:
        loss = layers(tokens).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward_flops(params, 10) == forward.get_total_flops() == 2 * 512 * 10
    assert backward_flops(params, 10) == backward.get_total_flops()
    assert training_flops(params, 10) == forward.get_total_flops() + backward.get_total_flops()


def test_gpt3_by_6nd_agrees_with_the_published_compute():
    # 6 x 175e9 x 300e9 = 3.15e23 FLOP; published: 3,640 petaflop/s-days, 3.14e23 FLOP (Brown et al. 2020, table D.1, by the
    # same rule: so this pins the constants and the unit, torch's counter above the rule).
    assert training_flops(175e9, 300e9) == pytest.approx(3.15e23)
    assert 3640 * PETAFLOP_S_DAY == pytest.approx(3.145e23, rel=1e-3)


def test_a_petaflop_s_day_is_86400_seconds_of_1e15():
    assert PETAFLOP_S_DAY == 8.64e19


def test_rl_adds_up_from_its_four_parts():
    # A policy of 5 and a reward model of 3 parameters, 10 tokens, 2 epochs: 2x5x10, 2x5x10, 2x3x10, 2x6x5x10
    assert rl_flops(5, 3, 10, 2) == {"generation": 100, "reference": 100, "reward": 60, "update": 600}


def test_the_pipeline_by_hand():
    # N = 10^6; SFT 6e6 x 1e6; reward model 6 x 5e5 x 3e5; RL on 1e5 tokens, 1 epoch: (2 + 2 + 1 + 6) x 1e6 x 1e5
    stages = pipeline(params=10**6, reward_params=5 * 10**5, pretrain_tokens=3 * 10**6, sft_tokens=10**6,
                      reward_tokens=3 * 10**5, rollout_tokens=10**5, rl_epochs=1)
    assert [stage.flops for stage in stages] == [18 * 10**12, 6 * 10**12, 9 * 10**11, 11 * 10**11]
    assert [stage.tokens for stage in stages] == [3 * 10**6, 10**6, 3 * 10**5, 10**5]
    # 4.9 and 60 petaflop/s-days (Ouyang et al. 2022, section 5.1)
    assert [stage.published for stage in stages if stage.name != "reward model"] == pytest.approx(
        [3.145e23, 4.2336e20, 5.184e21], rel=1e-3)
    assert stages[2].published is None


def test_what_a_stage_consumes_an_earlier_one_produces():
    _, sft, reward, rl = pipeline(1, 1, 1, 1, 1, 1, 1)
    assert "base model" in sft.consumes and sft.produces in reward.consumes and sft.produces in rl.consumes
    assert reward.name in rl.consumes
