"""Wrong input ends in one clear line and exit code 2, without a traceback and with nothing written."""

import runpy
import sys

import pytest

from tests.repository import ROOT, SCRIPTS, module_of, relative

SIZES = {"steps", "batch_size", "block_size", "n_layer", "n_head", "d_model", "n_tokens", "n_positions", "n_batches",
         "n_examples", "n_queries", "n_seed", "n_new", "n_bars", "n_samples", "n_bytes", "lr", "max_width", "n_windows",
         "n_streams", "stride", "factor", "threads", "n_prompt", "n_rounds", "n_kills", "n_steps", "n_process", "n_micro",
         "micro_batch_size", "max_skips", "eval_windows", "save_every", "keep_last", "n_eval", "target", "budget",
         "n_expert", "top_k", "n_shown"}
SPECIAL = [  # script, flags, what the line must say
    ("part_1/demo_positional_encoding.py", ["--d_model", "7"], "even"),
    ("part_1/demo_visualize_multi_head.py", ["--d_model", "30"], "divisible"),
    ("part_1/demo_visualize_multi_head.py", ["--sentence", "Äpfel!"], "a-z"),
    ("part_1/demo_transformer_block.py", ["--n_head", "5"], "divisible"),
    ("part_2/demo_byte_tokenizer.py", ["--data", "{tmp}/missing.txt"], "neither a file nor"),
    ("part_2/demo_sampling.py", ["--n_bars", "257"], "256"),
    ("part_2/demo_sampling.py", ["--prompt", ""], "empty"),
    ("part_2/train.py", ["--out", ""], "empty"),
    ("part_2/demo_training.py", ["--run", "{tmp}/none"], "python3 part_2/train.py"),
    ("part_2/demo_sampling.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_2/train.py"),
    ("part_2/demo_sampling.py", ["--checkpoint", "{tmp}/binary"], "no checkpoint"),
    ("part_2/demo_evaluate.py", ["--checkpoint", "{tmp}/empty.txt"], "no checkpoint"),
    ("part_2/train.py", ["--data", "{tmp}/missing.txt"], "neither a file nor"),
    ("part_2/train.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_2/train.py", ["--data", "{tmp}/binary"], "UTF-8"),
    ("part_2/train.py", ["--data", "{tmp}/short.txt"], "1290"),  # 129 tokens in a validation part of a tenth
    ("part_2/train.py", ["--d_model", "130"], "divisible"),
    ("part_2/train.py", ["--beta2", "1"], "beta2"),
    ("part_2/train.py", ["--min_lr", "-1"], "min_lr"),
    ("part_2/train.py", ["--lr", "nan"], "lr"),
    ("part_2/train.py", ["--dropout", "1"], "dropout"),
    ("part_2/train.py", ["--precision", "fp8"], "fp8"),
    ("part_2/train.py", ["--device", "mps" if sys.platform != "darwin" else "cuda"], "not available"),
    ("part_2/train.py", ["--resume", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_2/train.py", ["--out", "{tmp}/empty.txt/run"], "cannot be written"),
    ("part_2/demo_bugs.py", ["--p", "1"], "below 1"),
    ("part_2/demo_bugs.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_3/demo_bugs.py", ["--chunk", "0"], "chunk"),
    ("part_4/demo_bugs.py", ["--resume_at", "240"], "resume_at"),
    ("part_4/demo_bugs.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_5/demo_bugs.py", ["--capacity_factor", "0"], "capacity_factor"),
    ("part_3/train.py", ["--n_kv_head", "3"], "divisible"),
    ("part_3/train.py", ["--sinks", "4"], "without a window"),
    ("part_3/train.py", ["--window", "0"], "window"),
    ("part_3/train.py", ["--d_model", "12"], "even"),
    ("part_3/train.py", ["--positions", "alibi"], "alibi"),
    ("part_3/train.py", ["--rope_base", "0"], "rope_base"),
    ("part_3/train.py", ["--data", "{tmp}/missing.txt"], "neither a file nor"),
    ("part_3/demo_rope.py", ["--d_model", "66"], "divisible"),
    ("part_3/demo_rope.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_3/demo_attention_mask.py", ["--sinks", "-1"], "sinks"),
    ("part_3/demo_attention_mask.py", ["--window", "0"], "window"),
    ("part_3/demo_kv_cache.py", ["--n_kv_head", "3"], "divisible"),
    ("part_3/demo_kv_cache.py", ["--n_new", "2"], "n_new"),
    ("part_3/demo_streaming.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_3/train.py"),
    ("part_3/demo_streaming.py", ["--checkpoint", "{tmp}/binary"], "no checkpoint"),
    ("part_3/demo_streaming.py", ["--sinks", "0"], "sinks"),
    ("part_3/demo_rolling_buffer.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_3/train.py"),
    ("part_3/demo_attention_sinks.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_3/train.py"),
    ("part_3/demo_generate.py", ["--prompt", "a||b"], "empty"),
    ("part_3/demo_generate.py", ["--prompt", "\udcff"], "UTF-8"),
    ("part_3/demo_generate.py", ["--temperature", "-1"], "temperature"),
    ("part_3/demo_generate.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_3/train.py"),
    ("part_3/demo_cache_lab.py", ["--sinks", "9"], "sinks"),
    ("part_4/train.py", ["--data", "{tmp}/missing.txt"], "neither a file nor"),
    ("part_4/train.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_4/train.py", ["--data", "{tmp}/short.txt"], "too short"),
    ("part_4/train.py", ["--tokenizer", "{tmp}/none.tiktoken"], "python3 part_4/train_tokenizer.py"),
    ("part_4/train.py", ["--tokenizer", "{tmp}/binary"], "NAME.tiktoken"),
    ("part_4/train.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_4/train.py", ["--resume", "perhaps"], "perhaps"),
    ("part_4/train.py", ["--preset", "gpt5"], "gpt5"),
    ("part_4/train.py", ["--optimizer", "sgd"], "sgd"),
    ("part_4/train.py", ["--schedule", "step"], "step"),
    ("part_4/train.py", ["--parallel", "ddp"], "torchrun"),
    ("part_4/train.py", ["--micro_batch_size", "3"], "divide"),
    ("part_4/train.py", ["--vocab_size", "100"], "vocab"),
    ("part_4/train.py", ["--eval_tokens", "16"], "eval_tokens"),
    ("part_4/train.py", ["--wandb"], "pip install wandb"),
    ("part_4/train_tokenizer.py", ["--data", "{tmp}/missing.txt"], "neither a file nor"),
    ("part_4/train_tokenizer.py", ["--vocab_size", "200"], "vocab_size"),
    ("part_4/train_tokenizer.py", ["--special_tokens", "a b"], "whitespace"),
    ("part_4/demo_training_run.py", ["--run", "{tmp}/none"], "python3 part_4/train.py"),
    ("part_4/demo_checkpoint.py", ["--n_saves", "99"], "n_saves"),
    ("part_4/demo_scaling.py", ["--mfu", "2"], "mfu"),
    ("part_4/demo_speedrun.py", ["--data", "{tmp}/empty.txt"], "no text"),
    ("part_4/demo_throughput.py", ["--n_micro", "5"], "divide"),
    ("part_5/train.py", ["--top_k", "9"], "n_expert 8"),
    ("part_5/train.py", ["--bias_rate", "-0.1"], "bias_rate"),
    ("part_5/train.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_5/train.py", ["--alpha", "1.5"], "alpha"),
    ("part_5/train.py", ["--capacity_factor", "0"], "capacity_factor"),
    ("part_5/train.py", ["--moe_every", "9"], "moe_every"),
    ("part_5/train.py", ["--first_dense", "4"], "first_dense"),
    ("part_5/train.py", ["--n_shared", "-1"], "n_shared"),
    ("part_5/train.py", ["--balance_weight", "-1"], "balance_weight"),
    ("part_5/train.py", ["--d_expert", "0"], "d_expert"),
    ("part_5/train.py", ["--score", "relu"], "relu"),
    ("part_5/train.py", ["--mlp", "gelu"], "gelu"),
    ("part_5/train.py", ["--bias"], "no biases"),
    ("part_5/demo_hybrid.py", ["--n_layer", "1"], "at least 2"),
    ("part_5/demo_balancing.py", ["--top_k", "9"], "n_expert 8"),
    ("part_5/demo_hybrid.py", ["--alpha", "-1"], "alpha"),
    ("part_5/demo_comparison.py", ["--top_k", "9"], "n_expert 8"),
    ("part_5/demo_comparison.py", ["--d_hidden", "0"], "d_hidden"),
    ("part_5/demo_balancing.py", ["--capacity_factor", "0"], "capacity_factor"),
    ("part_5/demo_specialisation.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_5/train.py"),
    ("part_5/demo_specialisation.py", ["--checkpoint", "{tmp}/binary"], "no checkpoint"),
    ("part_5/demo_specialisation.py", ["--data", "{tmp}/empty.txt"], "no"),
    ("part_6/train_sft.py", ["--base", "{tmp}/none.pt"], "python3 part_4/train.py"),
    ("part_6/train_sft.py", ["--base", "{tmp}/binary"], "no checkpoint"),
    ("part_6/train_sft.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_6/train_sft.py", ["--lora_rank", "4"], "adamw"),
    ("part_6/train_sft.py", ["--curriculum", "random"], "random"),
    ("part_6/train_sft.py", ["--replay", "-1"], "replay"),
    ("part_6/train_sft.py", ["--max_rows", "0"], "max_rows"),
    ("part_6/train_sft.py", ["--beta2", "1"], "beta2"),
    ("part_6/chat.py", ["--checkpoint", "{tmp}/none.pt"], "python3 part_6/train_sft.py"),
    ("part_6/chat.py", ["--checkpoint", "{tmp}/binary"], "no checkpoint"),
    ("part_6/chat.py", ["--temperature", "-1"], "temperature"),
    ("part_6/train_sft.py", ["--multi_turn", "1"], "multi_turn"),
    ("part_6/chat.py", ["--top_p", "0"], "top_p"),
    ("part_6/chat.py", ["--turns", "-1"], "turns"),
    ("part_6/chat.py", ["--prompt", "a||b"], "empty"),
    ("part_6/chat.py", ["--prompt", "\udcff"], "UTF-8"),
    ("part_6/demo_evaluation.py", ["--base", "{tmp}/none.pt"], "python3 part_4/train.py"),
    ("part_6/demo_evaluation.py", ["--base", "{tmp}/binary"], "no checkpoint"),
    ("part_6/demo_evaluation.py", ["--temperature", "-1"], "temperature"),
    ("part_6/demo_curriculum.py", ["--base", "{tmp}/none.pt"], "python3 part_4/train.py"),
    ("part_6/demo_curriculum.py", ["--families", "chess"], "chess"),
    ("part_6/demo_bugs.py", ["--base", "{tmp}/none.pt"], "python3 part_4/train.py"),
    ("part_7/train_reward_model.py", ["--sft", "{tmp}/none.pt"], "python3 part_6/train_sft.py"),
    ("part_7/train_reward_model.py", ["--sft", "{tmp}/binary"], "no checkpoint"),
    ("part_7/train_reward_model.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_7/train_reward_model.py", ["--pooling", "max"], "max"),
    ("part_7/train_reward_model.py", ["--loss", "hinge"], "hinge"),
    ("part_7/train_reward_model.py", ["--n_micro", "41"], "n_micro"),
    ("part_8/train_ppo.py", ["--sft", "{tmp}/none.pt"], "python3 part_6/train_sft.py"),
    ("part_8/train_ppo.py", ["--sft", "{tmp}/binary"], "no checkpoint"),
    ("part_8/train_ppo.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_8/train_ppo.py", ["--critic", "none"], "none"),
    ("part_8/train_ppo.py", ["--schedule", "step"], "step"),
    ("part_8/train_ppo.py", ["--families", "chess"], "chess"),
    ("part_8/train_ppo.py", ["--minibatch_size", "129"], "minibatch_size"),
    ("part_8/train_ppo.py", ["--minibatch_size", "0"], "minibatch_size"),
    ("part_8/train_ppo.py", ["--epochs", "0"], "epochs"),
    ("part_8/train_ppo.py", ["--temperature", "0"], "temperature"),
    ("part_8/train_ppo.py", ["--top_p", "0"], "top_p"),
    ("part_8/train_ppo.py", ["--beta", "-1"], "beta"),
    ("part_8/train_ppo.py", ["--gamma", "1.5"], "gamma"),
    ("part_8/train_ppo.py", ["--clip", "1"], "clip"),
    ("part_8/train_ppo.py", ["--kl_target", "3", "--beta", "0"], "kl_target"),
    ("part_8/demo_bugs.py", ["--sft", "{tmp}/none.pt"], "python3 part_6/train_sft.py"),
    ("part_8/demo_bugs.py", ["--vocab_size", "1"], "vocab_size"),
    ("part_9/train_grpo.py", ["--sft", "{tmp}/none.pt"], "python3 part_6/train_sft.py"),
    ("part_9/train_grpo.py", ["--sft", "{tmp}/binary"], "no checkpoint"),
    ("part_9/train_grpo.py", ["--resume", "yes", "--out", "{tmp}/none"], "no checkpoint"),
    ("part_9/train_grpo.py", ["--group_size", "1"], "group_size"),
    ("part_9/train_grpo.py", ["--batch_size", "100"], "multiple"),
    ("part_9/train_grpo.py", ["--rollout_size", "12"], "rollout_size"),
    ("part_9/train_grpo.py", ["--minibatch_size", "256"], "minibatch_size"),
    ("part_9/train_grpo.py", ["--reward", "verifier", "--data", "{tmp}/short.txt"], "verifier"),
    ("part_9/train_grpo.py", ["--families", "chess"], "chess"),
    ("part_9/train_grpo.py", ["--kl", "k4"], "k4"),
    ("part_9/train_grpo.py", ["--aggregation", "mean"], "mean"),
    ("part_9/train_grpo.py", ["--overlong", "penalty", "--block_size", "4"], "overlong_margin"),
    ("part_9/train_grpo.py", ["--resample", "-1"], "resample"),
    ("part_9/train_grpo.py", ["--clip_high", "0"], "clip_high"),
    ("part_9/demo_bugs.py", ["--n_shown", "3"], "n_shown"),
    ("part_9/demo_bugs.py", ["--n_answers", "6"], "n_answers"),
    ("part_9/demo_token_ledger.py", ["--run", "{tmp}/none"], "python3 part_8/train_ppo.py"),
    ("part_9/demo_token_ledger.py", ["--prompt", ""], "empty"),
    ("part_9/demo_token_ledger.py", ["--prompt", "\udcff"], "UTF-8"),
    ("part_9/demo_token_ledger.py", ["--group_size", "1"], "group_size"),
    ("part_9/demo_token_ledger.py", ["--batch_size", "30"], "multiple"),
    ("part_9/demo_token_ledger.py", ["--epochs", "0"], "epochs"),
    ("part_9/demo_chain.py", ["--base", "{tmp}/none.pt"], "python3 part_4/train.py"),
    ("part_9/demo_chain.py", ["--base", "{tmp}/binary"], "no checkpoint"),
    ("part_9/demo_chain.py", ["--n_pairs", "0"], "n_pairs"),
    ("part_9/demo_chain.py", ["--n_stories", "0"], "n_stories"),
    ("part_9/demo_chain.py", ["--n_tasks", "0"], "n_tasks"),
]


def generic_cases():
    for path in SCRIPTS:
        yield path, ["--no_such_flag"], "no_such_flag"
        yield path, ["stray"], "stray"
        for name in module_of(path).Config.__dataclass_fields__:
            if name in SIZES:
                yield path, [f"--{name}", "0"], name
                yield path, [f"--{name}", "many"], name
            elif name == "seed":
                yield path, ["--seed", "1.5"], "seed"
                yield path, ["--seed", str(2**63)], "seed"
            elif name == "device":
                yield path, ["--device", "tpu"], "tpu"


CASES = [*generic_cases(), *((ROOT / script, flags, words) for script, flags, words in SPECIAL if (ROOT / script).exists())]


def contents(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path, flags, words", CASES, ids=lambda x: relative(x) if hasattr(x, "parent") else None)
def test_wrong_input_ends_in_one_line(path, flags, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    places = (tmp_path, path.parent / "out", path.parent / "runs")
    before = contents(*places)
    monkeypatch.setattr(sys, "argv", [str(path), *(flag.format(tmp=tmp_path) for flag in flags)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(path), run_name="__main__")
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.startswith(f"{path.name}: error: ") and error.count("\n") == 1 and words in error
    assert contents(*places) == before
