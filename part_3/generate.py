"""Lesson 3.4 - generation with a cache: read the prompts once, then one token at a time.

    prefill   all prompts in one pass (or in chunks), padded on the left: the last column holds each row's last token
    decode    one token a row; a row ends at a stop id, and the others go on without it

`stream` yields tokens as they come; `generate` collects them. How a token is drawn is lesson 2.5's `sample`.
"""

import itertools

import torch

from part_0.cli import InputError
from part_0.onednn import packed_weights
from part_2.sampling import sample

ENDED = -1  # what a row that has ended yields


def pad_left(prompts, device=None):
    """Prompts of any lengths as one rectangle, padded on the left.

    prompts: sequences of token ids. Returns tokens (B, T) and positions (B, T), -1 for padding; None instead of positions
    where all prompts are of one length. InputError for an empty prompt, or none.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise InputError("a prompt must have at least one token")
    T = max(lengths)
    tokens = torch.zeros(len(prompts), T, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, T - len(prompt):] = torch.as_tensor(prompt)
    if min(lengths) == T:
        return tokens.to(device), None
    positions = torch.arange(T) - (T - torch.tensor(lengths)[:, None])  # (B, T)
    return tokens.to(device), positions.clamp(min=-1).to(device)


def stream(model, prompts, n_new, temperature=1.0, top_k=None, top_p=None, generator=None, stop_ids=(), cache="static",
           chunk=None, n_samples=1):
    """Continue every prompt, and yield each step's tokens as they come: (B,) int64, `ENDED` for a row that has ended.

    model: a ModernGPT; prompts: sequences of token ids, or a (P, T) tensor; n_new: most new tokens a row; generator:
    torch.Generator on the model's device; stop_ids: a row ends with the first of these that it draws, which is yielded;
    cache: "static", "rolling", "streaming", or "none" (compute everything anew for every token); chunk: prefill that many
    tokens at a time, which bounds the memory of long prompts, None for all at once; n_samples: continuations of each prompt,
    side by side among the B = P n_samples rows: a prompt is read once, and its keys and values are copied.

    Ends after n_new steps, or when the last row has ended. It is a generator: nothing happens, and no argument is checked,
    before the first token is asked for. Until it ends or is closed the model is in eval mode and its weights must not
    change; then it is in the mode it was in.
    """
    if n_new < 0 or n_samples < 1 or (chunk is not None and chunk < 1):
        raise InputError(f"n_new must be 0 or more, chunk and n_samples at least 1, not {n_new}, {chunk} and {n_samples}")
    device = model.head.weight.device
    tokens, positions = pad_left(prompts, device)
    P, T = tokens.shape
    copies = torch.arange(P, device=device).repeat_interleave(n_samples)  # the prompt of each row, until it has been read
    B = len(copies)
    stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
    rows = torch.arange(B, device=device)  # what each row of the batch is in the caller's order
    going = torch.ones(B, dtype=torch.bool, device=device)  # of these rows
    kept = None if cache == "none" else model.new_cache(cache, P, T + n_new)
    was_training = model.training
    model.eval()
    try:
        with packed_weights(model):
            for _ in range(n_new):
                with torch.inference_mode():  # not around the yield: it would reach into the caller's code
                    size = chunk or tokens.shape[1]
                    parts = itertools.repeat(None) if positions is None else positions.split(size, dim=1)
                    if kept is None:
                        hidden = model.hidden_states(tokens, positions)
                    else:
                        for part, where in zip(tokens.split(size, dim=1), parts):
                            hidden = model.hidden_states(part, where, kept)
                    last = hidden[:, -1]
                    if len(last) < len(going):  # the prompts have been read: from here on each row goes its own way
                        last, tokens = last[copies], tokens[copies]
                        positions = None if positions is None else positions[copies]
                        if kept is not None:
                            kept.select(copies)
                    new = sample(model.head(last), temperature, top_k, top_p, generator)
                new = new.clone()  # an ordinary tensor again, that training may use
                if not len(stop_ids):
                    yield new
                else:
                    yield torch.full((B,), ENDED, device=device).scatter(0, rows[going], new[going])
                    going = going & ~torch.isin(new, stop_ids)
                    n_going = int(going.sum())
                    if n_going == 0:
                        break
                    if n_going <= len(going) // 2:  # carry the ended rows no further
                        rows, new, tokens = rows[going], new[going], tokens[going]
                        positions = None if positions is None else positions[going]
                        if kept is not None:
                            kept.select(going.nonzero().squeeze(1))
                        going = going[going]
                if kept is not None:  # the next pass reads the new tokens alone, ...
                    tokens, positions = new[:, None], None
                else:  # ... or everything again
                    tokens = torch.cat((tokens, new[:, None]), dim=1)
                    positions = None if positions is None else torch.cat((positions, positions[:, -1:] + 1), dim=1)
    finally:
        model.train(was_training)


def generate(model, prompts, n_new, **options):
    """What `stream` yields, row by row: a list of B tensors (n,), n <= n_new, without the prompt, with the stop id.

    options: those of `stream`.
    """
    steps = list(stream(model, prompts, n_new, **options))
    if not steps:
        return [torch.empty(0, dtype=torch.long) for _ in range(len(prompts) * options.get("n_samples", 1))]
    return [row[row != ENDED] for row in torch.stack(steps, dim=1)]  # (B, n)
