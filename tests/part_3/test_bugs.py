import pytest
import torch

from part_3 import attention_mask
from part_3.bugs import BUGS
from part_3.demo_bugs import compare_reading
from tests.part_3.cache_reference import make_model

NORM, CHUNK, CROPPED = BUGS
TEXTS = torch.randint(40, (3, 17), generator=torch.Generator().manual_seed(0))


def test_without_the_final_norm_the_head_reads_the_residual_stream():
    model, seen = make_model(), []
    hook = model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(TEXTS)
    hook.remove()
    norm = model.norm
    with NORM.installed():
        assert torch.allclose(model(TEXTS), seen[0] @ model.head.weight.T, atol=1e-5)
    assert model.norm is norm


def test_a_chunk_that_is_not_causal_sees_itself_to_its_end():
    def mask(query, key, **options):
        with CHUNK.installed():
            return attention_mask.attention_mask(torch.tensor(query), torch.tensor(key), **options).int().tolist()

    assert mask([2, 3], [0, 1, 2, 3]) == [[1, 1, 1, 1], [1, 1, 1, 1]]  # the first 1 1 1 0, if it were right
    assert mask([2, 3], [-1, 0, 1, 2, 3], window=2) == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert mask([3], [0, 1, 2, 3]) == [[1, 1, 1, 1]]  # a single token, and a pass without a cache, are as they should be
    assert mask([0, 1, 2], [0, 1, 2]) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_cropped_keys_are_those_that_the_last_query_of_a_chunk_may_see():
    cache = make_model(window=4).new_cache("rolling", 1)
    cache.begin(5)
    with CROPPED.installed():
        queries, keys = cache.begin(3)
    # Position 5 should see 2 to 5, and of these 4 and 5 are left.
    assert queries.tolist() == [5, 6, 7] and sorted(keys[0].tolist()) == [-1, 4, 5, 6, 7]


@pytest.mark.parametrize("bug, kind, options", [(CHUNK, "static", {}), (CROPPED, "rolling", dict(window=4))],
                         ids=["not causal", "cropped"])
def test_both_show_from_the_second_chunk_on_and_not_where_tokens_come_one_by_one(bug, kind, options):
    model, batch = make_model(**options), (TEXTS[:, :-1], TEXTS[:, 1:])
    (right, right_loss), (wrong, wrong_loss) = compare_reading(bug, model, batch, kind, 4)
    assert right.max() < 1e-4 and wrong[:4].max() < 1e-4
    assert wrong[4] > 0.1 and wrong[8] > 0.1 and wrong[12] > 0.1 and abs(wrong_loss - right_loss) > 1e-3
    assert max(difference.max() for difference, _ in compare_reading(bug, model, batch, kind, 1)) < 1e-4
