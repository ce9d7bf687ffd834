"""Lesson 4.2 - what a training run will need, calculated before it is started: memory for each GPU, and days.

    state = 16 bytes a weight: fp32 weight, gradient and AdamW's two moments (4 each), over P processes with FSDP
    copies = 2 bytes a weight: autocast's bf16 weights, on every GPU
    activations of a block = (30 + 8 d_hidden / C) b T C bytes
    logits = 14 bytes for each of b T V
    days = FLOPs of all steps / (GPUs x peak FLOP/s x MFU)

b is the micro-batch of one process. What a block keeps for its backward pass, counted as Korthikanti et al. 2022 (section 4)
do, for this repository's block under bf16 autocast with H_kv = H: for each of two norms its input and result in fp32 and the
result in bf16 (20); query, key, value and the heads, before and after merging, in bf16 (10); for each hidden unit gate, up,
silu and product in bf16 (8). Recomputing, a block keeps its fp32 input alone, and the one whose turn it is has all that for
a moment. Logits are held in bf16 and fp32, with their softmax and its gradient (2 + 4 + 4 + 4). Left out: buffers,
fragmentation, and the fp32 weights of the block that FSDP has just gathered.
"""

from typing import NamedTuple

STATE_BYTES = 16  # a weight
INPUT_BYTES, BLOCK_BYTES, HIDDEN_BYTES = 4, 30, 8  # a number of a block's input (b, T, C); of its units (b, T, d_hidden)
LOGIT_BYTES, COPY_BYTES = 14, 2  # a logit; a weight
GPU_BYTES, GPU_PEAK = 80e9, 989e12  # an H100's memory, and its bf16 FLOP/s without sparsity (NVIDIA's data sheet, SXM)


class Memory(NamedTuple):
    """Bytes that one GPU holds."""

    state: float  # weights, gradients, moments
    copies: float  # bf16 weights
    activations: float
    logits: float


def training_memory(config, n_params, n_gpu, sharded, micro_batch_size, recompute):
    """The memory that training a model takes on each of `n_gpu` GPUs. Returns a Memory, in bytes.

    config: a ModernGPTConfig; n_params: its number of weights; sharded: the state is divided among the GPUs (FSDP) or held
    by each (DDP); micro_batch_size: b; recompute: activations are computed again in the backward pass.
    """
    tokens = micro_batch_size * config.block_size
    block = tokens * (BLOCK_BYTES * config.d_model + HIDDEN_BYTES * config.d_hidden)
    activations = block * config.n_layer
    if recompute:
        activations = tokens * INPUT_BYTES * config.d_model * config.n_layer + block
    return Memory(STATE_BYTES * n_params / (n_gpu if sharded else 1), COPY_BYTES * n_params, activations,
                  LOGIT_BYTES * tokens * config.vocab_size)


def training_days(flops, n_gpu, mfu, peak=GPU_PEAK):
    """Days for `flops` FLOPs in all on `n_gpu` GPUs of `peak` FLOP/s, of which the share `mfu` is used."""
    return flops / (n_gpu * peak * mfu) / (24 * 60 * 60)
