"""Lesson 8.1: policy and critic, against loops over prefixes, rows without padding, torch's own distributions, gradients."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_0.cli import InputError
from part_2.sampling import filter_logits
from part_7.reward_model import RewardModel
from part_8.policy import (
    CRITICS,
    ActorCritic,
    action_log_probs,
    build_actor_critic,
    distributions,
    divergences,
    entropies,
    kept_tokens,
)
from tests.part_8.tiny_stages import TOKENIZER, make_reward_model, make_sft, tiny_model

V = TOKENIZER.vocab_size


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Paths of a tiny fine-tuned model and a tiny reward model."""
    folder = tmp_path_factory.mktemp("stages")
    return make_sft(folder / "sft.pt", vivid(tiny_model())), make_reward_model(folder / "reward.pt")


def vivid(model, seed=0):
    """The model with weights that are far from nothing, so that its states and probabilities differ from place to place."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model


def actor_critic(kind="policy", seed=0, **changes):
    """An ActorCritic of random weights, whose value head is not zero."""
    own = None if kind == "shared" else vivid(tiny_model(**changes), seed + 1)
    model = ActorCritic(vivid(tiny_model(**changes), seed), own)
    torch.nn.init.normal_(model.value.weight)
    torch.nn.init.constant_(model.value.bias, 0.7)
    return model


def draw(B=3, T=9, seed=0):
    """Random tokens, (B, T)."""
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def draw_logits(*shape, seed=0, spread=2.0):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- log-probabilities ----

@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@torch.no_grad()
def test_one_pass_gives_the_log_probabilities_of_a_loop_over_prefixes(temperature):
    model, tokens = actor_critic(), draw()
    found = action_log_probs(distributions(model(tokens)[0], temperature), tokens)
    assert found.shape == (3, 8)
    for row in range(3):
        for t in range(8):
            logits = model.policy(tokens[row:row + 1, :t + 1])[0, -1].double()  # nothing after the prefix is there
            weights = [math.exp(z / temperature) for z in logits.tolist()]
            expected = math.log(weights[tokens[row, t + 1]] / sum(weights))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-4)
    assert found.std() > 0.3  # places that could be mixed up


def test_distributions_by_hand():
    # e^ln 2 : e^ln 6 = 1 : 3; at temperature 1/2 both are squared, 4 : 36 = 1 : 9.
    logits = torch.tensor([[[math.log(2), math.log(6)], [5.0, 5.0]]])
    assert distributions(logits).exp().tolist() == [[pytest.approx([1 / 4, 3 / 4])]]  # the last place has no choice after it
    assert distributions(logits, 0.5).exp().tolist() == [[pytest.approx([1 / 10, 9 / 10])]]
    assert action_log_probs(distributions(logits), torch.tensor([[0, 1]])).exp().tolist() == [[pytest.approx(3 / 4)]]


def test_log_probabilities_of_bf16_logits_are_fp32():
    logits = draw_logits(2, 5, V).bfloat16()
    found = distributions(logits, 0.9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (logits.double() / 0.9).log_softmax(-1)[:, :-1].float(), rtol=1e-5, atol=1e-5)


# ---- top-k and top-p ----

FILTERS = st.tuples(st.none() | st.integers(1, 25), st.none() | st.sampled_from([0.05, 0.3, 0.8, 0.95, 1.0]),
                    st.sampled_from([0.4, 1.0, 1.5]), st.integers(0, 10**6))


@settings(max_examples=100, deadline=None)
@given(FILTERS)
def test_what_is_kept_has_the_probabilities_that_sampling_draws_from(drawn):
    top_k, top_p, temperature, seed = drawn
    logits = draw_logits(2, 6, 20, seed=seed)
    # Tokens as sampling draws them: the filter has left each of them.
    tokens = torch.zeros(2, 6, dtype=torch.long)
    expected = torch.stack([filter_logits(logits[:, t], temperature, top_k, top_p).softmax(-1) for t in range(5)], 1)
    tokens[:, 1:] = torch.multinomial(expected.flatten(0, 1), 1, generator=torch.Generator().manual_seed(seed)).view(2, 5)
    kept = kept_tokens(logits, tokens, temperature, top_k, top_p)
    found = distributions(logits, temperature, kept)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-5, atol=1e-6)
    assert action_log_probs(found, tokens).isfinite().all()
    if top_k is None and top_p is None:
        assert kept is None
    else:
        assert kept.dtype == torch.bool and torch.equal(kept, expected > 0)


def test_nothing_is_kept_apart_without_top_k_and_top_p():
    logits, tokens = draw_logits(1, 4, 20), torch.zeros(1, 4, dtype=torch.long)
    assert kept_tokens(logits, tokens, 1.0) is None
    assert kept_tokens(logits, tokens, 1.0, 3, None) is not None and kept_tokens(logits, tokens, 1.0, None, 0.9) is not None


def test_a_sampled_token_is_kept_even_where_another_pass_rules_it_out():
    logits = torch.tensor([[[4.0, 3.0, 2.0, 1.0]] * 3])
    kept = kept_tokens(logits, torch.tensor([[3, 3, 1]]), 1.0, top_k=2)  # what stands first is nobody's choice
    assert kept.tolist() == [[[True, True, False, True], [True, True, False, False]]]
    # 4, 3 and 1 are left at the first place: log softmax of the last of them.
    expected = 1 - math.log(math.exp(4) + math.exp(3) + math.exp(1))
    found = action_log_probs(distributions(logits, 1.0, kept), torch.tensor([[3, 3, 1]]))
    assert found[0, 0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("top_k, top_p", [(None, None), (3, None), (None, 0.7), (10, 0.9)])
@torch.no_grad()
def test_the_ratio_of_a_model_with_itself_is_exactly_one(top_k, top_p):
    model, tokens = actor_critic(), draw()
    logits = model(tokens)[0]
    kept = kept_tokens(logits, tokens, 0.8, top_k, top_p)
    old, new = (action_log_probs(distributions(x, 0.8, kept), tokens) for x in (logits, model(tokens)[0]))
    assert torch.equal((new - old).exp(), torch.ones(3, 8))


# ---- values ----

@pytest.mark.parametrize("kind", CRITICS)
def test_the_first_values_are_zero_and_the_policy_says_what_the_fine_tuned_model_says(kind, stages):
    model, tokens = build_actor_critic(stages[0], kind, stages[1]), draw()
    with torch.no_grad():
        logits, values = model(tokens)
        assert torch.equal(logits, vivid(tiny_model())(tokens))
    assert torch.equal(values, torch.zeros(3, 9)) and values.dtype == torch.float32


@pytest.mark.parametrize("kind", ["policy", "shared"])
@torch.no_grad()
def test_the_value_is_the_head_s_product_with_the_hidden_state(kind):
    model, tokens = actor_critic(kind), draw()
    hidden = (model.policy if kind == "shared" else model.critic).hidden_states(tokens)
    expected = torch.tensor([[sum(w * h for w, h in zip(model.value.weight[0].tolist(), state.tolist())) + 0.7
                              for state in row] for row in hidden])
    torch.testing.assert_close(model(tokens)[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["policy", "shared"])
@torch.no_grad()
def test_a_value_knows_its_prefix_and_nothing_of_what_follows(kind):
    model, tokens = actor_critic(kind), draw(1, 9)
    logits, values = model(tokens)
    for t in range(9):
        changed = tokens.clone()
        changed[0, t] = (tokens[0, t] + 1) % V
        other_logits, other_values = model(changed)
        # V in column t - 1 is of the state in which token t was chosen: the token itself has no part in it.
        torch.testing.assert_close(other_values[0, :t], values[0, :t], rtol=0, atol=1e-5)
        torch.testing.assert_close(other_logits[0, :t], logits[0, :t], rtol=0, atol=1e-5)
        assert ((other_values - values)[0, t:].abs() > 1e-3).all()


@pytest.mark.parametrize("kind", ["policy", "shared"])
@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"window": 3, "sinks": 1}], ids=str)
@torch.no_grad()
def test_padding_on_the_right_changes_nothing(kind, changes):
    model = actor_critic(kind, **changes)
    lengths, tokens = (9, 4, 1, 6), draw(4, 14, seed=1)  # what stands in padding is garbage
    logits, values = model(tokens)
    for row, length in enumerate(lengths):
        own_logits, own_values = model(tokens[row:row + 1, :length])
        torch.testing.assert_close(logits[row, :length], own_logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(values[row, :length], own_values[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["policy", "shared"])
def test_dropout_is_off_even_in_training(kind):
    model, tokens = actor_critic(kind, dropout=0.5), draw()
    assert not any(module.training for module in model.modules())
    assert model.train() is model and not any(module.training for module in model.modules())
    state = torch.get_rng_state()
    first, second = (model(tokens) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)
    model.policy.train()  # and dropout would be seen
    assert not torch.equal(model(tokens)[0], first[0])


@torch.no_grad()
def test_under_autocast_values_are_fp32_and_no_multiples_of_bf16():
    model, tokens = actor_critic(), draw()
    model.value.bias.zero_()  # or the sum would not show that the product was rounded
    with torch.autocast("cpu", torch.bfloat16):
        values = model(tokens)[1]
    assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


# ---- who learns from what ----

def reached(module):
    """The names of the weights with a gradient that is not zero."""
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def test_the_value_loss_of_a_critic_of_its_own_leaves_the_policy_alone():
    model = actor_critic("policy")
    model(draw())[1].square().mean().backward()
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert len(reached(model.critic)) == len(list(model.critic.parameters())) and reached(model.value) == {"weight", "bias"}


def test_the_value_loss_of_a_shared_critic_reaches_the_policy_but_not_what_it_says_last():
    model = actor_critic("shared")
    model(draw())[1].square().mean().backward()
    assert reached(model.policy) == {name for name, _ in model.policy.named_parameters()} - {"head.weight"}
    assert model.policy.head.weight.grad is None and reached(model.value) == {"weight", "bias"}


@pytest.mark.parametrize("kind", ["policy", "shared"])
def test_the_policy_s_loss_never_moves_a_critic(kind):
    model, tokens = actor_critic(kind), draw()
    action_log_probs(distributions(model(tokens)[0]), tokens).mean().backward()
    assert len(reached(model.policy)) == len(list(model.policy.parameters()))
    assert all(parameter.grad is None for parameter in model.learners()[1].parameters())


@pytest.mark.parametrize("kind", CRITICS)
def test_the_learners_hold_every_weight_once(kind, stages):
    model = build_actor_critic(stages[0], kind, stages[1])
    held = [id(parameter) for learner in model.learners() for parameter in learner.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    policy, values = model.learners()
    assert policy is model.policy and not {*map(id, policy.parameters())} & {*map(id, values.parameters())}


# ---- what a critic begins as ----

def test_a_critic_begins_as_a_copy_of_the_policy_with_weights_of_its_own(stages):
    model, sft = build_actor_critic(stages[0], "policy"), vivid(tiny_model()).state_dict()
    for weights in (model.policy.state_dict(), model.critic.state_dict()):
        assert all(torch.equal(weights[name], sft[name]) for name in weights)
    assert set(model.critic.state_dict()) == set(sft) - {"head.weight"} and "head.weight" in model.policy.state_dict()
    with torch.no_grad():
        model.critic.token_embedding.weight.zero_()
    assert torch.equal(model.policy.token_embedding.weight, sft["token_embedding.weight"])


def test_a_critic_from_the_reward_model_has_its_encoder_s_weights(stages):
    model, encoder = build_actor_critic(stages[0], "reward", stages[1]), RewardModel(tiny_model(1)).encoder.state_dict()
    found = model.critic.state_dict()
    assert set(found) == set(encoder) and all(torch.equal(found[name], encoder[name]) for name in found)
    assert not torch.equal(found["token_embedding.weight"], model.policy.token_embedding.weight)


def test_a_shared_critic_is_none_of_its_own_and_needs_no_reward_model(stages):
    model = build_actor_critic(stages[0], "shared", "nowhere.pt")
    assert model.critic is None and model.learners()[1][0] is model.value


def test_a_stage_that_is_missing_or_does_not_fit_is_named(stages, tmp_path):
    sft, reward = stages
    with pytest.raises(InputError, match="no checkpoint .*none.pt; make one with: python3 part_6/train_sft.py"):
        build_actor_critic(tmp_path / "none.pt")
    with pytest.raises(InputError, match="no checkpoint .*none.pt; make one with: python3 part_7/train_reward_model.py"):
        build_actor_critic(sft, "reward", tmp_path / "none.pt")
    for number, changes in enumerate(({"d_model": 32}, {"vocab_size": V + 1})):
        other = make_reward_model(tmp_path / f"{number}.pt", RewardModel(tiny_model(1, **changes)))
        with pytest.raises(InputError, match=rf"^--critic reward: .*{number}.pt has other sizes than .*sft.pt$"):
            build_actor_critic(sft, "reward", other)
    deeper = make_reward_model(tmp_path / "deeper.pt", RewardModel(tiny_model(1, n_layer=3)))  # only the states must fit
    assert build_actor_critic(sft, "reward", deeper).critic.config.n_layer == 3


# ---- entropies and divergences ----

def ruled_out(log_probs, keep, seed=0):
    """Log-probabilities in which only some tokens are left, the same ones wherever the seed is the same."""
    kept = torch.rand(log_probs.shape, generator=torch.Generator().manual_seed(seed)) < keep
    kept[..., 0] = True
    return log_probs.masked_fill(~kept, float("-inf")).log_softmax(-1)


@pytest.mark.parametrize("keep", [1.0, 0.4, 0.0])
def test_entropies_and_divergences_are_torch_s(keep):
    policy, home = (ruled_out(draw_logits(4, 7, 11, seed=seed), keep) for seed in (1, 2))
    of_policy, of_home = (torch.distributions.Categorical(x.double().exp(), validate_args=False) for x in (policy, home))
    torch.testing.assert_close(entropies(policy).double(), of_policy.entropy(), rtol=1e-4, atol=1e-5)
    expected = torch.distributions.kl_divergence(of_policy, of_home)
    torch.testing.assert_close(divergences(policy, home).double(), expected, rtol=1e-4, atol=1e-5)
    assert entropies(policy).shape == (4, 7)
    if keep == 0.0:  # one token is left: nothing is open
        assert not entropies(policy).any() and not divergences(policy, home).any()
    else:
        there, back = divergences(policy, home), divergences(home, policy)
        assert there.min() > -1e-6 and there.mean() > 0.5 and (there - back).abs().max() > 0.5  # not symmetric


def test_entropy_and_divergence_by_hand():
    # (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2. From (1/4, 1/4, 1/2): 1/2 ln 2 + 1/4 ln 1 - 1/4 ln 2 = 1/4 ln 2.
    policy, home = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert entropies(policy).item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert divergences(policy, home).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert entropies(torch.full((8,), 1 / 8).log()).item() == pytest.approx(math.log(8), abs=1e-6)


def test_what_the_reference_cannot_say_is_infinitely_far():
    policy, home = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([1.0, 0.0, 0.0]).log()
    assert divergences(policy, home).item() == math.inf
    assert divergences(home, policy).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("keep", [1.0, 0.4, 0.0])
def test_gradients_of_entropy_and_divergence_are_numbers_and_the_closed_form(keep):
    kept = ruled_out(draw_logits(4, 7, 11), keep) > float("-inf")
    logits, home = draw_logits(4, 8, 11, seed=1).requires_grad_(), distributions(draw_logits(4, 8, 11, seed=2), 1.0, kept)
    policy = distributions(logits, 1.0, kept)
    p, log_p = policy.detach().double().exp(), torch.where(kept, policy.detach(), 0.0).double()
    for found, f in ((entropies(policy), -log_p), (divergences(policy, home), log_p - torch.where(kept, home, 0.0))):
        # d/dz_j of sum_i p_i f_i, where f_i is -ln p_i, or ln p_i - ln q_i: p_j (f_j - sum_i p_i f_i).
        [gradient] = torch.autograd.grad(found.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all() and not gradient[:, -1].any()
        expected = p * (f - (p * f).sum(-1, keepdim=True))
        torch.testing.assert_close(gradient[:, :-1].double(), expected, rtol=1e-3, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_the_divergence_is_the_mean_of_the_log_ratio_over_the_policy_s_own_draws(seed):
    # Three tokens, two places: every sequence is listed, and its log ratio weighted with its probability.
    rng = random.Random(seed)
    tables = [{prefix: torch.tensor([rng.gauss(0, 1) for _ in range(3)]).log_softmax(-1)
               for prefix in ((), (0,), (1,), (2,))} for _ in range(2)]
    mean_ratio = sum((tables[0][()][a] + tables[0][a,][b]).exp() * (tables[0][()][a] + tables[0][a,][b]
                                                                   - tables[1][()][a] - tables[1][a,][b])
                     for a in range(3) for b in range(3))
    summed = divergences(tables[0][()], tables[1][()]) + sum(
        tables[0][()][a].exp() * divergences(tables[0][a,], tables[1][a,]) for a in range(3))
    assert summed.item() == pytest.approx(mean_ratio.item(), abs=1e-5)
