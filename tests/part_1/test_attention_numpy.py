import numpy as np
import pytest

from part_1.attention_numpy import W_KEY, W_QUERY, W_VALUE, X, attention, softmax
from part_1.demo_attention_numpy import torch_attention


def test_the_example_s_numbers_worked_by_hand():
    result = attention(X, W_QUERY, W_KEY, W_VALUE)
    assert result.query.tolist() == [[1, 1], [0, 2], [2, 1]]
    assert result.key.tolist() == [[0, 1], [2, 0], [1, 1]]
    assert result.value.tolist() == [[1, 0], [0, 3], [2, 1]]
    assert result.scores * np.sqrt(2) == pytest.approx(np.array([[1, 2, 2], [2, 0, 2], [1, 4, 3]]))
    # Row "sat": exp(1/1.41421) = 2.02812, exp(4/1.41421) = 16.91883, exp(3/1.41421) = 8.34227; their sum is 27.28921.
    assert result.weights[2] == pytest.approx([2.02812 / 27.28921, 16.91883 / 27.28921, 8.34227 / 27.28921], abs=1e-5)
    # 0.07432 (1, 0) + 0.61998 (0, 3) + 0.30570 (2, 1)
    assert result.output[2] == pytest.approx([0.68572, 2.16564], abs=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_every_stage_equals_torch_s(causal):
    random = np.random.default_rng(0)
    x, w_query, w_key, w_value = (random.normal(size=shape) for shape in ((9, 8), (8, 4), (8, 4), (8, 5)))
    ours, theirs = (function(x, w_query, w_key, w_value, causal) for function in (attention, torch_attention))
    for name, mine, other in zip(ours._fields, ours, theirs):
        np.testing.assert_allclose(mine, other, atol=1e-6, err_msg=name)  # -inf only equals -inf


def test_causal_weights_are_exactly_zero_above_the_diagonal():
    weights = attention(X, W_QUERY, W_KEY, W_VALUE, causal=True).weights
    assert (np.triu(weights, 1) == 0).all() and weights.sum(axis=1) == pytest.approx(np.ones(3))


def test_softmax_of_huge_scores_does_not_overflow():
    assert softmax(np.array([1000.0, 1000.0, -1000.0])).tolist() == [0.5, 0.5, 0.0]
