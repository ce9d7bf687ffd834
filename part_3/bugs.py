"""Lesson 3.6 - the mistakes of this part: each a wrong version of one function, put in its place by part_2/bug_museum.py.

    final norm left out                 the head reads the residual stream as the blocks leave it               (lesson 3.4)
    cached chunk not causal             "what is cached is the past", so the tokens of a chunk get no mask       (lesson 3.4)
    keys cropped for all queries        the ring is written first, and then the whole chunk looks at it          (lesson 3.6)
"""

from torch import nn

from part_2.bug_museum import Bug


def final_norm_left_out(right):
    """The norm is made, and stands in the list of weights, but is not called."""
    def hidden_states(self, *arguments, **options):
        norm, self.norm = self.norm, nn.Identity()
        try:
            return right(self, *arguments, **options)
        finally:
            self.norm = norm
    return hidden_states


def cached_chunk_not_causal(right):
    """Where there are more keys than queries, all keys are taken for earlier ones: true for one query, not for several."""
    def attention_mask(query_positions, key_positions, window=None, sinks=0, segments=None, causal=True):
        is_cached = key_positions.shape[-1] > query_positions.shape[-1]
        return right(query_positions, key_positions, window, sinks, segments, causal and not is_cached)
    return attention_mask


def keys_cropped_for_all_queries(right):
    """The last `window` keys are what the last query of a chunk may see; those before it lose as many as they are away."""
    def begin(self, n_tokens, positions=None):
        positions, key_positions = right(self, n_tokens, positions)
        if self.beside:
            self.beside, self.read, key_positions = False, slice(0, 1 + self.capacity), self.positions
        return positions, key_positions
    return begin


BUGS = (
    Bug("final norm left out", "training is slower and ends higher, and nothing else tells of it",
        "part_3.modern_gpt:ModernGPT.hidden_states", final_norm_left_out,
        "tests/part_3/test_modern_gpt.py::test_the_last_norm_gives_vectors_of_length_one_and_the_head_reads_them"),
    Bug("cached chunk not causal", "a prompt read in chunks gives other logits than read at once, from the second chunk on",
        "part_3.attention_mask:attention_mask", cached_chunk_not_causal,
        "tests/part_3/test_kv_cache.py::test_every_cache_gives_the_logits_of_each_prompt_read_alone"),
    Bug("keys cropped for all queries", "under a window the first tokens of a chunk have forgotten what is just behind them",
        "part_3.rolling_cache:RollingCache.begin", keys_cropped_for_all_queries,
        "tests/part_3/test_rolling_cache.py::test_a_rolling_cache_allows_passes_of_any_lengths_in_any_order"),
)
