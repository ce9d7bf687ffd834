import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from part_2.loss import cross_entropy
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.demo_speedrun import LONG, RUNGS, SPRINT
from part_4.optimizer import Muon
from part_4.speedrun_model import NgramGPT, NgramGPTConfig, ngram_rows, shuffled_windows, speedrun_optimizers

PLAIN = dict(n_gram=1, n_rows=0, d_table=0)  # no tables


def tiny(**changes):
    return NgramGPTConfig(**dict(vocab_size=7, block_size=16, n_layer=2, n_head=2, d_model=8, n_gram=4, n_rows=11,
                                 d_table=5) | changes)


def awake(config, seed=0):
    """A model in eval mode without a zero in it: at the start the tables and the head would hide what they do."""
    torch.manual_seed(seed)
    model = NgramGPT(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return model


def row_by_hand(characters, n_gram, vocab_size, n_rows):
    """The rows of the n-grams at the end of a list of tokens, in Python's unlimited integers."""
    rows = []
    for n in range(2, n_gram + 1):
        digits = [token + 1 for token in characters[-n:]]
        digits = [0] * (n - len(digits)) + digits
        number = 0
        for digit in digits:  # the last character is the lowest digit
            number = number * (vocab_size + 1) + digit
        spread = (number * 2654435769) % 2**32
        rows.append((n - 2) * n_rows + spread * n_rows // 2**32)
    return rows


@given(st.integers(1, 70).flatmap(lambda V: st.tuples(st.just(V), st.lists(st.integers(0, V - 1), min_size=1, max_size=9))),
       st.integers(2, 6), st.integers(1, 5000))
@example((150_000, [149_998] * 9), 8, 2**31 - 1)  # far beyond 64 bits
def test_the_rows_are_those_of_a_slow_lookup(case, n_gram, n_rows):
    vocab_size, characters = case
    rows = ngram_rows(torch.tensor([characters]), n_gram, vocab_size, n_rows)
    assert rows[0].tolist() == [row_by_hand(characters[:t + 1], n_gram, vocab_size, n_rows) for t in range(len(characters))]


def test_a_row_worked_by_hand():
    # V = 9, so digits of base 10: tokens 2, 4 are the digits 3, 5, the bigram is 35. 35 * 2654435769 = 92905251915, less
    # 21 * 2^32 = 90194313216 is 2710938699, and 2710938699 * 100 / 2^32 = 63.1. At the first token the bigram is 03:
    # 3 * 2654435769 - 2^32 = 3668340011, * 100 / 2^32 = 85.4.
    assert ngram_rows(torch.tensor([[2, 4]]), 2, 9, 100).tolist() == [[[85], [63]]]


def test_the_hash_spreads_the_n_grams_over_all_rows():
    # All 16^3 = 4096 trigrams over 4096 rows: thrown at random a row stays empty with probability 1/e = 0.368.
    tokens = torch.tensor(list(itertools.product(range(16), repeat=3)))
    rows = ngram_rows(tokens, 3, 16, 4096)[:, -1, -1] - 4096
    assert rows.min() >= 0 and rows.max() < 4096
    assert rows.unique().numel() >= 0.6 * 4096


def test_what_goes_in_is_the_sum_of_the_token_s_vector_and_its_rows_widened():
    config = tiny()
    model = awake(config)
    tokens = torch.randint(7, (2, 6))
    x = model.embed(tokens)
    for b, t in itertools.product(range(2), range(6)):
        rows = row_by_hand(tokens[b, :t + 1].tolist(), config.n_gram, config.vocab_size, config.n_rows)
        expected = model.token_embedding.weight[tokens[b, t]].clone()
        for row in rows:
            expected += model.widen.weight @ model.ngram_table.weight[row]
        assert torch.allclose(x[b, t], expected, atol=1e-5)


def test_rows_as_wide_as_the_model_are_added_as_they_are():
    model = awake(tiny(d_table=8))
    tokens = torch.tensor([[1, 2]])
    rows = torch.tensor([row_by_hand([1], 4, 7, 11), row_by_hand([1, 2], 4, 7, 11)])
    assert torch.allclose(model.embed(tokens)[0], model.token_embedding.weight[tokens[0]]
                          + model.ngram_table.weight[rows].sum(1), atol=1e-6)


@pytest.mark.parametrize("changes", [dict(n_layer=0), dict(n_layer=2), PLAIN])
def test_no_future_character_changes_anything(changes):
    model = awake(tiny(**changes))
    tokens = torch.randint(7, (3, 12))
    logits = model(tokens)
    for t in range(1, 12):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + torch.randint(1, 7, (3, 12 - t))) % 7
        assert torch.equal(model(changed)[:, :t], logits[:, :t])
        assert (model(changed)[:, t] - logits[:, t]).abs().amax(-1).gt(1e-4).all()  # and its own place does see it


def test_without_blocks_exactly_the_last_n_characters_count():
    model = awake(tiny(n_layer=0, n_gram=3, n_rows=997))
    tokens = torch.randint(7, (1, 10))
    for back in range(5):
        changed = tokens.clone()
        changed[0, 9 - back] = (changed[0, 9 - back] + 1) % 7
        assert torch.equal(model(changed)[0, 9], model(tokens)[0, 9]) == (back >= 3)


def test_with_empty_tables_it_is_part_3_s_model():
    config = tiny()
    model = awake(config)
    nn.init.zeros_(model.ngram_table.weight)
    ours = ModernGPT(ModernGPTConfig(7, 16, 2, 2, 8, qk_norm=True)).eval()
    ours.load_state_dict({name: weight for name, weight in model.state_dict().items()
                          if name.split(".")[0] not in ("ngram_table", "widen")})
    tokens = torch.randint(7, (2, 16))
    assert torch.allclose(model(tokens), ours(tokens), atol=1e-5)


def test_an_n_gram_of_one_is_part_3_s_model_and_nothing_else():
    model = awake(tiny(**PLAIN))
    ours = ModernGPT(ModernGPTConfig(7, 16, 2, 2, 8, qk_norm=True)).eval()
    ours.load_state_dict(model.state_dict())  # strict: the same names and shapes
    tokens = torch.randint(7, (2, 16))
    assert torch.allclose(model(tokens), ours(tokens), atol=1e-5)
    # By hand, with C=8, D=4 and a SwiGLU of 24 >= 8/3 * 8: q, k, v and output 4*8*8, two norms of queries and keys 2*4,
    # SwiGLU 3*8*24, two norms 2*8; and token vectors 7*8, head 8*7, norm 8.
    assert model.n_params() == 2 * (256 + 8 + 576 + 16) + 56 + 56 + 8


def test_a_recipe_without_tables_begins_as_one_with_tables_does():
    """Only the tables are missing: ln V at first, token vectors of deviation 0.5."""
    torch.manual_seed(0)
    model = NgramGPT(tiny(vocab_size=500, d_model=32, **PLAIN))
    tokens = torch.randint(500, (2, 9))
    assert cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).item() == pytest.approx(math.log(500), abs=1e-5)
    assert model.embed(tokens).equal(model.token_embedding.weight[tokens])
    assert model.token_embedding.weight.std().item() == pytest.approx(0.5, abs=0.02)  # 16,000 numbers: +- 0.003


@pytest.mark.parametrize("recipe", [*RUNGS, LONG], ids=lambda recipe: recipe.name)
def test_each_recipe_has_at_most_a_million_weights_and_begins_at_ln_v(recipe):
    torch.manual_seed(0)
    config = NgramGPTConfig(65, **recipe.shape)
    model = NgramGPT(config)
    C, N, L, d = config.d_model, config.n_gram, config.n_layer, config.d_table
    block = ModernGPT(ModernGPTConfig(65, 16, 1, config.n_head, C, qk_norm=True)).blocks[0]
    # Token vectors, head and last norm; the tables and what widens them; the blocks.
    expected = 2 * 65 * C + C + (N - 1) * config.n_rows * d + (d * C if d not in (0, C) else 0)
    expected += L * sum(weight.numel() for weight in block.parameters())
    assert model.n_params() == expected <= 1_000_000
    assert N == 1 or not model.ngram_table.weight.any()  # nothing about the text is known before the first step
    tokens = torch.randint(65, (2, 9))
    assert cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).item() == pytest.approx(math.log(65), abs=1e-6)
    optimizers = speedrun_optimizers(model, **recipe.rates, optimizer=recipe.optimizer)
    assert len(optimizers) == (2 if recipe.optimizer == "muon" else 1)


def test_the_ladder_ends_with_the_sprint_and_each_rung_differs_from_the_one_before():
    assert RUNGS[-1] is SPRINT and len({rung.name for rung in RUNGS}) == len(RUNGS)
    for below, rung in itertools.pairwise(RUNGS):
        assert replace(rung, name=below.name) != below


@pytest.mark.parametrize("n_layer", [0, 2])
def test_a_step_moves_the_head_and_the_next_gradient_reaches_every_weight(n_layer):
    torch.manual_seed(0)
    model = NgramGPT(tiny(n_layer=n_layer, d_table=8))  # no widening: its gradient needs tables that are not empty
    tokens = torch.randint(7, (8, 17))
    for optimizer_step in range(2):
        model.zero_grad()
        cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        if optimizer_step == 0:  # behind a head of zeros nothing is felt
            assert [name for name, weight in model.named_parameters() if weight.grad.any()] == ["head.weight"]
            for optimizer in speedrun_optimizers(model, 0.01, 0.01, 0.01):
                optimizer.step()
    assert all(weight.grad.any() for weight in model.parameters())
    used = ngram_rows(tokens[:, :-1], 4, 7, 11).unique()
    touched = model.ngram_table.weight.grad.ne(0).any(dim=1).nonzero().flatten()
    assert torch.equal(touched, used)  # no other row


def test_every_weight_is_in_one_group_with_its_own_rate():
    model = NgramGPT(tiny())
    optimizers = speedrun_optimizers(model, lr=1.0, embedding_lr=2.0, table_lr=3.0)
    rates = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert group["lr"] == group["initial_lr"] and group["weight_decay"] == 0
            for weight in group["params"]:
                assert id(weight) not in rates
                rates[id(weight)] = (group["lr"], isinstance(optimizer, Muon))
    for name, weight in model.named_parameters():
        in_block = name.startswith("blocks") and weight.ndim == 2
        assert rates[id(weight)] == ((1.0, True) if in_block else (3.0 if "table" in name else 2.0, False)), name
    assert len(speedrun_optimizers(NgramGPT(tiny(n_layer=0)), 1.0, 1.0, 1.0)) == 1  # Muon would have nothing to do


@pytest.mark.parametrize("changes", [{}, PLAIN])
def test_adamw_alone_takes_every_weight_once_at_its_rate(changes):
    model = NgramGPT(tiny(**changes))
    rates = dict(lr=1.0, embedding_lr=2.0) | ({} if changes else dict(table_lr=3.0))
    [adamw] = speedrun_optimizers(model, **rates, optimizer="adamw")
    found = {}
    for group in adamw.param_groups:
        assert group["lr"] == group["initial_lr"] and group["weight_decay"] == 0 and group["betas"] == (0.9, 0.99)
        for weight in group["params"]:
            assert id(weight) not in found
            found[id(weight)] = group["lr"]
    for name, weight in model.named_parameters():
        in_block = name.startswith("blocks") and weight.ndim == 2
        assert found[id(weight)] == (1.0 if in_block else 3.0 if "table" in name else 2.0), name


def test_an_unknown_optimizer_and_a_rate_for_the_wrong_model_are_refused():
    with pytest.raises(ValueError, match="not sgd"):
        speedrun_optimizers(NgramGPT(tiny()), 1.0, 1.0, 1.0, optimizer="sgd")
    with pytest.raises(ValueError, match="must not be None"):  # tables that never learn
        speedrun_optimizers(NgramGPT(tiny()), 1.0, 1.0)
    with pytest.raises(ValueError, match="must not be 3.0"):
        speedrun_optimizers(NgramGPT(tiny(**PLAIN)), 1.0, 1.0, 3.0)


def test_ngram_dropout_drops_whole_rows_keeps_the_mean_and_ends_with_training():
    model = awake(tiny(n_layer=0, n_gram=2, d_table=8, ngram_dropout=0.25))
    tokens = torch.zeros(1, 20000, dtype=torch.long)
    plain = model.embed(tokens)
    added = plain[0, -1] - model.token_embedding.weight[0]
    model.train()
    torch.manual_seed(1)
    shares = (model.embed(tokens)[0] - model.token_embedding.weight[0]) / added  # of the row, column by column
    shares = shares[5:]  # the first bigram is another
    assert torch.allclose(shares, shares[:, :1].expand_as(shares), atol=1e-3)
    assert set(shares[:, 0].detach().mul(3).round().int().tolist()) == {0, 4}  # nothing, or 1 / (1 - 0.25)
    assert shares.mean().item() == pytest.approx(1, abs=0.02)  # the mean's deviation is sqrt(0.25/0.75/20000) = 0.004


def test_ngram_dropout_treats_each_order_on_its_own():
    model = awake(tiny(n_layer=0, n_gram=3, d_table=8, ngram_dropout=0.5)).train()
    tokens = torch.zeros(1, 100, dtype=torch.long)
    added = (model.embed(tokens) - model.token_embedding.weight[0])[0, 2:]  # all trigrams are the same now
    twice = 2 * model.ngram_table.weight[row_by_hand([0, 0, 0], 3, 7, 11)]
    sums = torch.stack((torch.zeros(8), twice[0], twice[1], twice.sum(0)))
    found = (added[:, None] - sums).abs().amax(-1).argmin(-1)
    assert torch.allclose(added, sums[found], atol=1e-5) and set(found.tolist()) == {0, 1, 2, 3}


def test_a_block_drops_what_it_adds_but_no_attention_weights():
    model = NgramGPT(tiny(dropout=0.3))
    assert all(block.attention.dropout == 0 and block.dropout.p == 0.3 for block in model.blocks)


@pytest.mark.parametrize("changes", [dict(n_layer=-1), dict(n_gram=0), dict(n_rows=0), dict(d_table=0),
                                     dict(ngram_dropout=1.0), dict(ngram_dropout=-0.1), dict(n_head=3), dict(dropout=1.0)])
def test_a_shape_that_cannot_be_built_is_refused(changes):
    with pytest.raises(ValueError, match=str(list(changes.values())[0])):
        tiny(**changes)


@pytest.mark.parametrize("changes", [dict(n_rows=3), dict(d_table=2), dict(n_rows=-3), dict(ngram_dropout=0.1)])
def test_numbers_of_tables_are_refused_where_there_are_none(changes):
    with pytest.raises(ValueError, match=f"no tables.*{list(changes.values())[0]}"):
        tiny(**PLAIN | changes)


@given(st.integers(6, 60), st.integers(1, 7), st.integers(1, 5), st.integers(0, 5))
def test_a_pass_shows_each_target_at_most_once_and_misses_only_the_ends(n_tokens, batch_size, block_size, seed):
    tokens = torch.arange(n_tokens)
    batches = shuffled_windows(tokens, batch_size, block_size, torch.Generator().manual_seed(seed))
    for _ in range(2):
        seen = []
        n_left = None
        while n_left != 0:
            inputs, targets = next(batches)
            assert torch.equal(targets, inputs + 1) and inputs.shape[1] == block_size and len(inputs) <= batch_size
            seen += inputs.flatten().tolist()
            if n_left is None:  # all windows of a pass begin at the same place modulo the block
                first = inputs[0, 0].item() % block_size
                n_left = len(range(first, n_tokens - block_size, block_size))
            n_left -= len(inputs)
        assert n_left == 0
        assert sorted(seen) == list(range(first, first + len(seen))) and n_tokens - 1 - (first + len(seen)) < block_size


def test_the_passes_differ_and_the_generator_decides():
    def two_passes(seed):
        batches = shuffled_windows(torch.arange(401), 100, 4, torch.Generator().manual_seed(seed))
        return [next(batches)[0][:, 0].tolist() for _ in range(2)]

    assert two_passes(0) == two_passes(0) != two_passes(1)
    first, second = two_passes(0)
    assert first != sorted(first) and first != second
