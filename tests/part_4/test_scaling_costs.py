"""What a run will need, against tensors that were really kept, and against sums done by hand."""

import pytest
import torch

from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernBlock, ModernGPT
from part_3.rope import rotation
from part_4.scaling_costs import training_days, training_memory


def test_a_block_keeps_as_many_bytes_as_are_counted():
    T, C, H = 600, 128, 2  # more than 512 tokens: short_attention, which keeps T x T weights, stays out of it
    config = ModernGPTConfig(64, T, 1, H, C, d_hidden=320)
    block, kept = ModernBlock(config), {}
    turn = rotation(torch.arange(T), config.d_head)
    apart = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), turn.cos, turn.sin)}

    def keep(tensor):
        storage = tensor.untyped_storage()
        is_weight = tensor.ndim == 2 and T not in tensor.shape  # its bf16 copy
        if storage.data_ptr() not in apart and not is_weight:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, T, C, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        block(x, causal=True, rotation=turn)
    memory = training_memory(config, 0, 1, False, 1, recompute=False)
    # On a CPU query, key, value and heads are fp32 (lesson 0.2): 2 bytes more for each of four.
    assert sum(kept.values()) == pytest.approx(memory.activations + 8 * T * C, rel=0.01)


def test_the_state_is_that_of_a_model_and_its_adamw():
    model = ModernGPT(ModernGPTConfig(64, 8, 2, 2, 16))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = [tensor for weight in model.parameters() for tensor in (weight, weight.grad, *optimizer.state[weight].values())]
    memory = training_memory(model.config, model.n_params(), 1, False, 1, False)
    assert memory.state == sum(tensor.nbytes for tensor in held if tensor.ndim)  # without the scalar "step"


def test_sharing_divides_the_state_alone_and_recomputing_shrinks_the_activations_alone():
    config = ModernGPTConfig(1000, 64, 3, 2, 32, d_hidden=48)
    alone = training_memory(config, 8000, 8, False, 4, False)
    shared = training_memory(config, 8000, 8, True, 4, False)
    again = training_memory(config, 8000, 8, True, 4, True)
    # 4 x 64 = 256 tokens; a block 256 x (30 x 32 + 8 x 48) = 344,064; recomputed 3 inputs of 256 x 32 x 4 = 32,768 each
    assert alone == (128_000, 16_000, 3 * 344_064, 14 * 256 * 1000)
    assert shared == (16_000, 16_000, 3 * 344_064, 14 * 256 * 1000)
    assert again == (16_000, 16_000, 3 * 32_768 + 344_064, 14 * 256 * 1000)


def test_a_day_is_86400_seconds_of_the_used_share_of_the_peak():
    assert training_days(8.64e18, n_gpu=4, mfu=0.5, peak=1e13) == pytest.approx(5)  # 8.64e18 / (2e13 x 86,400)
