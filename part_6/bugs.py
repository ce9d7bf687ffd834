"""Lesson 6.2 - the mistakes of this part: each a wrong version of one function, put in its place by part_2/bug_museum.py.

    prompt tokens not masked       what a user asks is learnt like what is answered           (lesson 6.1)
    padding counted in the mean    empty places have a target: what stands in their input     (lesson 6.2)
"""

import torch

from part_2.bug_museum import Bug


def prompt_not_masked(right):
    """All tokens of a conversation are to be learnt."""
    def encode_chat(messages, tokenizer):
        ids, learnt = right(messages, tokenizer)
        return ids, [True] * len(learnt)
    return encode_chat


def padding_counted(right):
    """A row is filled up with token 0 in inputs and targets alike, instead of IGNORE in the targets."""
    def collate(examples, rows, width):
        batch = right(examples, rows, width)
        return batch._replace(targets=torch.where(batch.segments < 0, batch.inputs, batch.targets))
    return collate


BUGS = (
    Bug("prompt tokens not masked", "the model learns to ask, and the loss of answers falls less than it could",
        "part_6.prompt_template:encode_chat", prompt_not_masked,
        "tests/part_6/test_collator.py::test_the_targets_of_several_turns_are_the_answers_each_with_its_end_and_nothing_else"),
    Bug("padding counted in the mean", "the logged loss is far too good, and the better the more of a row is empty",
        "part_6.collator:collate", padding_counted,
        "tests/part_6/test_collator.py::test_more_padding_on_either_side_changes_nothing"),
)
