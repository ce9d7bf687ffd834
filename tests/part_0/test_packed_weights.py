"""Packed weights change the speed of a linear layer and nothing else, and only for as long as the context lasts."""

import copy

import pytest
import torch
from torch import nn

from part_0.onednn import packed_weights

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="weights are packed by oneDNN")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class OtherLinear(nn.Linear):
    """May compute something else than its parent."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 24), nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), OtherLinear(40, 40),
                         nn.Linear(40, 16, bias=False)).requires_grad_(False)


def are_packed(model):
    return ["forward" in vars(module) for module in model]


NONE = [False] * 6


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 17), (5,)])
def test_outputs_equal_the_plain_ones(model, shape):
    tokens = torch.randint(20, shape)
    expected = model(tokens)
    with packed_weights(model):
        assert torch.allclose(model(tokens), expected, atol=1e-6)
    assert torch.equal(model(tokens), expected)


def test_a_layer_is_its_matrix_and_its_bias():
    linear = nn.Linear(3, 2).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    linear.bias.copy_(torch.tensor([10.0, 20]))
    with packed_weights(linear):
        assert linear(torch.tensor([[1.0, 1, 2]])).tolist() == [[19, 41]]  # 1 + 2 + 6 + 10, 4 + 5 + 12 + 20
        assert torch.nn.Sequential(linear)(torch.tensor([[[1.0, 0, 0]]])).tolist() == [[[11, 24]]]


@needs_onednn
def test_only_plain_linear_layers_run_packed_and_only_meanwhile(model):
    state = copy.deepcopy(model.state_dict())
    with packed_weights(model):
        assert are_packed(model) == [False, True, False, False, False, True]
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        tokens = torch.tensor([[1]])
        before = model(tokens)
        model[1].weight.zero_()
        assert torch.equal(model(tokens), before)  # the packed copy is what runs
    assert are_packed(model) == NONE


def test_an_exception_inside_leaves_the_layers_as_they_were(model):
    with pytest.raises(KeyError):
        with packed_weights(model):
            raise KeyError
    assert are_packed(model) == NONE


def test_where_gradients_are_recorded_they_are_the_plain_ones(model):
    model.requires_grad_(True)
    tokens = torch.randint(20, (2, 3))
    with torch.enable_grad():
        plain = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()))
        with packed_weights(model):
            inside = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()))
    assert all(torch.equal(mine, other) for mine, other in zip(inside, plain))


@needs_onednn
def test_a_failure_while_packing_leaves_the_layers_as_they_were(model, monkeypatch):
    original = nn.Parameter.detach
    calls = []

    def detach(parameter):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return original(parameter)

    monkeypatch.setattr(nn.Parameter, "detach", detach, raising=False)
    with pytest.raises(MemoryError):
        with packed_weights(model):
            pass
    assert len(calls) == 2 and are_packed(model) == NONE


def test_weights_changed_afterwards_are_used(model):
    tokens = torch.randint(20, (2, 3))
    with packed_weights(model):
        model(tokens)
    model[5].weight.mul_(2)
    doubled = model(tokens)
    model[5].weight.div_(2)
    assert torch.allclose(doubled, 2 * model(tokens), atol=1e-6)
    with packed_weights(model):
        once = model(tokens)
    model[5].weight.mul_(2)
    with packed_weights(model):  # packed anew
        assert torch.allclose(model(tokens), 2 * once, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_stay_as_they_are(model, dtype):
    model = model.to(dtype)
    tokens = torch.randint(20, (2, 3))
    expected = model(tokens)
    with packed_weights(model):
        assert are_packed(model) == NONE and torch.equal(model(tokens), expected)


def test_under_autocast_nothing_is_packed(model):
    tokens = torch.randint(20, (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens)
        with packed_weights(model):
            assert are_packed(model) == NONE
            assert torch.equal(model(tokens), expected) and model(tokens).dtype == torch.bfloat16


def test_without_onednn_nothing_is_packed(model, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with packed_weights(model):
        assert are_packed(model) == NONE


def test_weights_on_another_device_stay_as_they_are(model):
    with packed_weights(model.to("meta")):
        assert are_packed(model) == NONE
