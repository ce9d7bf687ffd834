import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from part_3.swiglu import SwiGLU
from part_5.moe import MoE, dispatch


def swiglu(x, expand, contract):
    """SiLU(gate) * up, then down, for weights as SwiGLU holds them."""
    W_gate, W_up = expand.chunk(2)
    return (F.silu(x @ W_gate.T) * (x @ W_up.T)) @ contract.T


def naive(layer, tokens, capacity=math.inf):
    """The layer token by token and choice by choice. Returns its output (N, C), the load, the number of dropped choices."""
    router, N = layer.router, len(tokens)
    E, K = router.n_expert, router.top_k
    logits = [router.gate.weight @ token for token in tokens]
    scores = [logit.exp() / logit.exp().sum() if router.score == "softmax" else 1 / (1 + (-logit).exp()) for logit in logits]
    chosen = [sorted(range(E), key=lambda e: -(scores[n][e] + router.bias[e]).item())[:K] for n in range(N)]
    rows, kept = Counter(), set()
    for k in range(K):
        for n in range(N):
            if rows[chosen[n][k]] < capacity:
                rows[chosen[n][k]] += 1
                kept.add((n, k))
    outputs = []
    for n, token in enumerate(tokens):
        total = sum(scores[n][e] for e in chosen[n]) if router.renormalise else 1.0
        output = torch.zeros_like(token)
        for k, e in enumerate(chosen[n]):
            if (n, k) in kept:
                expert = swiglu(token, layer.experts.expand.weight[e], layer.experts.contract.weight[e])
                output = output + scores[n][e] / total * expert
        if layer.shared is not None:
            output = output + swiglu(token, layer.shared.expand.weight, layer.shared.contract.weight)
        outputs.append(output)
    load = [sum(e in choices for choices in chosen) for e in range(E)]
    return torch.stack(outputs), load, N * K - len(kept)


def gradients(layer, x, run, grad):
    """What `run(x)` gives, and the gradients of x and of every weight after `backward(grad)`."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output = run(x)
    output.backward(grad)
    weights = {name: torch.zeros_like(weight) if weight.grad is None else weight.grad
               for name, weight in layer.named_parameters()}
    return output, {"x": x.grad} | weights


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(1, 10), st.sampled_from([3, 4, 8]), st.sampled_from([4, 5]),
       st.integers(0, 2), st.sampled_from(["softmax", "sigmoid"]), st.sampled_from([None, True, False]),
       st.sampled_from([None, 0.3, 1.0, 1.5]), st.booleans(), st.integers(0, 2 ** 32))
def test_equals_a_loop_over_tokens_and_choices_forward_and_backward(
        data, n_expert, n_tokens, width, d_hidden, n_shared, score, renormalise, capacity_factor, has_bias, seed):
    top_k = data.draw(st.integers(1, n_expert))
    torch.manual_seed(seed)
    layer = MoE(width, d_hidden, n_expert, top_k, n_shared, capacity_factor, score, renormalise)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    if has_bias:
        layer.router.bias.normal_()
    x, grad = torch.randn(2, n_tokens, width)
    capacity = math.inf if capacity_factor is None else math.ceil(capacity_factor * n_tokens * top_k / n_expert)
    expected, load, n_dropped = naive(layer, x, capacity)
    output, ours = gradients(layer, x, layer, grad)
    assert layer.load.tolist() == load and layer.n_dropped == n_dropped
    _, theirs = gradients(layer, x, lambda x: naive(layer, x, capacity)[0], grad)
    assert torch.allclose(output, expected, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("width, d_hidden", [(16, 24), (6, 5)])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("renormalise", [None, True])
def test_one_expert_is_the_dense_layer_exactly_forward_and_backward(width, d_hidden, autocast, renormalise):
    torch.manual_seed(0)
    layer, dense = MoE(width, d_hidden, 1, 1, renormalise=renormalise), SwiGLU(width, d_hidden)
    layer.experts.load_state_dict({name: weight[None] for name, weight in dense.state_dict().items()})
    x, grad, results = torch.randn(3, 7, width), torch.randn(3, 7, width), []
    for module in (layer, dense):
        mine = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = module(mine)
        output.backward(grad.to(output.dtype))
        results.append((output, mine.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results))
    for name, weight in dense.named_parameters():
        assert torch.equal(layer.experts.get_parameter(name).grad[0], weight.grad)
    assert not layer.router.gate.weight.grad.any()


def test_equals_the_formula_of_mixtral_with_copied_weights():
    # Jiang et al. 2024, section 2.1: y = sum_i Softmax(TopK(x W_g))_i SwiGLU_i(x), TopK: all but the K largest are -inf.
    torch.manual_seed(0)
    E, K, C, H = 8, 2, 16, 28
    W_g, w1, w2, w3 = torch.randn(E, C), torch.randn(E, H, C), torch.randn(E, C, H), torch.randn(E, H, C)
    layer = MoE(C, H, E, K)
    layer.load_state_dict({"router.gate.weight": W_g, "router.bias": torch.zeros(E),
                           "experts.expand.weight": torch.cat((w1, w3), dim=1), "experts.contract.weight": w2})
    x = torch.randn(2, 20, C) / 4
    logits = x @ W_g.T
    smallest = logits.sort(dim=-1, descending=True).values[..., K - 1:K]
    G = logits.masked_fill(logits < smallest, -math.inf).softmax(dim=-1)
    expected = sum(G[..., i:i + 1] * ((F.silu(x @ w1[i].T) * (x @ w3[i].T)) @ w2[i].T) for i in range(E))
    assert expected.abs().mean() > 0.5 and torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-5)


def test_equals_the_formula_of_deepseek_v3_with_copied_weights():
    # DeepSeek-AI 2024, equations 12 to 16 without the residual: s_i = Sigmoid(u e_i); chosen are the K largest s_i + b_i;
    # g_i = s_i over the sum of the chosen ones; h = sum_shared FFN_i(u) + sum_i g_i FFN_i(u).
    torch.manual_seed(0)
    E, K, C, H, S = 8, 3, 16, 12, 2
    centroids, b = torch.randn(E, C), torch.randn(E)
    gate, up, down = torch.randn(E + S, H, C), torch.randn(E + S, H, C), torch.randn(E + S, C, H)
    layer = MoE(C, H, E, K, n_shared=S, score="sigmoid")
    layer.load_state_dict({
        "router.gate.weight": centroids, "router.bias": b,
        "experts.expand.weight": torch.cat((gate[:E], up[:E]), dim=1), "experts.contract.weight": down[:E],
        "shared.expand.weight": torch.cat((*gate[E:], *up[E:])), "shared.contract.weight": torch.cat((*down[E:],), dim=1)})
    u = torch.randn(30, C) / 4
    s = torch.sigmoid(u @ centroids.T)
    is_chosen = torch.zeros(30, E).scatter(1, (s + b).argsort(dim=-1, descending=True)[:, :K], 1.0)
    assert not torch.equal(is_chosen, torch.zeros(30, E).scatter(1, s.argsort(dim=-1, descending=True)[:, :K], 1.0))
    g = s * is_chosen / (s * is_chosen).sum(dim=-1, keepdim=True)
    ffn = [(F.silu(u @ gate[i].T) * (u @ up[i].T)) @ down[i].T for i in range(E + S)]
    expected = sum(ffn[E:]) + sum(g[:, i:i + 1] * ffn[i] for i in range(E))
    assert torch.allclose(layer(u), expected, atol=1e-4, rtol=1e-5)


def test_dispatch_worked_by_hand():
    # Three tokens, K = 2. First choices, numbers 0 1 2: experts 1 1 1. Second choices, numbers 3 4 5: experts 0 2 0.
    experts = torch.tensor([[1, 0], [1, 2], [1, 0]])
    order, ends = dispatch(experts, 4)
    assert order.tolist() == [3, 5, 0, 1, 2, 4] and order.dtype == torch.int64
    assert ends.tolist() == [2, 5, 6, 6] and ends.dtype == torch.int32
    order, ends = dispatch(experts, 4, capacity=2)  # token 2's first choice is one too many for expert 1
    assert order.tolist() == [3, 5, 0, 1, 4] and ends.tolist() == [2, 4, 5, 5] and ends.dtype == torch.int32
    order, ends = dispatch(experts, 4, capacity=1)
    assert order.tolist() == [3, 0, 4] and ends.tolist() == [1, 2, 3, 3]


def test_second_choices_are_dropped_first_and_then_later_tokens():
    # Expert 0 is second choice of token 0 (number 3), and first choice of tokens 1 and 2 (numbers 1 and 2).
    experts = torch.tensor([[1, 0], [0, 1], [0, 1]])
    assert dispatch(experts, 2)[0].tolist() == [1, 2, 3, 0, 4, 5]
    assert dispatch(experts, 2, capacity=2)[0].tolist() == [1, 2, 0, 4]
    assert dispatch(experts, 2, capacity=1)[0].tolist() == [1, 0]


@settings(deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 12), st.one_of(st.none(), st.integers(1, 5)))
def test_dispatch_equals_filling_one_list_an_expert(data, n_expert, n_tokens, capacity):
    top_k = data.draw(st.integers(1, n_expert))
    rows = [data.draw(st.permutations(range(n_expert)))[:top_k] for _ in range(n_tokens)]
    lists = [[] for _ in range(n_expert)]
    for k in range(top_k):
        for n in range(n_tokens):
            if capacity is None or len(lists[rows[n][k]]) < capacity:
                lists[rows[n][k]].append(k * n_tokens + n)
    order, ends = dispatch(torch.tensor(rows, dtype=torch.int64).reshape(n_tokens, top_k), n_expert, capacity)
    assert order.tolist() == sum(lists, [])
    assert ends.tolist() == [sum(map(len, lists[:e + 1])) for e in range(n_expert)]


def one_sided(capacity_factor=None, **options):
    """Three experts, K = 1: all tokens choose expert 0."""
    torch.manual_seed(0)
    layer = MoE(4, 8, 3, 1, capacity_factor=capacity_factor, **options)
    layer.router.bias.copy_(torch.tensor([9.0, 0, 0]))
    return layer


@pytest.mark.parametrize("capacity_factor, n_tokens, n_kept", [
    (1.0, 6, 2), (1.0, 5, 2), (1.0, 7, 3), (0.01, 6, 1), (2.0, 6, 4), (3.0, 6, 6)])  # ceil(c N K / E)
def test_what_exceeds_the_capacity_contributes_nothing_and_is_counted(capacity_factor, n_tokens, n_kept):
    layer, x = one_sided(capacity_factor), torch.randn(n_tokens, 4, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    is_kept = [n < n_kept for n in range(n_tokens)]
    assert (output != 0).any(dim=1).tolist() == is_kept and (x.grad != 0).any(dim=1).tolist() == is_kept
    assert layer.n_dropped == n_tokens - n_kept
    assert layer.load.tolist() == [n_tokens, 0, 0]  # what was chosen, not what was run
    layer(x)
    assert layer.n_dropped == 2 * (n_tokens - n_kept) and layer.load.tolist() == [2 * n_tokens, 0, 0]


def test_a_dropped_token_still_has_its_shared_expert():
    layer, x = one_sided(1.0, n_shared=1), torch.randn(6, 4)
    assert torch.equal(layer(x)[2:], layer.shared(x)[2:]) and not torch.equal(layer(x)[:2], layer.shared(x)[:2])


def test_nothing_is_dropped_or_recorded_in_eval_mode():
    layer, dropless, x = one_sided(0.5).eval(), one_sided(), torch.randn(6, 4)
    assert torch.equal(layer(x), dropless(x))
    assert (layer.n_dropped, layer.load, layer.balance_loss, layer.z_loss) == (0, 0, None, None)
    assert dropless.n_dropped == 0 and dropless.load.tolist() == [6, 0, 0]


def test_a_capacity_for_everything_equals_none():
    torch.manual_seed(0)
    layer, x = MoE(16, 24, 4, 2, capacity_factor=4.0), torch.randn(40, 16)
    assert torch.equal(layer(x), layer.eval()(x)) and layer.n_dropped == 0


def test_an_expert_without_a_token_has_a_gradient_of_zeros():
    layer = one_sided()
    layer(torch.randn(6, 4)).square().sum().backward()
    for weight in layer.experts.parameters():
        assert (weight.grad.flatten(1).abs().amax(dim=1) > 0).tolist() == [True, False, False]


def test_permuted_tokens_give_permuted_outputs_when_dropless():
    torch.manual_seed(0)
    layer, x, order = MoE(16, 24, 5, 2, n_shared=1), torch.randn(30, 16), torch.randperm(30)
    assert torch.allclose(layer(x[order]), layer(x)[order], atol=1e-6)


def test_a_token_changes_no_row_but_its_own_in_eval_mode():
    torch.manual_seed(0)
    layer, x = MoE(16, 24, 3, 2, n_shared=1, capacity_factor=0.5).eval(), torch.randn(12, 16)
    before = layer(x)
    for n in range(12):
        changed = x.clone()
        changed[n] = torch.randn(16)
        differs = (layer(changed) - before).abs().amax(dim=1) > 1e-6
        assert differs.tolist() == [row == n for row in range(12)]


def test_losses_are_those_of_the_last_pass_and_the_load_adds_up():
    torch.manual_seed(0)
    layer, first, last = MoE(8, 4, 4, 2), torch.randn(9, 8), torch.randn(3, 5, 8)
    for x in (first, last):
        layer(x)
    counts = [naive(layer, x)[1] for x in (first, last.flatten(0, 1))]
    assert layer.load.tolist() == [a + b for a, b in zip(*counts)] and sum(counts[1]) == 30
    logits = last.flatten(0, 1) @ layer.router.gate.weight.T
    balance = 4 * (torch.tensor(counts[1]) / 30 * logits.softmax(dim=-1).mean(dim=0)).sum()
    z = logits.exp().sum(dim=-1).log().square().mean()
    for ours, expected in ((layer.balance_loss, balance), (layer.z_loss, z)):
        assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
        [grad], [expected_grad] = (torch.autograd.grad(loss, layer.router.gate.weight, retain_graph=True)
                                   for loss in (ours, expected))
        assert expected_grad.abs().amax() > 1e-3 and torch.allclose(grad, expected_grad, atol=1e-6)
    layer.load = 0
    layer(first)
    assert layer.load.tolist() == counts[0] and not layer.load.requires_grad


@pytest.mark.parametrize("n_shared", [0, 1])
def test_idle_weights_are_what_a_layer_has_more_than_one_of_k_experts(n_shared):
    def n_weights(n_expert):
        return sum(weight.numel() for weight in MoE(6, 5, n_expert, 2, n_shared).parameters())

    assert MoE(6, 5, 7, 2, n_shared).n_idle == n_weights(7) - n_weights(2) - 5 * 6  # 5 rows of the router do work
    assert MoE(6, 5, 2, 2, n_shared).n_idle == 0 < MoE(6, 5, 3, 2).n_idle


def test_any_leading_shape_gives_the_same_rows():
    torch.manual_seed(0)
    layer, x = MoE(16, 24, 4, 2), torch.randn(6, 16)
    rows = layer(x)
    for shape in ((2, 3, 16), (1, 6, 1, 16)):
        assert torch.equal(layer(x.view(shape)), rows.view(shape))
    assert layer(x[4]).shape == (16,) and torch.allclose(layer(x[4]), rows[4], atol=1e-6)
    layer.eval()
    assert layer(torch.randn(0, 16)).shape == (0, 16) and layer(torch.randn(2, 0, 16)).shape == (2, 0, 16)


def test_the_same_pass_gives_the_same_bits():
    torch.manual_seed(0)
    layer, x, grad = MoE(16, 24, 6, 3, n_shared=1), *torch.randn(2, 50, 16)
    (first, gradients_1), (second, gradients_2) = (gradients(layer, x, layer, grad) for _ in range(2))
    assert torch.equal(first, second) and all(torch.equal(gradients_1[name], gradients_2[name]) for name in gradients_1)


def test_under_bf16_autocast_choices_are_those_of_fp32_and_outputs_close():
    torch.manual_seed(0)
    layer, x, grad = MoE(16, 24, 6, 2, n_shared=1), *torch.randn(2, 200, 16)
    with torch.no_grad():
        layer.router.gate.weight.mul_(0.05)  # logits that bf16 could hardly tell apart

    def autocast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    (full, exact), routing = gradients(layer, x, layer, grad), (layer.load, layer.balance_loss, layer.z_loss)
    layer.load = 0
    reduced, close = gradients(layer, x, lambda x: autocast(x).float(), grad)
    for ours, theirs in zip((layer.load, layer.balance_loss, layer.z_loss), routing):
        assert torch.equal(ours, theirs)  # to the bit: the router sees and computes what it does without autocast
    assert autocast(x).dtype == torch.bfloat16
    assert (reduced - full).abs().amax() < 0.02 * full.abs().amax()
    for name in exact:
        assert close[name].dtype == torch.float32
        assert (close[name] - exact[name]).abs().amax() < 0.03 * exact[name].abs().amax(), name


def test_noise_is_the_routers_and_in_training_only():
    torch.manual_seed(0)
    layer, x = MoE(16, 24, 6, 2, noisy=True), torch.randn(50, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_leaves_the_layer_out():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.moe, self.last = nn.Linear(8, 8), MoE(8, 16, 4, 2), nn.Linear(8, 8)

        def forward(self, x):
            return self.last(self.moe(self.first(x)))

    def backend(graph, inputs):
        compiled.extend(node.target for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    compiled, model, x = [], Model(), torch.randn(3, 5, 8)
    expected = model(x)
    model.compile(backend=backend)
    assert torch.equal(model(x), expected)
    assert compiled == [F.linear] * 2


@pytest.mark.parametrize("changes, message", [
    (dict(n_expert=0), "n_expert must be at least 1, not 0"),
    (dict(n_expert=-2), "n_expert must be at least 1, not -2"),
    (dict(top_k=0), "top_k must be from 1 to n_expert 4, not 0"),
    (dict(top_k=5), "top_k must be from 1 to n_expert 4, not 5"),
    (dict(d_model=0), "d_model must be at least 1, not 0"),
    (dict(d_hidden=0), "d_hidden must be at least 1, not 0"),
    (dict(n_shared=-1), "n_shared must be at least 0, not -1"),
    (dict(score="tanh"), "score must be one of softmax, sigmoid, not tanh"),
    (dict(capacity_factor=0.0), "capacity_factor must be above 0 and finite, not 0.0"),
    (dict(capacity_factor=-1.5), "capacity_factor must be above 0 and finite, not -1.5"),
    (dict(capacity_factor=math.inf), "capacity_factor must be above 0 and finite, not inf"),
    (dict(capacity_factor=math.nan), "capacity_factor must be above 0 and finite, not nan")])
def test_a_layer_that_cannot_be_built_is_refused_with_the_values(changes, message):
    with pytest.raises(ValueError) as error:
        MoE(**dict(d_model=8, d_hidden=4, n_expert=4, top_k=2) | changes)
    assert str(error.value) == message
