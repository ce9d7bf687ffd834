import pytest
import torch
from torch import nn

from part_1.multi_head import MultiHeadAttention, merge_heads, split_heads
from part_1.single_head import SingleHeadAttention, causal_mask


def copy_to_torch(ours, d_model, n_head):
    theirs = nn.MultiheadAttention(d_model, n_head, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.project.weight)
        theirs.out_proj.bias.copy_(ours.project.bias)
    return theirs


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_torch_s_multihead_attention_forward_and_backward(fused, causal):
    torch.manual_seed(0)
    ours = MultiHeadAttention(24, 4, fused=fused)
    nn.init.normal_(ours.qkv.bias)  # torch's own default of zero would not tell where the bias goes
    nn.init.normal_(ours.project.bias)
    theirs = copy_to_torch(ours, 24, 4)
    x = torch.randn(3, 7, 24)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = ours(mine, causal)
    expected, weights = theirs(other, other, other, attn_mask=~causal_mask(7) if causal else None, need_weights=True,
                               average_attn_weights=False)
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(ours.attention_weights(x, causal), weights, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    for a, b in ((mine.grad, other.grad), (ours.qkv.weight.grad, theirs.in_proj_weight.grad),
                 (ours.qkv.bias.grad, theirs.in_proj_bias.grad), (ours.project.weight.grad, theirs.out_proj.weight.grad)):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_math_path_equals_fused_path(causal):
    torch.manual_seed(0)
    fused, explicit = MultiHeadAttention(32, 4), MultiHeadAttention(32, 4, fused=False)
    explicit.load_state_dict(fused.state_dict())
    x = torch.randn(2, 50, 32)
    assert torch.allclose(fused(x, causal), explicit(x, causal), atol=1e-5)


def test_heads_are_independent_single_heads_concatenated():
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3, bias=False)
    x = torch.randn(2, 5, 12)
    outputs = []
    for h in range(3):
        head = SingleHeadAttention(12, 4)
        with torch.no_grad():
            for part, linear in enumerate((head.query, head.key, head.value)):
                linear.weight.copy_(attention.qkv.weight[12 * part + 4 * h:12 * part + 4 * h + 4])
        outputs.append(head(x, causal_mask(5))[0])
    assert torch.allclose(attention(x, causal=True), attention.project(torch.cat(outputs, dim=-1)), atol=1e-6)


def test_split_heads_puts_consecutive_columns_into_one_head():
    x = torch.arange(12.0).view(1, 2, 6)
    assert split_heads(x, 3).tolist() == [[[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]]
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="10.*divisible.*4"):
        MultiHeadAttention(10, 4)


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_acts_in_training_only(fused):
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 2, dropout=0.5, fused=fused)
    x = torch.randn(1, 8, 16)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_there_only_when_asked_for(bias):
    names = {name for name, _ in MultiHeadAttention(8, 2, bias=bias).named_parameters()}
    assert names == {"qkv.weight", "project.weight"} | ({"qkv.bias", "project.bias"} if bias else set())


def test_the_fused_path_is_the_default_and_the_math_path_does_not_touch_it(monkeypatch):
    calls = []

    def fused_attention(query, key, value, **options):
        calls.append(options)
        return torch.zeros_like(value)

    monkeypatch.setattr("part_1.multi_head.fused_attention", fused_attention)
    x = torch.randn(1, 3, 8)
    MultiHeadAttention(8, 2, fused=False)(x)
    assert not calls
    MultiHeadAttention(8, 2, dropout=0.25)(x, causal=True)
    assert calls == [dict(dropout_p=0.25, is_causal=True)]
