"""Micro-batches add up to the batch: the same loss and gradient, however it is divided and whatever is masked."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.grad_accumulation import accumulate_gradients, clipped_update

V = 30
PACKED_LENGTHS = [(5, 11), (16,), (3, 4, 2), (1, 15)]  # of texts that share a row, four rows


def batch(B=8, T=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(V, (B, T), generator=generator) for _ in range(2))


def make_model():
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(V, 16, 1, 2, 16))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return model


def in_one(inputs, targets, ignore_index=-100):
    """Loss and gradients of the whole batch at once, by torch's own mean."""
    model = make_model()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=ignore_index)
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def unevenly_masked(targets, ignore_index=-100):
    """Row i keeps its last i + 1 targets; the first row none."""
    targets = targets.clone()
    for i, row in enumerate(targets):
        row[:len(row) - i] = ignore_index
    return targets


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_micro", [1, 2, 4, 8])
def test_micro_batches_give_the_gradient_and_the_loss_of_the_whole_batch(n_micro, masked):
    inputs, targets = batch()
    targets = unevenly_masked(targets) if masked else targets
    expected, grad = in_one(inputs, targets)
    model = make_model()
    loss = accumulate_gradients(model, inputs, targets, n_micro)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and not loss.requires_grad and loss.shape == ()
    assert (gradients(model) - grad).abs().max() <= 1e-6 * grad.abs().max()


def test_the_mean_of_the_micro_batches_means_would_be_something_else():
    inputs, targets = batch()
    targets = unevenly_masked(targets)
    expected, grad = in_one(inputs, targets)
    model, means = make_model(), []
    for x, y in zip(inputs.chunk(2), targets.chunk(2)):
        mean = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / 2
        mean.backward()
        means.append(mean.item())
    assert abs(sum(means) - expected) > 0.01
    assert (gradients(model) - grad).norm() > 0.1 * grad.norm()


def test_two_masked_micro_batches_by_hand():
    # Logits are the weight's rows, three classes. Row 0 keeps one target of two, row 1 both: N = 3.
    # At weight 0 each loss is ln 3 and its gradient (1/3, 1/3, 1/3) less 1 at the target, over 3.
    embedding = nn.Embedding(3, 3)
    nn.init.zeros_(embedding.weight)
    inputs, targets = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[2, -100], [2, 1]])
    assert accumulate_gradients(embedding, inputs, targets, 2).item() == pytest.approx(math.log(3))
    # Row 0 of the weight: targets 2, 2, 1, so (3/3, 3/3 - 1, 3/3 - 2) / 3. Row 1 has no target that counts.
    assert embedding.weight.grad.flatten().tolist() == pytest.approx([1 / 3, 0, -1 / 3, 0, 0, 0, 0, 0, 0], abs=1e-6)


def test_gradients_are_added_to_those_that_are_there():
    inputs, targets = batch()
    model = make_model()
    accumulate_gradients(model, inputs, targets, 2)
    once = gradients(model)
    accumulate_gradients(model, inputs, targets, 4)
    assert torch.allclose(gradients(model), 2 * once, rtol=1e-4, atol=1e-7)


def test_a_micro_batch_without_any_target_adds_nothing():
    inputs, targets = batch(B=4)
    targets[2:] = -100
    expected, grad = in_one(inputs[:2], targets[:2])
    model = make_model()
    assert accumulate_gradients(model, inputs, targets, 2).item() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradients(model), grad, atol=1e-6)


def test_another_ignore_index():
    inputs, targets = batch()
    targets = unevenly_masked(targets, ignore_index=V + 5)
    expected, grad = in_one(inputs, targets, V + 5)
    model = make_model()
    loss = accumulate_gradients(model, inputs, targets, 4, ignore_index=V + 5)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradients(model), grad, atol=1e-6)


@pytest.mark.parametrize("n_micro", [3, 5, 16, 0, -2])
def test_a_batch_that_cannot_be_divided_is_refused_with_both_numbers(n_micro):
    model = make_model()
    with pytest.raises(ValueError, match=f"batch of 8 .* {n_micro} micro-batches"):
        accumulate_gradients(model, *batch(), n_micro)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_without_any_target_is_refused():
    inputs, targets = batch()
    with pytest.raises(ValueError, match="every target is ignore_index -100"):
        accumulate_gradients(make_model(), inputs, torch.full_like(targets, -100), 2)
    with pytest.raises(ValueError, match="every target is ignore_index 7"):
        accumulate_gradients(make_model(), inputs, torch.full_like(targets, 7), 2, ignore_index=7)


@pytest.mark.parametrize("n_micro", [1, 4])
def test_a_scaler_scales_the_gradients_and_gives_them_back_but_not_the_loss(n_micro):
    inputs, targets = batch()
    expected, grad = in_one(inputs, targets)
    model, scaler = make_model(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert accumulate_gradients(model, inputs, targets, n_micro, scaler=scaler).item() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradients(model) / 2**10, grad, atol=1e-6) and gradients(model).norm() > 100 * grad.norm()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=1.0))
    assert torch.allclose(gradients(model), grad, atol=1e-6)


def test_the_matrix_products_run_in_the_precision_asked_for_and_the_loss_in_fp32():
    inputs, targets = batch()
    model, seen = make_model(), []
    model.head.register_forward_hook(lambda module, arguments, result: seen.append(result))
    loss = accumulate_gradients(model, inputs, targets, 2, torch.bfloat16)
    expected, grad = in_one(inputs, targets)
    assert [logits.dtype for logits in seen] == [torch.bfloat16] * 2 and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.01)
    # From these rounded logits on nothing is rounded any more.
    rounded = F.cross_entropy(torch.cat(seen).double().flatten(0, 1), targets.flatten()).item()
    assert loss.item() == pytest.approx(rounded, rel=1e-6)
    assert (gradients(model) - grad).norm() < 0.05 * grad.norm()


@pytest.mark.parametrize("n_micro", [1, 4])
def test_a_loss_of_the_layers_is_added_as_its_mean_over_micro_batches_and_is_not_in_the_loss_returned(n_micro):
    # The mean over 16 B/n positions of a function of the activations that is no mean over tokens: the square of one.
    inputs, targets = batch()
    targets = unevenly_masked(targets)  # which targets are kept makes no difference to it

    def layers_loss(hidden):
        return 3 * hidden.mean().square() + hidden.amax()

    expected, grad = in_one(inputs, targets)
    other = make_model()
    sum(layers_loss(other.hidden_states(x)) / n_micro for x in inputs.chunk(n_micro)).backward()
    for parameter in other.parameters():  # it does not reach the head
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model, seen, calls = make_model(), [], []
    model.norm.register_forward_hook(lambda module, arguments, result: seen.append(result))

    def auxiliary_loss():
        calls.append(len(seen))
        return layers_loss(seen[-1])

    loss = accumulate_gradients(model, inputs, targets, n_micro, auxiliary_loss=auxiliary_loss)
    assert calls == list(range(1, n_micro + 1))  # after each forward pass
    assert loss.item() == pytest.approx(expected, rel=1e-6) and not loss.requires_grad
    assert gradients(other).norm() > 0.1 * grad.norm()
    assert torch.allclose(gradients(model), grad + gradients(other), rtol=1e-4, atol=1e-6)


def test_the_scaler_scales_a_loss_of_the_layers_too_and_a_number_is_one():
    inputs, targets = batch()
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model = make_model()
        accumulate_gradients(model, inputs, targets, 2, scaler=scaler,
                             auxiliary_loss=lambda model=model: model.norm.weight.square().sum())
        grads.append(gradients(model))
    assert torch.allclose(grads[1] / 2**10, grads[0], atol=1e-6)
    model = make_model()
    accumulate_gradients(model, inputs, targets, 2, auxiliary_loss=lambda: 0.0)  # a dense model has nothing to add
    assert torch.allclose(gradients(model), in_one(inputs, targets)[1], atol=1e-6)


def packed(T=16):
    """What says which texts share the rows: positions from 0 in each, and the number of each place's text; -1 is padding."""
    rows = {"positions": [[t for n in lengths for t in range(n)] for lengths in PACKED_LENGTHS],
            "segments": [[i for i, n in enumerate(lengths) for _ in range(n)] for lengths in PACKED_LENGTHS]}
    return {name: torch.tensor([row + [-1] * (T - len(row)) for row in values]) for name, values in rows.items()}


@pytest.mark.parametrize("n_micro", [1, 2, 4])
def test_each_micro_batch_gets_its_rows_of_the_context(n_micro):
    inputs, targets = batch(B=4)
    context = packed()
    targets = targets.masked_fill(context["segments"] < 0, -100)
    alone = make_model()  # each text as a row of its own, with nothing said about it
    losses = [F.cross_entropy(alone(x[None])[0], y, reduction="sum")
              for row in range(4) for n, at in zip(PACKED_LENGTHS[row], torch.tensor(PACKED_LENGTHS[row]).cumsum(0).tolist())
              for x, y in [(inputs[row, at - n:at], targets[row, at - n:at])]]
    expected = sum(losses) / (targets != -100).sum()
    expected.backward()
    model = make_model()
    loss = accumulate_gradients(model, inputs, targets, n_micro, context=context)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (gradients(model) - gradients(alone)).abs().max() <= 1e-5 * gradients(alone).abs().max()
    without = accumulate_gradients(make_model(), inputs, targets, n_micro)
    assert abs(without.item() - expected.item()) > 1e-3  # as one text a row it is something else


def test_the_context_reaches_the_model_by_name_and_none_is_nothing():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.zeros(V)), []

        def forward(self, x, **options):
            self.calls.append((x.tolist(), {name: part.tolist() for name, part in options.items()}))
            return self.weight.expand(*x.shape, V)

    model, inputs = Recorder(), torch.tensor([[1], [2], [3], [4]])
    accumulate_gradients(model, inputs, inputs, 2, context={"segments": 10 * inputs, "other": inputs.flip(0)})
    assert model.calls == [([[1], [2]], {"segments": [[10], [20]], "other": [[4], [3]]}),
                           ([[3], [4]], {"segments": [[30], [40]], "other": [[2], [1]]})]
    for context in (None, {}):
        accumulate_gradients(model, inputs, inputs, 1, context=context)
        assert model.calls[-1] == ([[1], [2], [3], [4]], {})


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_context_of_other_rows_than_the_batch_is_refused(rows):
    # A row for all, or fewer, could be split into parts that fit the wrong micro-batches.
    inputs, targets = batch(B=4)
    model = make_model()
    with pytest.raises(ValueError, match=f"'segments' has {rows} rows, the batch 4"):
        accumulate_gradients(model, inputs, targets, 2, context={"segments": torch.zeros(rows, 16)})
    assert all(parameter.grad is None for parameter in model.parameters())


class NoScaler:
    """What GradScaler does where there is nothing to scale; notes the calls."""

    def __init__(self):
        self.calls = []

    def unscale_(self, optimizer):
        self.calls.append("unscale")

    def step(self, optimizer):
        self.calls.append("step")
        optimizer.step()

    def update(self):
        self.calls.append("update")


@pytest.mark.parametrize("loss, gradient, updated", [
    (1.0, [3.0, 4.0], True), (float("nan"), [3.0, 4.0], False), (1.0, [float("inf"), 0.0], False)])
def test_an_update_clips_all_gradients_together_and_leaves_out_what_is_no_number(loss, gradient, updated):
    layer, scaler = torch.nn.Linear(1, 1), NoScaler()
    with torch.no_grad():
        layer.weight.fill_(10.0)
        layer.bias.fill_(20.0)
    layer.weight.grad, layer.bias.grad = torch.tensor([[gradient[0]]]), torch.tensor([gradient[1]])
    optimizers = [torch.optim.SGD([layer.weight], lr=0.1), torch.optim.SGD([layer.bias], lr=0.1)]
    norm, is_finite = clipped_update(layer, optimizers, scaler, 2.5, torch.tensor(loss))
    assert is_finite == updated and layer.weight.grad is None and layer.bias.grad is None
    if updated:  # the norm is 5, so the gradient is halved
        assert norm == pytest.approx(5.0)
        assert layer.weight.item() == pytest.approx(10 - 0.1 * 1.5) and layer.bias.item() == pytest.approx(20 - 0.1 * 2.0)
        assert scaler.calls == ["unscale", "unscale", "step", "step", "update"]
    else:
        assert (layer.weight.item(), layer.bias.item()) == (10.0, 20.0)
        assert scaler.calls == ["unscale", "unscale", "update"]  # the scale learns of it
