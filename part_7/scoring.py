"""Lesson 7.2 - from answers to rewards: prompt and answer as one row of tokens, and rows as a batch.

    <|user|> Sort: red cup<|end|><|assistant|>  cup red<|end|>
                                                answer tokens         an answer that did not end lacks the last one
"""

import torch

from part_0.device import autocast
from part_6.collator import pad
from part_6.prompt_template import END, encode_prompt


def encode_response(prompt, response, tokenizer, block_size=None):
    """The row of an answer: (ids, is_answer), lists of int and of 0 or 1.

    prompt: messages that end with the user, or his text; response: (text, ended). A row longer than `block_size` loses its
    beginning: the answer and what was said last matter most.
    """
    before = encode_prompt(prompt, tokenizer)
    answer = tokenizer.encode(" " + response.text) + [tokenizer.special_ids[END]] * response.ended
    ids, is_answer = before + answer, [0] * len(before) + [1] * len(answer)
    return (ids, is_answer) if block_size is None else (ids[-block_size:], is_answer[-block_size:])


def reward_batch(rows, device="cpu"):
    """What a RewardModel reads: tokens, positions and answer, each (B, T), padded on the right. rows: of
    `encode_response`."""
    batch = pad(rows).to(device)  # its "targets" are the rows' is_answer here, and something else in padding
    return batch.inputs, batch.positions, batch.targets == 1


@torch.no_grad()
def score(model, rows, dtype=torch.float32, batch_size=256):
    """The rewards of rows as from `encode_response`: (N,) fp32 on the CPU; the model is left in the mode it was in."""
    was_training, device = model.training, model.score.weight.device
    model.eval()
    rewards = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # rows of like length need little padding
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        with autocast(device, dtype):
            rewards[chosen] = model(*reward_batch([rows[i] for i in chosen], device)).float().cpu()
    model.train(was_training)
    return rewards


def score_responses(model, tokenizer, prompts, responses):
    """The rewards of responses to prompts, one each: (N,); no row is cut. prompts, responses: as of `encode_response`."""
    return score(model, [encode_response(*both, tokenizer) for both in zip(prompts, responses, strict=True)])
