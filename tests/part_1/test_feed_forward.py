import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_1.feed_forward import FeedForward, gelu, gelu_tanh

X = torch.linspace(-6, 6, 241, dtype=torch.float64)


def test_both_forms_equal_torch_s():
    assert torch.allclose(gelu(X), F.gelu(X), atol=1e-12)
    assert torch.allclose(gelu_tanh(X), F.gelu(X, approximate="tanh"), atol=1e-12)


def test_gelu_is_x_times_the_normal_distribution_s_probability():
    # Phi(1) = 0.8413447 and Phi(-1) = 0.1586553, from any table of the normal distribution.
    assert gelu(torch.tensor([1.0, -1.0, 0.0])).tolist() == pytest.approx([0.8413447, -0.1586553, 0.0], abs=1e-6)


def test_tanh_form_differs_by_less_than_a_thousandth():
    difference = (gelu_tanh(X) - gelu(X)).abs().max().item()
    assert 0 < difference < 1e-3


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_layer_equals_torch_s_modules(approximate):
    torch.manual_seed(0)
    layer = FeedForward(6, approximate=approximate)
    reference = nn.Sequential(nn.Linear(6, 24), nn.GELU(approximate), nn.Linear(24, 6))
    reference.load_state_dict(dict(zip(reference.state_dict(), layer.state_dict().values())))
    x = torch.randn(2, 3, 6)
    assert torch.allclose(layer(x), reference(x), atol=1e-6)


def test_hidden_width_is_four_times_the_model_s_unless_given():
    assert FeedForward(6).expand.out_features == 24
    assert FeedForward(6, 10).contract.in_features == 10
    assert FeedForward(6, bias=False).expand.bias is None


def test_each_token_is_worked_on_alone():
    torch.manual_seed(0)
    layer, x = FeedForward(6), torch.randn(1, 4, 6)
    changed = x.clone()
    changed[0, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 0
    assert moved.tolist() == [False, False, True, False]
    assert math.isfinite(layer(x * 1e4).sum().item())


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_there_only_when_asked_for(bias):
    names = {name for name, _ in FeedForward(6, bias=bias).named_parameters()}
    assert names == {"expand.weight", "contract.weight"} | ({"expand.bias", "contract.bias"} if bias else set())
