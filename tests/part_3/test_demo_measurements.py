"""What the demos of Part 3 measure, against the plain pass or numbers worked by hand."""

import math

import pytest
import torch

from part_0.plotting import BLUE, band, plt
from part_3.demo_generate import surprise
from part_3.demo_rope import loss_by_position
from part_3.demo_streaming import recomputed_losses, stream_losses
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, reread
from part_3.side_by_side import Runs, step_time_ratios


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(30, 8, 2, 2, 16, n_kv_head=1)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def one_by_one(model, text, start=0):
    """-ln p of each token of a list but the first, from a plain pass over what comes before it, `start` tokens left out."""
    return [-model(torch.tensor([text[start:i]]))[0, -1].log_softmax(-1)[text[i]].item()
            for i in range(start + 1, len(text))]


def test_surprise_is_the_bits_of_the_written_bytes_alone(model):
    prompt, written = [3, 1, 4], [1, 5, 9, 2]
    expected = [loss / math.log(2) for loss in one_by_one(model, prompt + written)[2:]]
    assert surprise(model, prompt, written).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_streamed_loss_is_that_of_the_plain_pass(model, chunk):
    tokens = torch.randint(30, (2, 25))
    losses = stream_losses(model, tokens, "static", chunk, "")
    for row, text in zip(losses, tokens.tolist()):
        assert row.tolist() == pytest.approx(one_by_one(model, text), abs=1e-4)


def test_a_recomputed_loss_sees_the_last_tokens_only(model):
    tokens = torch.randint(30, (2, 25))
    losses = recomputed_losses(model, tokens, 6, 4)  # predicts tokens 4, 8, ... 24
    for row, text in zip(losses, tokens.tolist()):
        expected = [one_by_one(model, text[:end + 1], max(0, end - 6))[-1] for end in range(4, 25, 4)]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


def test_loss_by_position_is_the_mean_over_windows_at_each_position(model):
    tokens = torch.randint(30, (13,))
    losses = loss_by_position(model, tokens, 10, 3)  # windows that start at 0, 1 and 2
    rows = torch.tensor([one_by_one(model, tokens[start:start + 11].tolist()) for start in range(3)])
    assert torch.allclose(losses, rows.mean(dim=0), atol=1e-4)
    assert not torch.allclose(loss_by_position(reread(model, rope_scale=4.0), tokens, 10, 3), losses, atol=1e-2)


def test_a_step_s_time_is_compared_with_its_neighbour_s():
    # Seed 1: ratios 2, 2, 0.5; seed 2: 3, 1, 1. The ratios of the medians would be 2/2 and 30/30.
    slow, fast = Runs(seconds=[[2, 20, 1], [3, 30, 40]]), Runs(seconds=[[1, 10, 2], [1, 30, 40]])
    assert step_time_ratios(slow, fast) == [2, 1]


def test_a_band_runs_from_the_lowest_to_the_highest_run_around_their_mean():
    fig, ax = plt.subplots()
    band(ax, [0, 1], [[1.0, 2.0], [2.0, 4.0], [6.0, 6.0]], color=BLUE)
    assert ax.lines[0].get_ydata().tolist() == [3, 4]
    corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices.tolist()}
    plt.close(fig)
    assert corners == {(0, 1), (0, 6), (1, 2), (1, 6)}
