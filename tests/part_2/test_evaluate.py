import math

import pytest
import torch

from part_2.evaluate import figures_of_merit, split_losses, windows_loss
from part_2.gpt import GPT, GPTConfig


class BigramModel(torch.nn.Module):
    """A closed form to compare with: after token a, token b has the probability table[a, b]."""

    config = GPTConfig(vocab_size=4, block_size=5, n_layer=1, n_head=1, d_model=1)

    def __init__(self):
        super().__init__()
        table = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
        self.table = torch.nn.Parameter(table / table.sum(1, keepdim=True))

    def forward(self, tokens):
        self.seen = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
        return self.table[tokens].log()


@pytest.mark.parametrize("n", [6, 7, 10, 11, 15, 16, 53])  # with and without a shorter last window
def test_every_token_but_the_first_is_predicted_once_and_in_order(n):
    model = BigramModel()
    tokens = torch.randint(4, (n,), generator=torch.Generator().manual_seed(n))
    losses = split_losses(model, tokens, batch_size=2)
    expected = -model.table[tokens[:-1], tokens[1:]].log()
    assert torch.allclose(losses, expected, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_deterministic_and_leaves_the_mode_as_it_was(training):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=2, d_model=8, dropout=0.5)).train(training)
    tokens = torch.randint(20, (100,))
    assert torch.equal(split_losses(model, tokens), split_losses(model, tokens, batch_size=100))
    inputs, targets = tokens[:96].view(12, 8), tokens[1:97].view(12, 8)
    assert windows_loss(model, inputs, targets) == windows_loss(model, inputs, targets)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_windows_loss_is_the_mean_over_the_windows():
    model = BigramModel()
    inputs, targets = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [3, 3]])
    expected = -sum(math.log(model.table[a, b].item()) for a, b in ((0, 1), (1, 0), (2, 3), (3, 3))) / 4
    assert windows_loss(model, inputs, targets) == pytest.approx(expected, rel=1e-6)


def test_figures_of_merit_worked_by_hand():
    # Three tokens for six bytes, each guessed with probability 1/4: 2 bits a token, 1 bit a byte.
    merit = figures_of_merit(torch.full((3,), math.log(4)), n_bytes=6)
    assert merit["val_loss"] == pytest.approx(math.log(4)) and merit["perplexity"] == pytest.approx(4)
    assert merit["bits_per_byte"] == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_runs_in_the_precision_asked_for_and_without_gradients(dtype):
    model, tokens = BigramModel(), torch.randint(4, (40,))
    split_losses(model, tokens, dtype=dtype)
    assert model.seen == (dtype == torch.bfloat16, False)
    windows_loss(model, tokens[None, :5], tokens[None, 1:6], dtype)
    assert model.seen == (dtype == torch.bfloat16, False)
