"""Presets put other defaults under the flags; what cannot be trained is refused before anything is done."""

import math
import shlex

import pytest
import torch

from part_0.cli import InputError, command_line, parse_config
from part_3.modern_gpt import ModernGPT
from part_4.run_config import MAY_CHANGE, PRESETS, Config


def parse(line):
    return parse_config(Config, "", shlex.split(line))


def test_without_a_preset_and_with_the_laptop_s_the_defaults_are_the_fields_own():
    assert parse("") == parse("--preset laptop") == Config()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_its_settings_and_nothing_else(preset):
    changed = {name for name, value in vars(parse(f"--preset {preset}")).items() if value != getattr(Config(), name)}
    assert changed <= set(PRESETS[preset]) | {"preset"}
    assert all(getattr(parse(f"--preset {preset}"), name) == value for name, value in PRESETS[preset].items())


def test_a_flag_beside_a_preset_wins_whichever_comes_first():
    for line in ("--preset gpt2-124m --lr 0.001 --no-tie_embeddings", "--lr 0.001 --no-tie_embeddings --preset gpt2-124m"):
        config = parse(line)
        assert (config.lr, config.tie_embeddings, config.d_model) == (0.001, False, 768)


def test_a_quick_preset_is_quick():
    config = parse("--preset llama-8b --quick")
    assert (config.steps, config.d_model, config.block_size, config.out.endswith("quick")) == (20, 32, 32, True)
    config.model_config(300)


@pytest.mark.parametrize("line", [
    "--preset gpt2-124m", "--preset gpt2-124m --lr 0.01 --batch_size 16", "--preset llama-8b --no-activation_checkpointing",
    "--steps 600 --preset llama-1b", "--preset laptop --quick", "--preset gpt2-124m --quick --n_layer 12",
    "--preset llama-1b --no-tie_embeddings --resume auto --data 'a b.txt'", "--micro_batch_size 2 --parallel ddp"])
def test_the_command_of_a_config_gives_that_config_again(line):
    words = shlex.split(command_line("part_4/train.py", parse(line)))
    assert words[:2] == ["python3", "part_4/train.py"]
    assert parse_config(Config, "", words[2:]) == parse(line)


def test_the_command_of_a_preset_shows_only_what_differs_from_it():
    assert command_line("part_4/train.py", parse("--preset gpt2-124m")) == "python3 part_4/train.py --preset gpt2-124m"
    assert command_line("part_4/train.py", parse("--preset gpt2-124m --steps 600")) == (
        "python3 part_4/train.py --steps 600 --preset gpt2-124m")


def test_an_unknown_preset_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--preset gpt5")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "gpt2-124m" in error


def n_params(preset):
    config = Config(preset=preset, **PRESETS[preset])
    with torch.device("meta"):  # shapes without memory
        return ModernGPT(config.model_config(config.vocab_size)).n_params()


def test_gpt2_124m_has_gpt_2_s_size():
    # GPT-2 small: embedding 50257 * 768 = 38,597,376 (tied), 12 blocks of attention 4 * 768^2 and feed-forward 8 * 768^2,
    # that is 12 * 12 * 768^2 = 84,934,656; learned positions 1024 * 768 and biases make up the rest to 124,439,808. Here:
    # SwiGLU's width is 8/3 * 768 = 2048 and 3 * 768 * 2048 = 8 * 768^2 just the same; no biases, no positions; norms
    # 25 * 768 = 19,200; QK-norm 12 * 2 * 64 = 1,536.
    assert n_params("gpt2-124m") == 38_597_376 + 84_934_656 + 19_200 + 1_536 == 123_552_768


def test_llama_1b_has_the_shapes_of_llama_3_2_1b():
    # Embedding 65536 * 2048 (tied). A block: q and project 2048^2 each, k and v 2048 * 512 each, SwiGLU 3 * 2048 * 8192,
    # norms 2 * 2048, QK-norm 2 * 64: 60,821,632. 16 of them, and the last norm. With Llama's own vocabulary of 128,256 it
    # would be 1.24e9, as its model card says.
    block = 2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048 + 2 * 64
    assert block == 60_821_632
    assert n_params("llama-1b") == 65536 * 2048 + 16 * block + 2048
    assert n_params("llama-1b") + (128256 - 65536) * 2048 == pytest.approx(1.24e9, rel=0.005)


def test_llama_8b_has_the_shapes_of_llama_3_1_8b():
    # Embedding and head 65536 * 4096 each. A block: q and project 4096^2 each, k and v 4096 * 1024 each, SwiGLU
    # 3 * 4096 * 14336, norms 2 * 4096, QK-norm 2 * 128. With a vocabulary of 128,256 it would be 8.03e9, as published.
    block = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096 + 2 * 128
    assert n_params("llama-8b") == 2 * 65536 * 4096 + 32 * block + 4096
    assert n_params("llama-8b") + 2 * (128256 - 65536) * 4096 == pytest.approx(8.03e9, rel=0.001)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_s_batch_can_be_divided_among_a_machine_s_processes(preset):
    config = parse(f"--preset {preset}")
    for world_size in (1, 2, 4, 8):
        n_micro = config.n_micro(world_size)
        assert n_micro * (config.micro_batch_size or config.batch_size // world_size) * world_size == config.batch_size
    assert config.warmup_steps < config.steps and config.min_lr < config.lr and set(PRESETS[preset]) <= set(vars(config))


@pytest.mark.parametrize("batch_size, micro_batch_size, world_size, n_micro", [
    (16, None, 1, 1), (16, None, 4, 1), (16, 16, 1, 1), (16, 4, 1, 4), (16, 4, 2, 2), (16, 1, 2, 8), (16, 8, 2, 1)])
def test_how_many_micro_batches_a_step_has(batch_size, micro_batch_size, world_size, n_micro):
    assert Config(batch_size=batch_size, micro_batch_size=micro_batch_size).n_micro(world_size) == n_micro


@pytest.mark.parametrize("micro_batch_size, world_size, complaint", [
    (None, 3, "--batch_size 16 must be divisible by the 3 processes"),
    (5, 1, "--micro_batch_size 5 must divide the 16 windows"), (16, 2, "--micro_batch_size 16 must divide the 8 windows"),
    (32, 1, "--micro_batch_size 32 must divide the 16 windows")])
def test_a_batch_that_cannot_be_divided_is_refused(micro_batch_size, world_size, complaint):
    with pytest.raises(InputError, match=complaint):
        Config(micro_batch_size=micro_batch_size).n_micro(world_size)


@pytest.mark.parametrize("changes, complaint", [
    (dict(micro_batch_size=0), "micro_batch_size.*0"),
    (dict(max_skips=0), "--max_skips must be above 0, not 0"), (dict(eval_windows=0), "--eval_windows"),
    (dict(eval_tokens=0), "--eval_tokens.* 0$"),
    (dict(eval_tokens=128, block_size=128), "--eval_tokens must be above --block_size 128, not 128"),
    (dict(save_every=0), "--save_every"), (dict(keep_last=0), "--keep_last"),
    (dict(steps=0), "--steps"),
    (dict(vocab_size=256), "--vocab_size must be above 256.* 256$"), (dict(d_hidden=0), "d_hidden.*0"),
    (dict(min_lr=1.0), "--min_lr 1.0"),
    (dict(n_kv_head=3), "n_head 4.*n_kv_head 3")])
def test_what_cannot_be_trained_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_optimizer_goes_with_every_way_to_work_together(preset):
    for optimizer in ("adamw", "muon"):
        for parallel in ("none", "ddp", "fsdp"):
            config = parse(f"--preset {preset} --optimizer {optimizer} --parallel {parallel}")
            assert (config.optimizer, config.parallel) == (optimizer, parallel)


def test_the_feed_forward_layer_is_as_wide_as_said_or_8_thirds():
    assert Config(d_hidden=100).model_config(300).d_hidden == 100
    assert Config(d_model=192).model_config(300).d_hidden == math.ceil(8 / 3 * 192 / 8) * 8
    assert Config().model_config(300).qk_norm and not Config(qk_norm=False).model_config(300).qk_norm


def test_what_a_resumed_run_may_give_anew_are_flags_and_none_of_them_decides_what_is_learnt():
    assert MAY_CHANGE <= set(vars(Config()))
    decide = {"data", "vocab_size", "steps", "batch_size", "block_size", "n_layer", "n_head", "n_kv_head", "d_model",
              "d_hidden", "norm", "positions", "rope_base", "mlp", "qk_norm", "bias", "window", "sinks", "dropout",
              "tie_embeddings", "lr", "min_lr", "warmup_steps", "beta2", "weight_decay", "grad_clip", "optimizer",
              "schedule", "seed"}
    assert decide <= set(vars(Config())) and not decide & MAY_CHANGE
