"""The facts of lesson 4.2 about numbers of 16 bits, and what mixed precision does about them."""

import pytest
import torch
from torch import nn

from part_0.device import autocast, grad_scaler
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.demo_precision import SMALLEST, running_sum
from part_4.grad_accumulation import accumulate_gradients

CPU = torch.device("cpu")


def bf16(value):
    return torch.tensor(value, dtype=torch.bfloat16)


def fp16(value):
    return torch.tensor(value, dtype=torch.float16)


def test_bf16_has_eight_significant_bits():
    # From 1 to 2 the numbers lie 2^-7 = 1/128 apart, from 256 to 512 they lie 2 apart; a tie goes to the even neighbour.
    assert bf16(1.0) + 2 ** -7 == 1.0078125
    assert bf16(1.0) + 2 ** -8 == 1.0 and bf16(1.0) + 2 ** -9 == 1.0
    assert bf16(1.0) - 2 ** -8 == 0.99609375  # below 1 they lie twice as dense
    assert bf16(256.0) + 1 == 256.0 and bf16(256.0) + 2 == 258.0 and bf16(258.0) + 1 == 260.0
    assert bf16(1e38).isfinite() and bf16(1e-38) > 0  # but the range is fp32's


def test_fp16_has_eleven_significant_bits_and_a_small_range():
    assert fp16(1.0) + 2 ** -10 == 1.0009765625 and fp16(1.0) + 2 ** -11 == 1.0
    assert fp16(2048.0) + 1 == 2048.0
    assert fp16(65504.0).isfinite() and fp16(65504.0) + 32 == torch.inf
    assert fp16(SMALLEST) > 0 and fp16(SMALLEST / 2) == 0 and fp16(0.51 * SMALLEST) == SMALLEST


def test_small_updates_never_move_a_bf16_weight_and_move_its_fp32_master():
    # The next number above 1 is 1 + 1/128, and 1e-3 is less than half of that. A thousand of them would double the weight.
    assert running_sum(torch.tensor([1.0] + 1000 * [1e-3]), torch.bfloat16)[-1] == 1.0
    assert running_sum(torch.tensor([1.0] + 1000 * [1e-3]), torch.float32)[-1] == pytest.approx(2.0, abs=1e-3)


def test_a_sum_kept_in_bf16_stops_growing():
    # Ones: at 256 the next number is 258, and 257 lies half way and goes to the even one. torch.sum keeps its sum in fp32.
    assert running_sum(torch.ones(600), torch.bfloat16)[254:258] == [255.0, 256.0, 256.0, 256.0]
    assert running_sum(torch.ones(600), torch.bfloat16)[-1] == 256.0
    assert running_sum(torch.ones(600), torch.float32)[-1] == 600.0
    assert torch.ones(600, dtype=torch.bfloat16).sum() == 600.0  # 600 is a bf16 number: 75 * 8


def test_a_scaled_loss_brings_small_gradients_through_fp16():
    gradients = torch.tensor([1e-8, -2e-7, 3e-4])
    assert (gradients.half() == 0).tolist() == [True, False, False]
    assert ((gradients * 2.0 ** 16).half().float() / 2.0 ** 16).tolist() == pytest.approx(gradients.tolist(), rel=1e-3)


def test_autocast_computes_in_bf16_and_keeps_weights_gradients_and_momentum_in_fp32():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(8, 64)
    optimizer = torch.optim.AdamW(layer.parameters())
    with autocast(CPU, torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    rounded = x.bfloat16().double() @ layer.weight.bfloat16().double().T  # inputs rounded, products and sums exact
    assert torch.equal(y, rounded.bfloat16()) or (y.double() - rounded).abs().max() < 2 ** -8 * rounded.abs().max()
    assert (y.double() - x.double() @ layer.weight.double().T).abs().max() > 1e-4
    y.float().square().mean().backward()
    optimizer.step()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    assert optimizer.state[layer.weight]["exp_avg"].dtype == torch.float32
    with autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32


def test_a_model_under_autocast_has_fp32_gradients_close_to_those_in_fp32():
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(256, 16, 2, 2, 32))
    tokens = torch.randint(256, (4, 17))
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        accumulate_gradients(model, tokens[:, :-1], tokens[:, 1:], 2, dtype)
        assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}
        gradients[dtype] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    distance = (gradients[torch.bfloat16] - gradients[torch.float32]).norm() / gradients[torch.float32].norm()
    assert 1e-5 < distance < 0.03


def scaled_gradient(scale):
    """A weight of 0 with the gradient (3, 4), norm 5, scaled; its SGD with lr 1, and the scaler."""
    weight = torch.zeros(2, requires_grad=True)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=scale), torch.optim.SGD([weight], lr=1.0)
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    return weight, optimizer, scaler


def test_clipping_comes_after_unscaling():
    # Clipped to norm 1 the gradient (3, 4) is (0.6, 0.8), and the step minus that.
    weight, optimizer, scaler = scaled_gradient(1024.0)
    assert weight.grad.tolist() == [3072.0, 4096.0]
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_([weight], 1.0).item() == pytest.approx(5.0)
    scaler.step(optimizer)
    assert weight.tolist() == pytest.approx([-0.6, -0.8], rel=1e-5)

    # The other way round the *scaled* gradient has norm 1, and the step is 1024 times too short.
    weight, optimizer, scaler = scaled_gradient(1024.0)
    assert nn.utils.clip_grad_norm_([weight], 1.0).item() == pytest.approx(5120.0)
    scaler.step(optimizer)
    assert weight.tolist() == pytest.approx([-0.6 / 1024, -0.8 / 1024], rel=1e-5)


def test_a_step_with_an_infinite_gradient_is_left_out_and_the_scale_halved():
    weight, optimizer, scaler = scaled_gradient(1024.0)
    weight.grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.0, 0.0] and scaler.get_scale() == 512.0


def test_only_fp16_gets_a_scaler_that_scales():
    for dtype, factor in ((torch.float16, 2.0 ** 16), (torch.bfloat16, 1.0), (torch.float32, 1.0)):
        assert grad_scaler(CPU, dtype).scale(torch.tensor(1.0)) == factor
