"""Lesson 3.4 - the shape of a ModernGPT: which pieces it is built from, how large they are, and what cannot be built."""

from dataclasses import dataclass

from part_3.rope import PAIRINGS
from part_3.swiglu import swiglu_width

NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rope", "learned", "sinusoidal", "none")
MLPS = ("swiglu", "gelu")


@dataclass(frozen=True)
class ModernGPTConfig:
    """The shape of a ModernGPT. ValueError for one that cannot be built.

    block_size: the length it is trained at, and the limit where positions come from a table; n_kv_head: H_kv, n_head when
    None; d_hidden: the feed-forward layer's width, None for 8/3 C rounded up (SwiGLU) or 4C (GELU); rope_scale: positions
    are divided by it; window: how many tokens a query sees, itself included, None for all; sinks: first tokens that stay
    visible all the same.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    n_kv_head: int | None = None
    d_hidden: int | None = None
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    positions: str = "rope"
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    rope_pairing: str = "half"
    mlp: str = "swiglu"
    qk_norm: bool = False
    window: int | None = None
    sinks: int = 0
    tie_embeddings: bool = False
    bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.d_hidden is None:
            object.__setattr__(self, "d_hidden", swiglu_width(self.d_model) if self.mlp == "swiglu" else 4 * self.d_model)
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "d_model", "n_kv_head", "d_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model {self.d_model} must be divisible by n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} must be divisible by n_kv_head {self.n_kv_head}")
        for name, allowed in (("norm", NORMS), ("positions", POSITIONS), ("mlp", MLPS), ("rope_pairing", PAIRINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)}")
        if self.positions == "rope" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs of columns: d_model / n_head must be even, not {self.d_head}")
        if self.rope_base <= 1 or self.rope_scale <= 0:
            raise ValueError(f"rope_base must be above 1 and rope_scale above 0, not {self.rope_base} and {self.rope_scale}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(f"sinks must be 0 or more, and 0 without a window (all tokens are visible), not {self.sinks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def d_head(self):
        """Head width D = C/H."""
        return self.d_model // self.n_head
