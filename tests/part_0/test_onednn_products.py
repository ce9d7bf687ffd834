"""Training products by oneDNN are those of torch's own linear layer, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_0.onednn import onednn_products
from part_3.modern_gpt import ModernGPT, ModernGPTConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 4, 5)])
def test_product_and_gradients_are_those_of_torch(shape):
    torch.manual_seed(0)
    linear = nn.Linear(5, 6, bias=False)
    x, weight = torch.randn(shape, requires_grad=True), linear.weight.detach().clone().requires_grad_()
    other = x.detach().clone().requires_grad_()
    with onednn_products(linear):
        y = linear(x)
    expected = F.linear(other, weight)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()  # after the context was left
    (expected * direction).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(linear.weight.grad, weight.grad)


def test_inputs_and_gradients_that_are_not_contiguous_are_multiplied_rightly():
    torch.manual_seed(0)
    linear = nn.Linear(4, 3, bias=False)
    x = torch.randn(4, 6).t().requires_grad_()
    with onednn_products(linear):
        y = linear(x)
    direction = torch.randn(3, 6).t()
    y.backward(direction)
    torch.testing.assert_close(y, x @ linear.weight.t())
    torch.testing.assert_close(linear.weight.grad, direction.t() @ x.detach())


def test_a_frozen_weight_gets_no_gradient_and_the_input_does():
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    with onednn_products(linear):
        linear(x).sum().backward()
    assert linear.weight.grad is None
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(2, 4))


def test_a_model_learns_the_same():
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(vocab_size=30, block_size=16, n_layer=2, n_head=2, d_model=16))
    tokens, gradients = torch.randint(30, (3, 9)), []
    for context in (lambda: onednn_products(model), lambda: torch.enable_grad()):
        with context():
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_only_plain_fp32_layers_without_bias_are_changed_and_all_come_back():
    model = nn.ModuleDict({"plain": nn.Linear(4, 4, bias=False), "bias": nn.Linear(4, 4),
                           "fp64": nn.Linear(4, 4, bias=False, dtype=torch.float64)})
    with pytest.raises(KeyError), onednn_products(model):
        assert [name for name, module in model.items() if "forward" in vars(module)] == ["plain"]
        raise KeyError
    assert not any("forward" in vars(module) for module in model.values())
    with torch.autocast("cpu", torch.bfloat16), onednn_products(model):
        assert "forward" not in vars(model["plain"])  # bf16 is oneDNN's already
