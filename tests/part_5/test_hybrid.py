"""Experts as a choice of ModernGPT's blocks: where they stand, the ends at which they are the dense model, what is counted
and logged of them, decoding with the caches, and checkpoints of both kinds."""

import base64
import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from part_0.cli import InputError
from part_2.checkpoint import save_checkpoint
from part_2.gpt import GPT, GPTConfig
from part_3.generate import generate
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, attention_maps, reread
from part_3.swiglu import SwiGLU
from part_4.optimizer import OPTIMIZERS, Muon, build_optimizers, matrices_of_blocks
from part_4.run_logger import active_params, step_flops
from part_5.hybrid import (
    DenseAndMoE,
    HybridConfig,
    after_update,
    auxiliary_loss,
    hybrid_gpt,
    load_model,
    moe_layers,
)
from part_5.moe import MoE

SHAPE = dict(vocab_size=40, block_size=64, n_layer=2, n_head=4, d_model=24, n_kv_head=2, d_hidden=32)
MOE = dict(n_expert=4, top_k=2)
TOKENS = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(0))
VARIANTS = pytest.mark.parametrize("options", [
    dict(), dict(n_shared=1), dict(alpha=0.3), dict(moe_every=2), dict(top_k=1), dict(score="sigmoid", noisy=True),
    dict(renormalise=False), dict(first_dense=1, n_shared=2, top_k=3)], ids=str)


def with_large_weights(model):
    """Weights large enough for attention and routing to be far from even, and norms other than at their start."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def make_model(seed=0, **options):
    """In eval mode, its routers with a bias."""
    torch.manual_seed(seed)
    model = with_large_weights(hybrid_gpt(HybridConfig(**{**SHAPE, **MOE, **options}))).eval()
    for layer in moe_layers(model):
        layer.router.bias.normal_(0, 0.2)
    return model


def make_dense(state, **options):
    model = ModernGPT(ModernGPTConfig(**{**SHAPE, **options})).eval()
    model.load_state_dict(state)
    return model


def gradients(model, tokens=TOKENS):
    """The gradient of a loss that all logits enter, by name."""
    model.zero_grad(set_to_none=True)
    model(tokens).logsumexp(-1).mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def swiglu(x, expand, contract):
    """Equation 6 of Shazeer for one token x (C,)."""
    gate, up = (expand @ x).chunk(2)
    return contract @ (gate * torch.sigmoid(gate) * up)


def moe_by_the_token(layer, x):
    """The layer's result for tokens (N, C), one after the other in fp64, with no capacity and no noise."""
    weights, router, result = {name: w.detach().double() for name, w in layer.state_dict().items()}, layer.router, []
    for token in x.detach().double():
        logits = weights["router.gate.weight"] @ token
        scores = logits.exp() / logits.exp().sum() if router.score == "softmax" else 1 / (1 + (-logits).exp())
        chosen = sorted(range(len(scores)), key=lambda e: -(scores + weights["router.bias"])[e])[:router.top_k]
        total = sum(scores[e] for e in chosen) if router.renormalise else 1
        y = sum(scores[e] / total * swiglu(token, weights["experts.expand.weight"][e], weights["experts.contract.weight"][e])
                for e in chosen)
        if layer.shared is not None:
            y = y + swiglu(token, weights["shared.expand.weight"], weights["shared.contract.weight"])
        result.append(y)
    return torch.stack(result)


# Which layers

@pytest.mark.parametrize("moe_every, first_dense, expected", [
    (1, 0, "EEEEEE"), (2, 0, "-E-E-E"), (3, 0, "--E--E"), (4, 0, "---E--"), (6, 0, "-----E"), (1, 1, "-EEEEE"),
    (1, 3, "---EEE"), (1, 5, "-----E"), (2, 1, "-E-E-E"), (2, 2, "---E-E"), (2, 3, "---E-E"), (3, 3, "-----E")])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_experts_stand_in_every_nth_layer_but_not_in_the_first_ones(moe_every, first_dense, expected, alpha):
    config = HybridConfig(**{**SHAPE, "n_layer": 6}, moe_every=moe_every, first_dense=first_dense, alpha=alpha)
    assert "".join("E" if config.has_experts(layer) else "-" for layer in range(6)) == expected
    model = hybrid_gpt(config)
    kinds = {SwiGLU: "-", MoE if alpha is None else DenseAndMoE: "E"}
    assert "".join(kinds[type(block.feed_forward)] for block in model.blocks) == expected
    inside = [block.feed_forward if alpha is None else block.feed_forward.moe
              for block, kind in zip(model.blocks, expected) if kind == "E"]
    assert all(a is b for a, b in zip(moe_layers(model), inside, strict=True))


def test_the_dense_layers_have_the_dense_width_and_the_experts_theirs():
    model = make_model(first_dense=1, d_expert=8)
    assert model.blocks[0].feed_forward.expand.weight.shape == (64, 24)
    assert model.blocks[1].feed_forward.experts.expand.weight.shape == (4, 16, 24)


def test_each_layer_has_experts_and_a_router_of_its_own():
    model = hybrid_gpt(HybridConfig(**SHAPE, **MOE))
    first, second = moe_layers(model)
    assert len({id(parameter) for parameter in model.parameters()}) == len(list(model.parameters()))
    assert not torch.equal(first.experts.expand.weight, second.experts.expand.weight)
    assert not torch.equal(first.router.gate.weight, second.router.gate.weight)
    assert first.router.bias.data_ptr() != second.router.bias.data_ptr()


def test_a_dense_config_gives_the_dense_model():
    torch.manual_seed(0)
    model = hybrid_gpt(ModernGPTConfig(**SHAPE))
    torch.manual_seed(0)
    expected = ModernGPT(ModernGPTConfig(**SHAPE)).state_dict()
    assert moe_layers(model) == [] and list(model.state_dict()) == list(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


# The layer itself, and its harmless ends

@VARIANTS
def test_a_block_adds_what_its_experts_give_token_by_token(options):
    model, seen = make_model(**options), []
    for block in model.blocks:
        block.feed_forward.register_forward_hook(lambda layer, inputs, result: seen.append((layer, inputs[0], result)))
    with torch.no_grad():
        model(TOKENS)
    assert len(seen) == 2
    for layer, x, result in seen:
        x, result = x.flatten(0, 1), result.flatten(0, 1)
        dense = None
        if not isinstance(layer, MoE):
            of = layer.dense if isinstance(layer, DenseAndMoE) else layer
            expand, contract = of.expand.weight.double(), of.contract.weight.double()
            dense = torch.stack([swiglu(token, expand, contract) for token in x.double()])
        if isinstance(layer, MoE):
            expected = moe_by_the_token(layer, x)
        elif isinstance(layer, DenseAndMoE):
            expected = 0.3 * dense + 0.7 * moe_by_the_token(layer.moe, x)
        else:
            expected = dense
        assert expected.abs().mean() > 0.1
        assert torch.allclose(result.double(), expected, atol=1e-4)


def without(state, *parts):
    """The state dict with these parts of the names taken out, and what else belongs to a MoE layer left out."""
    return {name.replace(".dense", "").replace(".moe", ""): weight for name, weight in state.items()
            if not any(part in name for part in parts)}


def test_with_alpha_1_it_is_the_dense_model_and_with_alpha_0_the_one_of_experts():
    only_dense, only_moe = make_model(alpha=1.0), make_model(alpha=0.0)
    dense = make_dense(without(only_dense.state_dict(), ".moe."))
    assert torch.equal(only_dense(TOKENS), dense(TOKENS))
    moe = hybrid_gpt(HybridConfig(**SHAPE, **MOE)).eval()
    moe.load_state_dict(without(only_moe.state_dict(), ".dense."))
    assert torch.equal(only_moe(TOKENS), moe(TOKENS))
    assert not torch.allclose(only_dense(TOKENS), only_moe(TOKENS), atol=0.1)  # the same weights
    grads = gradients(only_dense)
    assert all(grad.abs().max() == 0 for name, grad in grads.items() if ".moe.experts" in name)
    for name, grad in gradients(dense).items():
        assert torch.allclose(grads[name.replace("feed_forward.", "feed_forward.dense.")], grad, atol=1e-6), name


def test_the_blend_by_hand():
    # 0.25 * 8 + 0.75 * 4 = 5
    layer = DenseAndMoE(lambda x: torch.full_like(x, 8.0), lambda x: torch.full_like(x, 4.0), 0.25)
    assert layer(torch.zeros(2, 3)).tolist() == [[5.0] * 3] * 2


@pytest.mark.parametrize("options", [dict(), dict(score="sigmoid", renormalise=True), dict(alpha=0.5)], ids=str)
def test_one_expert_that_all_tokens_choose_is_the_dense_model(options):
    model = make_model(n_expert=1, top_k=1, **options)
    assert model.config.d_expert == 32
    state = {name.replace("experts.", ""): weight[0] if "experts" in name else weight
             for name, weight in model.state_dict().items() if "router" not in name}
    if options.get("alpha"):  # the same layer twice, half and half
        for block in model.blocks:
            for name in ("expand", "contract"):
                weight = getattr(block.feed_forward.moe.experts, name).weight[0]
                getattr(block.feed_forward.dense, name).weight.data.copy_(weight)
        state = without(model.state_dict(), ".moe.")
    dense = make_dense(state)
    assert torch.allclose(model(TOKENS), dense(TOKENS), atol=1e-5)
    ours = gradients(model)
    for name, grad in gradients(dense).items():
        mine = name if "feed_forward" not in name or options.get("alpha") else name.replace("ward.", "ward.experts.")
        if options.get("alpha"):  # each half gets half of it
            mine = name.replace("feed_forward.", "feed_forward.dense.")
            grad = grad / 2 if mine != name else grad
        assert torch.allclose(ours[mine].view_as(grad), grad, atol=1e-5), name


def copies_of_the_dense_layer(**options):
    """A model whose experts are all copies of the dense layer, and that dense model."""
    model = make_model(d_expert=32, **options)
    dense = ModernGPT(ModernGPTConfig(**{key: getattr(model.config, key) for key in ModernGPTConfig.__dataclass_fields__}))
    with_large_weights(dense).eval()
    state = model.state_dict()
    for name, weight in dense.state_dict().items():
        if "feed_forward" in name:
            state[name.replace("feed_forward", "feed_forward.experts")].copy_(weight)  # for each expert
        else:
            state[name].copy_(weight)
    return model, dense


def test_experts_that_are_all_copies_of_the_dense_layer_are_the_dense_layer_whoever_is_chosen():
    for options in (dict(), dict(score="sigmoid"), dict(top_k=4)):
        model, dense = copies_of_the_dense_layer(**options)
        assert torch.allclose(model(TOKENS), dense(TOKENS), atol=1e-4)


def test_every_option_reaches_the_layer():
    [layer] = moe_layers(hybrid_gpt(HybridConfig(
        **{**SHAPE, "n_layer": 1}, n_expert=5, top_k=3, d_expert=8, n_shared=2, score="sigmoid", renormalise=False,
        noisy=True, capacity_factor=1.5)))
    router = layer.router
    assert (router.n_expert, router.top_k, router.score, router.renormalise) == (5, 3, "sigmoid", False)
    assert router.noise.weight.shape == (5, 24) and layer.capacity_factor == 1.5
    assert layer.experts.expand.weight.shape == (5, 16, 24) and layer.shared.expand.weight.shape == (32, 24)
    [plain] = moe_layers(hybrid_gpt(HybridConfig(**{**SHAPE, "n_layer": 1})))
    router = plain.router
    assert (router.n_expert, router.top_k, router.score, router.renormalise) == (8, 2, "softmax", True)
    assert router.noise is plain.capacity_factor is plain.shared is None


# Widths, counts and first weights

@pytest.mark.parametrize("d_hidden, top_k, n_shared, expected", [
    (64, 2, 0, 32), (64, 1, 0, 64), (64, 3, 0, 24), (64, 2, 1, 24), (64, 4, 4, 8), (40, 2, 0, 24), (48, 2, 0, 24),
    (50, 2, 0, 32), (8, 4, 0, 8)])
def test_an_expert_is_as_wide_as_the_dense_layer_divided_by_those_a_token_uses_rounded_up_to_8(
        d_hidden, top_k, n_shared, expected):
    shape = {**SHAPE, "d_hidden": d_hidden}
    config = HybridConfig(**shape, n_expert=8, top_k=top_k, n_shared=n_shared)
    assert config.d_expert == expected
    assert HybridConfig(**shape, n_expert=8, top_k=top_k, n_shared=n_shared, d_expert=5).d_expert == 5


def test_a_token_uses_as_many_weights_as_in_the_dense_model_besides_the_router():
    dense = ModernGPT(ModernGPTConfig(**{**SHAPE, "d_hidden": 64}))
    for options, routers in ((dict(), 2), (dict(moe_every=2), 1), (dict(top_k=4), 2), (dict(top_k=1, n_shared=1), 2)):
        model = hybrid_gpt(HybridConfig(**{**SHAPE, "d_hidden": 64}, **{**dict(n_expert=8, top_k=2), **options}))
        assert active_params(model) == dense.n_params() + routers * 8 * 24


def test_weights_counted_by_hand():
    # C = 24, an expert 3 * 24 * 16 = 1152, of which a token uses 2 of 4, and a shared one; the router 4 * 24 = 96, its noise
    # as much. Attention: qkv 24 * (4 + 2 + 2) * 6 = 1152, project 576; norms 2 * 24; embedding and head 40 * 24, norm 24.
    rest = 2 * (1152 + 576 + 48) + 2 * 960 + 24
    for options, all_of_them, used in (
            (dict(), 4 * 1152 + 96, 2 * 1152 + 96),
            (dict(noisy=True), 4 * 1152 + 192, 2 * 1152 + 192),
            (dict(n_shared=1, d_expert=16), 5 * 1152 + 96, 3 * 1152 + 96),
            (dict(alpha=0.5), 4 * 1152 + 96 + 2304, 2 * 1152 + 96 + 2304)):  # the dense layer: 3 * 24 * 32
        model = make_model(**options)
        assert model.n_params() == rest + 2 * all_of_them
        assert active_params(model) == rest + 2 * used
    mixed = make_model(first_dense=1)
    assert mixed.n_params() == rest + 2304 + 4 * 1152 + 96 and active_params(mixed) == rest + 2304 + 2 * 1152 + 96


@pytest.mark.parametrize("options", [dict(), dict(n_shared=1, alpha=0.5), dict(moe_every=2, top_k=1)], ids=str)
def test_the_flops_of_a_step_are_those_that_torch_counts(monkeypatch, options):
    monkeypatch.setattr("part_5.experts.GROUPED_DTYPES", ())  # an F.linear for each expert, which the counter sees
    model = make_model(**options).train()
    with FlopCounterMode(display=False) as counter:
        model(TOKENS).sum().backward()
    norms, keys = 2 * 48 + 24, 25 / 2
    # Without attention's own products, of which torch's counter knows only some, and the norms, which are none.
    attention = 3 * 4 * 24 * 2 * keys
    ours = step_flops(model, 48, 24) - 48 * (6 * norms + attention)
    counted = sum(flops for operation, flops in counter.get_flop_counts()["Global"].items()
                  if "attention" not in str(operation))
    assert ours == counted


def test_all_first_weights_have_the_spread_of_gpt_2_experts_too():
    torch.manual_seed(0)
    model = hybrid_gpt(HybridConfig(512, 64, 3, 4, 64, n_expert=8, noisy=True, n_shared=1, alpha=0.5, first_dense=1))
    seen = set()
    for name, weight in model.named_parameters():
        last = name.rsplit(".", 2)[-2]
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        seen.add(name.split("feed_forward.")[-1])
        # Those that write to the residual stream: of 3 blocks, 0.02 / sqrt(6). Within five standard errors of a spread.
        expected = 0.02 / 6 ** 0.5 if last in ("project", "contract") else 0.02
        for matrix in weight if weight.ndim == 3 else [weight]:
            assert matrix.std().item() == pytest.approx(expected, rel=5 / (2 * matrix.numel()) ** 0.5), name
            assert abs(matrix.mean().item()) < 5 * expected / matrix.numel() ** 0.5, name
    assert seen >= {"expand.weight", "contract.weight", "dense.expand.weight", "dense.contract.weight",
                    "moe.experts.expand.weight", "moe.experts.contract.weight", "moe.shared.expand.weight",
                    "moe.shared.contract.weight", "moe.router.gate.weight", "moe.router.noise.weight"}
    assert all(torch.equal(layer.router.bias, torch.zeros(8)) for layer in moe_layers(model))


# Losses of the layers

def routers_of(model, seen):
    """Write down each router's input and its result, pass after pass."""
    for layer in moe_layers(model):
        layer.router.register_forward_hook(lambda router, inputs, result: seen.append((router, inputs[0], result)))


@VARIANTS
def test_no_weight_is_without_a_gradient_and_every_router_learns(options):
    for weights in (dict(), dict(balance_weight=0.0, z_weight=0.0)):
        model = make_model(**options, **weights).train()
        loss = model(TOKENS).logsumexp(-1).mean() + auxiliary_loss(model)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if "router" in name:
                assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [dict(), dict(score="sigmoid"), dict(alpha=0.5, top_k=1), dict(moe_every=2),
                                     dict(balance_weight=0.0), dict(z_weight=0.0)], ids=str)
def test_the_auxiliary_loss_is_the_mean_over_the_layers_of_both_losses_written_out(options):
    model, seen = make_model(**{**dict(balance_weight=0.3, z_weight=0.05), **options}).train(), []
    routers_of(model, seen)
    model(TOKENS)
    ours = auxiliary_loss(model)
    expected = 0.0
    for router, x, routing in seen:
        logits = x.double() @ router.gate.weight.double().T
        scores = logits.softmax(-1) if router.score == "softmax" else logits.sigmoid()
        P = (scores / scores.sum(-1, keepdim=True)).mean(0)
        f = torch.tensor([(routing.experts == e).double().mean() for e in range(4)])
        z = logits.exp().sum(-1).log().square().mean()
        expected = expected + (model.config.balance_weight * 4 * (f * P).sum() + model.config.z_weight * z) / len(seen)
    assert len(seen) == (1 if "moe_every" in options else 2)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    ours.backward(retain_graph=True)
    grads = [layer.router.gate.weight.grad.clone() for layer in moe_layers(model)]
    model.zero_grad()
    expected.backward()
    for layer, grad in zip(moe_layers(model), grads):
        assert grad.abs().max() > 0 and torch.allclose(layer.router.gate.weight.grad, grad, atol=1e-5)


def test_a_dense_model_has_nothing_to_add_and_nothing_to_log():
    model = hybrid_gpt(ModernGPTConfig(**SHAPE))
    model(TOKENS)
    assert auxiliary_loss(model) == 0 and after_update(model) == {}


def entropy(shares):
    return -sum(share * math.log(share) for share in shares if share)


def test_the_end_of_a_step_by_hand():
    model = make_model(bias_rate=0.5)
    first, second = moe_layers(model)
    first.load, second.load = torch.tensor([10.0, 2, 4, 0]), torch.tensor([4.0, 4, 4, 4])  # the mean is 4
    first.n_dropped, second.n_dropped = 3, 1
    first.balance_loss, second.balance_loss = torch.tensor(1.5), torch.tensor(2.5)
    first.z_loss, second.z_loss = torch.tensor(7.0), torch.tensor(1.0)
    for layer in (first, second):
        layer.router.bias.copy_(torch.tensor([0.0, 1, 2, 3]))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    figures = after_update(model)
    assert first.router.bias.tolist() == [-0.5, 1.5, 2.0, 3.5] and second.router.bias.tolist() == [0, 1, 2, 3]
    # Entropies: 10/16, 2/16, 4/16 against ln 4, and 1. Busiest above mean: 10/4 - 1 = 1.5, and 0. Dropped: 4 of 32.
    assert figures == pytest.approx(dict(
        balance_loss=2.0, z_loss=4.0, load_entropy=(entropy([10 / 16, 2 / 16, 4 / 16]) / math.log(4) + 1) / 2,
        max_violation=0.75, dropped=0.125))
    assert all(layer.load == 0 and layer.n_dropped == 0 for layer in (first, second))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    first.load, second.load = torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 1, 2, 2])
    after_update(model)
    assert first.router.bias.tolist() == [0.0, 2.0, 1.5, 3.0] and second.router.bias.tolist() == [-0.5, 1.5, 2, 3]


def test_without_a_rate_the_bias_stays():
    model = make_model()
    before = [layer.router.bias.clone() for layer in moe_layers(model)]
    model.train()(TOKENS)
    after_update(model)
    assert all(torch.equal(layer.router.bias, bias) for layer, bias in zip(moe_layers(model), before))


def test_with_a_single_expert_the_load_is_even():
    model = make_model(n_expert=1, top_k=1, bias_rate=0.5).train()
    model(TOKENS)
    figures = after_update(model)
    assert figures["load_entropy"] == 1 and figures["max_violation"] == 0 and figures["balance_loss"] == pytest.approx(1)


def test_the_load_is_that_of_all_passes_in_training_since_the_last_step_and_the_losses_are_the_last_one_s():
    model, seen = make_model(capacity_factor=0.5, bias_rate=0.1), []
    routers_of(model, seen)
    for _ in range(2):  # the second step must not remember the first
        seen.clear()
        model.train()
        for part in TOKENS.split(1):
            model(part)
        losses = [(layer.balance_loss.item(), layer.z_loss.item()) for layer in moe_layers(model)]
        expected = {layer.router: sum((routing.experts.flatten() == e).float()[:, None] * F.one_hot(torch.tensor(e), 4)
                                      for router, _, routing in seen if router is layer.router for e in range(4)).sum(0)
                    for layer in moe_layers(model)}
        model.eval()
        model(TOKENS)  # not of training: neither counted nor remembered
        assert losses == [(layer.balance_loss.item(), layer.z_loss.item()) for layer in moe_layers(model)]
        # Of 24 tokens with 2 choices an expert may take ceil(0.5 * 48 / 4) = 6: what is above, in each pass, is dropped.
        dropped = sum(max(0, int((routing.experts == e).sum()) - 6) for _, _, routing in seen[:4] for e in range(4))
        assert dropped > 0
        for layer in moe_layers(model):
            assert torch.equal(layer.load, expected[layer.router]) and layer.load.sum() == 2 * 48
        biases = [layer.router.bias.clone() for layer in moe_layers(model)]
        figures = after_update(model)
        assert figures["dropped"] == pytest.approx(dropped / (2 * 96))
        assert figures["balance_loss"] == pytest.approx(sum(balance for balance, _ in losses) / 2)
        assert figures["z_loss"] == pytest.approx(sum(z for _, z in losses) / 2)
        for layer, bias in zip(moe_layers(model), biases):
            moved = torch.tensor([0.1 if n < 24 else -0.1 if n > 24 else 0.0 for n in expected[layer.router]])
            assert torch.allclose(layer.router.bias - bias, moved, atol=1e-6)


def test_in_training_capacity_and_noise_are_at_work():
    plain, full, noisy = make_model(), make_model(capacity_factor=0.1), make_model(noisy=True)
    assert torch.allclose(plain(TOKENS), full(TOKENS))
    assert not torch.allclose(full.train()(TOKENS), plain(TOKENS), atol=0.1)
    assert not torch.allclose(noisy.train()(TOKENS), noisy(TOKENS), atol=0.1)


# Decoding

DECODING = dict(capacity_factor=0.1, noisy=True)


@pytest.mark.parametrize("kind, options", [("static", dict()), ("static", dict(window=7, sinks=2)),
                                           ("rolling", dict(window=7, sinks=2)), ("streaming", dict(window=20, sinks=4))])
@pytest.mark.parametrize("variant", [dict(), dict(alpha=0.5, moe_every=2), dict(top_k=1, n_shared=1, score="sigmoid")],
                         ids=str)
@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_text_read_with_a_cache_is_the_text_read_at_once(kind, options, variant, size):
    model = make_model(**DECODING, **options, **variant)  # its capacity and noise are of training alone
    cache = model.new_cache(kind, 2, 24)
    with torch.no_grad():
        parts = torch.cat([model(part, None, cache) for part in TOKENS.split(size, dim=1)], dim=1)
        assert torch.allclose(parts, model(TOKENS), atol=1e-4)
    assert all(isinstance(layer.load, int) and layer.n_dropped == 0 for layer in moe_layers(model))


@pytest.mark.parametrize("kind", ["static", "rolling"])
def test_greedy_generation_with_a_cache_is_that_without_also_for_prompts_of_unequal_length(kind):
    model = make_model(**DECODING, window=9, sinks=1).train()
    prompts = [TOKENS[0, :13], TOKENS[1, :4], TOKENS[1, 5:6]]
    found = generate(model, prompts, 12, temperature=0, cache=kind, chunk=4)
    assert model.training  # it is left in the mode it was in
    model.eval()
    for prompt, ids in zip(prompts, found):
        text = prompt
        for _ in range(12):  # each row alone, and everything anew for every token
            text = torch.cat((text, model(text[None])[0, -1:].argmax(-1)))
        assert ids.tolist() == text[len(prompt):].tolist()
    assert len({tuple(ids.tolist()) for ids in found}) == 3


def test_streaming_past_the_window_is_that_of_the_dense_model_that_the_experts_are_copies_of():
    # There a full pass is no truth: the cache forgets. The dense model's stream has one of its own (tests/part_3).
    model, dense = copies_of_the_dense_layer(window=7, sinks=2)
    ours, theirs = (generate(m, [TOKENS[0, :5]], 30, temperature=0, cache="streaming")[0] for m in (model, dense))
    assert ours.tolist() == theirs.tolist() and len(set(ours.tolist())) > 3
    caches = [m.new_cache("streaming", 2) for m in (model, dense)]
    for part in TOKENS.split(1, dim=1):
        assert torch.allclose(model(part, None, caches[0]), dense(part, None, caches[1]), atol=1e-4)


def test_a_token_s_logits_depend_neither_on_later_tokens_nor_on_other_rows():
    model = make_model(**DECODING)
    full = model(TOKENS)
    assert torch.allclose(model(TOKENS[:1, :10]), full[:1, :10], atol=1e-4)


def test_attention_maps_are_those_of_the_dense_model_that_the_experts_are_copies_of():
    model, dense = copies_of_the_dense_layer(**DECODING)
    model.train()
    ours, theirs = attention_maps(model, TOKENS), attention_maps(dense, TOKENS)
    assert model.training and len(ours) == 2 and all(isinstance(layer.load, int) for layer in moe_layers(model))
    for mine, other in zip(ours, theirs):
        assert mine.shape == (2, 4, 24, 24) and torch.allclose(mine, other, atol=1e-4)


def test_it_can_be_read_with_another_window():
    model = make_model()
    other = make_model(window=5)
    assert torch.equal(reread(model, window=5)(TOKENS), other(TOKENS))


# Muon

@pytest.mark.parametrize("options", [dict(), dict(n_shared=3, alpha=0.5, d_expert=8), dict(first_dense=1)], ids=str)
def test_muon_gets_each_expert_s_gate_and_up_as_matrices_of_their_own(options):
    model = make_model(**options)
    groups = matrices_of_blocks(model)
    rows = {id(weight): group["rows"] for group in groups for weight in group["params"]}
    held = [id(weight) for group in groups for weight in group["params"]]
    names = {id(weight): name for name, weight in model.blocks.named_parameters() if weight.ndim >= 2}
    assert len(held) == len(set(held)) and set(held) == set(names)
    d_expert = model.config.d_expert
    halves = {"experts.expand.weight": d_expert, "shared.expand.weight": 3 * d_expert, "dense.expand.weight": 32,
              "feed_forward.expand.weight": 32}
    for number, name in names.items():
        half = next((half for ending, half in halves.items() if name.endswith(ending)), None)
        expected = [half] * 2 if half else [24, 12, 12] if name.endswith("qkv.weight") else None
        assert rows[number] == expected, name


def test_muon_s_step_on_a_stack_is_that_on_each_expert_s_matrices_alone(monkeypatch):
    monkeypatch.setattr("part_4.optimizer.pick_precision", lambda *arguments: torch.float32)  # bf16 rounds more
    model = make_model()
    layer = moe_layers(model)[0].experts
    alone = [half.clone().requires_grad_() for matrix in layer.expand.weight.detach() for half in matrix.chunk(2)]
    down = [matrix.clone().requires_grad_() for matrix in layer.contract.weight.detach()]
    options = dict(lr=0.1, weight_decay=0.2)
    optimizer, separate = Muon(matrices_of_blocks(model), **options), Muon(alone + down, **options)
    for seed in range(3):
        torch.manual_seed(seed)
        layer.expand.weight.grad = torch.randn_like(layer.expand.weight)
        layer.contract.weight.grad = torch.randn_like(layer.contract.weight)
        for weight, grad in zip(alone, (half for matrix in layer.expand.weight.grad for half in matrix.chunk(2))):
            weight.grad = grad
        for weight, grad in zip(down, layer.contract.weight.grad):
            weight.grad = grad
        optimizer.step()
        separate.step()
    assert torch.allclose(layer.expand.weight, torch.cat(alone).view_as(layer.expand.weight), atol=1e-4)
    assert torch.allclose(layer.contract.weight, torch.stack(down), atol=1e-4)
    assert (alone[0] - make_model().blocks[0].feed_forward.experts.expand.weight[0][:16]).abs().mean() > 0.03  # it moved


@pytest.mark.parametrize("name", OPTIMIZERS)
@VARIANTS
def test_the_optimizers_hold_every_weight_once_and_only_matrices_decay(name, options):
    model = make_model(**options)
    optimizers = build_optimizers(model, name, 1e-3, 0.99, 0.1)
    held = [(id(weight), group["weight_decay"]) for optimizer in optimizers for group in optimizer.param_groups
            for weight in group["params"]]
    expected = {id(weight): 0.1 if weight.ndim >= 2 and "embedding" not in key else 0.0
                for key, weight in model.named_parameters()}
    assert len(held) == len(expected) and dict(held) == expected


# Checkpoints

SEVERAL = dict(n_expert=3, top_k=1, first_dense=1, alpha=0.25, n_shared=1, score="sigmoid", renormalise=True, noisy=True,
               capacity_factor=1.5, balance_weight=0.0, bias_rate=0.001)
TOKENIZER = {"ranks": "".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)),
             "special_tokens": ["<|e|>"], "pattern": r"\S+|\s+"}


def save(path, of, **changes):
    """A checkpoint of a model with what load_model needs."""
    save_checkpoint(path, {"model_config": dataclasses.asdict(of.config), "model": of.state_dict(), "tokenizer": TOKENIZER,
                           "step": 7} | changes)
    return path


@pytest.mark.parametrize("options", [dict(), SEVERAL], ids=["default", "several"])
def test_a_checkpoint_of_experts_is_rebuilt_from_itself_alone(tmp_path, options):
    model = make_model(**options)
    loaded, tokenizer, state = load_model(save(tmp_path / "model.pt", model))
    assert loaded.config == model.config and type(loaded.config) is HybridConfig and not loaded.training
    assert state["step"] == 7 and tokenizer.decode(tokenizer.encode("as is")) == "as is"
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    for mine, other in zip(moe_layers(loaded), moe_layers(model), strict=True):
        assert torch.equal(mine.router.bias, other.router.bias) and other.router.bias.abs().min() > 0


def test_a_dense_checkpoint_is_rebuilt_as_the_dense_model(tmp_path):
    torch.manual_seed(0)
    model = with_large_weights(ModernGPT(ModernGPTConfig(**SHAPE))).eval()
    loaded, _, _ = load_model(save(tmp_path / "model.pt", model))
    assert type(loaded.config) is ModernGPTConfig and moe_layers(loaded) == [] and not loaded.training
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_a_foreign_checkpoint_is_refused_in_one_line(tmp_path):
    model = make_model()
    weights = model.state_dict()
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=40, block_size=16, n_layer=1, n_head=2, d_model=8))
    files = [save(tmp_path / "part_2.pt", gpt), save(tmp_path / "part_3.pt", make_dense(
                 ModernGPT(ModernGPTConfig(**SHAPE)).state_dict()), tokenizer={"special_tokens": []}),
             save(tmp_path / "shape.pt", model, model_config=dataclasses.asdict(model.config) | {"n_expert": 5}),
             save(tmp_path / "less.pt", model, model={name: weights[name] for name in weights if "router" not in name}),
             save(tmp_path / "flag.pt", model, model_config=dataclasses.asdict(model.config) | {"n_experts": 5})]
    for path in files:
        with pytest.raises(InputError, match=f"{path.name} is no checkpoint of part_5/train.py") as refusal:
            load_model(path)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="there is no checkpoint .*none.pt; make one with: python3 part_5/train.py"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(InputError, match="there is no checkpoint .*none.pt; make one with: python3 part_6/train_sft.py"):
        load_model(tmp_path / "none.pt", trainer="part_6/train_sft.py")


def test_between_steps_a_model_can_be_copied():
    model = make_model().train()
    (model(TOKENS).mean() + auxiliary_loss(model)).backward()
    after_update(model)
    assert torch.equal(copy.deepcopy(model).eval()(TOKENS), model.eval()(TOKENS))


# What cannot be built

@pytest.mark.parametrize("options, complaint", [
    (dict(n_expert=4, top_k=5), "top_k must be from 1 to n_expert 4, not 5"),
    (dict(top_k=0), "top_k must be from 1 to n_expert 8, not 0"), (dict(top_k=-2), "not -2"),
    (dict(n_expert=0), "n_expert must be at least 1, not 0"), (dict(n_expert=-3), "not -3"),
    (dict(capacity_factor=0.0), "capacity_factor must be above 0 and finite, not 0.0"),
    (dict(capacity_factor=-1.5), "capacity_factor .* not -1.5"),
    (dict(capacity_factor=math.inf), "capacity_factor .* not inf"),
    (dict(capacity_factor=math.nan), "capacity_factor .* not nan"),
    (dict(alpha=-0.1), r"alpha must be in \[0, 1\], not -0.1"), (dict(alpha=1.5), "alpha .* not 1.5"),
    (dict(alpha=math.nan), "alpha .* not nan"),
    (dict(moe_every=0), "moe_every must be at least 1 and first_dense at least 0, not 0 and 0"),
    (dict(first_dense=-1), "first_dense at least 0, not 1 and -1"),
    (dict(moe_every=3), "moe_every 3 and first_dense 0 leave none of 2 layers for experts"),
    (dict(first_dense=2), "moe_every 1 and first_dense 2 leave none of 2 layers"),
    (dict(d_expert=0), "d_expert must be at least 1, not 0"), (dict(d_expert=-8), "d_expert .* not -8"),
    (dict(n_shared=-1), "n_shared must be at least 0, not -1"), (dict(score="tanh"), "one of softmax, sigmoid, not tanh"),
    (dict(balance_weight=-0.1), "balance_weight must be 0 or more, not -0.1"), (dict(z_weight=-1.0), "z_weight .* not -1.0"),
    (dict(bias_rate=-0.001), "bias_rate .* not -0.001"), (dict(z_weight=math.nan), "z_weight .* not nan"),
    (dict(balance_weight=math.inf), "balance_weight .* not inf"),
    (dict(mlp="gelu"), "mlp must be swiglu, not gelu"), (dict(bias=True), "bias must be False, not True"),
    (dict(n_head=5), "d_model 24 must be divisible by n_head 5")])
def test_a_shape_that_cannot_be_built_is_refused_with_its_values(options, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        HybridConfig(**{**SHAPE, **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [dict(alpha=0.0), dict(alpha=1.0), dict(top_k=8), dict(top_k=1),
                                     dict(n_expert=1, top_k=1), dict(moe_every=2), dict(first_dense=1),
                                     dict(balance_weight=0.0, z_weight=0.0), dict(d_expert=1),
                                     dict(capacity_factor=0.001)], ids=str)
def test_the_ends_of_the_ranges_can_be_built(options):
    model = hybrid_gpt(HybridConfig(**{**SHAPE, **options})).train()
    (model(TOKENS).mean() + auxiliary_loss(model)).backward()
    assert all(math.isfinite(value) for value in after_update(model).values())


def test_a_config_takes_no_memory_however_many_experts_it_names():
    assert HybridConfig(**{**SHAPE, "d_model": 24_000, "d_hidden": 10**6}, n_expert=10**4).n_expert == 10**4  # 720 TB
