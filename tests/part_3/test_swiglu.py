import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_1.feed_forward import FeedForward
from part_3.swiglu import SwiGLU, swiglu_width


@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_formula_with_three_separate_matrices_forward_and_backward(bias):
    torch.manual_seed(0)
    layer = SwiGLU(6, 10, bias=bias)
    gate, up, down = nn.Linear(6, 10, bias=bias), nn.Linear(6, 10, bias=bias), nn.Linear(10, 6, bias=bias)
    for ours, *theirs in ((layer.expand, gate, up), (layer.contract, down)):
        for name, parameter in ours.named_parameters():
            nn.init.normal_(parameter)
            for linear, part in zip(theirs, parameter.detach().chunk(len(theirs))):
                linear.load_state_dict({name: part}, strict=False)
    x = torch.randn(2, 3, 6)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = layer(mine), down(F.silu(gate(other)) * up(other))
    assert torch.allclose(output, expected, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    assert torch.allclose(mine.grad, other.grad, atol=1e-4)
    assert torch.allclose(layer.expand.weight.grad, torch.cat((gate.weight.grad, up.weight.grad)), atol=1e-4)
    assert torch.allclose(layer.contract.weight.grad, down.weight.grad, atol=1e-4)


def test_a_closed_gate_lets_nothing_through_and_an_open_one_everything():
    # One hidden unit: gate z = 20 x, SiLU(20) = 20 and SiLU(-20) = 0; up 3 x; down 1: SiLU(20 x) 3 x is 60, or 0.
    layer = SwiGLU(1, 1)
    layer.expand.weight.data, layer.contract.weight.data = torch.tensor([[20.0], [3.0]]), torch.ones(1, 1)
    assert layer(torch.tensor([[1.0], [-1.0]])).flatten().tolist() == pytest.approx([60.0, 0.0], abs=1e-4)


def test_widths_are_the_published_ones():
    # Llama 7B: 8/3 of 4096 is 10922.7, the next multiple of 256 is 11008. 8/3 of 256 is 682.7, the next of 8 is 688.
    # 8/3 of 96 is 256 already.
    assert swiglu_width(4096, 256) == 11008
    assert swiglu_width(256) == 688
    assert swiglu_width(96) == 256 and isinstance(swiglu_width(96), int)


@pytest.mark.parametrize("d_model", [128, 192, 200, 384, 768, 1000, 4096])
def test_it_has_as_many_weights_as_a_feed_forward_layer(d_model):
    with torch.device("meta"):
        gated, plain = SwiGLU(d_model), FeedForward(d_model, bias=False)
    n_gated, n_plain = (sum(parameter.numel() for parameter in layer.parameters()) for layer in (gated, plain))
    assert n_plain <= n_gated <= 1.02 * n_plain


def test_biases_are_off_unless_asked_for():
    assert [name for name, _ in SwiGLU(4).named_parameters()] == ["expand.weight", "contract.weight"]
    assert [tuple(parameter.shape) for parameter in SwiGLU(4, 5, bias=True).parameters()] == [(10, 4), (10,), (4, 5), (4,)]
