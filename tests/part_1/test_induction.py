import pytest
import torch

from part_1.induction import N_TOKENS, AttentionOnlyModel, induction_scores, offset_scores, repeating_sequences


def test_sequences_repeat_with_their_own_period():
    torch.manual_seed(0)
    tokens, periods = repeating_sequences(200)
    assert set(periods.flatten().tolist()) == set(range(6, 20))
    for row, period in zip(tokens, periods.flatten().tolist()):
        assert torch.equal(row[period:], row[:-period])
    # Within a period the letters are random: the 27 of them come about equally often at the first place.
    assert len(tokens[:, 0].unique()) > 20


def one_hot_weights(key_of_query):
    """Weights (1, 1, T, T) that put all of a query's weight on one key."""
    weights = torch.zeros(1, 1, N_TOKENS, N_TOKENS)
    for query in range(N_TOKENS):
        weights[0, 0, query, key_of_query(query)] = 1
    return weights


def test_offset_scores_tell_how_far_back_a_head_looks():
    scores = offset_scores(one_hot_weights(lambda query: max(query - 2, 0)))
    # All queries but the first two look 2 back; query 0 looks at itself, query 1 one back.
    assert scores[0].tolist() == pytest.approx([1 / 48, 1 / 47, 1.0, 0.0])


@pytest.mark.parametrize("rounds", [1, 2])
def test_induction_score_is_one_on_what_followed_in_any_earlier_round(rounds):
    periods = torch.tensor([[7]])
    weights = one_hot_weights(lambda query: max(query - rounds * 7 + 1, 0))
    # Queries from 7 on count. In round two, "two rounds ago" is before the start: key 0 instead, which is right for
    # query 6 + 7 = 13 alone (13 - 0 + 1 = 2 * 7).
    expected = 1.0 if rounds == 1 else (N_TOKENS - 13) / (N_TOKENS - 7)
    assert induction_scores(weights, periods).item() == pytest.approx(expected)


def test_heads_that_look_elsewhere_score_nothing():
    assert induction_scores(one_hot_weights(lambda query: max(query - 7, 0)), torch.tensor([[7]])).item() == 0


def test_the_model_shows_the_weights_it_uses_and_cannot_look_ahead():
    torch.manual_seed(0)
    model = AttentionOnlyModel(d_model=16, n_head=2)
    tokens, _ = repeating_sequences(3)
    weights = model.attention_weights(tokens)
    assert weights.shape == (2, 3, 2, N_TOKENS, N_TOKENS)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5) and (weights.triu(1) == 0).all()
    changed = tokens.clone()
    changed[:, 30] = (tokens[:, 30] + 1) % 27
    assert torch.equal(model(tokens)[:, :30], model(changed)[:, :30])
