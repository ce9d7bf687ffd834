import math

import pytest
import torch
from torch import nn

from part_1.positional_encoding import sinusoidal_table
from part_2.gpt import GPT, GPTConfig

SHAPE = dict(vocab_size=50, block_size=16, n_layer=3, n_head=4, d_model=24)


class ReferenceGPT2(nn.Module):
    """The GPT-2 architecture from torch's own modules, nothing of this repository."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, d_model):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, d_model)
        self.wpe = nn.Embedding(block_size, d_model)
        layer = nn.TransformerEncoderLayer(d_model, n_head, 4 * d_model, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.stack = nn.TransformerEncoder(layer, n_layer, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens):
        T = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        x = self.wte(tokens) + self.wpe(torch.arange(T))
        return self.lm_head(self.stack(x, mask=mask, is_causal=True))


RENAMED = {"token_embedding": "wte", "position_embedding": "wpe", "blocks": "stack.layers", "norm_1": "norm1",
           "norm_2": "norm2", "attention.qkv.": "self_attn.in_proj_", "attention.project": "self_attn.out_proj",
           "feed_forward.expand": "linear1", "feed_forward.contract": "linear2", "head": "lm_head"}


def copy_weights(model, reference):
    state = {}
    for name, tensor in model.state_dict().items():
        new = name
        for ours, theirs in RENAMED.items():
            new = new.replace(ours, theirs)
        state["stack." + new if new.startswith("norm.") else new] = tensor
    reference.load_state_dict(state)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_a_gpt2_built_from_torch_modules_logits_and_gradients(tied):
    torch.manual_seed(0)
    model, reference = GPT(GPTConfig(**SHAPE, tie_embeddings=tied)), ReferenceGPT2(**SHAPE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    copy_weights(model, reference)
    if tied:
        reference.lm_head.weight = reference.wte.weight
    tokens = torch.randint(50, (2, 16))
    logits, expected = model(tokens), reference(tokens)
    assert torch.allclose(logits, expected, atol=1e-4)
    logits.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    for mine, theirs in ((model.token_embedding, reference.wte), (model.position_embedding, reference.wpe),
                         (model.blocks[0].feed_forward.expand, reference.stack.layers[0].linear1)):
        assert torch.allclose(mine.weight.grad, theirs.weight.grad, atol=1e-3)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_changing_a_future_token_changes_no_earlier_logit(positions):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, positions=positions))
    tokens = torch.randint(50, (1, 10))
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[0, 6:] != after[0, 6:]).any(-1).all()


def test_number_of_weights_is_gpt2_s():
    # GPT-2 small has 124,439,808 weights (its tied matrix counted once).
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, d_model=768, tie_embeddings=True))
    assert model.n_params() == 124_439_808


def test_initialisation_keeps_the_residual_stream_from_growing_with_depth():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=300, block_size=64, n_layer=8, n_head=4, d_model=128))
    for block in model.blocks:
        for linear in (block.attention.project, block.feed_forward.contract):
            assert linear.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (block.attention.qkv.bias == 0).all() and (block.norm_1.weight == 1).all()
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_tied_embeddings_are_one_matrix():
    model = GPT(GPTConfig(**SHAPE, tie_embeddings=True))
    assert model.head.weight is model.token_embedding.weight
    assert GPT(GPTConfig(**SHAPE, tie_embeddings=False)).n_params() - model.n_params() == 50 * 24


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="17 tokens.*16"):
        GPT(GPTConfig(**SHAPE))(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("change, complaint", [(dict(n_head=5), "24.*divisible.*5"), (dict(n_layer=0), "n_layer.*0"),
                                               (dict(dropout=1.0), "dropout.*1.0"), (dict(positions="x"), "positions.*x")])
def test_a_shape_that_cannot_be_built_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        GPTConfig(**{**SHAPE, **change})


def test_the_embedding_is_dropped_out_in_training():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SHAPE, "d_model": 64}, dropout=0.25))
    model.blocks, model.norm, model.head = nn.ModuleList(), nn.Identity(), nn.Identity()
    tokens = torch.randint(50, (16, 16))
    assert (model(tokens) == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (model.eval()(tokens) != 0).all()
    assert [block.dropout for block in GPT(GPTConfig(**SHAPE, dropout=0.25)).blocks] == [0.25] * 3


def test_without_bias_nothing_has_one():
    assert not [name for name, _ in GPT(GPTConfig(**SHAPE, bias=False)).named_parameters() if "bias" in name]


def test_sinusoidal_positions_are_the_table_of_lesson_1_1_and_not_learned():
    model = GPT(GPTConfig(**SHAPE, positions="sinusoidal"))
    assert torch.equal(model.position_embedding(torch.arange(16)), sinusoidal_table(16, 24))
    assert GPT(GPTConfig(**SHAPE)).n_params() - model.n_params() == 16 * 24
