import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_0.cli import InputError
from part_2 import sampling as part_2_sampling
from part_3.generate import ENDED, generate, pad_left, stream
from part_3.modern_gpt import ModernGPT, ModernGPTConfig

KINDS = ["none", "static", "rolling", "streaming"]
PROMPTS = [torch.randint(40, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 6, 6, 4, 3, 2, 1, 1)]
GREEDY = dict(temperature=0.0)


def make_model(**options):
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(**{**dict(vocab_size=40, block_size=32, n_layer=2, n_head=4, d_model=24, n_kv_head=2,
                                                window=32), **options})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.3)
    return model


@pytest.fixture
def model():
    return make_model()


@torch.no_grad()
def argmax_by_argmax(model, prompt, n_new):
    """One prompt alone, no cache, no padding: the whole text is given again for each token."""
    text = list(prompt)
    for _ in range(n_new):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt):]


def lists(rows):
    return [row.tolist() for row in rows]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spy_on_passes(model, monkeypatch):
    """The (B, T) of every pass through the model from now on."""
    shapes, original = [], model.hidden_states

    def hidden_states(tokens, *arguments):
        shapes.append(tuple(tokens.shape))
        return original(tokens, *arguments)

    monkeypatch.setattr(model, "hidden_states", hidden_states)
    return shapes


def test_prompts_are_padded_on_the_left_and_positions_count_from_their_first_token():
    tokens, positions = pad_left([[7, 8, 9], torch.tensor([5])])
    assert tokens[0].tolist() == [7, 8, 9] and tokens[1, 2] == 5
    assert positions.tolist() == [[0, 1, 2], [-1, -1, 0]]
    tokens, positions = pad_left(torch.tensor([[7, 8], [5, 6]]))
    assert tokens.tolist() == [[7, 8], [5, 6]] and tokens.dtype == torch.long and positions is None


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("cache", KINDS)
def test_greedy_is_the_argmax_of_the_plain_model_step_by_step_for_each_prompt(model, cache, chunk):
    expected = [argmax_by_argmax(model, prompt, 12) for prompt in PROMPTS]
    assert len({token for row in expected for token in row}) > 10
    assert lists(generate(model, PROMPTS, 12, cache=cache, chunk=chunk, **GREEDY)) == expected
    assert lists(generate(model, torch.tensor(PROMPTS[1:3]), 12, cache=cache, chunk=chunk, **GREEDY)) == expected[1:3]


def test_a_stream_is_what_generate_collects(model):
    steps = list(stream(model, PROMPTS, 5, **GREEDY))
    assert len(steps) == 5 and all(step.shape == (8,) and step.dtype == torch.long for step in steps)
    assert lists(torch.stack(steps, dim=1)) == lists(generate(model, PROMPTS, 5, **GREEDY))


def up_to_a_stop(row, stop_ids):
    ends = [i + 1 for i, token in enumerate(row) if token in stop_ids]
    return row[:ends[0]] if ends else row


@pytest.mark.parametrize("cache", KINDS)
def test_a_row_ends_at_its_own_first_stop_id_and_the_others_go_on_as_if_alone(model, cache, monkeypatch):
    free = [argmax_by_argmax(model, prompt, 20) for prompt in PROMPTS]
    stop_ids = [free[row][step] for row, step in ((0, 1), (3, 6), (5, 11))]
    expected = [up_to_a_stop(row, stop_ids) for row in free]
    lengths = [len(row) for row in expected]
    assert len(set(lengths)) >= 4 and min(lengths) == 1  # rows end at many different times
    shapes = spy_on_passes(model, monkeypatch)
    steps = list(stream(model, PROMPTS, 20, stop_ids=stop_ids, cache=cache, **GREEDY))
    assert len(steps) == max(lengths)
    padded = [row + [ENDED] * (max(lengths) - len(row)) for row in expected]
    assert lists(torch.stack(steps, dim=1)) == padded
    # A pass carries all rows, or at least half of them are going; never fewer rows than are going.
    for step, (n_rows, _) in enumerate(shapes[:len(steps)]):
        going = sum(length > step for length in lengths)
        assert going <= n_rows < max(2 * going, 2)
    assert lists(generate(model, PROMPTS, 20, stop_ids=stop_ids, cache=cache, **GREEDY)) == expected


def test_a_stop_id_in_the_prompt_ends_nothing_and_one_in_the_first_step_everything(model):
    first = argmax_by_argmax(model, PROMPTS[0], 8)
    outside = next(token for token in PROMPTS[0] if token not in first)
    assert lists(generate(model, PROMPTS[:1], 8, stop_ids=[outside], **GREEDY)) == [first]
    steps = list(stream(model, PROMPTS[:1] * 3, 8, stop_ids=[first[0]], **GREEDY))
    assert [step.tolist() for step in steps] == [[first[0]] * 3]


def test_a_seed_repeats_a_sample_and_another_seed_gives_another(model):
    state = torch.get_rng_state()
    first, again, other = (lists(generate(model, PROMPTS, 10, generator=seeded(seed))) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone


@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.5), dict(top_k=3), dict(top_p=0.6)])
def test_samples_are_those_of_lesson_2_5_whatever_the_cache_and_the_chunks(model, settings):
    prompts = torch.tensor(PROMPTS[1:3])
    expected = part_2_sampling.generate(model, prompts, 12, generator=seeded(), **settings)[:, 6:].tolist()
    for cache in KINDS:
        for chunk in (None, 4):
            new = generate(model, prompts, 12, generator=seeded(), cache=cache, chunk=chunk, **settings)
            assert lists(new) == expected


def test_samples_of_ragged_prompts_are_the_same_for_every_cache_and_chunk(model):
    stop_ids = list(range(6))  # so that rows end and are dropped
    samples = [lists(generate(model, PROMPTS, 12, generator=seeded(), stop_ids=stop_ids, cache=cache, chunk=chunk))
               for cache in KINDS for chunk in (None, 1, 4)]
    assert len({len(row) for row in samples[0]}) > 2 and all(sample == samples[0] for sample in samples)


@pytest.mark.parametrize("prompts", [PROMPTS, torch.arange(12).view(3, 4)], ids=["ragged", "rectangle"])
@pytest.mark.parametrize("cache", KINDS)
def test_samples_of_a_prompt_stand_side_by_side_and_are_those_of_the_prompt_given_as_often(model, cache, prompts):
    repeated = [prompt for prompt in prompts for _ in range(3)]
    together, alone = (generate(model, given, 12, generator=torch.Generator().manual_seed(5), stop_ids=(7, 11), cache=cache,
                                n_samples=n) for given, n in ((prompts, 3), (repeated, 1)))
    assert lists(together) == lists(alone)
    assert len({tuple(row) for row in lists(together)[:3]}) > 1  # copies of a prompt draw for themselves


def test_a_prompt_is_read_once_however_many_samples_it_gets(model, monkeypatch):
    widths, passes = [], model.hidden_states
    monkeypatch.setattr(model, "hidden_states",
                        lambda tokens, *rest: widths.append(tuple(tokens.shape)) or passes(tokens, *rest))
    generate(model, PROMPTS[1:3], 3, n_samples=4)
    assert widths == [(2, 6), (8, 1), (8, 1)]


def test_sampling_from_one_candidate_is_greedy(model):
    greedy = lists(generate(model, PROMPTS, 8, **GREEDY))
    for settings in (dict(top_k=1), dict(top_p=1e-6), dict(temperature=1e-5)):
        assert lists(generate(model, PROMPTS, 8, **settings)) == greedy


def test_a_sampling_setting_that_makes_no_sense_is_refused(model):
    with pytest.raises(InputError, match="top_k.*0"):
        generate(model, PROMPTS, 3, top_k=0)


def test_tokens_come_as_soon_as_they_are_known(model, monkeypatch):
    shapes = spy_on_passes(model, monkeypatch)
    tokens = stream(model, PROMPTS, 5, **GREEDY)
    assert shapes == []
    next(tokens)
    assert shapes == [(8, 9)]
    next(tokens)
    assert shapes == [(8, 9), (8, 1)]
    list(tokens)
    assert shapes == [(8, 9)] + [(8, 1)] * 4  # nothing is computed for the last token


def test_chunks_bound_the_length_of_a_pass(model, monkeypatch):
    shapes = spy_on_passes(model, monkeypatch)
    generate(model, PROMPTS, 3, chunk=4, **GREEDY)
    assert shapes == [(8, 4), (8, 4), (8, 1), (8, 1), (8, 1)]


def test_without_a_cache_every_token_is_computed_anew(model, monkeypatch):
    shapes = spy_on_passes(model, monkeypatch)
    generate(model, PROMPTS, 3, cache="none", **GREEDY)
    assert shapes == [(8, 9), (8, 10), (8, 11)]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_meanwhile_and_the_mode_comes_back_also_when_abandoned(training):
    dropping = make_model(dropout=0.5).train(training)
    expected = lists(generate(make_model(), PROMPTS, 6, **GREEDY))
    assert lists(generate(dropping, PROMPTS, 6, **GREEDY)) == expected
    assert dropping.training == training
    tokens = stream(dropping, PROMPTS, 6, **GREEDY)
    next(tokens)
    assert not dropping.training
    tokens.close()
    assert dropping.training == training and "forward" not in vars(dropping.head)
    with pytest.raises(ValueError):
        generate(dropping, PROMPTS, 6, temperature=-1.0)
    assert dropping.training == training


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="weights are packed by oneDNN")
def test_weights_are_packed_while_a_stream_runs(model):
    tokens = stream(model, PROMPTS, 6, **GREEDY)
    assert "forward" not in vars(model.head)
    next(tokens)
    assert "forward" in vars(model.head)


def test_no_gradient_is_prepared_for(model, monkeypatch):
    original, modes = model.hidden_states, []
    monkeypatch.setattr(model, "hidden_states", lambda *arguments: modes.append(torch.is_grad_enabled())
                        or original(*arguments))
    generate(model, PROMPTS, 2)
    assert modes == [False, False]


@pytest.mark.parametrize("stop_ids", [(), (0,)])
def test_the_tokens_may_be_trained_on_and_the_caller_s_grad_mode_is_untouched(model, stop_ids):
    for tokens in stream(model, PROMPTS, 4, stop_ids=stop_ids, generator=seeded(1)):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled() and not tokens.is_inference()
    rows = generate(model, torch.tensor(PROMPTS[1:3]), 4, stop_ids=stop_ids, generator=seeded(1))
    inputs = torch.cat((torch.tensor(PROMPTS[1]), rows[0]))[None]
    F.cross_entropy(model(inputs[:, :-1])[0], inputs[0, 1:]).backward()
    assert model.token_embedding.weight.grad.abs().sum() > 0


def test_no_new_tokens_are_empty_rows(model):
    rows = generate(model, PROMPTS, 0)
    assert lists(rows) == [[]] * 8 and all(row.dtype == torch.long for row in rows)
    assert list(stream(model, PROMPTS, 0)) == []
    assert lists(generate(model, [[3]], 0)) == [[]]  # the smallest cache there is


@pytest.mark.parametrize("prompts", [[], [[]], [[1, 2], []]])
def test_an_empty_prompt_is_refused(model, prompts):
    with pytest.raises(InputError, match="at least one token"):
        generate(model, prompts, 3)


@pytest.mark.parametrize("n_new, chunk, n_samples", [(-1, None, 1), (3, 0, 1), (3, -2, 1), (3, None, 0)])
def test_numbers_that_make_no_sense_are_refused(model, n_new, chunk, n_samples):
    with pytest.raises(InputError, match=f"{n_new}, {chunk} and {n_samples}"):
        generate(model, PROMPTS, n_new, chunk=chunk, n_samples=n_samples)


def test_an_unknown_cache_is_refused_by_name(model):
    with pytest.raises(ValueError, match="not quick"):
        generate(model, PROMPTS, 3, cache="quick")


@pytest.mark.parametrize("cache", ["none", "static", "rolling"])
def test_a_table_of_positions_is_used_to_its_last_row(cache):
    model = make_model(positions="learned", block_size=12)
    expected = [argmax_by_argmax(model, prompt, 4) for prompt in PROMPTS]  # 9 + 3 tokens are read, the last one is not
    assert lists(generate(model, PROMPTS, 4, cache=cache, **GREEDY)) == expected
    with pytest.raises(ValueError, match="13 tokens.*12"):
        generate(model, PROMPTS, 5, cache=cache, **GREEDY)
