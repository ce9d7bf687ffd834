import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_2.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


@given(st.binary(max_size=64))
def test_any_bytes_survive_the_round_trip(data):
    assert TOKENIZER.decode_bytes(list(data)) == data


@given(st.text(max_size=64))
def test_any_text_survives_the_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert all(0 <= id < 256 for id in ids)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode_to_tensor(text).tolist() == ids


def test_ids_of_one_two_three_and_four_byte_characters():
    # U+0041, U+00E9, U+20AC, U+1F44B from the UTF-8 tables
    assert TOKENIZER.encode("Aé€👋") == [0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x91, 0x8B]


def test_invalid_utf8_is_replaced_visibly_and_never_dropped():
    assert TOKENIZER.decode([0x61, 0xC3, 0x62]) == "a\ufffdb"
    assert TOKENIZER.decode([0xFF, 0xFE]) == "\ufffd\ufffd"


def test_special_ids_follow_the_bytes_and_decode_to_their_names():
    tokenizer = ByteTokenizer(("<|endoftext|>", "<|pad|>"))
    assert tokenizer.special_ids == {"<|endoftext|>": 256, "<|pad|>": 257} and tokenizer.vocab_size == 258
    assert tokenizer.decode([0x61, 257, 0x62, 256]) == "a<|pad|>b<|endoftext|>"


def test_a_special_token_s_name_in_a_text_is_just_letters():
    ids = TOKENIZER.encode("<|endoftext|>")
    assert len(ids) == 13 and max(ids) < 256


@pytest.mark.parametrize("id", [-1, 257])
def test_an_id_outside_the_vocabulary_is_refused(id):
    with pytest.raises(ValueError, match=f"{id}.*257"):
        TOKENIZER.decode([id])


def test_empty_text_is_no_tokens():
    assert TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == "" and len(TOKENIZER.encode_to_tensor("")) == 0
