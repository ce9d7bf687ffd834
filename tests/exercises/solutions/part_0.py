"""Reference answers to the exercises of Part 0."""


def training_seconds(params, tokens, peak, mfu):
    """6ND FLOPs, at the share `mfu` of the peak."""
    return 6 * params * tokens / (peak * mfu)


def matmul_gradients(x, weight, grad):
    """Each is a product as large as the forward one: together twice its cost."""
    return grad @ weight.T, x.T @ grad


def writing_speed(params, bytes_each, texts, peak, bandwidth):
    """Until the flat roof is reached a step takes as long as the reading of the weights, for however many texts."""
    return min(texts * bandwidth / (params * bytes_each), peak / (2 * params))
