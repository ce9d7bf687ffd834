"""Lesson 6.1 - the prompt template: a conversation as one row of tokens, with special tokens where a turn begins and ends.

    <|user|> What is 2 + 3?<|end|><|assistant|> 5<|end|>

The text of a turn is encoded as plain text: whatever a user types, the special tokens in a row are ours. After a role's
token comes one blank, which belongs to the template: so the first word of a turn is the same token as amid a sentence.
A base model does not know the special tokens: its tokenizer gets them behind its own (`chat_tokenizer`), its embedding and
its head get as many rows (`chat_model.resize_vocabulary`).
"""

import itertools

from part_4.bpe_tokenizer import BPETokenizer

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
CHAT_TOKENS = (*ROLES.values(), END)


def chat_tokenizer(tokenizer):
    """`tokenizer` (a BPETokenizer) with the template's special tokens behind its own ids; the same where it has them."""
    missing = tuple(name for name in CHAT_TOKENS if name not in tokenizer.special_ids)
    return BPETokenizer(tokenizer.ranks, (*tokenizer.special_tokens, *missing), tokenizer.pattern) if missing else tokenizer


def check_messages(messages):
    """ValueError unless `messages` is a conversation: a list of {"role", "content"}, the first perhaps of the system, then
    user and assistant in turn, beginning with the user."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("there are no messages")
    turns = ["user", "assistant"] * len(messages)
    expected = ["system", *turns] if isinstance(messages[0], dict) and messages[0].get("role") == "system" else turns
    for number, (message, role) in enumerate(zip(messages, expected), 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'message {number} is no object with "role" and "content", a text')
        if message.get("role") != role:
            raise ValueError(f"message {number} must be of the {role}, not of {message.get('role')!r}")
        if any("\ud800" <= sign <= "\udfff" for sign in message["content"]):
            raise ValueError(f"message {number} holds half a surrogate pair: that is no Unicode character")


def encode_chat(messages, tokenizer):
    """The ids of a conversation, and which of them are to be learnt: those of the assistant's texts and their end tokens.

    messages: as of `check_messages`; tokenizer: of `chat_tokenizer`. Returns (ids, learnt): lists of int and of bool.
    """
    check_messages(messages)
    ids, learnt = [], []
    for message in messages:
        content = [*tokenizer.encode(" " + message["content"]), tokenizer.special_ids[END]]
        ids += [tokenizer.special_ids[ROLES[message["role"]]], *content]
        learnt += [False, *[message["role"] == "assistant"] * len(content)]
    return ids, learnt


def encode_prompt(messages, tokenizer):
    """The ids after which the assistant speaks. messages: a conversation that ends with the user, or the user's text."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    ids, _ = encode_chat(messages, tokenizer)
    if messages[-1]["role"] != "user":
        raise ValueError("a prompt ends with a message of the user")
    return [*ids, tokenizer.special_ids[ROLES["assistant"]]]


def decode_answer(ids, tokenizer):
    """The text of the ids that a model gave after `encode_prompt`, up to the first special token."""
    special = set(tokenizer.special_ids.values())
    return tokenizer.decode(list(itertools.takewhile(lambda id: id not in special, ids))).removeprefix(" ")


def decode_chat(ids, tokenizer):
    """The messages whose `encode_chat` these ids are; names of special tokens within a text stay text. ValueError for ids
    that are no finished conversation."""
    roles, end = {tokenizer.special_ids[name]: role for role, name in ROLES.items()}, tokenizer.special_ids[END]
    ids, messages = list(ids), []
    while ids:
        if ids[0] not in roles or end not in ids:
            raise ValueError(f"a turn begins with a role's token and ends with {END}; this is neither: {ids[:5]} ...")
        stop = ids.index(end)
        if any(id in roles for id in ids[1:stop]):
            raise ValueError(f"a turn begins before the one before it has its {END}: {ids[:5]} ...")
        messages.append({"role": roles[ids[0]], "content": tokenizer.decode(ids[1:stop]).removeprefix(" ")})
        ids = ids[stop + 1:]
    check_messages(messages)
    return messages
