"""Exercises of Part 5. Replace each `raise`; `python3 -m pytest tests/exercises -k part_5` says whether you are right."""


def gate_weights(logits, top_k):
    """How much does each expert count for each token?

    logits: (N, E), a router's; top_k: K. Returns (N, E): 0 for experts that the token does not use. The weights of the K
    that it uses are their softmax scores, and add up to 1; but for K = 1 the score stays as it is, or the router would get
    no gradient. Hint: lesson 5.1; `topk` finds the experts, and `scatter` puts their weights in place.
    """
    raise NotImplementedError("solve me")


def balance_loss(probabilities, experts):
    """How uneven is this routing?

    probabilities: (N, E), the softmax scores of N tokens; experts: (N, K) int64, the experts that each has chosen. Returns
    a scalar, E sum_i f_i P_i: 1 where all is even. f_i is expert i's share of all N K choices, P_i its mean probability.
    Hint: lesson 5.1; all K choices count.
    """
    raise NotImplementedError("solve me")


def layer_weights(d_model, d_expert, n_expert, top_k, n_shared):
    """How many weights does a mixture-of-experts layer hold, and how many of them does a token use?

    d_model: width C; d_expert: inner width of an expert, of the E routed ones and of the `n_shared` that every token uses;
    n_expert: E; top_k: K. Returns (all, active), two ints. The router has no bias, nor has anything else. Hint: lesson 5.2,
    and lesson 3.3 for the matrices of a SwiGLU.
    """
    raise NotImplementedError("solve me")
