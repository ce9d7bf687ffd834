"""Lesson 4.2 - what a training run will need, calculated before it is started: memory for each GPU, and days.

    state = 16 bytes a weight: fp32 weight, gradient and AdamW's two moments (4 each), over P processes with FSDP
    activations of a block = 34 b T C bytes             (Korthikanti et al. 2022, equation 2 without the attention matrix)
    logits = 14 bytes for each of b T V
    days = FLOPs of all steps / (GPUs x peak FLOP/s x MFU)

b is the micro-batch of one process. 34 counts what a block in mixed precision keeps for its backward pass when attention is
fused; with recomputation a block keeps its input alone (4 b T C here: the residual stream stays fp32), and the block whose turn
it is has its 34 for a moment. Logits are held in bf16 and fp32, with their softmax and gradients (2 + 4 + 4 + 4). Left out:
buffers, fragmentation, and the block's weights that FSDP has gathered.
"""

from typing import NamedTuple

STATE_BYTES = 16  # a weight
BLOCK_BYTES, INPUT_BYTES = 34, 4  # a number of the (b, T, C) block input
LOGIT_BYTES = 14  # a logit
GPU_BYTES, GPU_PEAK = 80e9, 989e12  # an H100's memory, and its bf16 FLOP/s without sparsity (NVIDIA's data sheet, SXM)


class Memory(NamedTuple):
    """Bytes that one GPU holds."""

    state: float  # weights, gradients, moments
    activations: float
    logits: float


def training_memory(config, n_params, n_gpu, sharded, micro_batch_size, recompute):
    """The memory that training a model takes on each of `n_gpu` GPUs. Returns a Memory, in bytes.

    config: a ModernGPTConfig; n_params: its number of weights; sharded: the state is divided among the GPUs (FSDP) or held by
    each (DDP); micro_batch_size: b; recompute: activations are computed again in the backward pass.
    """
    tokens = micro_batch_size * config.block_size
    block_inputs = tokens * config.d_model
    activations = block_inputs * BLOCK_BYTES * config.n_layer
    if recompute:
        activations = block_inputs * (INPUT_BYTES * config.n_layer + BLOCK_BYTES)
    return Memory(STATE_BYTES * n_params / (n_gpu if sharded else 1), activations, LOGIT_BYTES * tokens * config.vocab_size)


def training_days(flops, n_gpu, mfu, peak=GPU_PEAK):
    """Days for `flops` FLOPs in all on `n_gpu` GPUs of `peak` FLOP/s, of which the share `mfu` is used."""
    return flops / (n_gpu * peak * mfu) / (24 * 60 * 60)
