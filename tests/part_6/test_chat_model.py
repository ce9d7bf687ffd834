"""A base model gets room for new tokens and forgets nothing, and every checkpoint of the chain is one call away."""

import dataclasses

import pytest
import torch
from torch import nn

from part_0.cli import InputError
from part_2.checkpoint import save_checkpoint
from part_3.modern_gpt import ModernGPTConfig
from part_4.bpe_tokenizer import BPETokenizer
from part_5.hybrid import HybridConfig, hybrid_gpt
from part_6.chat_model import build_model, load_model, resize_vocabulary
from part_6.lora import LoRALinear, add_lora
from part_6.prompt_template import CHAT_TOKENS, chat_tokenizer

TOKENIZER = BPETokenizer.from_merges([(b"a", b"b")])
V = TOKENIZER.vocab_size  # 258: the bytes, a merge, <|endoftext|>
TOKENS = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
CONFIGS = {"dense": ModernGPTConfig(V, 8, 2, 2, 16), "tied": ModernGPTConfig(V, 8, 2, 2, 16, tie_embeddings=True),
           "table of positions": ModernGPTConfig(V, 8, 2, 2, 16, positions="learned", window=4),
           "experts": HybridConfig(V, 8, 2, 2, 16, n_expert=4, first_dense=1),
           "tied, blend": HybridConfig(V, 8, 2, 2, 16, n_expert=4, alpha=0.5, tie_embeddings=True)}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make_model(config):
    torch.manual_seed(0)
    model = hybrid_gpt(config).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.normal_(tensor, 1.0 if tensor.ndim == 1 else 0.0, 0.2)  # buffers too: the routers' biases decide the choice
    return model


def save(path, model, **more):
    save_checkpoint(path, {"model": model.state_dict(), "model_config": dataclasses.asdict(model.config) | more,
                           "tokenizer": TOKENIZER.state(), "step": 7})


@EACH_CONFIG
def test_the_old_tokens_logits_stay_and_a_new_one_is_an_average_token(config):
    model = make_model(config)
    larger = resize_vocabulary(model, V + 4)
    assert larger.config == dataclasses.replace(config, vocab_size=V + 4)
    logits, expected = larger(TOKENS), model(TOKENS)
    assert torch.allclose(logits[..., :V], expected, atol=1e-6)
    # The head is linear: a row that is the mean of the others has the mean of their logits.
    assert torch.allclose(logits[..., V:], expected.mean(dim=-1, keepdim=True).expand(-1, -1, 4), atol=1e-5)
    old, new = model.token_embedding.weight, larger.token_embedding.weight
    assert torch.equal(new[:V], old) and torch.allclose(new[V:], old.mean(dim=0).expand(4, -1), atol=1e-7)


@EACH_CONFIG
def test_all_other_weights_are_the_old_ones_and_copies(config):
    model = make_model(config)
    larger = resize_vocabulary(model, V + 4)
    mine, theirs = larger.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    for name in set(mine) - {"token_embedding.weight", "head.weight"}:
        assert torch.equal(mine[name], theirs[name]), name
    expected = model(TOKENS)
    for parameter in larger.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(TOKENS), expected)


@EACH_CONFIG
def test_tied_stays_tied_and_untied_untied_and_all_weights_learn(config):
    larger = resize_vocabulary(make_model(config), V + 4)
    assert (larger.head.weight is larger.token_embedding.weight) == config.tie_embeddings
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in larger.parameters())


def test_the_same_size_is_a_copy_and_the_mode_stays():
    model = make_model(CONFIGS["dense"])
    same = resize_vocabulary(model, V)
    assert same is not model and torch.equal(same(TOKENS), model(TOKENS)) and not same.training
    assert resize_vocabulary(model.train(), V + 1).training


def test_a_vocabulary_does_not_shrink():
    with pytest.raises(ValueError, match=f"vocabulary of {V} cannot shrink to {V - 1}"):
        resize_vocabulary(make_model(CONFIGS["dense"]), V - 1)


def test_there_is_room_for_the_template_s_tokens():
    tokenizer = chat_tokenizer(TOKENIZER)
    larger = resize_vocabulary(make_model(CONFIGS["dense"]), tokenizer.vocab_size)
    ids = [tokenizer.special_ids[name] for name in CHAT_TOKENS]
    assert larger(torch.tensor([ids])).shape == (1, 4, V + 4)


@EACH_CONFIG
def test_a_checkpoint_of_any_kind_comes_back_in_eval_mode(config, tmp_path):
    model = make_model(config)
    save(tmp_path / "best.pt", model.train())
    loaded, tokenizer, state = load_model(tmp_path / "best.pt")
    assert type(loaded.config) is type(config) and loaded.config == config
    assert not loaded.training and torch.equal(loaded(TOKENS), model.eval()(TOKENS))
    assert tokenizer.encode("cab") == TOKENIZER.encode("cab") == [99, 256]  # c, ab
    assert tokenizer.special_ids == {"<|endoftext|>": 257} and state["step"] == 7


@EACH_CONFIG
def test_a_checkpoint_with_adapters_comes_back_merged(config, tmp_path):
    model = add_lora(make_model(config), r=2, alpha=6)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.B, 0.0, 0.3)
    save(tmp_path / "best.pt", model, lora={"r": 2, "alpha": 6})
    loaded, _, state = load_model(tmp_path / "best.pt")
    assert torch.allclose(loaded(TOKENS), model(TOKENS), atol=1e-5)
    assert list(loaded.state_dict()) == list(hybrid_gpt(config).state_dict())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert state["model_config"]["lora"] == {"r": 2, "alpha": 6}
    again = build_model(state["model_config"])  # what a resumed run does: the adapters are still there
    again.load_state_dict(state["model"])
    assert torch.equal(again.eval()(TOKENS), model(TOKENS))


@pytest.mark.parametrize("lora", [None, {}])
def test_without_adapters_none_are_added_and_the_sizes_are_left_as_they_are(lora):
    sizes = dataclasses.asdict(CONFIGS["experts"]) | {"lora": lora}
    before = dict(sizes)
    model = build_model(sizes)
    assert model.config == CONFIGS["experts"] and sizes == before
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_a_missing_checkpoint_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint .*best.pt; make one with: python3 part_6/train_sft.py"):
        load_model(tmp_path / "best.pt")
    with pytest.raises(InputError, match="make one with: python3 part_4/train.py"):
        load_model(tmp_path / "best.pt", trainer="part_4/train.py")


def test_a_checkpoint_with_adapters_of_another_rank_is_refused(tmp_path):
    save(tmp_path / "best.pt", add_lora(make_model(CONFIGS["dense"]), 2, 4), lora={"r": 3, "alpha": 4})
    with pytest.raises(InputError, match="is no checkpoint of part_6/train_sft.py"):
        load_model(tmp_path / "best.pt")
