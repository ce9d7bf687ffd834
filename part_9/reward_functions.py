"""Lesson 9.5 - where the reward comes from: a learned model, a verifier, or any Python function.

    model            Part 7's reward model, which guesses what an annotator likes
    verifier         1 for a right answer that ended, else 0: RL from verifiable rewards (Lambert et al. 2024, "Tulu 3")
    FILE.py:NAME     NAME(prompts, answers) -> a number for each; prompts: conversations, answers: texts

GRPO needs no more than numbers that can be compared within a group, so a reward may be anything that can be computed.
"""

import importlib.util
import math
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
    module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if module_spec is None:
        raise InputError(f"--reward {spec}: {file} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever stands in a file of others
        raise InputError(f"--reward {spec}: {file} cannot be run ({type(error).__name__}: {error})") from error
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
    conversations = [prompt.messages for prompt in prompts]
    try:
        rewards = list(function(conversations, texts))
    except Exception:  # of which answer? each alone will tell
        for prompt, text in zip(prompts, texts):
            try:
                list(function([prompt.messages], [text]))
            except Exception as error:
                raise InputError(f"the reward function raised {type(error).__name__}: {error}, for {_case(prompt, text)}"
                                 ) from error
        raise
    if len(rewards) != len(texts):
        raise InputError(f"the reward function gave {len(rewards)} numbers for {len(texts)} answers, the first of which is "
                         f"{_case(prompts[0], texts[0])}")
    for reward, prompt, text in zip(rewards, prompts, texts):
        try:
            is_number = math.isfinite(reward)
        except (TypeError, ValueError):
            is_number = False
        if not is_number:
            raise InputError(f"the reward function gave {reward!r}, which is no finite number, for {_case(prompt, text)}")
    return [float(reward) for reward in rewards]


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
