"""Lesson 8.3: everything about a language that can be listed: what PPO's estimates should come to, they come to."""

import itertools
import math

import pytest
import torch

from part_8.demo_ppo_loss import Config, ppo
from part_8.gae import generalised_advantages
from part_8.policy import divergences
from part_8.ppo_loss import policy_loss
from part_8.rewards import token_rewards
from part_8.toy_language import TablePolicy, ToyLanguage, optimum, total_variation

BETA = 0.3


def world(length=3, seed=0, vocab_size=3):
    """The language, a policy, a reference, one score a sequence (N,), all in fp64, and the rewards of its choices (N, T)."""
    language = ToyLanguage(vocab_size, length)
    policy, reference = (TablePolicy(language, seed + i).double() for i in (0, 50))
    generator = torch.Generator().manual_seed(seed + 100)
    scores = torch.randn(len(language.sequences), generator=generator, dtype=torch.float64)
    rows = torch.arange(len(scores))
    with torch.no_grad():
        rewards = token_rewards(scores, policy(rows)[0], reference(rows)[0], language.mask, BETA)
    return language, policy, reference, scores, rewards


def objective(probabilities, reference, scores, beta=BETA):
    """E[score] - beta KL(pi || reference), summed over the list. All (N,)."""
    kl = (probabilities * (probabilities.log() - reference.log())).sum()
    return probabilities @ scores - beta * kl


def exact_gradient(policy, reference, scores):
    """The gradient of the objective by the table of logits, by autograd through the sum over all sequences."""
    value = objective(policy.probabilities(), reference.probabilities().detach(), scores)
    return torch.autograd.grad(value, policy.logits)[0]


def answer_gradients(language, policy, advantages):
    """Of each sequence alone the gradient of -`policy_loss` at ratio 1, as a sum over its tokens: (N, S, V)."""
    gradients = []
    for row in range(len(language.sequences)):
        new, mask = policy(torch.tensor([row]))[0], language.mask[row:row + 1]
        loss = -policy_loss(new, new.detach(), advantages[row:row + 1], mask)[0] * mask.sum()
        gradients.append(torch.autograd.grad(loss, policy.logits)[0])
    return torch.stack(gradients)


def true_values(language, policy, rewards):
    """V of each state by recursion from the leaves of the tree, (S,): E[r(s, a) + V(s + a)] over the next token."""
    places = {prefix: i for i, prefix in enumerate(language.prefixes)}
    pi = policy.logits.detach().softmax(-1)
    reward_of = {}
    for row, sequence in enumerate(language.sequences):
        for t, token in enumerate(sequence):
            reward_of[sequence[:t], token] = rewards[row, t].item()
    values = torch.zeros(len(places), dtype=torch.float64)
    for prefix in sorted(places, key=len, reverse=True):
        for token in range(language.vocab_size):
            following = places.get((*prefix, token)) if token != language.end else None
            ahead = 0.0 if following is None else values[following]
            values[places[prefix]] += pi[places[prefix], token] * (reward_of[prefix, token] + ahead)
    return values


@pytest.mark.parametrize("vocab_size, length", [(2, 1), (2, 5), (3, 1), (3, 4), (4, 3), (5, 2)])
def test_the_list_holds_every_sequence_once_with_an_end_token_or_of_full_length(vocab_size, length):
    language = ToyLanguage(vocab_size, length)
    end = vocab_size - 1
    expected = {text for n in range(1, length + 1) for text in itertools.product(range(vocab_size), repeat=n)
                if end not in text[:-1] and (text[-1] == end or n == length)}
    assert len(language.sequences) == len(set(language.sequences)) and set(language.sequences) == expected
    # with k other tokens there are k^n that end after n of them, n < length, and k^length that never do
    assert len(language.sequences) == sum(end**n for n in range(length)) + end**length
    assert sorted(language.prefixes) == sorted({text[:t] for text in expected for t in range(len(text))})


def test_the_arrays_hold_what_the_list_says():
    language = ToyLanguage(3, 3)
    for row, sequence in enumerate(language.sequences):
        inside = language.mask[row]
        assert inside.tolist() == [t < len(sequence) for t in range(3)]
        assert tuple(language.tokens[row, inside].tolist()) == sequence
        assert [language.prefixes[i] for i in language.states[row, inside]] == [sequence[:t] for t in range(len(sequence))]


def test_two_tokens_worked_by_hand():
    # a and the end token, at most two tokens: ".", "a.", "aa". P(a) is 3/4 at first (logits ln 3, 0), then 1/5 (0, ln 4).
    language = ToyLanguage(2, 2)
    policy = TablePolicy(language)
    first, second = (language.prefixes.index(prefix) for prefix in ((), (0,)))
    policy.logits.data[first], policy.logits.data[second] = torch.tensor([[math.log(3), 0.0], [0.0, math.log(4)]])
    found = dict(zip(language.sequences, policy.probabilities().tolist()))
    assert found == {(1,): pytest.approx(0.25), (0, 1): pytest.approx(0.6), (0, 0): pytest.approx(0.15)}
    log_probs, _ = policy(torch.tensor([language.sequences.index((0, 1))]))
    assert log_probs[0].exp().tolist() == pytest.approx([0.75, 0.8])


@pytest.mark.parametrize("vocab_size, length", [(2, 4), (3, 4), (4, 2)])
def test_probabilities_add_up_to_one_and_are_products_along_the_sequence(vocab_size, length):
    language = ToyLanguage(vocab_size, length)
    policy = TablePolicy(language, seed=2).double()
    table = dict(zip(language.prefixes, policy.logits.softmax(-1).tolist()))
    expected = [math.prod(table[text[:t]][text[t]] for t in range(len(text))) for text in language.sequences]
    assert policy.probabilities().tolist() == pytest.approx(expected)
    assert policy.probabilities().sum().item() == pytest.approx(1, abs=1e-12)


def test_a_table_starts_from_its_seed_with_values_of_zero():
    language = ToyLanguage()
    one, same, other = (TablePolicy(language, seed).probabilities() for seed in (1, 1, 2))
    assert torch.equal(one, same) and total_variation(one, other) > 0.05
    values = TablePolicy(language)(torch.arange(31))[1]
    assert values.shape == (31, 4) and not values.any()


@pytest.mark.parametrize("values", ["none", "wrong", "exact"])
def test_with_lambda_one_the_expected_gradient_is_exact_whatever_the_values(values):
    language, policy, reference, scores, rewards = world()
    guess = {"none": torch.zeros_like(policy.values.data), "exact": true_values(language, policy, rewards),
             "wrong": 3 * torch.randn(len(language.prefixes), dtype=torch.float64,
                                      generator=torch.Generator().manual_seed(9))}[values]
    advantages, _ = generalised_advantages(rewards, guess[language.states], language.mask, 1.0, 1.0)
    expected = torch.einsum("n,nsv->sv", policy.probabilities().detach(), answer_gradients(language, policy, advantages))
    torch.testing.assert_close(expected, exact_gradient(policy, reference, scores))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_with_smaller_lambda_the_expected_gradient_is_exact_for_exact_values_and_for_wrong_ones_it_is_not(lam):
    language, policy, reference, scores, rewards = world()
    exact = true_values(language, policy, rewards)
    truth = exact_gradient(policy, reference, scores)
    found = []
    for values in (exact, torch.zeros_like(exact)):
        advantages, _ = generalised_advantages(rewards, values[language.states], language.mask, 1.0, lam)
        found.append(torch.einsum("n,nsv->sv", policy.probabilities().detach(),
                                  answer_gradients(language, policy, advantages)))
    torch.testing.assert_close(found[0], truth)
    assert (found[1] - truth).norm() > 0.005 * truth.norm()


def test_the_gradient_of_samples_comes_to_the_exact_one_as_one_over_root_n():
    language, policy, reference, scores, rewards = world()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(language.prefixes), generator=generator, dtype=torch.float64)
    truth, probabilities = exact_gradient(policy, reference, scores), policy.probabilities().detach()
    advantages, _ = generalised_advantages(rewards, values[language.states], language.mask, 1.0, 1.0)
    squares = (answer_gradients(language, policy, advantages) - truth).flatten(1).pow(2).sum(1)
    spread = (probabilities @ squares).sqrt()  # of one answer's gradient, exactly
    for n in (200, 3200, 51200):
        errors = []
        for _ in range(20):
            rows = torch.multinomial(probabilities, n, replacement=True, generator=generator)
            mask, (new, _) = language.mask[rows], policy(rows)
            own, _ = generalised_advantages(rewards[rows], values[language.states[rows]], mask, 1.0, 1.0)
            loss = -policy_loss(new, new.detach(), own, mask)[0] * mask.sum() / n  # a mean over answers
            errors.append((torch.autograd.grad(loss, policy.logits)[0] - truth).norm())
        error = torch.stack(errors).pow(2).mean().sqrt()  # of 20 draws: within a third of its expectation, spread / sqrt(n)
        assert 2 / 3 < error / (spread / n**0.5) < 3 / 2


def test_the_sampled_divergence_and_the_sum_over_tokens_come_to_the_exact_one():
    language, policy, reference, _, _ = world(length=4)
    rows = torch.arange(len(language.sequences))
    with torch.no_grad():
        p, q = policy.probabilities(), reference.probabilities()
        kl = (p * (p / q).log()).sum().item()
        of_state = divergences(policy.logits.log_softmax(-1), reference.logits.log_softmax(-1))  # (S,)
        per_token = torch.where(language.mask, of_state[language.states], 0.0).sum(1)  # (N,)
        log_ratio = torch.where(language.mask, policy(rows)[0] - reference(rows)[0], 0.0).sum(1)
    assert (p @ log_ratio).item() == pytest.approx(kl, abs=1e-12)
    assert (p @ per_token).item() == pytest.approx(kl, abs=1e-12)  # the chain rule
    spreads = [((p @ (x - kl) ** 2) ** 0.5).item() for x in (log_ratio, per_token)]
    assert spreads[1] < spreads[0]
    drawn = torch.multinomial(p, 100_000, replacement=True, generator=torch.Generator().manual_seed(1))
    for x, spread in zip((log_ratio, per_token), spreads):
        assert abs(x[drawn].mean().item() - kl) < 4 * spread / 100_000**0.5


def test_rewards_of_a_sequence_add_up_to_score_less_penalty_and_in_expectation_to_the_objective():
    language, policy, reference, scores, rewards = world()
    p, q = policy.probabilities().detach(), reference.probabilities().detach()
    torch.testing.assert_close(rewards.sum(1), scores - BETA * (p / q).log())
    assert (p @ rewards.sum(1)).item() == pytest.approx(objective(p, q, scores).item(), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.4, 0.95, 1.0])
def test_with_exact_values_the_mean_advantage_of_each_choice_is_q_less_v(lam):
    language, policy, _, _, rewards = world(length=4)
    values, p = true_values(language, policy, rewards), policy.probabilities().tolist()
    advantages, returns = generalised_advantages(rewards, values[language.states], language.mask, 1.0, lam)
    for prefix, token in itertools.product(language.prefixes, range(language.vocab_size)):
        t = len(prefix)
        rows = [i for i, text in enumerate(language.sequences) if text[:t + 1] == (*prefix, token)]
        weight = sum(p[i] for i in rows)
        q = sum(p[i] * rewards[i, t:].sum().item() for i in rows) / weight
        v = values[language.prefixes.index(prefix)].item()
        assert sum(p[i] * advantages[i, t].item() for i in rows) / weight == pytest.approx(q - v, abs=1e-10)
        assert sum(p[i] * returns[i, t].item() for i in rows) / weight == pytest.approx(q, abs=1e-10)


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_the_optimum_has_the_value_beta_log_z_and_nothing_beats_it(beta):
    _, _, reference, scores, _ = world(length=4)
    q = reference.probabilities().detach()
    best = optimum(q, scores, beta)
    value = objective(best, q, scores, beta).item()
    assert best.sum().item() == pytest.approx(1, abs=1e-12)
    assert value == pytest.approx(beta * math.log((q * (scores / beta).exp()).sum().item()), abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(20):
            noise = size * torch.randn(len(q), generator=generator, dtype=torch.float64)
            assert objective((best.log() + noise).softmax(0), q, scores, beta).item() < value
    # what is missing to it is beta KL(pi || pi*), for any pi
    other = TablePolicy(ToyLanguage(3, 4), 7).double().probabilities().detach()
    missing = beta * (other * (other / best).log()).sum().item()
    assert objective(other, q, scores, beta).item() == pytest.approx(value - missing, abs=1e-9)


def test_the_optimum_keeps_the_reference_for_a_large_beta_and_takes_the_best_answer_for_a_small_one():
    _, _, reference, scores, _ = world()
    q = reference.probabilities().detach()
    assert total_variation(optimum(q, scores, 1e6), q) < 1e-5
    assert optimum(q, scores, 1e-3)[scores.argmax()].item() == pytest.approx(1, abs=1e-9)
    assert optimum(q, scores, 1e-4).isfinite().all()


def test_total_variation_is_the_most_by_which_two_differ_on_any_event():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.2, 0.2, 0.2, 0.4])
    events = itertools.product([0.0, 1.0], repeat=4)
    assert total_variation(p, q) == pytest.approx(max(abs((torch.tensor(e) @ (p - q)).item()) for e in events))
    assert total_variation(p, p) == 0 and total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1


@pytest.mark.parametrize("beta, before", [(0.5, 0.4), (1.0, 0.2)])
def test_ppo_finds_the_optimum_from_samples(beta, before):
    language, reference = ToyLanguage(), TablePolicy(ToyLanguage(), 0)
    scores = torch.randn(31, generator=torch.Generator().manual_seed(100))
    distances, probabilities, drawn = ppo(language, reference, scores, beta, Config(steps=60), seed=4, epochs=4)
    best = optimum(reference.probabilities().detach(), scores, beta)
    assert distances[0] > before and distances[-1] <= 0.05
    assert total_variation(probabilities, best) == distances[-1] and drawn.sum() == 60 * 128


def test_on_one_step_without_a_penalty_the_best_reward_is_reached():
    language = ToyLanguage(4, 1)  # a bandit with four arms
    reference, scores = TablePolicy(language, 1), torch.tensor([0.3, -1.0, 2.0, 1.0])
    scores = scores[reference.probabilities().argsort(descending=True).argsort()]  # the best arm is the third most likely
    for beta in (0.5, 0.1, 0.0001):
        _, probabilities, _ = ppo(language, reference, scores, beta, Config(steps=60), seed=1, epochs=4)
        expected = optimum(reference.probabilities().detach(), scores, beta) @ scores
        assert (probabilities @ scores).item() == pytest.approx(expected.item(), abs=0.02)
    assert (probabilities @ scores).item() > 0.99 * scores.max().item()
