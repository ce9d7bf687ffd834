import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_0.cli import InputError, parse_config
from part_2.demo_sampling import Config
from part_2.gpt import GPT, GPTConfig
from part_2.sampling import apply_temperature, apply_top_k, apply_top_p, filter_logits, generate, sample

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = PROBABILITIES.log()


def kept(logits):
    return set(logits.isfinite().nonzero().flatten().tolist())


def test_temperature_divides_the_logits():
    # At t = 0.5 probabilities are squared and renormalised: 0.01, 0.16, 0.04, 0.09 over 0.30.
    probabilities = apply_temperature(LOGITS, 0.5).softmax(-1)
    assert probabilities.tolist() == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=1e-6)


def test_top_k_keeps_the_k_best():
    assert kept(apply_top_k(LOGITS, 1)) == {1}
    assert kept(apply_top_k(LOGITS, 3)) == {1, 2, 3}
    assert torch.equal(apply_top_k(LOGITS, 4), LOGITS) and torch.equal(apply_top_k(LOGITS, 99), LOGITS)
    assert apply_top_k(LOGITS, 2).softmax(-1).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])


def test_top_k_keeps_no_more_than_k_of_equal_logits():
    assert len(kept(apply_top_k(torch.zeros(10), 3))) == 3


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    # In order of rank: 0.4, 0.7, 0.9, 1.0
    assert kept(apply_top_p(LOGITS, 0.39)) == {1}
    assert kept(apply_top_p(LOGITS, 0.41)) == {1, 3}
    assert kept(apply_top_p(LOGITS, 0.65)) == {1, 3}
    assert kept(apply_top_p(LOGITS, 0.75)) == {1, 2, 3}
    assert kept(apply_top_p(LOGITS, 1.0)) == {0, 1, 2, 3}
    assert kept(apply_top_p(LOGITS, 1e-6)) == {1}


def test_top_p_of_exactly_the_best_tokens_sum_needs_no_further_token():
    assert kept(apply_top_p(torch.tensor([0.5, 0.25, 0.25]).log2() * math.log(2), 0.5)) == {0}


def test_top_p_one_keeps_even_the_tokens_that_a_rounded_sum_would_cut():
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 5
    assert len(kept(apply_top_p(logits, 1.0))) == 5000


def test_filtered_logits_are_fp32_whatever_the_model_s_are():
    assert filter_logits(LOGITS.bfloat16()).dtype == torch.float32


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_of_best_tokens_that_reaches_p(values, p):
    logits = torch.tensor(values, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    chosen = sorted((probabilities[i].item() for i in kept(apply_top_p(logits, p))), reverse=True)
    assert sum(chosen) >= p - 1e-9 and sum(chosen[:-1]) < p + 1e-9
    assert chosen == pytest.approx(sorted(probabilities.tolist(), reverse=True)[:len(chosen)])


def test_rows_are_filtered_on_their_own():
    rows = torch.stack((LOGITS, LOGITS.flip(0)))
    for rule in (lambda x: apply_top_k(x, 2), lambda x: apply_top_p(x, 0.65)):
        assert torch.equal(rule(rows)[0], rule(rows[0])) and torch.equal(rule(rows)[1], rule(rows[1]))


def test_the_order_is_temperature_then_top_k_then_top_p():
    # Temperature 0.5 first: 16/30, 9/30, 4/30, 1/30. Top-k 3 renormalises to 16/29, 9/29, 4/29, so p = 0.86 needs two
    # (25/29 = 0.862); without top-k it would take three (25/30 = 0.833), and at temperature 1 three as well (7/9).
    assert kept(filter_logits(LOGITS, temperature=0.5, top_k=3, top_p=0.86)) == {1, 3}
    assert kept(filter_logits(LOGITS, temperature=0.5, top_p=0.86)) == {1, 2, 3}
    assert kept(filter_logits(LOGITS, top_k=3, top_p=0.86)) == {1, 2, 3}


def test_draws_follow_the_filtered_distribution():
    n = 20_000
    setting = dict(temperature=0.7, top_k=3, top_p=0.7)  # each of the three changes the distribution
    draws = sample(LOGITS.expand(n, -1), **setting, generator=torch.Generator().manual_seed(0))
    expected = filter_logits(LOGITS, **setting).softmax(-1) * n
    counts = torch.bincount(draws, minlength=4)
    assert counts[expected == 0].sum() == 0
    chi_squared = ((counts - expected)[expected > 0].square() / expected[expected > 0]).sum().item()
    assert (expected > 0).sum() == 2 and chi_squared < 10.8  # 1 degree of freedom: exceeded once in 1000 seeds


def test_temperature_zero_is_the_argmax():
    rows = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(rows, temperature=0.0), rows.argmax(-1))


@pytest.mark.parametrize("setting", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        sample(LOGITS[None], **setting)


def test_a_prompt_that_is_no_text_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        parse_config(Config, "", ["--prompt", "\udcff"])  # what Python makes of the byte ff on the command line
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "--prompt must be valid UTF-8" in error


class SuccessorModel(torch.nn.Module):
    """Says that after token t comes t + 1, and records what it was shown."""

    config = GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=1, d_model=1)

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.seen = []

    def forward(self, tokens):
        self.seen.append((tokens.shape[1], self.training, torch.is_grad_enabled()))
        return 50.0 * torch.nn.functional.one_hot((tokens + 1) % 10, 10).float()


def test_generate_continues_each_row_from_its_own_last_token_within_the_context():
    model = SuccessorModel()
    tokens = generate(model, torch.tensor([[1, 2], [7, 8]]), 5, generator=torch.Generator().manual_seed(0))
    assert tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7], [7, 8, 9, 0, 1, 2, 3]]
    assert [length for length, *_ in model.seen] == [2, 3, 4, 4, 4]


@pytest.mark.parametrize("training", [True, False])
def test_generate_runs_without_dropout_and_gradients_and_leaves_the_mode_as_it_was(training):
    model = SuccessorModel().train(training)
    generate(model, torch.tensor([[1]]), 2)
    assert model.training is training
    assert not any(mode or gradients for _, mode, gradients in model.seen)


def test_the_same_seed_writes_the_same_text():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=30, block_size=8, n_layer=1, n_head=2, d_model=8))
    prompt = torch.zeros(2, 1, dtype=torch.long)
    first, again, other = (generate(model, prompt, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
