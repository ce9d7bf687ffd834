import pytest
import torch

from part_3.demo_decoding_speed import UNDO, Config, cut_products
from part_3.generate import generate
from part_3.modern_gpt import ModernGPT

CONFIG = Config(n_layer=2, n_head=4, n_kv_head=2, d_model=32, vocab_size=50, n_new=12)


@pytest.mark.parametrize("name", list(UNDO)[1:])
def test_what_is_undone_changes_the_time_and_not_the_text(name):
    torch.manual_seed(0)
    model = ModernGPT(CONFIG.model_config()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = torch.randint(50, (3, 5))
    expected = generate(model, prompts, 12, temperature=0.0)
    with UNDO[name]():
        written = generate(cut_products(model, CONFIG) if name == "separate products" else model, prompts, 12,
                           temperature=0.0)
    assert len(set(torch.stack(expected).flatten().tolist())) > 5
    assert torch.equal(torch.stack(written), torch.stack(expected))
