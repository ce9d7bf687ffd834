"""Lesson 5.3 - models with and without experts, for lesson 3.1's comparison: same batches, several seeds, steps in turn."""

from dataclasses import asdict, dataclass

import torch

from part_0.cli import option
from part_0.device import PRECISIONS
from part_3.side_by_side import ComparisonConfig
from part_5.hybrid import HybridConfig, hybrid_gpt


@dataclass(frozen=True)
class ExpertComparisonConfig(ComparisonConfig):
    """The flags that the comparisons of this part share."""

    n_layer: int = option(2, "Transformer blocks")
    precision: str = option("fp32", "of the matrix products; on a CPU small ones are slower in bf16", PRECISIONS)
    n_expert: int = option(8, "experts in a layer")
    top_k: int = option(2, "experts that a token chooses")

    def __post_init__(self):
        super().__post_init__()
        with torch.device("meta"):  # where it takes no memory
            self.build_model()  # or refuse

    def build_model(self, dense=False, **changes):
        """The model of these sizes with `changes`, of a HybridConfig or, if dense, of a ModernGPTConfig; fresh weights."""
        if dense:
            return super().build_model(**changes)
        sizes = asdict(self.model_config()) | dict(n_expert=self.n_expert, top_k=self.top_k)
        return hybrid_gpt(HybridConfig(**sizes | changes))
