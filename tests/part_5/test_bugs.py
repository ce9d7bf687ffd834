import pytest
import torch

from part_5 import hybrid
from part_5.bugs import BUGS
from part_5.hybrid import HybridConfig, hybrid_gpt, moe_layers

[BUG] = BUGS


def test_without_balancing_only_the_z_loss_is_added():
    model = hybrid_gpt(HybridConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, d_model=8, n_expert=4, top_k=2,
                                    balance_weight=0.5, z_weight=0.25))
    for layer, balance_loss, z_loss in zip(moe_layers(model), (1.0, 3.0), (2.0, 6.0)):
        layer.balance_loss, layer.z_loss = torch.tensor(balance_loss), torch.tensor(z_loss)
    # Means over the layers: 0.5 * 2 + 0.25 * 4 = 2, and 1 without the first term.
    assert hybrid.auxiliary_loss(model).item() == pytest.approx(2)
    with BUG.installed():
        assert hybrid.auxiliary_loss(model).item() == pytest.approx(1)
