"""Lesson 5.3 - hybrid architectures: ModernGPT with experts in some of its layers, or beside its dense ones.

    block l:   x <- x + Attention(norm(x));   x <- x + F_l(norm(x))
    F_l = SwiGLU                                   l < first_dense, or not every `moe_every`-th
    F_l = MoE                                      in all other blocks
    F_l = alpha SwiGLU + (1 - alpha) MoE           in its place, with a blend alpha: 1 is dense, 0 is MoE

GShard and the Switch Transformer have experts in every second layer, DeepSeek-V3 in all but the first three: Dai et al.
(2024, DeepSeekMoE) saw the load of the first layer settle last. With alpha 1/2 the blend is, up to a factor, the sum of a
dense layer and experts as in Snowflake's Arctic. An expert is as wide as the dense layer divided by the number of experts
that a token uses, rounded up to a multiple of 8, so that both have about the same active weights unless d_expert says
otherwise.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import nn

from part_2.checkpoint import load_model as load_part_2_model
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, make_feed_forward
from part_4.bpe_tokenizer import BPETokenizer
from part_4.distributed import sum_over_processes
from part_5.balancing import load_entropy, max_violation, updated_bias
from part_5.moe import MoE


@dataclass(frozen=True)
class HybridConfig(ModernGPTConfig):
    """The shape of a ModernGPT with experts. ValueError for one that cannot be built.

    n_expert: E; top_k: K; d_expert: an expert's inner width; n_shared: experts for every token; moe_every, first_dense,
    alpha: as above, alpha None for no blend; score, renormalise, noisy: as of `Router`; capacity_factor: as of `MoE`;
    balance_weight, z_weight: factors of the two losses; bias_rate: a step of the routers' bias, 0 for none.
    """

    n_expert: int = 8
    top_k: int = 2
    d_expert: int | None = None
    n_shared: int = 0
    moe_every: int = 1
    first_dense: int = 0
    alpha: float | None = None
    score: str = "softmax"
    renormalise: bool | None = None
    noisy: bool = False
    capacity_factor: float | None = None
    balance_weight: float = 0.01
    z_weight: float = 0.001
    bias_rate: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.d_expert is None:
            object.__setattr__(self, "d_expert", math.ceil(self.d_hidden / max(1, self.top_k + self.n_shared) / 8) * 8)
        if self.d_expert < 1:
            raise ValueError(f"d_expert must be at least 1, not {self.d_expert}")
        if self.mlp != "swiglu":
            raise ValueError(f"experts are SwiGLU layers: mlp must be swiglu, not {self.mlp}")
        if self.bias:
            raise ValueError("experts have no biases: bias must be False, not True")
        if self.moe_every < 1 or self.first_dense < 0:
            raise ValueError(f"moe_every must be at least 1 and first_dense at least 0, not {self.moe_every} and "
                             f"{self.first_dense}")
        if not any(self.has_experts(layer) for layer in range(self.n_layer)):
            raise ValueError(f"moe_every {self.moe_every} and first_dense {self.first_dense} leave none of {self.n_layer} "
                             "layers for experts")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {self.alpha}")
        for name in ("balance_weight", "z_weight", "bias_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        with torch.device("meta"):  # the layer itself knows what it refuses; there it takes no memory
            make_moe(self)

    def has_experts(self, layer):
        """Whether block number `layer`, from 0, has a MoE layer."""
        return layer >= self.first_dense and (layer + 1) % self.moe_every == 0


class DenseAndMoE(nn.Module):
    """A dense layer and experts side by side: alpha dense(x) + (1 - alpha) moe(x), (..., C) in and out."""

    def __init__(self, dense, moe, alpha):
        super().__init__()
        self.dense, self.moe, self.alpha = dense, moe, alpha

    def forward(self, x):
        """x: (..., C). Returns (..., C)."""
        return self.alpha * self.dense(x) + (1 - self.alpha) * self.moe(x)


def make_moe(config):
    """The MoE layer of a HybridConfig."""
    return MoE(config.d_model, config.d_expert, config.n_expert, config.top_k, config.n_shared, config.capacity_factor,
               config.score, config.renormalise, config.noisy)


def hybrid_feed_forward(config, layer):
    """The feed-forward layer of block number `layer`: dense, MoE, or both."""
    if not config.has_experts(layer):
        return make_feed_forward(config)
    if config.alpha is None:
        return make_moe(config)
    return DenseAndMoE(make_feed_forward(config), make_moe(config), config.alpha)


def hybrid_gpt(config):
    """The ModernGPT of a HybridConfig, or a dense one of a ModernGPTConfig, with fresh weights."""
    return ModernGPT(config, hybrid_feed_forward if isinstance(config, HybridConfig) else make_feed_forward)


def moe_layers(model):
    """The MoE layers of a model, first to last."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def auxiliary_loss(model):
    """What the layers' last pass in training mode adds to the loss: the mean over MoE layers; 0 for a dense one."""
    layers, config = moe_layers(model), model.config
    losses = [config.balance_weight * layer.balance_loss + config.z_weight * layer.z_loss for layer in layers]
    return sum(losses) / max(1, len(losses))


@torch.no_grad()
def after_update(model):
    """End a training step, of at least one pass: move the routers' biases, and set the layers' counts to zero.

    With several processes the load is that of all. Returns figures by name, means over the MoE layers: `balance_loss` (1 is
    even) and `z_loss` of this process's last pass; of the step `load_entropy` (1 is even), `max_violation` (0 is even) and
    the share `dropped`; none for a dense model.
    """
    layers = moe_layers(model)
    if not layers:
        return {}
    device = layers[0].load.device
    counts = [number for layer in layers for number in (*layer.load.tolist(), layer.n_dropped)]
    counts = torch.tensor(sum_over_processes(counts, device), device=device).view(len(layers), -1)  # (layers, E + 1)
    load, n_dropped = counts[:, :-1], counts[:, -1]
    for layer, own_load in zip(layers, load):
        layer.router.bias.copy_(updated_bias(layer.router.bias, own_load, model.config.bias_rate))
        layer.load, layer.n_dropped = 0, 0
        layer.balance_loss, layer.z_loss = layer.balance_loss.detach(), layer.z_loss.detach()  # the graph may go
    return {"balance_loss": statistics.mean(layer.balance_loss.item() for layer in layers),
            "z_loss": statistics.mean(layer.z_loss.item() for layer in layers),
            "load_entropy": load_entropy(load).mean().item(), "max_violation": max_violation(load).mean().item(),
            "dropped": (n_dropped.sum() / load.sum()).item()}


def load_model(path, device="cpu", trainer="part_5/train.py"):
    """Rebuild model (in eval mode) and tokenizer from a checkpoint of part_5/train.py or, dense, of part_4/train.py.

    trainer: named where there is none. Returns (model, tokenizer, state).
    """
    def build(sizes):
        return hybrid_gpt((HybridConfig if "n_expert" in sizes else ModernGPTConfig)(**sizes))

    return load_part_2_model(path, device, build, trainer, lambda state: BPETokenizer.from_state(state["tokenizer"]))
