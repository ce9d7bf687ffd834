"""Lesson 7.2 - train a reward model: which of two answers would the annotator choose?

    python3 part_7/train_reward_model.py                               the fine-tuned model's answers, in minutes on a laptop
    python3 part_7/train_reward_model.py --data my.jsonl               one's own preferences, in either form of lesson 7.1
    python3 part_7/train_reward_model.py --pooling last --causal       the usual decoder, to compare
    python3 part_7/train_reward_model.py --resume auto                 go on where it was stopped or killed

It starts from part_6/train_sft.py's model: its weights become the encoder's, and its samples are what the annotator judges.
The run directory is as in part_4/train.py; train_pairs.jsonl and val_pairs.jsonl hold the pairs that were judged.
summary.json says how often held-out choices were predicted, and what the reward follows. val_loss is the plain loss of a
pair, without smoothing, centring and a margin of one's own: in nats for bradley_terry; bits_per_byte is null, as no byte is
predicted. Left out: several processes, as in part_4/train.py, and the balancing of experts, as in part_6/train_sft.py.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import InputError, run_script
from part_0.device import autocast, grad_scaler, pick_device, pick_precision, set_seed, synchronize
from part_2.checkpoint import save_checkpoint, write_atomically
from part_2.run_directory import cut_records, start_run
from part_4.checkpoint import StopRequest, give_second_name, save_numbered
from part_4.grad_accumulation import clipped_update
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import build_optimizers, set_learning_rate
from part_4.run_logger import RunLogger
from part_4.run_state import Progress, find_checkpoint, restore, snapshot
from part_6.chat_data import read_lines
from part_6.chat_model import load_model
from part_6.curriculum import draw_batch
from part_6.prompt_template import chat_tokenizer
from part_7.losses import LOSSES
from part_7.preference_data import make_pairs, make_prompts
from part_7.preference_files import FORMS, as_line, load_preferences, read_pair
from part_7.reward_config import MAY_CHANGE, POLICY, RUNS, Config
from part_7.reward_figures import final_figures, sample_stories, score_stories
from part_7.reward_model import RewardModel, load_reward_model
from part_7.scoring import encode_response, reward_batch, score

N_VAL = 350  # story prompts, and other tasks, of the validation split


def load_pairs(config, policy, tokenizer, resumed):
    """The pairs of a run by split: {"train", "val", "test"}; those of the test split only if they come from a file. resumed:
    whether the run goes on, with the answers that were judged when it began."""
    if config.data != POLICY:
        pairs, dropped = load_preferences(config.data)
        for reason, n in dropped.items():
            tqdm.write(f"dropped {n} pairs: {'both answers are the same' if reason == 'equal' else 'no common prompt'}")
        if empty := [split for split, own in pairs.items() if not own]:
            raise InputError(f"--data {config.data} has no pairs for {' and '.join(empty)}: of its different prompts 85 % "
                             "are for train, 5 % for val, 10 % for test")
        return pairs
    if resumed:  # sampled anew they might be others, on another device
        return {split: read_lines(pairs_file(config, split), read_pair, FORMS) for split in ("train", "val")}
    n_val = min(N_VAL, config.n_stories)
    sizes = {"train": (config.n_stories, config.n_exact), "val": (n_val, n_val)}
    make_prompts("test", config.n_test, config.n_test, config.seed)  # or refuse now, not after training
    tqdm.write(f"the policy answers {sum(map(sum, sizes.values())):,} prompts, and the annotator chooses")
    return {split: make_pairs(policy, tokenizer, split, *size, config.temperature, config.seed).pairs
            for split, size in sizes.items()}


def pairs_file(config, split):
    """Where the pairs of a split are kept."""
    return Path(config.out) / f"{split}_pairs.jsonl"


def encode_pairs(pairs, tokenizer, block_size):
    """Pairs as ((ids, is_answer) of chosen, of rejected), and how many were dropped since nothing that differs was left."""
    encoded = [[encode_response(pair.prompt, one, tokenizer, block_size) for one in (pair.chosen, pair.rejected)]
               for pair in pairs]
    kept = [pair for pair in encoded if pair[0] != pair[1]]
    return kept, len(encoded) - len(kept)


def main(config):
    """Train. Returns the history: the dicts of metrics.jsonl in order, the summary last."""
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    state, path, damages = find_checkpoint(config, MAY_CHANGE)
    for damage in damages:
        tqdm.write(f"{damage}; the one before it is used")
    policy, tokenizer, _ = load_model(config.sft, device)
    tokenizer = chat_tokenizer(tokenizer)
    if tokenizer.vocab_size != policy.config.vocab_size:
        raise InputError(f"{config.sft} is a base model; make a fine-tuned one with: python3 part_6/train_sft.py")
    longest = policy.config.block_size
    if policy.config.positions in ("learned", "sinusoidal") and config.block_size > longest:
        raise InputError(f"--block_size {config.block_size} is more than the {longest} positions of {config.sft}")
    pairs = load_pairs(config, policy, tokenizer, resumed=state is not None)
    encoded = {}
    for split, own in pairs.items():
        encoded[split], n_dropped = encode_pairs(own, tokenizer, config.block_size)
        if n_dropped:
            tqdm.write(f"dropped {n_dropped} pairs of {split}: the same within --block_size {config.block_size}")
    if empty := [split for split, own in encoded.items() if not own]:
        raise InputError(f"no pairs for {' and '.join(empty)} are left within --block_size {config.block_size}: try a "
                         "larger one")
    if config.batch_size > len(encoded["train"]):
        raise InputError(f"--batch_size {config.batch_size} is more than the {len(encoded['train'])} pairs there are")
    data_hash = hashlib.sha256(json.dumps(encoded).encode("utf-8")).hexdigest()
    if state and state["data_hash"] != data_hash:
        raise InputError(f"{config.out} was started with other pairs than there are now: start anew in another --out")
    with StopRequest() as stop:  # from here on a signal ends the run with a checkpoint
        return train(config, device, dtype, policy, tokenizer, pairs, encoded, data_hash, state, path, stop)


def train(config, device, dtype, policy, tokenizer, pairs, encoded, data_hash, resumed, path, stop):
    """The run. policy, tokenizer: the fine-tuned model; pairs: by split, and encoded: the same as rows of ids, with their
    data_hash; resumed, path: the checkpoint to go on from, or None; stop: a `StopRequest`."""
    out, say, now = Path(config.out), tqdm.write, Progress()
    set_seed(config.seed)
    model = RewardModel(load_model(config.sft, device)[0], config.pooling, config.causal).to(device).train()
    optimizers = build_optimizers(model, config.optimizer, config.lr, config.beta2, config.weight_decay)
    scaler, pair_loss = grad_scaler(device, dtype), LOSSES[config.loss]
    if resumed:
        now = restore(resumed, model, optimizers, scaler, rank=0)
        say(f"going on from {path}")
        cut_records(out, now.step)
        if now.best_step == now.step > 0:  # a kill may have come between the save and this
            give_second_name(path, out / "best.pt")
    else:
        if previous := start_run(config):
            say(f"the run that was in {out} is now in {previous}")
        if config.data == POLICY:
            for split, own in pairs.items():
                write_atomically(pairs_file(config, split), "".join(as_line(pair) + "\n" for pair in own).encode("utf-8"))
    logger = RunLogger(out, config, now.step)
    lengths = [max(len(ids) for ids, _ in pair) for pair in encoded["train"]]
    facts = dict(config=dataclasses.asdict(config), model_config=model.sizes(), tokenizer=tokenizer.state(),
                 data_hash=data_hash)

    bar = tqdm(total=config.steps, initial=now.step, unit="step", disable=None)
    saved = now.step
    logged_tokens, logged_seconds = now.tokens, now.seconds
    while True:
        is_best, ending = False, now.step == config.steps or stop.signal is not None
        if now.step % config.eval_every == 0 or now.step == config.steps:
            chosen, rejected = (score(model, list(rows), dtype) for rows in zip(*encoded["val"]))
            val_loss, accuracy = pair_loss(chosen, rejected).item(), (chosen > rejected).float().mean().item()
            logger.record(now.step, tokens=now.tokens, seconds=now.seconds, val_loss=val_loss, val_accuracy=accuracy)
            say(f"step {now.step:5d}/{config.steps}   val loss {val_loss:.3f}   accuracy {accuracy:.3f}   "
                f"{now.seconds:5.1f} s")
            is_best = now.step > 0 and val_loss < now.best
            if is_best:
                now.best, now.best_step = val_loss, now.step
        if now.step > saved and (is_best or ending or now.step % config.save_every == 0):
            save_numbered(out, snapshot(now, model, optimizers, scaler, **facts), config.keep_last, is_best)
            saved = now.step
        if ending:
            break

        started = time.perf_counter()
        lr = SCHEDULES[config.schedule](now.step, config.steps, config.lr, config.min_lr, config.warmup_steps)
        set_learning_rate(optimizers, lr)
        drawn = draw_batch("uniform", lengths, lengths, config.seed, now.step, config.steps, config.batch_size)
        loss = torch.zeros((), device=device)
        for part in np.array_split(sorted(drawn, key=lambda i: lengths[i]), config.n_micro):
            rows = [encoded["train"][i][side] for side in (0, 1) for i in part]
            with autocast(device, dtype):
                rewards = model(*reward_batch(rows, device))
            mean_loss = pair_loss(*rewards.chunk(2), **config.loss_options())
            part_loss = mean_loss * len(part) / config.batch_size  # as the mean is over the whole batch
            scaler.scale(part_loss).backward()
            loss += part_loss.detach()
            now.tokens += sum(len(ids) for ids, _ in rows)
        grad_norm, is_finite = clipped_update(model, optimizers, scaler, config.grad_clip, loss)
        synchronize(device)
        now.skipped = 0 if is_finite else now.skipped + 1
        now.seconds += time.perf_counter() - started
        if now.skipped > 20:
            raise InputError(f"loss or gradient was no number {now.skipped} times in a row, at step {now.step}: try a "
                             f"smaller --lr than {config.lr}")

        if now.step % config.log_every == 0 and is_finite:
            per_second = (now.tokens - logged_tokens) / (now.seconds - logged_seconds)
            logger.record(now.step, tokens=now.tokens, seconds=now.seconds, loss=loss.item(), lr=lr, grad_norm=grad_norm,
                          tokens_per_second=per_second)
            bar.set_postfix(loss=f"{loss.item():.3f}", tokens_per_second=f"{per_second:,.0f}", refresh=False)
            logged_tokens, logged_seconds = now.tokens, now.seconds
        now.step += 1
        bar.update()
    bar.close()
    if now.step < config.steps:
        logger.close()
        saved_too = ", which is saved" if now.step else ""
        say(f"stopped at step {now.step}{saved_too}; go on with the same command and --resume auto")
        sys.exit(128 + stop.signal)  # as the shell would call it

    # What later parts will load: the best checkpoint, with the scale that gives the policy's stories, or the validation
    # answers of a file, mean 0 and spread 1.
    model, tokenizer, best = load_reward_model(out / "best.pt", device)
    model.gain.fill_(1.0)  # a run that is resumed at its end may find them set
    model.bias.zero_()
    if config.data == POLICY:
        say("the policy tells stories, to set the scale")
        tasks, responses, _ = sample_stories(policy, tokenizer, min(N_VAL, config.n_stories), 4, config.seed, "val")
        model.normalise(score_stories(model, tokenizer, tasks, responses).flatten())
    else:
        model.normalise(score(model, [row for pair in encoded["val"] for row in pair]))
    save_checkpoint(out / "best.pt", {**best, "model": model.state_dict()})
    summary = {"val_loss": now.best, "bits_per_byte": None, "best_step": now.best_step, "steps": config.steps,
               "tokens": now.tokens, "params": model.n_params(), "seconds": now.seconds,
               "tokens_per_second": now.tokens / now.seconds, "device": device.type}
    if config.data == POLICY:
        say("held-out pairs and stories")
        summary |= final_figures(model, tokenizer, policy, config.n_test, config.temperature, config.seed)
    else:
        chosen, rejected = (score(model, list(rows)) for rows in zip(*encoded["test"]))
        summary["pairwise_accuracy"] = (chosen > rejected).float().mean().item()
    logger.finish(summary)
    logger.close()
    say(f"the run is in {out}; look at it with: python3 part_7/demo_sanity_checks.py"
        + ("" if out == RUNS / "reward_model" else f" --checkpoint {out / 'best.pt'}"))
    say(json.dumps(summary, indent=2))
    return logger.history


if __name__ == "__main__":
    run_script(main, Config, __doc__)
