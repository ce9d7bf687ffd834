import dataclasses
import json
from statistics import NormalDist

import pytest
import torch

from part_0.cli import InputError
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_6.evaluation import answer, judge, summarise
from part_6.prompt_template import END, ROLES, chat_tokenizer, decode_answer, encode_prompt
from part_6.task_families import EXACT, FAMILIES, Task
from part_6.tasks import make_tasks

BASE = BPETokenizer.from_merges([])  # a token a byte
TOKENIZER = chat_tokenizer(BASE)
END_ID, ASSISTANT_ID = TOKENIZER.special_ids[END], TOKENIZER.special_ids[ROLES["assistant"]]
SIZES = ModernGPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=128, n_layer=2, n_head=2, d_model=32)
PROMPTS = ["Sort: red cup", "x", "Where is the doll? " * 3, "", "Add 4 and 5", "Ann has 2 hens. Who?", "y" * 30, "é☺"]
Z = NormalDist().inv_cdf(0.975)


def random_model(sizes=SIZES, seed=1):
    """A model with large random weights: what it says depends on all of the prompt, and now and then it ends."""
    torch.manual_seed(seed)
    model = ModernGPT(sizes).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
        model.head.weight[END_ID] *= 2.5
    return model


@torch.no_grad()
def scripted_model(ids, tokenizer=TOKENIZER, block_size=128):
    """A model that says `ids`, which must differ, one after the other, and repeats the last: ids[i] always follows ids[i-1].

    Embeddings are unit vectors, the blocks add nothing, and the head's row of a token is the vector of the token before.
    """
    V = tokenizer.vocab_size
    width = V + V % 2
    model = ModernGPT(ModernGPTConfig(V, block_size, n_layer=1, n_head=1, d_model=width, d_hidden=2)).eval()
    vectors = torch.eye(V, width)
    model.token_embedding.weight.copy_(vectors)
    model.head.weight.zero_()
    for before, id in zip(ids, [*ids[1:], ids[-1]]):
        model.head.weight[id] += vectors[before]
    for weight in model.blocks.parameters():
        if weight.ndim == 2:
            weight.zero_()
    return model


@torch.no_grad()
def greedy_by_hand(model, ids, n_new):
    """Without batch, cache or early end: the whole text again for every token. Returns (text, ended)."""
    new, special = [], TOKENIZER.special_ids.values()
    while len(new) < n_new and not set(special) & set(new):
        new.append(model(torch.tensor([[*ids, *new]]))[0, -1].argmax().item())
    return TOKENIZER.decode([id for id in new if id not in special]).removeprefix(" "), END_ID in new


def test_a_scripted_model_says_its_script():
    model = scripted_model([ASSISTANT_ID, *b" hi", END_ID])
    assert greedy_by_hand(model, encode_prompt("?", TOKENIZER), 9) == ("hi", True)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_greedy_answers_are_those_of_each_prompt_alone_whatever_the_batch(batch_size):
    model = random_model()
    expected = [greedy_by_hand(model, encode_prompt(prompt, TOKENIZER), 40) for prompt in PROMPTS]
    assert {ended for _, ended in expected} == {True, False} and len(set(expected)) == len(expected)
    assert answer(model, TOKENIZER, PROMPTS, n_new=40, batch_size=batch_size) == expected
    assert answer(model, TOKENIZER, PROMPTS[::-1], n_new=40, batch_size=batch_size) == expected[::-1]


def test_a_prompt_may_be_a_conversation():
    model = random_model()
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert answer(model, TOKENIZER, [conversation, "c"], n_new=10) == [
        greedy_by_hand(model, encode_prompt(conversation, TOKENIZER), 10),
        greedy_by_hand(model, encode_prompt("c", TOKENIZER), 10)]


def test_an_answer_ends_with_its_end_token_or_was_cut_off():
    model = scripted_model([ASSISTANT_ID, *" hé".encode(), END_ID])  # four bytes and the end
    assert answer(model, TOKENIZER, ["?"], n_new=80) == [("hé", True)]
    assert answer(model, TOKENIZER, ["?"], n_new=5) == [("hé", True)]
    assert answer(model, TOKENIZER, ["?"], n_new=4) == [("hé", False)]
    assert answer(model, TOKENIZER, ["?"], n_new=2) == [("h", False)]
    endless = scripted_model([ASSISTANT_ID, *b" ab"])
    assert answer(endless, TOKENIZER, ["?"], n_new=6) == [("abbbb", False)]


def test_nothing_is_computed_after_the_end():
    model, passes = scripted_model([ASSISTANT_ID, *b" hi", END_ID]), []
    model.norm.register_forward_hook(lambda *arguments: passes.append(1))
    answer(model, TOKENIZER, ["?"], n_new=80)
    assert len(passes) == 4  # the prompt gives the blank; then h, i and the end


def test_without_prompts_there_are_no_answers():
    for positions in ("rope", "learned"):
        assert answer(random_model(dataclasses.replace(SIZES, positions=positions)), TOKENIZER, []) == []


def test_sampled_answers_are_a_function_of_the_seed():
    model = random_model()
    first, again, other = (answer(model, TOKENIZER, PROMPTS, 1.0, 20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first != answer(model, TOKENIZER, PROMPTS, 0.0, 20)
    assert answer(model, TOKENIZER, PROMPTS, 1e-4, 20) == answer(model, TOKENIZER, PROMPTS, 0.0, 20)


def test_equal_prompts_get_different_draws():
    assert len(set(answer(random_model(), TOKENIZER, ["same"] * 20, 1.0, 20))) > 10


def test_a_table_of_positions_must_have_room_for_prompt_and_answer():
    model = random_model(dataclasses.replace(SIZES, positions="learned", block_size=32))
    T = len(encode_prompt("abc", TOKENIZER))  # the last token that is drawn is never read: it needs no position
    for prompts in (["abc"], ["", "abc"]):
        answers = answer(model, TOKENIZER, prompts, n_new=32 - T + 1)
        assert answers == [greedy_by_hand(model, encode_prompt(prompt, TOKENIZER), 32 - T + 1) for prompt in prompts]
        with pytest.raises(InputError, match=f"{T} tokens.*{32 - T + 2}.*32 positions"):
            answer(model, TOKENIZER, prompts, n_new=32 - T + 2)


def test_the_reference_is_right_only_when_the_answer_ended():
    tasks = make_tasks("test", 48)
    assert all(record["correct"] is True for record in judge(tasks, [(task.answer, True) for task in tasks]))
    cut = judge(tasks, [(task.answer, False) for task in tasks])
    assert not any(record["correct"] or record["ended"] for record in cut)
    assert all(record["rouge_l"] == record["token_f1"] == 1.0 for record in cut)


def test_a_record_by_hand():
    task = Task("sort", 2, "Sort: red cup doll", "cup doll red", "key")
    [record] = judge([task], [("cup red doll", True)])
    # All words and in another order: the longest common subsequence has two of three.
    assert record == {"family": "sort", "difficulty": 2, "prompt": "Sort: red cup doll", "key": "key",
                      "reference": "cup doll red", "answer": "cup red doll", "ended": True, "correct": False,
                      "token_f1": 1.0, "rouge_l": pytest.approx(2 / 3)}
    assert json.loads(json.dumps(record)) == record


def test_the_verifier_judges_and_not_the_reference():
    # Steps are free and only the result counts, which overlap cannot see either way.
    task = Task("add", 4, "What is 47 + 25?", "7 + 5 = 12, 1 + 4 + 2 = 7: 72", "key")
    right, wrong = judge([task] * 2, [("72", True), ("7 + 5 = 12, 1 + 4 + 2 = 7: 73", True)])
    assert right["correct"] is True and wrong["correct"] is False
    assert right["token_f1"] < 0.3 and wrong["token_f1"] > 0.8


def test_each_task_needs_one_answer():
    tasks = make_tasks("test", 2)
    for answers in ([("a", True)], [("a", True)] * 3):
        with pytest.raises(ValueError):
            judge(tasks, answers)


def records(**values):
    return [{"family": family, "correct": bool(value), "token_f1": value} for family, own in values.items() for value in own]


def test_means_by_hand():
    means = summarise(records(add=[1, 0, 1, 1], sort=[0, 0], story=[1]))
    # The families but story count alike: (3/4 + 0/2) / 2, and not 3/6 or 4/7.
    assert {name: mean for name, (mean, _, _) in means.items()} == {"mean": 0.375, "add": 0.75, "sort": 0.0, "story": 1.0}
    assert set(FAMILIES) - set(EXACT) == {"story"}


def test_another_measure():
    means = summarise(records(add=[0.5, 0.25], sort=[1.0]), "token_f1")
    assert means["add"][0] == 0.375 and means["mean"][0] == 0.6875
    assert summarise(records(add=[0.5, 0.25], sort=[1.0]))["add"][0] == 1.0


def test_the_mean_is_missing_where_no_exact_family_is():
    assert set(summarise(records(story=[1, 0]))) == {"story"}


def test_the_intervals_are_those_of_each_family_and_of_the_mean_of_families():
    means = summarise(records(add=[0, 1] * 400, sort=[1] * 100, story=[0] * 50))
    half = Z * (0.5 * 0.5 / 800) ** 0.5  # of add; sort's verdicts agree, so the mean's is half of it
    assert means["add"] == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=0.1 * half)
    assert means["mean"] == pytest.approx((0.75, 0.75 - half / 2, 0.75 + half / 2), abs=0.05 * half)
    assert means["sort"] == (1.0, 1.0, 1.0) and means["story"] == (0.0, 0.0, 0.0)


def test_an_answer_stops_at_a_role_s_token_and_has_not_ended():
    # What follows would be another turn, which nobody asked for.
    user = TOKENIZER.special_ids[ROLES["user"]]
    assert decode_answer([*b" a", user, *b"b", END_ID], TOKENIZER) == "a"
    assert answer(scripted_model([ASSISTANT_ID, *b" a", user, *b"b", END_ID]), TOKENIZER, ["?"]) == [("a", False)]
