"""Lesson 9.5: rewards from a model, a verifier, or a Python function; what is wrong with one is said in one line."""

import json
import math
import re

import numpy as np
import pytest
import torch

from part_0.cli import InputError
from part_6.prompt_template import END
from part_6.tasks import make_tasks
from part_7.reward_model import RewardModel
from part_8.prompts import Prompt, load_prompts
from part_8.rewards import score_rollout
from part_8.rollout import as_rollout
from part_9.reward_functions import Reward, call_function, load_function, verified
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

END_ID = TOKENIZER.special_ids[END]


@pytest.fixture(scope="module")
def prompts():
    return load_prompts("tasks", "rl", 6, 0, ("add", "compare", "story"), TOKENIZER)


def rollout_of(prompts, texts, ended):
    """A Rollout of answers with these texts."""
    ids = [TOKENIZER.encode(text) + [END_ID] * has_ended for text, has_ended in zip(texts, ended)]
    return as_rollout([prompt.ids for prompt in prompts], ids, END_ID)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ the verifier


def test_the_verifier_gives_1_for_a_right_answer_that_ended_and_0_for_all_else():
    tasks = {task.family: task for task in make_tasks("rl", 8, 3)}
    cases = [("add", tasks["add"].answer, True, 1.0), ("add", tasks["add"].answer, False, 0.0),
             ("add", tasks["add"].answer.rsplit(":", 1)[1].strip(), True, 1.0),  # the steps before it are free
             ("add", "about a hundred", True, 0.0), ("add", "", True, 0.0),
             ("compare", tasks["add"].answer, True, 0.0), ("story", tasks["story"].answer, True, 1.0),
             ("story", tasks["story"].answer + " It rained.", True, 0.0)]
    prompts = [Prompt([], [], tasks[family]) for family, *_ in cases]
    assert verified(prompts, [case[1] for case in cases], [case[2] for case in cases]) == [case[3] for case in cases]


@pytest.mark.parametrize("penalty", [0.0, 0.75])
def test_a_rollout_is_verified_as_text_less_the_penalty_where_it_does_not_end(penalty, prompts):
    texts = [prompt.task.answer for prompt in prompts[:3]] + ["wrong", prompts[4].task.answer, "wrong"]
    ended = [True, True, True, True, False, False]
    reward = Reward("verifier", TOKENIZER, no_end_penalty=penalty)
    scores = reward(prompts, rollout_of(prompts, texts, ended))
    assert scores.dtype == torch.float32 and scores.tolist() == [1, 1, 1, 0, -penalty, -penalty]
    assert reward.of_texts(prompts, texts, ended) == [1, 1, 1, 0, 0, 0]


# ------------------------------------------------------------------------------------------------ the reward model


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_the_reward_model_reads_the_sampled_ids(penalty, prompts):
    model = RewardModel(tiny_model(1)).eval().requires_grad_(False)
    model.gain.fill_(20.0)
    rollout = rollout_of(prompts, ["a b", "red", "x", "the cat", "1", "2 3"], [True, False] * 3)
    scores = Reward("model", TOKENIZER, model, penalty)(prompts, rollout)
    assert torch.equal(scores, score_rollout(model, rollout, penalty))
    assert scores.std() > 0.01
    plain = Reward("model", TOKENIZER, model)(prompts, rollout)
    assert torch.allclose(plain - scores, torch.tensor([0.0, penalty] * 3), atol=1e-6)
    assert Reward("model", TOKENIZER, model).of_texts(prompts, [""] * 6, [True] * 6) is None


def test_in_bf16_the_reward_model_computes_in_bf16(prompts):
    model = RewardModel(tiny_model(1)).eval().requires_grad_(False)
    model.gain.fill_(20.0)
    rollout = rollout_of(prompts, ["a b", "red", "x", "the cat", "1", "2 3"], [True] * 6)
    assert torch.equal(Reward("model", TOKENIZER, model, dtype=torch.bfloat16)(prompts, rollout),
                       score_rollout(model, rollout, dtype=torch.bfloat16))


# ------------------------------------------------------------------------------------------------ functions of one's own


def test_a_function_gets_conversations_and_texts_and_its_numbers_are_the_rewards(tmp_path, prompts):
    seen = tmp_path / "seen.json"
    path = write(tmp_path / "mine.py", f"""
import json, pathlib
def brevity(prompts, answers):
    pathlib.Path({str(seen)!r}).write_text(json.dumps([prompts, answers]))
    return [-len(answer) for answer in answers]
""")
    texts = ["a", "", "cat", "äö", "red cat", "7"]
    reward = Reward(f"{path}:brevity", TOKENIZER, no_end_penalty=0.5)
    scores = reward(prompts, rollout_of(prompts, texts, [True, True, True, True, False, True]))
    assert scores.dtype == torch.float32 and scores.tolist() == [-1, 0, -3, -2, -7.5, -1]
    conversations, answers = json.loads(seen.read_text())
    assert answers == texts and conversations == [prompt.messages for prompt in prompts]
    assert conversations[0][-1] == {"role": "user", "content": prompts[0].task.prompt}
    assert reward.of_texts(prompts, texts, [False] * 6) == [-1, 0, -3, -2, -7, -1]


@pytest.mark.parametrize("give", [
    [1, 2.5, True], (1, 2.5, 1), iter([1, 2.5, 1]), np.array([1, 2.5, 1]), torch.tensor([1, 2.5, 1]),
    [np.float32(1), np.float64(2.5), np.int64(1)]], ids=lambda give: type(give).__name__)
def test_any_sequence_of_any_kind_of_number_will_do(give, prompts):
    rewards = call_function(lambda prompts, answers: give, prompts[:3], ["a", "b", "c"])
    assert rewards == [1.0, 2.5, 1.0] and all(type(reward) is float for reward in rewards)


def test_a_function_may_be_anything_that_can_be_called(tmp_path):
    path = write(tmp_path / "mine.py", """
from functools import partial
class Long:
    def __call__(self, prompts, answers):
        return [float(len(answer)) for answer in answers]
long = Long()
def scaled(prompts, answers, by):
    return [by * len(answer) for answer in answers]
double = partial(scaled, by=2)
""")
    for name, expected in (("long", [2.0]), ("double", [4])):
        assert load_function(f"{path}:{name}")([[]], ["ab"]) == expected


def test_a_file_may_hold_dataclasses_and_annotations_that_are_texts(tmp_path):
    path = write(tmp_path / "mine.py", """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Weights:
    length: float = 2.0
def reward(prompts: list, answers: list[str]) -> list[float]:
    return [Weights().length * len(answer) for answer in answers]
""")
    assert load_function(f"{path}:reward")([[]], ["ab"]) == [4.0]


def test_a_file_s_path_may_have_colons_and_any_name(tmp_path):
    path = write(tmp_path / "my-reward 2.0.py", "def f(prompts, answers): return [3.0 for _ in answers]\n")
    assert load_function(f"{path}:f")([[]], ["ab"]) == [3.0]


@pytest.mark.parametrize("spec, complaint", [
    ("mine", "names no function as FILE.py:NAME"), ("mine.py", "names no function as FILE.py:NAME"),
    ("", "names no function"), (":f", "names no function"), ("{tmp}/none.py:f", "names no function"),
    ("{tmp}:f", "names no function"),
    ("Verifier", "is none of model, verifier"), ("{tmp}/good.py:", "has no function"),
    ("{tmp}/good.py:g", "good.py has no function g"), ("{tmp}/good.py:x", "good.py has no function x"),
    ("{tmp}/good.txt:f", "good.txt is no Python file"), ("{tmp}/syntax.py:f", r"cannot be run \(SyntaxError: .*line 2"),
    ("{tmp}/raises.py:f", r"cannot be run \(ZeroDivisionError: division by zero\)"),
    ("{tmp}/imports.py:f", r"cannot be run \(ModuleNotFoundError: No module named 'no_such_module'\)"),
    ("{tmp}/binary.py:f", "cannot be run"), ("{tmp}/lines.py:f", r"cannot be run \(ValueError: one")])
def test_what_names_no_function_is_refused_in_one_line(spec, complaint, tmp_path):
    write(tmp_path / "good.py", "x = 3\ndef f(prompts, answers): return [1.0 for _ in answers]\n")
    write(tmp_path / "good.txt", "def f(prompts, answers): return [1.0 for _ in answers]\n")
    write(tmp_path / "syntax.py", "x = 3\ndef f(prompts, answers) return 3\n")
    write(tmp_path / "raises.py", "1 / 0\n")
    write(tmp_path / "imports.py", "import no_such_module\n")
    write(tmp_path / "lines.py", "raise ValueError('one\\ntwo')\n")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    spec = spec.format(tmp=tmp_path)
    with pytest.raises(InputError, match=complaint) as error:
        Reward(spec, TOKENIZER)
    assert f"--reward {spec}" in one_line(error)


def fails_for(text, error):
    """A reward function that raises for one answer."""
    def reward(prompts, answers):
        if text in answers:
            raise error
        return [1.0] * len(answers)
    return reward


def test_the_prompt_for_which_a_function_raises_is_named(prompts):
    texts = ["a", "b", "c\nd", "e", "f", "g"]
    with pytest.raises(InputError) as error:
        call_function(fails_for("c\nd", KeyError("colour")), prompts, texts)
    assert one_line(error) == (f"the reward function raised KeyError: 'colour', for the prompt "
                               f"{prompts[2].messages[-1]['content']!r} and the answer 'c\\nd'")
    with pytest.raises(InputError, match="the answer 'a'$"):  # the first one, where all of them fail
        call_function(lambda prompts, answers: 1 / 0, prompts, texts)


def test_what_a_function_raises_may_have_lines_and_the_message_has_one(prompts):
    with pytest.raises(InputError, match="ValueError: first") as error:
        call_function(fails_for("b", ValueError("first\nsecond")), prompts[:2], ["a", "b"])
    one_line(error)


def test_a_function_that_raises_for_a_batch_alone_ends_in_one_line_too(prompts):
    def at_most_two(prompts, answers):
        if len(answers) > 2:
            raise MemoryError("too many")
        return [1.0] * len(answers)

    with pytest.raises(InputError, match="MemoryError: too many") as error:
        call_function(at_most_two, prompts, list("abcdef"))
    assert "6" in one_line(error)
    assert call_function(at_most_two, prompts[:2], ["a", "b"]) == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5", 1j, [1.0], np.array([1.0, 2.0]),
                                 torch.tensor(math.nan), 10**400, 1e39, {"reward": 1.0}],
                         ids=lambda bad: repr(bad)[:20])
def test_what_is_no_finite_number_is_named_with_its_prompt(bad, prompts):
    with pytest.raises(InputError, match="gave .*no finite number") as error:
        call_function(lambda prompts, answers: [1.0, 2.0, bad, math.nan], prompts[:4], ["a", "b", "c", "d"])
    assert one_line(error).endswith(f"for the prompt {prompts[2].messages[-1]['content']!r} and the answer 'c'")


@pytest.mark.parametrize("give, n", [([], 0), ([1.0], 1), ([1.0] * 4, 4)])
def test_too_few_or_too_many_numbers_are_refused(give, n, prompts):
    with pytest.raises(InputError, match=f"gave {n} numbers for 3 answers, the first of which is the prompt '.*' and the "
                                         "answer 'a'") as error:
        call_function(lambda prompts, answers: give, prompts[:3], ["a", "b", "c"])
    one_line(error)


@pytest.mark.parametrize("give, complaint", [(None, "NoneType"), (0.5, "float")])
def test_a_function_that_gives_no_sequence_is_told_so(give, complaint, prompts):
    with pytest.raises(InputError, match=f"the reward function .*{complaint}") as error:
        call_function(lambda prompts, answers: give, prompts[:3], ["a", "b", "c"])
    one_line(error)


def test_a_function_with_other_arguments_is_told_so(prompts):
    with pytest.raises(InputError, match="TypeError: .*takes 1 positional argument") as error:
        call_function(lambda answers: [1.0] * len(answers), prompts[:3], ["a", "b", "c"])
    one_line(error)


def test_what_a_function_does_to_its_arguments_stays_with_it(prompts):
    before = json.dumps([prompt.messages for prompt in prompts])

    def careless(conversations, answers):
        for conversation in conversations:
            conversation[-1]["content"] = "gone"
            conversation.append({"role": "assistant", "content": "x"})
        answers.clear()
        return [1.0] * 2

    texts = ["a", "b"]
    assert call_function(careless, prompts[:2], texts) == [1.0, 1.0]
    assert texts == ["a", "b"] and json.dumps([prompt.messages for prompt in prompts]) == before


def test_keyboard_interrupts_are_no_errors_of_the_function(prompts):
    with pytest.raises(KeyboardInterrupt):
        call_function(fails_for("a", KeyboardInterrupt()), prompts[:2], ["a", "b"])


def test_the_message_says_what_mends_an_unknown_reward(tmp_path):
    with pytest.raises(InputError) as error:
        Reward("verifer", TOKENIZER)
    assert re.search("model, verifier.*FILE.py:NAME", one_line(error))
