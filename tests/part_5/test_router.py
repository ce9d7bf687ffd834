import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from part_5.router import Router, route

SOFTMAX = torch.tensor([[2.0, 4.0, 1.0, 3.0]]).log()  # their softmax is 0.2, 0.4, 0.1, 0.3
SIGMOID = torch.tensor([[1.0, 3.0, 1 / 4, 1 / 3]]).log()  # their sigmoid x / (1 + x) is 1/2, 3/4, 1/5, 1/4
KINDS = pytest.mark.parametrize("score, renormalise", [("softmax", True), ("softmax", False), ("sigmoid", True),
                                                       ("sigmoid", False)])


def router_with(weight, top_k, **options):
    """A Router whose gate is `weight` (E, C)."""
    router = Router(weight.shape[1], weight.shape[0], top_k, **options)
    router.gate.weight.data = weight.clone()
    return router


def numbers(tensor):
    return tensor.flatten().tolist()


def test_softmax_by_hand():
    # The two largest of 0.2, 0.4, 0.1, 0.3 are experts 1 and 3; their sum is 0.7.
    routing = route(SOFTMAX, 2)
    assert routing.experts.tolist() == [[1, 3]] and routing.experts.dtype == torch.int64
    assert numbers(routing.weights) == pytest.approx([4 / 7, 3 / 7])
    assert numbers(routing.probabilities) == pytest.approx([0.2, 0.4, 0.1, 0.3])
    assert torch.equal(routing.logits, SOFTMAX)
    # Not renormalised, the weights are these experts' probabilities themselves.
    assert numbers(route(SOFTMAX, 2, renormalise=False).weights) == pytest.approx([0.4, 0.3])
    assert numbers(route(SOFTMAX, 4, renormalise=False).weights) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_sigmoid_by_hand_as_in_deepseek_v3():
    # The two largest of 1/2, 3/4, 1/5, 1/4 are experts 1 and 0; their sum is 5/4, that of all is 1.7.
    routing = route(SIGMOID, 2, score="sigmoid")
    assert routing.experts.tolist() == [[1, 0]]
    assert numbers(routing.weights) == pytest.approx([0.6, 0.4])
    assert numbers(routing.probabilities) == pytest.approx([0.5 / 1.7, 0.75 / 1.7, 0.2 / 1.7, 0.25 / 1.7])
    assert numbers(route(SIGMOID, 2, score="sigmoid", renormalise=False).weights) == pytest.approx([0.75, 0.5])


@given(st.integers(1, 6), st.integers(0, 2 ** 32), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.0, -80.0, 500.0]))
def test_softmax_then_the_largest_renormalised_is_mixtral_s_softmax_over_the_largest_logits(top_k, seed, spread, shift):
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread + shift
    largest, experts = logits.topk(top_k)
    routing = route(logits, top_k)
    assert torch.equal(routing.experts, experts)
    assert torch.allclose(routing.weights, largest.softmax(dim=-1), rtol=1e-9, atol=0)


def test_sigmoids_that_are_all_zero_give_zeros_and_no_nan():
    # sigmoid(-200) is 1e-87, far below fp32's smallest number.
    logits = torch.full((2, 4), -200.0, requires_grad=True)
    routing = route(logits, 2, score="sigmoid")
    (routing.weights.sum() + routing.probabilities.square().sum()).backward()
    for tensor in (routing.weights, routing.probabilities, logits.grad):
        assert not tensor.any()  # NaN would count as true


def test_the_bias_changes_the_choice_and_not_the_formula_of_the_weights():
    # With 0.25 more, expert 2 (0.1) stands at 0.35, between 0.4 and 0.3: chosen are 1 and 2, weighted 0.4 to 0.1.
    routing = route(SOFTMAX, 2, bias=torch.tensor([0.0, 0.0, 0.25, 0.0]))
    assert routing.experts.tolist() == [[1, 2]]
    assert numbers(routing.weights) == pytest.approx([0.8, 0.2])
    assert torch.equal(routing.probabilities, route(SOFTMAX, 2).probabilities)
    # With 0.6 more, expert 2 (sigmoid 0.2) at 0.8 is the best, then expert 1: weighted 0.2 to 0.75, of 0.95.
    bias = torch.tensor([0.0, 0.0, 0.6, 0.0])
    routing = route(SIGMOID, 2, score="sigmoid", bias=bias)
    assert routing.experts.tolist() == [[2, 1]]
    assert numbers(routing.weights) == pytest.approx([0.2 / 0.95, 0.75 / 0.95])
    assert numbers(routing.probabilities) == pytest.approx([0.5 / 1.7, 0.75 / 1.7, 0.2 / 1.7, 0.25 / 1.7])
    assert numbers(route(SIGMOID, 2, "sigmoid", False, bias).weights) == pytest.approx([0.2, 0.75])


def test_the_router_s_own_bias_is_used_saved_and_no_weight():
    router = router_with(SOFTMAX.T, 2)
    x = torch.ones(1, 1)
    assert router(x).experts.tolist() == [[1, 3]]
    router.bias[2] = 0.25
    assert router(x).experts.tolist() == [[1, 2]]
    assert [name for name, _ in router.named_parameters()] == ["gate.weight"]
    assert router.state_dict()["bias"].tolist() == [0, 0, 0.25, 0]


def test_a_bias_that_is_the_same_for_all_experts_changes_nothing():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for plain, shifted in zip(route(logits, 2), route(logits, 2, bias=torch.full((6,), 0.5))):
        assert torch.equal(plain, shifted)


def test_the_gate_s_gradient_is_the_closed_form():
    # Of the loss sum c w: with w a softmax over the chosen, d/dlogit_j = w_j (c_j - sum_k c_k w_k) for the chosen, else 0.
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    router = router_with(torch.randn(5, 3, generator=generator), 2)
    routing = router(x)
    (c * routing.weights).sum().backward()
    experts, w = (x @ router.gate.weight.T).detach().topk(2).indices, routing.weights.detach()
    by_logit = torch.zeros(7, 5).scatter(1, experts, w * (c - (c * w).sum(dim=1, keepdim=True)))
    assert by_logit.abs().sum() > 1
    assert torch.allclose(router.gate.weight.grad, by_logit.T @ x, atol=1e-5)


@KINDS
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gradients_equal_finite_differences(score, renormalise, top_k):
    logits = torch.stack([SOFTMAX[0], SIGMOID[0]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: route(z, top_k, score, renormalise)[1:3], logits)  # weights, probabilities


@pytest.mark.parametrize("score, slope", [("softmax", 0.4 * 0.6), ("sigmoid", 0.8 * 0.2)])
def test_with_one_choice_only_a_weight_that_is_not_renormalised_teaches_the_gate(score, slope):
    # Expert 1's score is 0.4 by softmax; by sigmoid, of ln 4, it is 4/5. The slope of either is s (1 - s).
    x = torch.ones(1, 1)
    plain, renormalised = (router_with(SOFTMAX.T, 1, score=score, renormalise=choice) for choice in (None, True))
    for router in (plain, renormalised):
        router(x).weights.sum().backward()
    assert plain.gate.weight.grad[1].item() == pytest.approx(slope)
    assert renormalised(x).weights.tolist() == [[1.0]]
    assert renormalised.gate.weight.grad.abs().max() < 1e-6


def test_weights_are_renormalised_by_default_unless_there_is_one():
    x = torch.ones(1, 1)
    assert router_with(SOFTMAX.T, 1)(x).weights.item() == pytest.approx(0.4)
    assert numbers(router_with(SOFTMAX.T, 2)(x).weights) == pytest.approx([4 / 7, 3 / 7])
    assert numbers(router_with(SOFTMAX.T, 2, renormalise=False)(x).weights) == pytest.approx([0.4, 0.3])


def test_a_router_is_the_choice_made_of_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator)
    for score in ("softmax", "sigmoid"):
        for found, expected in zip(router_with(weight, 3, score=score)(x), route(x @ weight.T, 3, score)):
            assert torch.allclose(found, expected, atol=1e-6)


def noisy_router():
    """Three experts that read two inputs, with the noise's standard deviations at x = (1, 2) in fp32."""
    router = router_with(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.5, 1.0]]), 2, noisy=True)
    router.noise.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    # softplus(z) = ln(1 + e^z) of z = 0, 3, -2
    return router, torch.tensor([1.0, 2.0]), [math.log(2), math.log(1 + math.exp(3)), math.log(1 + math.exp(-2))]


def test_noise_has_the_standard_deviation_softplus_of_a_second_projection_for_each_expert_and_token():
    torch.manual_seed(0)
    router, x, deviations = noisy_router()
    noise = router(x.expand(40_000, 2)).logits - torch.tensor([1.0, 1.0, 2.5])  # x times the gate
    # Of n draws the standard deviation is known to 1/sqrt(2n) = 0.35 %, the mean to 1/sqrt(n) = 0.5 % of it: five of these.
    assert numbers(noise.std(dim=0)) == pytest.approx(deviations, rel=0.018)
    assert (noise.mean(dim=0).abs() < 0.025 * torch.tensor(deviations)).all()
    # Normal: the fourth moment is 3 (to sqrt(96/n) = 0.05), and experts do not share their draws (to 0.005).
    standard = noise / noise.std(dim=0)
    assert numbers(standard.pow(4).mean(dim=0)) == pytest.approx([3, 3, 3], abs=0.25)
    assert torch.allclose(standard.T @ standard / 40_000, torch.eye(3), atol=0.025)


def test_noise_is_drawn_in_training_alone_and_anew_each_time():
    torch.manual_seed(0)
    router, x, _ = noisy_router()
    x = x.expand(5, 2)
    assert not torch.equal(router(x).logits, router(x).logits)
    router.eval()
    assert torch.equal(router(x).logits, x @ router.gate.weight.T)
    plain = router_with(router.gate.weight.data, 2)
    assert plain.noise is None and plain.training and torch.equal(plain(x).logits, x @ router.gate.weight.T)


def test_the_noise_learns_by_its_own_gradient():
    # logit = x W + eps softplus(x W_noise): its slope by W_noise is eps sigmoid(x W_noise) x.
    torch.manual_seed(0)
    router, x, deviations = noisy_router()
    routing = router(x[None])
    routing.logits.sum().backward()
    eps = (routing.logits[0].detach() - torch.tensor([1.0, 1.0, 2.5])) / torch.tensor(deviations)
    slope = eps * torch.tensor([0.0, 3.0, -2.0]).sigmoid()
    assert torch.allclose(router.noise.weight.grad, slope[:, None] * x, atol=1e-5)
    assert torch.allclose(router.gate.weight.grad, x.expand(3, 2))


def test_what_is_chosen_is_what_the_noise_made_best():
    torch.manual_seed(0)
    router, x, _ = noisy_router()
    routing = router(x.expand(200, 2))
    assert torch.equal(routing.experts, routing.logits.topk(2).indices)
    assert 20 < (routing.experts[:, 0] != 2).sum() < 180  # without noise expert 2 is the best for all


@pytest.mark.parametrize("noisy", [False, True])
def test_routes_in_fp32_under_autocast_where_bf16_would_choose_another_expert(noisy):
    # Near 1 bf16 has steps of 1/128: 1 and 1.002 are one number, and no product with them tells the experts apart.
    weight, x = torch.tensor([[1.0, 1.002], [1.002, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    router = router_with(weight, 1, noisy=noisy)
    if noisy:
        router.noise.weight.data.fill_(-50.0)  # softplus(-50) = 2e-22: nothing to hear, but the products are made
    with torch.autocast("cpu", torch.bfloat16):
        rounded, routing = F.linear(x, weight), router(x)
    assert rounded.dtype == torch.bfloat16 and (rounded == 1).all()
    assert routing.experts.tolist() == [[1], [0]]
    assert {part.dtype for part in routing[1:]} == {torch.float32}
    # Tokens that come in bf16 meet weights in fp32.
    with torch.autocast("cpu", torch.bfloat16):
        assert router(x.bfloat16()).experts.tolist() == [[1], [0]]
    assert router(x.bfloat16()).experts.tolist() == [[1], [0]]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_router_held_in_bf16_computes_in_fp32(noisy):
    # Products of bf16 numbers that bf16 cannot hold: 1 + 1/128 squared is 1 + 2/128 + 1/16384, against 1 + 2/128.
    step = 1 / 128
    router = router_with(torch.tensor([[1 + 2 * step, 0.0], [0.0, 1 + step]]), 1, noisy=noisy)
    if noisy:
        router.noise.weight.data.fill_(-50.0)
    routing = router.bfloat16()(torch.tensor([[1.0, 1 + step]]).bfloat16())
    assert routing.experts.item() == 1 and numbers(routing.logits) == [1 + 2 * step, (1 + step) ** 2]
    assert {part.dtype for part in routing[1:]} == {torch.float32}


@KINDS
@given(st.permutations(range(6)), st.permutations(range(4)))
def test_a_token_s_routing_knows_neither_its_place_nor_the_experts_order(score, renormalise, places, names):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    routing = route(logits, 2, score, renormalise)
    for found, expected in zip(route(logits[places], 2, score, renormalise), routing):
        assert torch.equal(found, expected[places])
    renamed = route(logits[:, names], 2, score, renormalise)
    assert torch.equal(torch.tensor(names)[renamed.experts], routing.experts)
    assert torch.allclose(renamed.weights, routing.weights, atol=1e-6)
    assert torch.allclose(renamed.probabilities, routing.probabilities[:, names], atol=1e-6)


def test_the_router_does_not_look_at_the_other_tokens():
    generator = torch.Generator().manual_seed(0)
    router, x = router_with(torch.randn(8, 16, generator=generator), 2), torch.randn(30, 16, generator=generator)
    order = torch.randperm(30, generator=generator)
    whole, shuffled = router(x), router(x[order])
    assert torch.equal(shuffled.experts, whole.experts[order])
    assert torch.allclose(shuffled.weights, whole.weights[order], atol=1e-6)
    for n in range(30):
        assert torch.equal(router(x[n:n + 1]).experts[0], whole.experts[n])


@pytest.mark.parametrize("changes, message", [
    (dict(top_k=0), "top_k must be from 1 to n_expert 4, not 0"),
    (dict(top_k=-1), "top_k must be from 1 to n_expert 4, not -1"),
    (dict(top_k=5), "top_k must be from 1 to n_expert 4, not 5"),
    (dict(n_expert=0), "n_expert must be at least 1, not 0"),
    (dict(n_expert=-2), "n_expert must be at least 1, not -2"),
    (dict(score="relu"), "score must be one of softmax, sigmoid, not relu")])
def test_a_choice_that_cannot_be_made_is_refused_with_its_values(changes, message):
    settings = dict(n_expert=4, top_k=2, score="softmax") | changes
    with pytest.raises(ValueError, match=f"^{message}$"):
        Router(8, **settings)
    if settings["n_expert"] >= 0:
        with pytest.raises(ValueError, match=f"^{message}$"):
            route(torch.zeros(3, settings.pop("n_expert")), **settings)


def test_one_expert_and_all_experts_are_choices():
    assert route(torch.tensor([[3.0]]), 1).weights.tolist() == [[1.0]]
    assert Router(8, 1, 1)(torch.ones(2, 8)).experts.tolist() == [[0], [0]]
    # All of them: nothing is left out of the sum, so renormalising changes nothing.
    assert numbers(route(SOFTMAX, 4).weights) == pytest.approx([0.4, 0.3, 0.2, 0.1])
