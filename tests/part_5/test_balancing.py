import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_5.balancing import expert_load, load_balancing_loss, load_entropy, max_violation, router_z_loss, updated_bias
from part_5.router import route

SEEDS = st.integers(0, 2 ** 32)


def random_choices(seed, n_tokens=12, n_expert=5, top_k=2):
    """Probabilities (N, E) of random logits in fp64, and the experts (N, K) that they choose."""
    logits = torch.randn(n_tokens, n_expert, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    routing = route(logits, top_k)
    return routing.probabilities, routing.experts


def test_load_counts_every_choice():
    # Expert 0 was chosen by the first and third token, 1 by none, 2 by all three, 3 by the second.
    load = expert_load(torch.tensor([[0, 2], [3, 2], [2, 0]]), 4)
    assert load.tolist() == [2, 0, 3, 1] and load.dtype == torch.float32
    assert expert_load(torch.tensor([[1]]), 6).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_loss_is_1_at_balance_for_every_k(top_k):
    # Token n likes expert n best, n + 1 next and so on in a circle: by symmetry all have the same load and probability.
    row = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0])
    logits = torch.stack([row.roll(n) for n in range(6)])
    routing = route(logits, top_k)
    assert expert_load(routing.experts, 6).tolist() == [top_k] * 6
    assert load_balancing_loss(routing.probabilities, routing.experts).item() == pytest.approx(1)


@pytest.mark.parametrize("n_expert", [2, 4, 8])
def test_the_loss_is_the_number_of_experts_where_one_gets_all(n_expert):
    # K = 1: f and P are both 1 for one expert and 0 for the others, E * 1 * 1.
    probabilities = torch.eye(n_expert)[1].expand(10, n_expert)
    assert load_balancing_loss(probabilities, torch.ones(10, 1, dtype=torch.int64)).item() == n_expert


def test_the_loss_of_a_collapse_onto_two_of_eight_by_hand():
    # K = 2, always experts 5 and 2 with P = 0.7 and 0.3: f is 1/2 for each, so 8 (0.35 + 0.15) = 4 = E / K, however the two
    # share the probability. With P = 0.6 and 0.2, and 0.2 lost on the others: 8 (0.3 + 0.1) = 3.2.
    experts = torch.tensor([[5, 2]]).expand(10, 2)
    probabilities = torch.zeros(10, 8)
    probabilities[:, 5], probabilities[:, 2] = 0.7, 0.3
    assert load_balancing_loss(probabilities, experts).item() == pytest.approx(4)
    probabilities[:, 5], probabilities[:, 2], probabilities[:, 0] = 0.6, 0.2, 0.2
    assert load_balancing_loss(probabilities, experts).item() == pytest.approx(3.2)


def test_second_choices_count():
    # Two tokens, first choices 0 and 1, second choices both 2: f = 1/4, 1/4, 1/2. P = 0.4, 0.3, 0.3.
    # 3 (0.4/4 + 0.3/4 + 0.3/2) = 0.975. By first choices alone it would be 3 (0.2 + 0.15) = 1.05.
    probabilities = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3]])
    assert load_balancing_loss(probabilities, torch.tensor([[0, 2], [1, 2]])).item() == pytest.approx(0.975)


@given(SEEDS, st.integers(1, 5))
def test_equals_switch_s_definition_in_two_loops(seed, top_k):
    probabilities, experts = random_choices(seed, top_k=top_k)
    N, E = probabilities.shape
    expected = 0.0
    for i in range(E):
        f = sum(i == chosen for row in experts.tolist() for chosen in row) / (N * top_k)
        P = sum(row[i] for row in probabilities.tolist()) / N
        expected += E * f * P
    assert load_balancing_loss(probabilities, experts).item() == pytest.approx(expected)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8).filter(any))
def test_where_load_and_probability_agree_the_loss_is_at_least_1_and_1_only_at_balance(counts):
    # With f = P it is E sum f^2, and by Cauchy and Schwarz E sum f^2 >= (sum f)^2 = 1.
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    share = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    loss = load_balancing_loss(share.expand(len(experts), -1), experts).item()
    assert loss >= 1 - 1e-6
    if len(set(counts)) == 1:
        assert loss == pytest.approx(1)
    else:  # E sum f^2 = 1 + E sum (f - 1/E)^2, at least 3e-4 more with at most eight counts of at most 20
        assert loss > 1 + 1e-4


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=2, max_size=8), st.integers(0, 9))
def test_where_they_order_the_experts_alike_it_is_at_least_1(pairs, extra):
    # Chebyshev's sum inequality: E sum f P >= sum f sum P = 1 if f and P rise together.
    counts, weights = (sorted(column) for column in zip(*pairs))
    counts[-1] += 1 + extra
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    P = (torch.tensor(weights, dtype=torch.float64) + 0.01) / sum(weight + 0.01 for weight in weights)
    assert load_balancing_loss(P.expand(len(experts), -1), experts).item() >= 1 - 1e-6


def test_where_they_disagree_it_can_be_below_1():
    # Three tokens choose expert 0 with 0.52, the fourth is certain of expert 1: f = 3/4, 1/4 and P = 0.39, 0.61.
    # 2 (0.2925 + 0.1525) = 0.89.
    probabilities = torch.tensor([[0.52, 0.48]] * 3 + [[0.0, 1.0]])
    experts = probabilities.topk(1).indices
    assert experts.flatten().tolist() == [0, 0, 0, 1]
    assert load_balancing_loss(probabilities, experts).item() == pytest.approx(0.89)


def test_the_gradient_flows_through_the_probabilities_alone():
    # Of E sum f_i mean_n p_ni by p_ni: E f_i / N, as if f were a constant.
    probabilities, experts = random_choices(0)
    probabilities.requires_grad_()
    load_balancing_loss(probabilities, experts).backward()
    N, E = probabilities.shape
    f = torch.tensor([(experts == i).sum() / (2 * N) for i in range(E)], dtype=torch.float64)
    assert torch.allclose(probabilities.grad, (E * f / N).expand(N, E))
    assert not expert_load(experts, E).requires_grad


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_step_against_the_gradient_lowers_the_overloaded_and_raises_the_idle(score):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(10, 1)
    logits[:2, 1] = 3.0  # load 8, 2, 0, 0
    logits.requires_grad_()
    before = route(logits, 1, score)
    loss = load_balancing_loss(before.probabilities, before.experts)
    loss.backward()
    with torch.no_grad():
        after = route(logits - 5 * logits.grad, 1, score)
        change = (after.probabilities - before.probabilities).mean(dim=0)
        assert change[0] < -5e-3 and change[2] > 1e-3 and change[3] > 1e-3
        assert load_balancing_loss(after.probabilities, before.experts) < loss - 0.01


def test_descending_the_loss_balances_a_skewed_router():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    weight = (torch.randn(4, 6, generator=generator) * 0.1).requires_grad_()
    x[:, 0], weight.data[0, 0] = 1.0, 2.0  # a constant feature that speaks for expert 0
    loads = []
    for _ in range(150):
        routing = route(x @ weight.T, 1)
        loads.append(expert_load(routing.experts, 4))
        [grad] = torch.autograd.grad(load_balancing_loss(routing.probabilities, routing.experts), weight)
        weight.data -= 0.5 * grad
    assert max_violation(loads[0]) > 2.5 and max_violation(loads[-1]) < 0.3


@pytest.mark.parametrize("n_expert", [1, 2, 8, 64])
def test_the_z_loss_of_equal_logits_is_the_square_of_their_size_plus_ln_e(n_expert):
    # log sum exp(z) over E equal logits z is z + ln E.
    for z in (0.0, 3.0, -2.0):
        assert router_z_loss(torch.full((5, n_expert), z)).item() == pytest.approx((z + math.log(n_expert)) ** 2, rel=1e-5)


def test_the_z_loss_is_the_mean_over_tokens_of_squares():
    # log sum exp of ln 1, ln 2 is ln 3, of ln 4, ln 6 it is ln 10: the squares' mean, not the mean's square.
    logits = torch.tensor([[1.0, 2.0], [4.0, 6.0]]).log()
    assert router_z_loss(logits).item() == pytest.approx((math.log(3) ** 2 + math.log(10) ** 2) / 2)
    assert router_z_loss(torch.tensor([[1000.0, 1000.0]])).item() == pytest.approx((1000 + math.log(2)) ** 2)  # no overflow


def test_the_z_loss_s_gradient_is_twice_log_sum_exp_times_softmax():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    router_z_loss(logits).backward()
    z = logits.detach()
    expected = 2 * z.exp().sum(dim=1, keepdim=True).log() * z.exp() / z.exp().sum(dim=1, keepdim=True) / 6
    assert torch.allclose(logits.grad, expected)


def test_the_bias_moves_by_the_rate_towards_the_mean_load():
    # Mean load 4: the experts with 1 and 3 go up, the one with 8 down, the one with 4 stays, whatever the distance.
    bias = torch.tensor([0.5, 0.0, -0.25, 0.125])
    moved = updated_bias(bias, torch.tensor([1.0, 8.0, 4.0, 3.0]), 0.125)
    assert moved.tolist() == [0.625, -0.125, -0.25, 0.25]
    assert bias.tolist() == [0.5, 0.0, -0.25, 0.125]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_bias_balances_a_skewed_set_of_logits_and_leaves_the_weights_to_the_scores(score, top_k):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 8, generator=generator) + torch.linspace(-1.5, 1.5, 8)
    bias, rate = torch.zeros(8), 0.002
    first = route(logits, top_k, score)
    for _ in range(500):
        bias = updated_bias(bias, expert_load(route(logits, top_k, score, bias=bias).experts, 8), rate)
    last = route(logits, top_k, score, bias=bias)
    assert max_violation(expert_load(first.experts, 8)) > 0.6
    assert max_violation(expert_load(last.experts, 8)) < 0.1
    assert load_entropy(expert_load(last.experts, 8)) > 0.999
    assert torch.equal(last.probabilities, first.probabilities) and torch.equal(last.logits, logits)
    chosen = (logits.softmax(dim=1) if score == "softmax" else logits.sigmoid()).gather(1, last.experts)
    assert torch.allclose(last.weights, chosen / chosen.sum(dim=1, keepdim=True))


def test_entropy_is_1_at_even_load_0_at_collapse_and_by_hand_between():
    assert load_entropy(torch.full((8,), 5.0)).item() == pytest.approx(1)
    assert load_entropy(torch.tensor([0.0, 9.0, 0.0])).item() == 0
    # Two of four used evenly: ln 2 / ln 4 = 1/2. Shares 1/2, 1/4, 1/8, 1/8 have 1.75 bits of 2.
    rows = torch.tensor([[3.0, 3.0, 0.0, 0.0], [4.0, 2.0, 1.0, 1.0]])
    assert load_entropy(rows).tolist() == pytest.approx([0.5, 0.875])
    assert load_entropy(torch.tensor([7.0])).item() == 1  # a single expert is even


def test_max_violation_by_hand():
    # Mean 3, highest 6: twice the mean is 1 above it. One of four with all of it has four times the mean.
    assert max_violation(torch.tensor([6.0, 1.0, 2.0, 3.0])).item() == 1
    assert max_violation(torch.tensor([[0.0, 9.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])).tolist() == [3, 0]
