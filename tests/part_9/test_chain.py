"""Lesson 9.5: the figure of the whole chain loads every stage as it is, and names the command that makes a missing one."""

import pytest
import torch

from part_0.cli import InputError
from part_4.bpe_tokenizer import BPETokenizer
from part_6.prompt_template import chat_tokenizer
from part_9.demo_chain import Config, load_chain, shortened
from tests.part_8 import tiny_stages
from tests.part_8.tiny_stages import TOKENIZER, make_reward_model, make_sft, tiny_model

CPU = torch.device("cpu")
COMMANDS = {"base": "part_4/train.py", "sft": "part_6/train_sft.py", "reward_model": "part_7/train_reward_model.py",
            "ppo": "part_8/train_ppo.py", "grpo": "part_9/train_grpo.py"}


@pytest.fixture
def paths(tmp_path):
    """Tiny checkpoints of all stages; the base model's tokenizer does not know the template yet."""
    found = {name: str(make_sft(tmp_path / f"{name}.pt", tiny_model(seed)))
             for seed, name in enumerate(("sft", "ppo", "grpo"))}
    plain = BPETokenizer(TOKENIZER.ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_stages, "TOKENIZER", plain)
        found["base"] = str(make_sft(tmp_path / "base.pt", tiny_model(vocab_size=plain.vocab_size)))
    return found | {"reward_model": str(make_reward_model(tmp_path / "reward_model.pt"))}


def test_every_stage_is_loaded_with_its_own_weights_and_one_vocabulary(paths):
    models, reward_model, tokenizer = load_chain(Config(**paths), CPU)
    assert list(models) == ["base", "SFT", "PPO", "GRPO"]
    assert tokenizer.state() == TOKENIZER.state()
    for seed, stage in enumerate(("SFT", "PPO", "GRPO")):
        assert torch.equal(models[stage].head.weight, tiny_model(seed).head.weight)
    assert models["base"].head.weight.shape[0] == TOKENIZER.vocab_size == reward_model.encoder.config.vocab_size


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_stage_is_named_with_the_command_that_makes_it(paths, name):
    with pytest.raises(InputError, match=f"nowhere.pt.*python3 {COMMANDS[name]}"):
        load_chain(Config(**paths | {name: "nowhere.pt"}), CPU)


@pytest.mark.parametrize("name", ["sft", "reward_model", "ppo", "grpo"])
def test_a_stage_that_reads_other_tokens_than_the_base_model_is_refused(paths, name, tmp_path, monkeypatch):
    other = chat_tokenizer(BPETokenizer(dict(list(TOKENIZER.ranks.items())[:-2])))  # without the last two merges
    monkeypatch.setattr(tiny_stages, "TOKENIZER", other)
    make = make_reward_model if name == "reward_model" else make_sft
    foreign = str(make(tmp_path / "foreign.pt"))
    with pytest.raises(InputError, match="foreign.pt does not belong to a chain"):
        load_chain(Config(**paths | {name: foreign}), CPU)


def test_a_shortened_text_is_one_line_of_at_most_the_width_and_begins_as_it_did():
    text = "one two\nthree  four"
    assert shortened(text, 18) == "one two three four"
    assert shortened(text, 12) == "one two th …"
    assert shortened("a\x12\ufffdb", 9) == "a??b"
    assert all(len(shortened(text, width)) <= width for width in range(4, 20))
