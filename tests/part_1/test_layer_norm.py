import pytest
import torch
from torch import nn

from part_1.layer_norm import LayerNorm, layer_norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_torch_s_layer_norm_forward_and_backward(bias, fused):
    torch.manual_seed(0)
    ours, theirs = LayerNorm(10, bias=bias, fused=fused), nn.LayerNorm(10, bias=bias)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 10) * 5 + 2
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = ours(mine), theirs(other)
    assert torch.allclose(output, expected, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-4)


def test_numbers_worked_by_hand():
    # (1, 2, 3, 6): mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5, root 1.870829
    normalised = layer_norm(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.ones(4), eps=0.0)
    assert normalised.tolist() == pytest.approx([-2 / 1.870829, -1 / 1.870829, 0, 3 / 1.870829], abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_eps_is_an_argument(fused):
    x = torch.tensor([[1.0, 2.0, 4.0]])
    assert torch.allclose(LayerNorm(3, eps=0.5, fused=fused)(x), nn.LayerNorm(3, eps=0.5)(x), atol=1e-6)


def test_only_the_fused_path_calls_torch_s_kernel(monkeypatch):
    def kernel(*arguments):
        raise AssertionError("torch's kernel was called")

    monkeypatch.setattr("torch.nn.functional.layer_norm", kernel)
    LayerNorm(3, fused=False)(torch.randn(2, 3))
    with pytest.raises(AssertionError, match="kernel"):
        LayerNorm(3)(torch.randn(2, 3))


def test_the_result_has_the_input_s_dtype():
    assert layer_norm(torch.randn(2, 4).bfloat16(), torch.ones(4), torch.zeros(4)).dtype == torch.bfloat16


def test_eps_is_inside_the_root():
    # A constant row has variance 0: 0 / sqrt(0 + eps) = 0, and a tiny spread d gives d / sqrt(d^2 + eps).
    assert layer_norm(torch.full((3,), 7.0), torch.ones(3)).tolist() == [0, 0, 0]
    tiny = layer_norm(torch.tensor([1e-3, -1e-3]), torch.ones(2), eps=1e-6)
    assert tiny[0].item() == pytest.approx(1e-3 / (1e-6 + 1e-6) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_statistics_are_fp32_under_autocast(fused):
    torch.manual_seed(0)
    x = (torch.randn(8, 512) + 30).bfloat16()  # in bf16, 30 and its neighbour are 0.125 apart, and a sum soon stands still
    exact = nn.functional.layer_norm(x.double(), (512,))
    with torch.autocast("cpu", torch.bfloat16):
        output = LayerNorm(512, fused=fused)(x)
    # What is left is the rounding of the result: bf16 keeps 8 bits, so at most 2^-9 of the value.
    assert ((output.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
