"""Checks of the exercises of Part 6: one for each function, named for it."""

import torch

from part_4.bpe_tokenizer import BPETokenizer
from part_6.collator import collate, shift
from part_6.metrics import token_f1
from part_6.prompt_template import END, ROLES, chat_tokenizer, encode_chat
from tests.exercises.compare import check


def test_inputs_and_targets(answers):
    # The row is  1  5 6  9  2  7 8  9: role, text and end of the user, then of the assistant.
    inputs, targets = answers.inputs_and_targets([("user", [5, 6]), ("assistant", [7, 8])], {"user": 1, "assistant": 2}, 9)
    asked = 'inputs_and_targets([("user", [5, 6]), ("assistant", [7, 8])], {"user": 1, "assistant": 2}, end=9), '
    check(asked + "the inputs", inputs, [1, 5, 6, 9, 2, 7, 8], {"they are the next tokens": [5, 6, 9, 2, 7, 8, 9]})
    check(asked + "the targets", targets, [-100, -100, -100, -100, 7, 8, 9],
          {"the targets are not shifted": [-100, -100, -100, -100, -100, 7, 8],
           "the end token is not learnt": [-100, -100, -100, -100, 7, 8, -100],
           "the assistant's role token is learnt, too": [-100, -100, -100, 2, 7, 8, 9],
           "the user's end token is learnt, too": [-100, -100, 9, -100, 7, 8, 9],
           "the questions are learnt, too": [5, 6, 9, 2, 7, 8, 9]})
    tokenizer = chat_tokenizer(BPETokenizer({bytes([byte]): byte for byte in range(256)}))
    messages = [{"role": role, "content": text} for role, text in
                (("user", "a b?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d e"))]
    turns = [(message["role"], tokenizer.encode(" " + message["content"])) for message in messages]
    roles = {role: tokenizer.special_ids[name] for role, name in ROLES.items()}
    for name, got, right in zip(("inputs", "targets"),
                                answers.inputs_and_targets(turns, roles, tokenizer.special_ids[END]),
                                shift(*encode_chat(messages, tokenizer))):
        check(f"the {name} of two questions with their answers", got, right)


def test_packed_row(answers):
    positions, visible = answers.packed_row([3, 2])
    check("packed_row([3, 2]), the positions", positions, [0, 1, 2, 0, 1],
          {"the row is one long text": [0, 1, 2, 3, 4], "positions begin at 1": [1, 2, 3, 1, 2],
           "it is the conversation's number that is given": [0, 0, 0, 1, 1]})
    place, number = torch.arange(5), torch.tensor([0, 0, 0, 1, 1])
    start = torch.tensor([0, 1, 2, 0, 1])
    right = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    check("packed_row([3, 2]), who sees whom", visible, right,
          {"the second conversation sees the first": place <= place[:, None],
           "positions alone decide, and the first conversation sees the second": start <= start[:, None],
           "what comes later is seen": number == number[:, None], "rows and columns are exchanged": torch.tensor(right).T})
    lengths = [4, 1, 6, 2]
    batch = collate([([7] * length, [7] * length) for length in lengths], [[0, 1, 2, 3]], sum(lengths))
    positions, visible = answers.packed_row(lengths)
    check(f"packed_row({lengths}), the positions", positions, batch.positions[0])
    check(f"packed_row({lengths}), who sees whom", visible,
          torch.block_diag(*[torch.ones(length, length).tril() for length in lengths]))


def test_token_f1(answers):
    # In common are one "the" and "cup": P = 2/4, R = 2/3, and 2 P R / (P + R) = 4/7.
    check('token_f1("the the the cup", "the red cup")', answers.token_f1("the the the cup", "the red cup"), 4 / 7,
          {"words are a set: one that comes again is not counted": 4 / 5,
           "each word of the answer that is in the reference counts": 8 / 7,
           "only the precision is given": 1 / 2, "only the recall is given": 2 / 3,
           "precision and recall are averaged": 7 / 12})
    for answer, reference in (("Red cup", "cup red"), ("a b", "c d e"), ("x y y z z", "y y x w"), ("one", "one two three")):
        check(f'token_f1("{answer}", "{reference}")', answers.token_f1(answer, reference), token_f1(answer, reference))
