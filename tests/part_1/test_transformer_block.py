import pytest
import torch
from torch import nn

from part_1.positional_encoding import sinusoidal_table
from part_1.transformer_block import TransformerBlock


def torch_twin(block, d_model, n_head, d_hidden):
    """torch's own pre-norm layer with the weights of `block`."""
    twin = nn.TransformerEncoderLayer(d_model, n_head, d_hidden, dropout=0.0, activation="gelu", batch_first=True,
                                      norm_first=True)
    names = {"norm_1": "norm1", "norm_2": "norm2", "attention.qkv.": "self_attn.in_proj_",
             "attention.project": "self_attn.out_proj", "feed_forward.expand": "linear1", "feed_forward.contract": "linear2"}
    state = {}
    for name, tensor in block.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("causal", [True, False])
def test_equals_torch_s_pre_norm_encoder_layer_forward_and_backward(causal):
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, d_hidden=24)
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    twin = torch_twin(block, 16, 4, 24)
    x = torch.randn(2, 6, 16)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = block(mine, causal)
    expected = twin(other, src_mask=nn.Transformer.generate_square_subsequent_mask(6) if causal else None)
    assert torch.allclose(output, expected, atol=1e-5)
    output.sum().backward()
    expected.sum().backward()
    assert torch.allclose(mine.grad, other.grad, atol=1e-4)
    assert torch.allclose(block.attention.qkv.weight.grad, twin.self_attn.in_proj_weight.grad, atol=1e-4)


def test_changing_a_future_token_changes_nothing_before_it():
    torch.manual_seed(0)
    block, x = TransformerBlock(16, 4), torch.randn(1, 8, 16)
    before = block(x)
    for j in range(8):
        changed = x.clone()
        changed[0, j] = torch.randn(16)
        after = block(changed)
        assert torch.equal(after[0, :j], before[0, :j])
        assert (after[0, j:] != before[0, j:]).any(dim=-1).all()


def test_without_positions_the_order_of_the_past_does_not_matter_and_with_them_it_does():
    torch.manual_seed(0)
    block, x = TransformerBlock(16, 4).double(), torch.randn(1, 8, 16, dtype=torch.float64)
    shuffled = x[:, [3, 0, 6, 1, 5, 2, 4, 7]]
    positions = sinusoidal_table(8, 16).double()
    assert torch.allclose(block(x)[0, -1], block(shuffled)[0, -1], atol=1e-6)
    assert not torch.allclose(block(x + positions)[0, -1], block(shuffled + positions)[0, -1], atol=1e-3)
    # Without the mask the whole layer is equivariant: shuffling the input shuffles the output.
    order = [3, 0, 6, 1, 5, 2, 4, 7]
    assert torch.allclose(block(x, causal=False)[:, order], block(x[:, order], causal=False), atol=1e-6)


def test_the_residual_stream_passes_unchanged_when_the_branches_write_nothing():
    block, x = TransformerBlock(16, 4), torch.randn(1, 8, 16)
    for linear in (block.attention.project, block.feed_forward.contract):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    assert torch.equal(block(x), x)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block, x = TransformerBlock(16, 4, dropout=0.5), torch.randn(1, 8, 16)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("silent", ["attention.project", "feed_forward.contract"])
def test_each_branch_is_dropped_out_before_it_is_added(silent):
    torch.manual_seed(0)
    block, x = TransformerBlock(64, 4, dropout=0.25), torch.randn(4, 32, 64)
    linear = block.get_submodule(silent)  # with one branch silenced, what is added is the other one alone
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    dropped = (block(x) - x == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.03)
    assert block.attention.dropout == 0.25


def test_without_bias_nothing_has_one():
    assert not [name for name, _ in TransformerBlock(16, 4, bias=False).named_parameters() if "bias" in name]
