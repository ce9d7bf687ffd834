"""Exercises of Part 6. Replace each `raise`; `python3 -m pytest tests/exercises -k part_6` says whether you are right."""


def inputs_and_targets(turns, role_ids, end):
    """What does a model read of a conversation, and which token does it learn at each place?

    turns: list of (role, ids), role "user" or "assistant", ids the tokens of its text, a list of int; role_ids: dict of
    role to the id of its token; end: the id of the end token. A turn is its role's token, its text and the end token.
    Returns two lists, each one shorter than the conversation: the inputs, and the targets, the next token where that is the
    assistant's text or the end token after it, else -100. Hint: lessons 6.1 and 6.2.
    """
    raise NotImplementedError("solve me")


def packed_row(lengths):
    """Several conversations share a row: where does each token stand, and which tokens may it see?

    lengths: list of int, tokens of each conversation, one behind the other. Returns positions, (T,) int64 with T the sum of
    the lengths, and visible, (T, T) bool: whether the query of the row may look at the key of the column. Hint: lesson 6.2;
    every conversation must be read as if it were alone.
    """
    raise NotImplementedError("solve me")


def token_f1(answer, reference):
    """How good is an answer that is not quite the reference?

    answer, reference: str, words parted by blanks, at least one. Returns 2 P R / (P + R), P and R the words in common as a
    share of the answer's words and of the reference's; 0 where there are none. A word that is in both several times counts
    as often as it is in both. Case and order do not matter. Hint: lesson 6.4; a Counter can do what a set cannot.
    """
    raise NotImplementedError("solve me")
