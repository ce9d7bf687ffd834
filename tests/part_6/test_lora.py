"""LoRA is nothing at first, learns in thin matrices alone, and ends as plain weights."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.optimizer import build_optimizers
from part_5.hybrid import HybridConfig, hybrid_gpt
from part_6.lora import LoRALinear, add_lora, merge_lora

V = 20
TOKENS = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
DENSE = {"plain": {}, "biases": dict(bias=True, norm="layernorm", mlp="gelu", positions="learned"),
         "grouped, QK-norm, tied": dict(n_kv_head=1, qk_norm=True, tie_embeddings=True)}
EXPERTS = dict(n_expert=4, noisy=True, n_shared=1)


def make_model(**options):
    torch.manual_seed(0)
    kind = HybridConfig if "n_expert" in options else ModernGPTConfig
    model = hybrid_gpt(kind(V, 8, 2, 2, 16, **options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def with_trained_adapters(model):
    """B as if it had been learnt."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.B, 0.0, 0.3)
    return model


def small_layer():
    linear = nn.Linear(2, 2)
    layer = LoRALinear(linear, r=1, alpha=2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
        layer.A.copy_(torch.tensor([[1.0, -1.0]]))
        layer.B.copy_(torch.tensor([[2.0], [0.5]]))
    return layer


def test_an_adapter_by_hand():
    # W x = (1 + 6, 3 + 12) = (7, 15), and the bias makes (17, 35). A x = 1 - 3 = -2, B A x = (-4, -1), times 2: (-8, -2).
    layer = small_layer()
    assert layer(torch.tensor([1.0, 3.0])).tolist() == [9, 33]
    # W + 2 B A = [[1 + 4, 2 - 4], [3 + 1, 4 - 1]]
    merged = layer.merged()
    assert type(merged) is nn.Linear and merged.weight.tolist() == [[5, -2], [4, 3]] and merged.bias.tolist() == [10, 20]
    assert merged(torch.tensor([1.0, 3.0])).tolist() == [9, 33]
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_the_adapters_count_alpha_over_r_times():
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 3, bias=False, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    layer = LoRALinear(linear, r=4, alpha=6)
    nn.init.normal_(layer.B)
    expected = x @ linear.weight.T + 1.5 * torch.einsum("ni,ri,or->no", x, layer.A, layer.B)
    assert torch.allclose(layer(x), expected, atol=1e-12)  # in fp64: the adapters have the weights' dtype
    assert layer.A.shape == (4, 5) and layer.B.shape == (3, 4)


def test_a_is_random_within_the_bounds_of_a_linear_layer_and_b_is_zero():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 32), r=16, alpha=16)
    # Uniform in +- 1 / sqrt(64) has the standard deviation 1 / (8 sqrt 3).
    assert layer.A.abs().max() <= 1 / 8 and layer.A.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert (layer.B == 0).all()


@pytest.mark.parametrize("options", [*DENSE.values(), EXPERTS, EXPERTS | dict(alpha=0.5)])
def test_at_the_start_nothing_changes_and_merging_gives_the_model_back(options):
    model = make_model(**options).eval()
    original = copy.deepcopy(model)
    expected = model(TOKENS)
    assert add_lora(model, 3, 5.0) is model and not model.training
    assert torch.equal(model(TOKENS), expected)
    assert merge_lora(model) is model
    for (name, mine), (other_name, theirs) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(mine, theirs)


@pytest.mark.parametrize("options", [*DENSE.values(), EXPERTS, EXPERTS | dict(alpha=0.5)])
def test_merged_weights_equal_adapters_and_have_the_old_names(options):
    model = make_model(**options).eval()
    names, before = list(model.state_dict()), model(TOKENS)
    with_trained_adapters(add_lora(model, 3, 5.0))
    expected = model(TOKENS)
    assert (expected - before).abs().max() > 0.1
    merge_lora(model)
    assert list(model.state_dict()) == names and not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.allclose(model(TOKENS), expected, atol=1e-5)


def may_learn(name):
    """By name: adapters, norms, embeddings and head; within the blocks nothing else."""
    last, *rest = name.split(".")[::-1]
    return last in ("A", "B") or not name.startswith("blocks.") or "norm" in rest[0]


@pytest.mark.parametrize("options", [*DENSE.values(), EXPERTS, EXPERTS | dict(alpha=0.5)])
def test_only_adapters_norms_embeddings_and_head_learn(options):
    model = add_lora(make_model(**options), 2, 4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert sum(not may_learn(name) for name in before) >= 2 * 4  # two blocks of four matrices
    assert all(parameter.requires_grad == may_learn(name) for name, parameter in model.named_parameters())
    optimizers = build_optimizers(model, "adamw", 0.01, 0.95, weight_decay=0.1)
    for _ in range(2):  # at first B is zero, so that A has a gradient of zero
        F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == may_learn(name), name
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != may_learn(name), name


def test_at_first_only_b_has_a_gradient_and_that_is_the_product_s():
    # y = s B A x at B = 0: dL/dB = s g (A x)^T, dL/dA = s B^T g x^T = 0.
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(5, 3), r=2, alpha=3)
    x, g = torch.randn(7, 5), torch.randn(7, 3)
    layer(x).backward(g)
    assert (layer.A.grad == 0).all() and layer.linear.weight.grad is None and layer.linear.bias.grad is None
    assert torch.allclose(layer.B.grad, 1.5 * g.T @ (x @ layer.A.T), atol=1e-5)


def test_adapters_hold_r_times_in_plus_out_numbers():
    model = ModernGPT(ModernGPTConfig(V, 8, 3, 4, 32, n_kv_head=2, d_hidden=40))
    n_before = model.n_params()
    add_lora(model, 4, 8)
    # qkv 32 -> 64, project 32 -> 32, expand 32 -> 80, contract 40 -> 32: 96 + 64 + 112 + 72 = 344 a rank and block.
    assert model.n_params() - n_before == 3 * 4 * 344


@pytest.mark.parametrize("r, alpha, complaint", [
    (0, 1, "rank r must be at least 1, not 0"), (-3, 1, "rank r must be at least 1, not -3"),
    (2, 0, "alpha must be above 0 and finite, not 0"), (2, -1.0, "alpha .* not -1.0"),
    (2, math.inf, "alpha .* not inf"), (2, math.nan, "alpha .* not nan")])
def test_a_rank_or_factor_that_cannot_be_is_refused(r, alpha, complaint):
    with pytest.raises(ValueError, match=complaint):
        add_lora(make_model(), r, alpha)


def test_adapters_on_adapters_are_refused():
    model = add_lora(make_model(), 2, 4)
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        add_lora(model, 2, 4)
    add_lora(merge_lora(model), 2, 4)  # once they are merged there is room for others
