import pytest
import torch

from part_0.cli import InputError
from part_2.byte_tokenizer import ByteTokenizer
from part_2.checkpoint import load_checkpoint, load_model, save_checkpoint, write_atomically
from part_2.gpt import GPT, GPTConfig

STATE = {"step": 3, "weights": torch.arange(1000.0), "nested": {"list": [1, 2.5, "text"], "none": None}}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {key: value for key, value in STATE.items() if key != "weights"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("place", [0, 7, 8, 39, 40, 0.3, 0.5, 0.7, -1])
def test_a_changed_byte_is_noticed_and_the_file_named(tmp_path, place):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_noticed(tmp_path, share):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_atomically(path, b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_new_content_comes_by_renaming_and_not_by_writing_over_the_old_file(tmp_path):
    path, hard_link = tmp_path / "a.pt", tmp_path / "link"
    write_atomically(path, b"old")
    hard_link.hardlink_to(path)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and hard_link.read_bytes() == b"old"


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    save_checkpoint(tmp_path / "a.pt", {"step": Harmful()})
    with pytest.raises(InputError, match="not loaded"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "was_here").exists()


def test_a_model_is_rebuilt_from_nothing_but_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    tokenizer = ByteTokenizer(("<|a|>", "<|b|>"))
    config = GPTConfig(tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, d_model=8, tie_embeddings=True)
    model = GPT(config)
    save_checkpoint(tmp_path / "a.pt", {"model": model.state_dict(), "model_config": vars(config),
                                        "special_tokens": list(tokenizer.special_tokens), "step": 1})
    rebuilt, tokenizer, state = load_model(tmp_path / "a.pt")
    tokens = torch.randint(258, (1, 8))
    assert torch.equal(rebuilt(tokens), model(tokens)) and not rebuilt.training
    assert rebuilt.config == config and tokenizer.special_tokens == ("<|a|>", "<|b|>") and state["step"] == 1


def test_a_missing_checkpoint_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(InputError, match="python3 part_2/train.py"):
        load_model(tmp_path / "none.pt")
