import math

import pytest

from part_2.gpt import GPT, GPTConfig
from part_2.optimization import parameter_groups, warmup_cosine

SCHEDULE = dict(steps=110, lr=1.0, min_lr=0.1, warmup_steps=10)


def test_schedule_at_the_moments_that_matter():
    assert warmup_cosine(0, **SCHEDULE) == pytest.approx(0.1)  # the first update already takes a tenth, not 0
    assert warmup_cosine(9, **SCHEDULE) == 1.0
    assert warmup_cosine(10, **SCHEDULE) == 1.0
    assert warmup_cosine(60, **SCHEDULE) == pytest.approx(0.55)  # half way down the cosine: the mean of 1 and 0.1
    assert warmup_cosine(35, **SCHEDULE) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))  # cos 45 degrees
    assert warmup_cosine(110, **SCHEDULE) == pytest.approx(0.1)
    assert warmup_cosine(500, **SCHEDULE) == pytest.approx(0.1)


def test_a_run_of_warmup_only_and_a_run_without_warmup():
    assert [warmup_cosine(s, 3, 0.3, 0.0, 3) for s in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert warmup_cosine(3, 3, 0.3, 0.01, 3) == 0.01  # the end is the floor even where there was no way down
    assert warmup_cosine(0, 10, 0.5, 0.0, 0) == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_linear_layers_matrices_decay(tied):
    model = GPT(GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=2, d_model=8, tie_embeddings=tied))
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {"blocks.0.attention.qkv.weight", "blocks.0.attention.project.weight", "blocks.0.feed_forward.expand.weight",
                "blocks.0.feed_forward.contract.weight"} | (set() if tied else {"head.weight"})
    assert {names[id(parameter)] for parameter in decayed["params"]} == matrices
    assert {names[id(parameter)] for parameter in kept["params"]} == set(names.values()) - matrices
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
