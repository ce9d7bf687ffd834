"""The mistakes of Part 6 do what is said of them, and nothing else."""

from part_4.bpe_tokenizer import BPETokenizer
from part_6.bugs import padding_counted, prompt_not_masked
from part_6.collator import IGNORE, collate, shift
from part_6.prompt_template import chat_tokenizer, encode_chat


def test_with_prompts_not_masked_the_target_of_each_token_is_the_next_one_whoever_says_it():
    tokenizer = chat_tokenizer(BPETokenizer.from_merges([]))
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    ids, learnt = prompt_not_masked(encode_chat)(messages, tokenizer)
    assert ids == encode_chat(messages, tokenizer)[0] and len(learnt) == len(ids) == 11  # 3 + " One?" and " 1" + 1
    inputs, targets = shift(ids, learnt)
    assert inputs == ids[:-1] and targets == ids[1:]


def test_with_padding_counted_an_empty_place_has_token_0_as_its_target():
    examples, rows = [([1, 2], [IGNORE, 3]), ([4], [5])], [[0], [1]]
    wrong, right = padding_counted(collate)(examples, rows, 3), collate(examples, rows, 3)
    assert wrong.targets.tolist() == [[IGNORE, 3, 0], [5, 0, 0]]
    assert all((getattr(wrong, name) == getattr(right, name)).all() for name in ("inputs", "positions", "segments"))
    full = [([1, 2], [IGNORE, 3])]
    assert padding_counted(collate)(full, [[0]], 2).targets.tolist() == [[IGNORE, 3]]  # nothing is empty
