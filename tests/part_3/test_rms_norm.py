import pytest
import torch
from torch import nn

from part_3.rms_norm import RMSNorm, rms_norm

BOTH = pytest.mark.parametrize("fused", [True, False])


@BOTH
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_equals_torch_s_rms_norm_forward_and_backward(fused, eps):
    torch.manual_seed(0)
    ours, theirs = RMSNorm(10, eps, fused), nn.RMSNorm(10, eps)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 10) * 2 + 1
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = ours(mine), theirs(other)
    assert torch.allclose(output, expected, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-4)


def test_numbers_worked_by_hand():
    # (1, 2, 2, 4): mean square (1 + 4 + 4 + 16) / 4 = 6.25, root 2.5; the mean, 2.25, is not taken away
    normalised = rms_norm(torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, -1.0, 10.0]), eps=0.0)
    assert normalised.tolist() == pytest.approx([0.4, 0.8, -0.8, 16.0])


@BOTH
def test_a_new_layer_gives_every_token_the_mean_square_1(fused):
    torch.manual_seed(0)
    assert RMSNorm(64, fused=fused)(torch.randn(5, 64) * 9).square().mean(-1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)


@BOTH
def test_eps_is_1e_5_and_inside_the_root(fused):
    # A zero vector: 0 / sqrt(0 + eps) = 0. A tiny one: d / sqrt(d^2 + eps), with d = 1e-3 1 / sqrt(11).
    layer = RMSNorm(2, fused=fused)
    assert layer(torch.zeros(2)).tolist() == [0, 0]
    assert layer(torch.tensor([1e-3, -1e-3])).tolist() == pytest.approx([11**-0.5, -(11**-0.5)], rel=1e-4)
    assert rms_norm(torch.tensor([1e-3]), torch.ones(1)).item() == pytest.approx(11**-0.5, rel=1e-4)


@BOTH
def test_the_length_of_the_input_does_not_matter(fused):
    torch.manual_seed(0)
    layer, x = RMSNorm(16, fused=fused), torch.randn(4, 16)
    for scale in (0.5, 3.0, 1e4):
        assert torch.allclose(layer(scale * x), layer(x), atol=2e-4)
    assert torch.allclose(layer(-x), -layer(x))


def assert_only_the_result_is_rounded(output, exact):
    # Then it is the bf16 number nearest to the truth, but for rare ties; each further rounding would change many.
    assert output.dtype == torch.bfloat16
    assert (output != exact.bfloat16()).double().mean() < 0.01


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_input_has_fp32_statistics(fused, autocast):
    torch.manual_seed(0)
    layer, x = RMSNorm(512, fused=fused), (torch.randn(8, 512) + 30).bfloat16()
    nn.init.normal_(layer.weight, 1, 0.1)
    exact = nn.functional.rms_norm(x.double(), (512,), layer.weight.double(), 1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_only_the_result_is_rounded(layer(x), exact)


@BOTH
def test_weights_in_bf16_are_multiplied_in_fp32(fused):
    torch.manual_seed(0)
    layer, x = RMSNorm(64, fused=fused).bfloat16(), torch.randn(8, 64).bfloat16()
    nn.init.normal_(layer.weight)
    exact = nn.functional.rms_norm(x.double(), (64,), layer.weight.double(), 1e-5)
    assert_only_the_result_is_rounded(layer(x), exact)


@BOTH
def test_a_square_too_large_for_fp16_does_not_overflow(fused):
    # 300^2 = 90,000 is above fp16's largest number, 65,504: with fp16 statistics the result would be 300 / inf = 0.
    output = RMSNorm(4, fused=fused)(torch.tensor([300.0, -300.0, 300.0, 300.0]).half())
    assert output.dtype == torch.float16 and output.tolist() == [1, -1, 1, 1]


@BOTH
def test_fp32_input_stays_fp32_under_autocast(fused):
    torch.manual_seed(0)
    x = torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        output = RMSNorm(32, fused=fused)(x)
    assert output.dtype == torch.float32
    assert torch.allclose(output, x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-4)


def test_only_the_fused_path_calls_torch_s_function(monkeypatch):
    def kernel(*arguments):
        raise AssertionError("torch's function was called")

    monkeypatch.setattr("torch.nn.functional.rms_norm", kernel)
    RMSNorm(3, fused=False)(torch.randn(2, 3))
    with pytest.raises(AssertionError, match="function"):
        RMSNorm(3)(torch.randn(2, 3))
