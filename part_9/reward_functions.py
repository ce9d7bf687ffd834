"""Lesson 9.5 - where the reward comes from: a learned model, a verifier, or any Python function.

    model            Part 7's reward model, which guesses what an annotator likes
    verifier         1 for a right answer that ended, else 0: RL from verifiable rewards (Lambert et al. 2024, "Tulu 3")
    FILE.py:NAME     NAME(prompts, answers) -> a number for each; prompts: conversations, answers: texts

GRPO needs no more than numbers that can be compared within a group, so a reward may be anything that can be computed.
"""

import importlib.util
import math
import sys
from pathlib import Path

import torch

from part_0.cli import InputError
from part_6.prompt_template import decode_answer
from part_6.tasks import verify
from part_8.rewards import score_rollout

REWARDS = ("model", "verifier")


def load_function(spec):
    """The function that "FILE.py:NAME" names. InputError when there is none, or its file cannot be run."""
    file, _, name = spec.rpartition(":")
    if not file or not Path(file).is_file():
        raise InputError(f"--reward {spec} is none of {', '.join(REWARDS)}, and names no function as FILE.py:NAME")
    module_spec = importlib.util.spec_from_file_location("reward_of_ones_own", file)  # a name that hides no other module
    if module_spec is None:
        raise InputError(f"--reward {spec}: {file} is no Python file")
    module = sys.modules[module_spec.name] = importlib.util.module_from_spec(module_spec)  # dataclasses look there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever stands in a file of others
        raise InputError(f"--reward {spec}: {file} cannot be run ({_in_one_line(error)})") from error
    if not callable(getattr(module, name, None)):
        raise InputError(f"--reward {spec}: {file} has no function {name}")
    return getattr(module, name)


def verified(prompts, texts, ended):
    """1.0 for each right answer that ended, else 0.0: a list. prompts: list of Prompt, all with tasks."""
    return [float(has_ended and verify(prompt.task, text)) for prompt, text, has_ended in zip(prompts, texts, ended)]


def call_function(function, prompts, texts):
    """What a reward function says of answers, a list of finite floats.

    prompts: list of Prompt; texts: list of str. InputError names the first prompt and answer for which the function raises
    an error or gives no finite number, or the numbers that do not match where it gives too many or too few.
    """
    def ask(prompts, texts):  # copies, which it may change
        return list(function([[dict(message) for message in prompt.messages] for prompt in prompts], list(texts)))

    try:
        rewards = ask(prompts, texts)
    except Exception as error:  # of which answer? each alone will tell
        for prompt, text in zip(prompts, texts):
            try:
                ask([prompt], [text])
            except Exception as own:
                raise InputError(f"the reward function raised {_in_one_line(own)}, for {_case(prompt, text)}") from own
        raise InputError(f"the reward function raised {_in_one_line(error)}, for {len(texts)} answers at once, but for none "
                         "of them alone") from error
    if len(rewards) != len(texts):
        raise InputError(f"the reward function gave {len(rewards)} numbers for {len(texts)} answers, the first of which is "
                         f"{_case(prompts[0], texts[0])}")
    for reward, prompt, text in zip(rewards, prompts, texts):
        try:
            is_number = math.isfinite(reward) and abs(reward) <= torch.finfo(torch.float32).max
        except (TypeError, ValueError, OverflowError):
            is_number = False
        if not is_number:
            raise InputError(f"the reward function gave {' '.join(repr(reward).split())}, which is no finite number, for "
                             f"{_case(prompt, text)}")
    return [float(reward) for reward in rewards]


def _in_one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _case(prompt, text):
    return f"the prompt {prompt.messages[-1]['content']!r} and the answer {text!r}"


class Reward:
    """The reward of answers by any of the three sources. spec: of REWARDS, or FILE.py:NAME; reward_model: for "model"."""

    def __init__(self, spec, tokenizer, reward_model=None, no_end_penalty=0.0, dtype=torch.float32):
        self.spec, self.tokenizer, self.reward_model = spec, tokenizer, reward_model
        self.no_end_penalty, self.dtype = no_end_penalty, dtype
        self.function = None if spec in REWARDS else load_function(spec)

    def __call__(self, prompts, rollout):
        """(B,) fp32 on the rollout's device, less the penalty where there is no end token. prompts: list of B Prompt."""
        if self.spec == "model":
            return score_rollout(self.reward_model, rollout, self.no_end_penalty, self.dtype)
        texts = [decode_answer(ids, self.tokenizer) for ids in rollout.answers()]
        scores = self.of_texts(prompts, texts, rollout.ended.tolist())
        return torch.tensor(scores, device=rollout.tokens.device) - self.no_end_penalty * ~rollout.ended

    def of_texts(self, prompts, texts, ended):
        """The same without the penalty, of texts: a list of floats; None for "model", which reads ids."""
        if self.spec == "model":
            return None
        return verified(prompts, texts, ended) if self.function is None else call_function(self.function, prompts, texts)
