"""Lesson 2.1 - the byte tokenizer: a text is its UTF-8 bytes, ids 0-255, and a few named special ids above them.

    encode("né") -> [110, 195, 169]         decode([110, 195, 169]) -> "né"

Every text in every script has ids, nothing is ever unknown, and there is nothing to train. The price is length: English
takes one id a character, Chinese three. Part 4's BPE buys the length back.
"""

import numpy as np
import torch

N_BYTES = 256


class ByteTokenizer:
    """Ids 0-255 are bytes; 256, 257, ... are the special tokens, in the order given."""

    def __init__(self, special_tokens=("<|endoftext|>",)):
        self.special_tokens = tuple(special_tokens)
        self.special_ids = {name: N_BYTES + i for i, name in enumerate(self.special_tokens)}
        self.vocab_size = N_BYTES + len(self.special_tokens)

    def encode(self, text):
        """The ids of a str, a list of int below 256. The name of a special token in the text is just its letters: a text
        from outside must not be able to smuggle one in."""
        return list(text.encode("utf-8"))

    def encode_to_tensor(self, text):
        """The ids of a whole corpus as a (T,) uint8 tensor: a byte for each, where a list of int takes eight."""
        return torch.from_numpy(np.frombuffer(text.encode("utf-8"), dtype=np.uint8).copy())

    def decode_bytes(self, ids):
        """The exact bytes of a sequence of ids; a special id gives its name. ValueError for an id outside the vocabulary."""
        pieces = []
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"id {id} is outside the vocabulary of {self.vocab_size}")
            pieces.append(bytes([id]) if id < N_BYTES else self.special_tokens[id - N_BYTES].encode("utf-8"))
        return b"".join(pieces)

    def decode(self, ids):
        """The text of a sequence of ids. Bytes that are no UTF-8 (half a character, or a model's mistake) become U+FFFD,
        the replacement character: visible, never dropped."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
