import random
from pathlib import Path

import pytest
import torch

from part_0.cli import InputError, parse_config
from part_2 import train as part_2_train
from part_2.checkpoint import load_checkpoint
from part_2.checkpoint import load_model as load_part_2_model
from part_3 import train
from part_3.modern_gpt import ModernGPT, load_model

TINY = dict(steps=6, batch_size=4, block_size=16, n_layer=2, n_head=2, d_model=16, warmup_steps=2, eval_every=6, log_every=1,
            device="cpu", precision="fp32")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    random.seed(0)
    path.write_text("".join(random.choice("the cat sat ") for _ in range(3000)), encoding="utf-8")
    return path


def without_seconds(history):
    return [{key: value for key, value in record.items() if "second" not in key} for record in history]


def test_a_quick_run_leaves_a_checkpoint_that_rebuilds_the_model(text, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(train, "ModernGPT", lambda config: trained.append(ModernGPT(config)) or trained[0])
    flags = ["--quick", "--data", str(text), "--out", str(tmp_path / "run"), "--window", "9", "--sinks", "2"]
    train.main(parse_config(train.Config, "", [*flags, "--device", "cpu", "--precision", "fp32"]))
    model, tokenizer, state = load_model(tmp_path / "run" / "last.pt")
    assert not model.training and state["step"] == train.Config.QUICK["steps"]
    tokens = torch.tensor([tokenizer.encode("the cat sat on the mat")])
    assert torch.equal(model(tokens), trained[0].eval()(tokens))


def test_every_flag_reaches_the_model(text, tmp_path):
    options = dict(n_kv_head=1, norm="layernorm", positions="none", rope_base=99.0, mlp="gelu", qk_norm=True, bias=True,
                   window=7, sinks=3, dropout=0.2, tie_embeddings=True)
    train.main(train.Config(**{**TINY, **options, "data": str(text), "out": str(tmp_path / "run"), "steps": 1}))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["model_config"] == dict(
        vocab_size=256, block_size=16, n_layer=2, n_head=2, d_model=16, d_hidden=64, norm_eps=1e-5, rope_scale=1.0,
        rope_pairing="half", **options)


@pytest.mark.parametrize("options", [dict(), dict(dropout=0.1, tie_embeddings=True)])
def test_with_every_piece_switched_back_it_trains_like_part_2(text, tmp_path, options):
    old = part_2_train.main(part_2_train.Config(**TINY, **options, data=str(text), out=str(tmp_path / "old")))
    new = train.main(train.Config(**TINY, **options, data=str(text), out=str(tmp_path / "new"), n_kv_head=None,
                                  norm="layernorm", positions="learned", mlp="gelu", bias=True))
    assert [record.keys() for record in new] == [record.keys() for record in old]
    for ours, theirs in zip(without_seconds(new), without_seconds(old)):
        assert ours.pop("device", None) == theirs.pop("device", None)  # in the summary
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_each_part_refuses_the_other_s_checkpoints(text, tmp_path):
    part_2_train.main(part_2_train.Config(**TINY, data=str(text), out=str(tmp_path / "old")))
    train.main(train.Config(**TINY, data=str(text), out=str(tmp_path / "new")))
    for load, run, trainer in ((load_model, "old", "part_3/train.py"), (load_part_2_model, "new", "part_2/train.py")):
        with pytest.raises(InputError, match=f"{run}.last.pt is no checkpoint of {trainer}") as refusal:
            load(tmp_path / run / "last.pt")
        assert "\n" not in str(refusal.value)


def test_a_missing_checkpoint_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint .*python3 part_3/train.py"):
        load_model(tmp_path / "last.pt")


@pytest.mark.parametrize("options, complaint", [(dict(n_kv_head=3), "n_kv_head 3"), (dict(window=0), "window.*0"),
                                                (dict(sinks=1), "sinks.*1"), (dict(steps=0), "steps.*0")])
def test_flags_that_make_no_model_are_refused_before_anything_is_written(text, tmp_path, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        train.Config(**{**TINY, **options, "data": str(text), "out": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--norm", "batch"], ["--positions", "x"], ["--mlp", "relu"]])
def test_a_piece_that_does_not_exist_is_refused_by_its_flag(flags, capsys):
    with pytest.raises(SystemExit) as exit:
        parse_config(train.Config, "", flags)
    assert exit.value.code == 2 and f"argument {flags[0]}: invalid choice" in capsys.readouterr().err


def test_the_default_model_is_modern_and_groups_its_queries():
    config = train.Config().model_config(256)
    assert (config.norm, config.positions, config.mlp) == ("rmsnorm", "rope", "swiglu")
    assert (config.bias, config.qk_norm, config.window, config.sinks) == (False, False, None, 0)
    assert (config.n_head, config.n_kv_head) == (4, 2)
    assert [Path(out).parts[-3:] for out in (train.Config().out, train.Config.QUICK["out"])] == [
        ("part_3", "runs", "train"), ("part_3", "runs", "quick")]
