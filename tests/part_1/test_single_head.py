import pytest
import torch
import torch.nn.functional as F

from part_1.single_head import SingleHeadAttention, causal_mask, scaled_dot_product_attention


def test_causal_mask_lets_a_token_see_itself_and_the_past():
    assert causal_mask(3, device="meta").device.type == "meta"
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("mask", [None, causal_mask(6)])
def test_equals_torch_s_attention_forward_and_backward(mask):
    torch.manual_seed(0)
    ours = [torch.randn(2, 6, width, dtype=torch.float64, requires_grad=True) for width in (4, 4, 7)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    output, _ = scaled_dot_product_attention(*ours, mask)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    # The softmax is taken in fp32, so fp64 inputs agree to fp32's precision.
    assert torch.allclose(output, expected, atol=1e-6)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    for mine, other in zip(ours, theirs):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def test_any_mask_is_an_argument_and_blocked_keys_do_not_matter():
    torch.manual_seed(0)
    head = SingleHeadAttention(8, 4)
    x = torch.randn(1, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, 2] = False  # nobody may look at token 2 ...
    mask[2, 2] = True  # ... but itself
    changed = x.clone()
    changed[0, 2] += 10
    (before, weights), (after, _) = head(x, mask), head(changed, mask)
    others = [0, 1, 3, 4]
    assert torch.equal(before[0, others], after[0, others]) and not torch.equal(before[0, 2], after[0, 2])
    assert (weights[0, others, 2] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(1, 5))


def test_the_value_may_have_another_width():
    output, weights = SingleHeadAttention(8, 4, d_value=3)(torch.randn(2, 5, 8))
    assert output.shape == (2, 5, 3) and weights.shape == (2, 5, 5)


def test_a_head_is_three_matrices_without_biases():
    assert [tuple(p.shape) for p in SingleHeadAttention(8, 4, d_value=3).parameters()] == [(4, 8), (4, 8), (3, 8)]


def test_scores_keep_variance_one_only_when_divided_by_sqrt_d():
    torch.manual_seed(0)
    query, key = torch.randn(400, 256), torch.randn(400, 256)
    eye = torch.eye(400)

    def score_variance(scale):
        # log a_ij - log a_ik = s_ij - s_ik, whose variance is twice the scores'.
        weights = scaled_dot_product_attention(query, key, eye, scale=scale)[1].clamp(min=1e-38).log()
        return ((weights[:, 0::2] - weights[:, 1::2]).var() / 2).item()

    assert score_variance(None) == pytest.approx(1, rel=0.1)
    assert score_variance(0.5) == pytest.approx(256 * 0.25, rel=0.1)


def test_softmax_runs_in_fp32_for_bf16_inputs():
    # 4096 equal keys: each weight is 2^-12, and in bf16 a running sum of them would stop at 2^-12 * 256 = 0.06.
    query = torch.zeros(1, 8, dtype=torch.bfloat16)
    _, weights = scaled_dot_product_attention(query, torch.zeros(4096, 8, dtype=torch.bfloat16),
                                              torch.zeros(4096, 1, dtype=torch.bfloat16))
    assert weights.dtype == torch.bfloat16 and torch.equal(weights.float(), torch.full((1, 4096), 2.0**-12))
