"""The loss is on the answers alone, and it is the same whether conversations stand alone, padded or packed."""

import functools
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.bpe_tokenizer import BPETokenizer
from part_6.collator import IGNORE, PADDING, collate, first_fit, pack, pad, shift
from part_6.prompt_template import END, chat_tokenizer, encode_chat

V, WIDTH = 30, 24
MODELS = {
    "rope": {}, "learned positions": dict(positions="learned"), "sinusoidal positions": dict(positions="sinusoidal"),
    "interleaved, scaled rope": dict(rope_pairing="interleaved", rope_scale=2.0), "window": dict(window=3),
    "window and sinks": dict(window=3, sinks=2), "grouped heads": dict(n_kv_head=2), "one key head": dict(n_kv_head=1),
    "Part 2's pieces": dict(norm="layernorm", positions="learned", mlp="gelu", bias=True),
    "window, QK-norm, tied": dict(window=4, sinks=1, n_kv_head=2, qk_norm=True, tie_embeddings=True)}
EACH_MODEL = pytest.mark.parametrize("model", MODELS)


@functools.cache
def make_model(name):
    """Weights large enough for attention to be far from uniform: who sees whom then shows in every logit."""
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(V, WIDTH + 20, 2, 4, 32, **MODELS[name]))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def make_examples(lengths, seed=0):
    """Pairs (inputs, targets) of these lengths; from some random place on a target is the next token."""
    rng, examples = random.Random(seed), []
    for length in lengths:
        ids = [rng.randrange(V) for _ in range(length + 1)]
        n_learnt = rng.randint(1, length)
        examples.append(shift(ids, [i > length - n_learnt for i in range(length + 1)]))
    return examples


def losses_alone(model, examples):
    """The losses of each example by itself, no padding, no positions, no segments: a list of (n_learnt,)."""
    losses = []
    for inputs, targets in examples:
        log_probabilities = model(torch.tensor([inputs]))[0].log_softmax(dim=-1)
        losses.append(torch.stack([-log_probabilities[t, target] for t, target in enumerate(targets) if target != IGNORE]))
    return losses


def forward(model, batch):
    return model(batch.inputs, batch.positions, segments=batch.segments)


def batch_loss(model, batch):
    return F.cross_entropy(forward(model, batch).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)


def gradients(model, loss):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])


def by_segment(values, batch, rows):
    """values (B, T, ...) of each example, whose places the rows of indices and the segments say: index -> tensor."""
    return {index: values[row][batch.segments[row] == segment]
            for row, indices in enumerate(rows) for segment, index in enumerate(indices)}


def test_targets_of_a_conversation_by_hand():
    ids = [7, 1, 2, 9, 8, 3, 4, 9]  # user 1 2 end, assistant 3 4 end
    learnt = [False] * 5 + [True] * 3
    # After 8 (the assistant's token) comes 3, after 3 comes 4, after 4 the end 9; the last 9 has no successor.
    assert shift(ids, learnt) == ([7, 1, 2, 9, 8, 3, 4], [IGNORE, IGNORE, IGNORE, IGNORE, 3, 4, 9])


def test_the_targets_of_several_turns_are_the_answers_each_with_its_end_and_nothing_else():
    tokenizer = chat_tokenizer(BPETokenizer.from_merges([]))
    messages = [{"role": role, "content": content} for role, content in [
        ("system", "Be short."), ("user", "One?"), ("assistant", "1"), ("user", "Two? <|end|>"), ("assistant", "2, I say")]]
    inputs, targets = shift(*encode_chat(messages, tokenizer))
    kept = [(place, target) for place, target in enumerate(targets) if target != IGNORE]
    assert tokenizer.decode([target for _, target in kept]) == f" 1{END} 2, I say{END}"
    whole = encode_chat(messages, tokenizer)[0]
    assert inputs == whole[:-1] and all(whole[place + 1] == target for place, target in kept)


@pytest.mark.parametrize("ids, learnt", [([1, 2, 3], [False] * 3), ([1, 2, 3], [True, False, False]), ([1], [True]),
                                         ([], [])])
def test_a_row_without_a_target_is_refused(ids, learnt):
    # The first token is never a target: nothing comes before it.
    with pytest.raises(ValueError, match=f"no token of these {len(ids)} is to be learnt"):
        shift(ids, learnt)


def test_padded_and_packed_batches_by_hand():
    examples = [([1, 2], [IGNORE, 3]), ([4, 5, 6], [IGNORE, 6, 7]), ([8], [9])]
    padded = pad(examples)
    assert padded.inputs.tolist() == [[1, 2, 0], [4, 5, 6], [8, 0, 0]]
    assert padded.targets.tolist() == [[IGNORE, 3, IGNORE], [IGNORE, 6, 7], [9, IGNORE, IGNORE]]
    assert padded.positions.tolist() == [[0, 1, PADDING], [0, 1, 2], [0, PADDING, PADDING]]
    assert padded.segments.tolist() == [[0, 0, PADDING], [0, 0, 0], [0, PADDING, PADDING]]
    # The longest first: example 1 takes 3 of a row's 4 places, example 0 opens another row, example 2 fits into row 0.
    packed = pack(examples, 4)
    assert packed.inputs.tolist() == [[4, 5, 6, 8], [1, 2, 0, 0]]
    assert packed.targets.tolist() == [[IGNORE, 6, 7, 9], [IGNORE, 3, IGNORE, IGNORE]]
    assert packed.positions.tolist() == [[0, 1, 2, 0], [0, 1, PADDING, PADDING]]
    assert packed.segments.tolist() == [[0, 0, 0, 1], [0, 0, PADDING, PADDING]]
    assert all(part.dtype == torch.int64 for part in (*padded, *packed))
    assert (IGNORE, PADDING) == (-100, -1)  # torch's own ignore_index, and attention_mask's padding


def test_an_example_that_is_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1 has 5 tokens; a row has 4"):
        pack(make_examples([4, 5, 2]), 4)


@pytest.mark.parametrize("lengths, capacity, rows", [
    # 7 opens row 0 (3 left), 6 row 1 (4 left), 5 row 2 (5 left); 4 fits into row 1, 3 into row 0, 2 into row 2.
    ([3, 7, 5, 2, 4, 6], 10, [[1, 0], [5, 4], [2, 3]]),
    # 6 opens row 0 (4 left), 5 row 1 (5 left); 3 goes into the first row with room, not the fullest or emptiest; 2 to row 1.
    ([2, 5, 3, 6], 10, [[3, 2], [1, 0]]),
    ([5, 5, 5], 10, [[0, 1], [2]]), ([4, 4], 4, [[0], [1]]), ([4], 4, [[0]]), ([], 4, [])])
def test_first_fit_by_hand(lengths, capacity, rows):
    assert first_fit(lengths, capacity) == rows


def fewest_rows(lengths, capacity):
    """The least number of rows, by going through all subsets S: best[S] = (rows, places taken in the last one)."""
    best = {0: (1, 0)}
    for subset in range(1, 2 ** len(lengths)):
        options = []
        for i, length in enumerate(lengths):
            if subset >> i & 1:
                n, used = best[subset - (1 << i)]
                options.append((n, used + length) if used + length <= capacity else (n + 1, length))
        best[subset] = min(options)
    return best[2 ** len(lengths) - 1][0]


@settings(max_examples=200, deadline=None)
@given(st.integers(5, 60).flatmap(lambda capacity: st.tuples(
    st.lists(st.integers(1, capacity), min_size=1, max_size=8), st.just(capacity))))
def test_first_fit_places_each_once_and_is_close_to_the_best(case):
    lengths, capacity = case
    rows = first_fit(lengths, capacity)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
    assert 9 * len(rows) <= 11 * fewest_rows(lengths, capacity) + 6  # Dosa 2007: the bound of first-fit decreasing is tight


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 128), min_size=1, max_size=100))
def test_no_two_rows_would_fit_into_one(lengths):
    sums = [sum(lengths[i] for i in row) for row in first_fit(lengths, 128)]
    assert all(a + b > 128 for a, b in itertools.combinations(sums, 2))
    assert len(sums) <= 2 * math.ceil(sum(lengths) / 128)


@EACH_MODEL
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, WIDTH), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_alone_padded_and_packed_give_one_loss_and_one_gradient(model, lengths, seed):
    model, examples = make_model(model), make_examples(lengths, seed)
    alone = losses_alone(model, examples)
    expected = torch.cat(alone).mean()
    expected_gradient = gradients(model, expected)
    for batch, rows in ((pad(examples), [[i] for i in range(len(examples))]),
                        (pack(examples, WIDTH), first_fit(lengths, WIDTH))):
        assert (batch.targets != IGNORE).sum() == sum(map(len, alone))
        loss = batch_loss(model, batch)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        difference = gradients(model, loss) - expected_gradient
        assert difference.abs().max() <= 1e-5 * max(1, expected_gradient.abs().max())
        each = F.cross_entropy(forward(model, batch).mT, batch.targets, reduction="none")
        for index, losses in by_segment(each, batch, rows).items():
            kept = torch.tensor(examples[index][1]) != IGNORE
            assert torch.allclose(losses[kept], alone[index], atol=1e-5)


@EACH_MODEL
def test_more_padding_on_either_side_changes_nothing(model):
    model, examples = make_model(model), make_examples([9, 5, 12, 3])
    rows = [[2, 1], [0, 3], []]  # the last row is all padding
    narrow, wide = (collate(examples, rows, width) for width in (17, 26))
    left = type(wide)(*(part.roll(9, dims=1) for part in wide))  # the nine places that were added stand in front
    expected = forward(model, narrow)[narrow.segments >= 0]
    for batch in (wide, left):
        assert torch.allclose(forward(model, batch)[batch.segments >= 0], expected, atol=1e-5)
        assert batch_loss(model, batch).item() == pytest.approx(batch_loss(model, narrow).item(), abs=1e-5)
    # What stands in the padding makes no difference either.
    other = wide._replace(inputs=wide.inputs.where(wide.segments >= 0, torch.tensor(V - 1)))
    assert torch.equal(forward(model, other)[wide.segments >= 0], forward(model, wide)[wide.segments >= 0])


@EACH_MODEL
def test_an_example_never_sees_its_neighbours(model):
    model, lengths = make_model(model), [8, 7, 6, 3]
    batch = collate(make_examples(lengths), [[0, 1, 2, 3]], WIDTH)
    logits = forward(model, batch)
    for segment in range(4):
        own = batch.segments == segment
        changed = batch._replace(inputs=torch.where(own, (batch.inputs + 1) % V, batch.inputs))
        moved = (forward(model, changed) - logits).abs().amax(dim=-1)
        assert moved[~own].max() <= 1e-6 and moved[own].min() > 1e-3
    # The same row as one text: there the neighbours are seen.
    as_one = model(batch.inputs)
    changed = model(batch.inputs.where(batch.segments != 0, (batch.inputs + 1) % V))
    assert (changed - as_one)[batch.segments > 0].abs().max() > 1e-2


@pytest.mark.parametrize("model", ["rope", "learned positions", "window and sinks", "grouped heads"])
def test_no_gradient_reaches_a_neighbour_or_padding(model):
    model = make_model(model)
    batch, vectors = collate(make_examples([8, 7, 5]), [[0, 1, 2]], WIDTH), []
    hook = model.token_embedding.register_forward_hook(lambda module, inputs, output: vectors.append(output))
    logits = forward(model, batch)
    hook.remove()
    for segment in range(3):
        own = batch.segments == segment
        [gradient] = torch.autograd.grad(logits[own].square().sum(), vectors, retain_graph=True)
        assert (gradient[~own] == 0).all() and (gradient[own].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("model", ["rope", "learned positions", "window and sinks", "grouped heads"])
def test_training_in_bf16_on_packed_rows_is_close_to_fp32_and_keeps_neighbours_apart(model):
    model, examples = make_model(model), make_examples([8, 7, 6, 3, 20, 4])
    batch = pack(examples, WIDTH)
    exact = batch_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(model, batch)
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        changed = forward(model, batch._replace(inputs=batch.inputs.where(batch.segments != 0, (batch.inputs + 1) % V)))
    assert logits.dtype == torch.bfloat16 and loss.item() == pytest.approx(exact.item(), rel=0.02)
    expected, rounded = gradients(model, exact), gradients(model, loss)
    assert (rounded - expected).norm() < 0.05 * expected.norm()
    assert torch.equal(changed[batch.segments != 0], logits[batch.segments != 0])
