"""Lesson 3.5 - one function says who may look at whom, in training, prefill and decoding.

    visible(q, k) = k <= q  and  (q - k < window  or  k < sinks)            an encoder: no k <= q, and |q - k| < window

Sliding window (Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B", section 2): a query sees itself and the
window - 1 tokens before it, so cost and memory stop growing with the text; through L layers information still travels
L (window - 1) tokens. Attention sinks (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks"): the
first few tokens stay visible for ever, because trained models park there the attention that they need nowhere else.

q and k are positions in the text, not places in a tensor: that is why a cache may keep its keys in any order. Where the rule
hides nothing but the future, torch's causal flag stands in for the mask, and where it hides nothing, no mask at all.
"""


def attention_mask(query_positions, key_positions, window=None, sinks=0, segments=None, causal=True):
    """Which query may look at which key; True = may, as in torch's `scaled_dot_product_attention`.

    query_positions: (T,) or (B, T); key_positions: (S,) or (B, S). Position -1 is padding or an empty place: no real query
    sees it. A padding query sees only padding, so that no row of the mask is empty, as the softmax needs.
    window: None for no limit. segments: (B, T) where a row holds several texts, S = T: the number of each token's text; none
    sees another (lesson 6.2), and positions begin anew in each. causal: False shows what comes after, too, as an encoder
    needs (lesson 7.2); a window then reaches as far ahead as back. Returns bool (T, S), or (B, T, S) where rows differ.
    """
    query, key = query_positions[..., :, None], key_positions[..., None, :]
    visible = (key < 0) == (query < 0)
    if causal:
        visible &= key <= query
    if window is not None:
        visible &= ((query - key).abs() < window) | (key < sinks)
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    return visible
