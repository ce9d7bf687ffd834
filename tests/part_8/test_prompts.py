"""Lesson 8.4: the prompts that a policy learns from share nothing with those it is judged on, tasks or a person's own."""

import json

import pytest

from part_0.cli import InputError
from part_6.prompt_template import encode_prompt
from part_6.task_families import FAMILIES
from part_6.tasks import make_tasks, split_of, verify
from part_8.prompts import TASKS, load_prompts, read_families
from tests.part_8.tiny_stages import TOKENIZER


def tasks(split, n=60, seed=1, families=("story",)):
    return load_prompts(TASKS, split, n, seed, families, TOKENIZER)


def write(path, *records):
    """A JSONL file; what is no object is a line as it is."""
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records), encoding="utf-8")
    return str(path)


def own(path, split, n=10**6):
    """The texts of the last message of each prompt of a file."""
    return [prompt.messages[-1]["content"] for prompt in load_prompts(path, split, n, 0, ("story",), TOKENIZER)]


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


# ---- tasks ----

@pytest.mark.parametrize("families", [("story",), tuple(FAMILIES)], ids=["story", "all"])
def test_no_task_to_learn_from_is_held_out_or_in_another_stage_s_data(families):
    keys = {split: {prompt.task.key for prompt in tasks(split, 150, seed, families)}
            for split, seed in (("rl", 1), ("test", 1), ("train", 2), ("val", 3))}
    for one in keys:
        assert keys[one] and all(split_of(key) == one for key in keys[one])
        assert all(not keys[one] & keys[other] for other in keys if other != one)


def test_no_prompt_comes_twice():
    texts = [prompt.messages[0]["content"] for prompt in tasks("rl", 500, 1, ("story", "add", "compare"))]
    assert len(texts) == len(set(texts)) == 500


def test_a_task_s_prompt_is_what_the_policy_was_taught_to_answer():
    for prompt in tasks("test", 40, 1, tuple(FAMILIES)):
        assert prompt.messages == [{"role": "user", "content": prompt.task.prompt}]
        assert prompt.ids == encode_prompt(prompt.task.prompt, TOKENIZER)
        assert verify(prompt.task, prompt.task.answer)


def test_families_and_seed_choose_the_tasks():
    assert {prompt.task.family for prompt in tasks("rl", 40, 1, ("add", "sort"))} == {"add", "sort"}
    texts = [[prompt.messages[0]["content"] for prompt in tasks("rl", 40, seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert [one.prompt for one in make_tasks("rl", 40, 1, ("story",), distinct=True)] == texts[0]


def test_more_tasks_than_there_are_is_an_error_in_one_line():
    with pytest.raises(InputError, match="^2000 prompts are too many: there are not enough different add tasks") as caught:
        tasks("test", 2000, 1, ("add",))
    assert "\n" not in str(caught.value)


# ---- a file of one's own ----

def test_the_three_forms_are_read_and_their_last_answer_is_left_out(tmp_path):
    chat = said("Who are you?", "A model.", "And how old?", "Young.")
    system = [{"role": "system", "content": "Be short."}, *said("Hello.", "Hi.")]
    records = [{"prompt": "What is red?", "response": "A colour."},
               {"instruction": "Sort these.", "input": "b a", "output": "a b"}, {"instruction": "Rest.", "output": "Zzz."},
               {"messages": chat}, {"messages": system}]
    path = write(tmp_path / "own.jsonl", *records)
    found = {}
    for split in ("rl", "test"):
        try:
            for prompt in load_prompts(path, split, 99, 0, (), TOKENIZER):
                assert prompt.task is None and prompt.ids == encode_prompt(prompt.messages, TOKENIZER)
                found[prompt.messages[-1]["content"]] = prompt.messages
        except InputError:
            pass  # five prompts may well all be on one side
    assert found == {"What is red?": said("What is red?"), "Sort these.\n\nb a": said("Sort these.\n\nb a"),
                     "Rest.": said("Rest."), "And how old?": chat[:3], "Hello.": system[:2]}


def test_a_file_s_prompts_are_shared_out_by_their_text(tmp_path):
    texts = [f"Question {i}?" for i in range(400)]
    path = write(tmp_path / "own.jsonl", *({"prompt": text, "response": "Yes."} for text in texts))
    learnt, held_out = own(path, "rl"), own(path, "test")
    assert not set(learnt) & set(held_out) and sorted(learnt + held_out) == sorted(texts)
    assert 20 <= len(held_out) <= 60  # 10 %: 40 of 400, whose spread is 6
    # Where a prompt is does not depend on its place, on its answer, or on what else is in the file.
    shuffled = write(tmp_path / "other.jsonl", *({"instruction": text, "output": "No."} for text in texts[::-2]))
    assert set(own(shuffled, "rl")) <= set(learnt) and set(own(shuffled, "test")) <= set(held_out)


def test_a_prompt_that_a_file_asks_twice_is_one_prompt(tmp_path):
    records = [{"prompt": f"Question {i % 30}?", "response": f"Answer {i}."} for i in range(90)]
    path = write(tmp_path / "own.jsonl", *records)
    found = own(path, "rl") + own(path, "test")
    assert len(found) == len(set(found)) == 30


def test_at_most_n_of_a_file_s_prompts_in_the_file_s_order(tmp_path):
    path = write(tmp_path / "own.jsonl", *({"prompt": f"Question {i}?", "response": "Yes."} for i in range(40)))
    whole = own(path, "rl")
    assert len(whole) > 7 and own(path, "rl", 7) == whole[:7]
    assert whole == sorted(whole, key=lambda text: int(text.split()[1][:-1]))


@pytest.mark.parametrize("line, reason", [
    ("{", "no JSON"), ("[1]", "no JSON object"), ('{"prompt": "a"}', "not those of"),
    ('{"prompt": "a", "response": ""}', "no answer of the assistant"),
    (json.dumps({"messages": said("a", "b", "c")}), "no answer of the assistant"),
    (json.dumps({"messages": said("a", "b")[::-1]}), "must be of the user")])
def test_a_bad_line_is_named(line, reason, tmp_path):
    path = write(tmp_path / "own.jsonl", {"prompt": "a", "response": "b"}, line)
    with pytest.raises(InputError, match=f"own.jsonl, line 2: .*{reason}") as caught:
        own(path, "rl")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_empty_or_without_prompts_for_a_split_is_named(tmp_path):
    with pytest.raises(InputError, match="none.jsonl cannot be read"):
        own(str(tmp_path / "none.jsonl"), "rl")
    with pytest.raises(InputError, match="empty.jsonl holds nothing"):
        own(write(tmp_path / "empty.jsonl", ""), "rl")
    path = write(tmp_path / "one.jsonl", {"prompt": "What is red?", "response": "A colour."})
    with pytest.raises(InputError, match="^--data .*one.jsonl has no prompts for (rl|test): .* 10 % are held out$"):
        own(path, "rl"), own(path, "test")


# ---- families ----

def test_families_are_read_from_a_text():
    assert read_families("all") == tuple(FAMILIES) and read_families("story") == ("story",)
    assert read_families("add, story ,sort") == ("add", "story", "sort")


@pytest.mark.parametrize("text, bad", [("stories", "'stories'"), ("", "''"), ("story,", "''"), ("add,all", "'all'"),
                                       ("Story", "'Story'")])
def test_an_unknown_family_is_named_with_those_that_there_are(text, bad):
    with pytest.raises(InputError, match=f"--families {text}: {bad} is none of ") as caught:
        read_families(text)
    assert all(name in str(caught.value) for name in FAMILIES) and "\n" not in str(caught.value)
