"""Lesson 6.2: tasks and files become examples; nothing is lost, leaked or too long in silence."""

import json
import random

import pytest

from part_0.cli import InputError
from part_4.bpe_tokenizer import BPETokenizer
from part_6.collator import IGNORE
from part_6.prompt_template import chat_tokenizer, decode_chat
from part_6.sft_data import TASKS, base_text, join_turns, load_examples, make_batch, task_conversation
from part_6.task_families import FAMILIES, Task
from part_6.tasks import make_tasks, result, split_of
from tests.part_6.tiny_base import WORLD, write_lines

TOKENIZER = chat_tokenizer(BPETokenizer({bytes([byte]): byte for byte in range(256)}))


def conversations(examples):
    """Back to messages: the inputs lack the last token, which is the end of the last answer."""
    end = TOKENIZER.special_ids["<|end|>"]
    return [decode_chat([*inputs, end], TOKENIZER) for inputs, _ in examples]


def test_tasks_become_their_conversations_with_difficulties_in_the_same_order():
    examples = load_examples(TASKS, 96, 5, True, 0.0, TOKENIZER, 400)
    tasks = {task.prompt: task for task in make_tasks("train", 96, 5)}
    told = [[m["content"] for m in c] for c in conversations(examples.train)]
    assert sorted(told) == sorted([task.prompt, task.answer] for task in make_tasks("train", 96, 5))
    assert examples.difficulties == [tasks[prompt].difficulty for prompt, _ in told]
    assert set(examples.difficulties) == {1, 2, 3, 4, 5, 6}


def test_validation_tasks_are_of_their_own_split_and_the_same_for_every_seed():
    first, second = (load_examples(TASKS, 16, seed, True, 0.0, TOKENIZER, 400) for seed in (1, 2))
    assert first.val == second.val and first.train != second.train and first.sha256 != second.sha256
    prompts = {c[0]["content"] for c in conversations(first.val)}
    of_split = {split: {task.prompt for task in make_tasks(split, 480, distinct=True)} for split in ("val", "test")}
    assert prompts == of_split["val"] and not prompts & of_split["test"]


def test_without_worked_steps_an_answer_is_its_result_but_sentences_stay_whole():
    for task in make_tasks("train", 96):
        [_, message] = task_conversation(task, worked_steps=False)
        if task.family in ("write", "story"):
            assert message["content"] == task.answer
        else:
            assert message["content"] == result(task.answer) and ":" not in message["content"]
    task = Task("add", 1, "What is 12 + 3?", "2 + 3 = 5, 0 + 1 + 0 = 1: 15", "key")
    assert task_conversation(task, worked_steps=False)[1]["content"] == "15"
    assert task_conversation(task)[1]["content"] == task.answer


def test_a_file_is_shared_out_by_first_message_so_that_no_question_is_in_both_parts(tmp_path):
    records = [{"prompt": f"q{i % 150}", "response": f"a{i}"} for i in range(300)]  # every question twice
    examples = load_examples(str(write_lines(tmp_path / "x.jsonl", records)), 0, 0, True, 0.3, TOKENIZER, 50)
    train, val = ([tuple(m["content"] for m in c) for c in conversations(part)] for part in (examples.train, examples.val))
    assert sorted(train + val) == sorted((record["prompt"], record["response"]) for record in records)
    assert {q for q, _ in val} == {f"q{i}" for i in range(150) if split_of(json.dumps(f"q{i}")) == "val"}
    assert not {q for q, _ in train} & {q for q, _ in val} and val
    assert examples.difficulties == [len(inputs) for inputs, _ in examples.train]


def test_only_the_answers_of_a_file_s_conversation_are_learnt(tmp_path):
    records = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"},
                             {"role": "assistant", "content": "first"}, {"role": "user", "content": "more"},
                             {"role": "assistant", "content": "last"}]} for i in range(100)]
    examples = load_examples(str(write_lines(tmp_path / "x.jsonl", records)), 0, 0, True, 0.3, TOKENIZER, 80)
    for _, targets in examples.train + examples.val:
        learnt = TOKENIZER.decode([target for target in targets if target != IGNORE])
        assert learnt == " first<|end|> last<|end|>"


@pytest.mark.parametrize("records, message", [
    ([{"prompt": "q0", "response": "a"}] * 3, "too few"),
    ([{"prompt": f"q{i}", "response": "a" * (90 if i == 70 else 1)} for i in range(100)], r"'q70' has 9\d tokens.*50"),
    ([{"prompt": "q", "response": "a"}, {"prompt": "q"}], "line 2"),
])
def test_a_file_that_cannot_be_trained_on_is_refused(records, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_examples(str(write_lines(tmp_path / "x.jsonl", records)), 0, 0, True, 0.3, TOKENIZER, 50)


def test_micro_batches_are_of_one_size_and_added_rows_have_no_targets():
    examples = [([1] * 9, [2] * 9)] * 5
    batch, n_micro = make_batch(examples, 10, max_rows=2)  # five rows: 3 micro-batches of 2, one row added
    assert batch.inputs.shape == (6, 10) and n_micro == 3
    assert (batch.targets != IGNORE).sum(1).tolist() == [9, 9, 9, 9, 9, 0]
    batch, n_micro = make_batch(examples, 10)
    assert batch.inputs.shape == (5, 10) and n_micro == 1
    batch, n_micro = make_batch(examples, 20)  # packed: two in a row
    assert (batch.targets != IGNORE).sum(1).tolist() == [18, 18, 9]
    batch, n_micro = make_batch([*examples, ([1], [2])], 20, packing=False)  # as wide as the longest
    assert batch.inputs.shape == (6, 9) and (batch.targets != IGNORE).sum(1).tolist() == [9] * 5 + [1]


def test_the_base_s_text_is_the_start_of_its_validation_part(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(WORLD, encoding="utf-8")
    whole = base_text(str(path))
    assert WORLD.endswith(whole) and len(WORLD) * 0.09 < len(whole) < len(WORLD) * 0.11
    assert base_text(str(path), n_bytes=100) == whole[:100]
    first = base_text(str(path), "train", 10**9)
    assert first + whole == WORLD and base_text(str(path), "train", 50) == WORLD[:50]
    path.write_text("h\u00e9 " * 100, encoding="utf-8")  # 4 bytes each; the cut is between words, the limit amid a character
    assert base_text(str(path), n_bytes=7).strip() == "h\u00e9 h"
    with pytest.raises(InputError, match="neither a file"):
        base_text(str(tmp_path / "gone.txt"))


def test_every_family_is_in_a_run_s_examples():
    assert {task.family for task in make_tasks("train", 480)} == set(FAMILIES)


def test_tasks_follow_each_other_in_a_conversation_with_the_given_probability():
    lengths = [10] * 4000
    groups = join_turns(lengths, 0.3, 1000, random.Random(1))
    assert sorted(index for group in groups for index in group) == list(range(4000))
    sizes = [len(group) for group in groups]
    assert len(groups) == pytest.approx(0.7 * 4000, rel=0.05)  # each task but the first begins one with probability 0.7
    assert sizes.count(3) / len(sizes) == pytest.approx(0.7 * 0.3**2, abs=0.02)  # the geometric distribution
    assert groups[0] != [0] and join_turns(lengths, 0.3, 1000, random.Random(1)) == groups
    assert join_turns(lengths[:9], 0.0, 1000, random.Random(1)) != [[i] for i in range(9)]  # shuffled
    assert {len(group) for group in join_turns(lengths, 0.0, 1000, random.Random(1))} == {1}


def test_no_conversation_grows_beyond_a_row():
    lengths = [random.Random(i).randint(1, 40) for i in range(2000)]
    groups = join_turns(lengths, 0.9, 60, random.Random(2))
    assert max(sum(lengths[i] for i in group) for group in groups) == 60
    assert all(sum(lengths[i] for i in group) <= 60 for group in groups)
    assert join_turns([50, 50], 0.9, 40, random.Random(0)) in ([[0], [1]], [[1], [0]])  # too long alone: not hidden here


def test_conversations_of_several_tasks_hold_each_task_once_and_answer_every_question():
    examples = load_examples(TASKS, 96, 5, True, 0.5, TOKENIZER, 400)
    tasks = {task.prompt: task for task in make_tasks("train", 96, 5)}
    told = conversations(examples.train)
    assert sorted(m["content"] for c in told for m in c[::2]) == sorted(task.prompt for task in make_tasks("train", 96, 5))
    assert max(len(c) for c in told) > 2
    for conversation, difficulty, (inputs, targets) in zip(told, examples.difficulties, examples.train, strict=True):
        own = [tasks[m["content"]] for m in conversation[::2]]
        assert [m["content"] for m in conversation[1::2]] == [task.answer for task in own]
        assert difficulty == pytest.approx(sum(task.difficulty for task in own) / len(own)) and len(inputs) <= 400
        learnt = TOKENIZER.decode([target for target in targets if target != IGNORE])
        assert learnt == "".join(f" {task.answer}<|end|>" for task in own)
    assert all(len(conversation) == 2 for conversation in conversations(examples.val))
