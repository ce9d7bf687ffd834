"""Lesson 4.5 - train the base model: everything of this part in one loop. Later parts start from what it leaves.

    python3 part_4/train.py                                             a small model, in minutes on a laptop
    python3 part_4/train.py --resume auto                               go on where it was stopped or killed
    python3 part_4/train.py --data big.txt --preset gpt2-124m           GPT-2's size: needs a GPU
    torchrun --nproc_per_node=8 part_4/train.py --parallel fsdp         several processes, each with a share of the batch

The run directory (--out) then holds config.json, metrics.jsonl, samples.jsonl, tensorboard/, the last checkpoints and
best.pt, and summary.json. A signal (Ctrl-C, SIGTERM) saves and ends; after a kill --resume auto goes on from the newest
sound checkpoint, and the final weights are the same bit for bit.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import functools
import json
import time
from pathlib import Path

from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

from part_0.cli import InputError, run_script
from part_0.device import grad_scaler, peak_memory, pick_device, pick_precision, set_seed, synchronize
from part_0.roofline import matmul_peak
from part_2.run_directory import cut_records, start_run
from part_4.checkpoint import StopRequest, checkpoint_files, give_second_name, save_numbered
from part_4.distributed import from_main, parallelise, process_group, sum_over_processes
from part_4.grad_accumulation import accumulate_gradients, clipped_update
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import build_optimizers, set_learning_rate
from part_4.prepare_data import open_tokens
from part_4.run_config import MAY_CHANGE, Config
from part_4.run_corpus import make_corpus
from part_4.run_evaluation import evaluate, final_figures
from part_4.run_logger import RunLogger, load_wandb, step_flops, update_ratio
from part_4.run_state import Progress, find_checkpoint, restore, snapshot
from part_4.token_dataset import get_batch


def build_model(config, vocab_size, device):
    """The model with the weights of its seed; recomputing and compiled if the flags say so."""
    set_seed(config.seed)
    model = config.build_model(vocab_size).to(device)
    if config.activation_checkpointing:
        for block in model.blocks:
            block.forward = functools.partial(recompute, block.forward, use_reentrant=False)
    if config.compile:
        model.compile()
    return model


def main(config, auxiliary_loss=None, after_update=None):
    """Train. Returns the history: the dicts of metrics.jsonl in order, the summary last.

    For models whose layers have something to add (part_5), functions of the model: auxiliary_loss, called after each forward
    pass, gives a scalar to add to the loss; after_update, called once a step, gives numbers to log by name.
    """
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    if config.wandb:
        load_wandb()  # or refuse, before anything is written
    with process_group(config.parallel, device.type) as process:
        config.n_micro(process.world_size)  # or refuse, before anything is written
        state, path, damages = find_checkpoint(config, MAY_CHANGE)
        for damage in damages if process.is_main else []:
            tqdm.write(f"{damage}; the one before it is used")
        found = {"state": state, "path": path}  # so that the state can be let go once it has been taken up
        del state
        quiet = None if process.is_main else True  # None: no bar where output is no terminal
        with tqdm(desc="reading the text", unit="B", unit_scale=True, leave=False, disable=quiet) as bar:
            corpus = from_main(process, lambda: make_corpus(config, found["state"], bar.update))
        with StopRequest() as stop:  # from here on a signal ends the run with a checkpoint
            return train(config, device, dtype, process, corpus, found, stop, auxiliary_loss, after_update)


def train(config, device, dtype, process, corpus, found, stop, auxiliary_loss=None, after_update=None):
    """The run, as each of its processes sees it; rank 0 alone prints and writes.

    corpus: what `make_corpus` gave; found: the "state" and "path" of the checkpoint to go on from, or None; stop: a
    `StopRequest`; the rest as of `main`.
    """
    out, say = Path(config.out), tqdm.write if process.is_main else lambda line: None
    n_micro, now, resumed = config.n_micro(process.world_size), Progress(), found.pop("state")
    tokenizer, folder, data_hash = corpus
    train_tokens, val_tokens = (open_tokens(folder, split, tokenizer) for split in ("train", "val"))
    val_batch = [part.to(device) for part in get_batch(val_tokens, 0, 0, config.eval_windows, config.block_size)]

    peak = matmul_peak(dtype, device, seconds=0.05) * 1e9 * process.world_size  # FLOP/s; draws numbers, so before the seed
    model = build_model(config, tokenizer.vocab_size, device)
    n_params, tokens_per_step = model.n_params(), config.batch_size * config.block_size
    flops = step_flops(model, tokens_per_step, config.block_size)
    parallel = parallelise(model, config.parallel, device)
    optimizers = build_optimizers(model, config.optimizer, config.lr, config.beta2, config.weight_decay)
    scaler = grad_scaler(device, dtype)
    set_seed(config.seed + process.rank)  # dropout differs between processes
    if resumed:
        if resumed["data_hash"] != data_hash:
            raise InputError(f"{out} was started with another text than --data {config.data} is now: start anew in another "
                             "--out")
        now = restore(resumed, model, optimizers, scaler, process.rank)
        say(f"going on from {found['path']}")
        if process.is_main:
            cut_records(out, now.step)
            if now.best_step == now.step:  # a kill may have come between the save and this
                give_second_name(found["path"], out / "best.pt")
    elif previous := from_main(process, lambda: start_run(config)):
        say(f"the run that was in {out} is now in {previous}")
    resumed = None  # it holds the weights a second time
    logger = RunLogger(out if process.is_main else None, config, now.step, config.wandb)

    def save(is_best):
        started = time.perf_counter()
        state = snapshot(now, model, optimizers, scaler, config=dataclasses.asdict(config), data_hash=data_hash,
                         model_config=dataclasses.asdict(model.config), tokenizer=tokenizer.state())
        if process.is_main:
            save_numbered(out, state, config.keep_last, is_best)
        now.save_seconds += time.perf_counter() - started

    bar = tqdm(total=config.steps, initial=now.step, unit="step", disable=None if process.is_main else True)
    saved = logged = now.step
    logged_seconds = now.seconds
    while True:
        is_best = False
        if now.step % config.eval_every == 0 or now.step == config.steps:
            val_loss = evaluate(model, val_batch, tokenizer, dtype, logger, now, config)
            say(f"step {now.step:5d}/{config.steps}   val loss {val_loss:.3f} nats/token   {now.seconds:5.1f} s")
            is_best = now.step > 0 and val_loss < now.best
            if is_best:
                now.best, now.best_step = val_loss, now.step
        ending = now.step == config.steps or sum_over_processes([stop.signal is not None], device)[0] > 0
        if now.step > saved and (is_best or ending or now.step % config.save_every == 0):
            save(is_best)
            saved = now.step
        if ending:
            break

        started = time.perf_counter()
        lr = SCHEDULES[config.schedule](now.step, config.steps, config.lr, config.min_lr, config.warmup_steps)
        set_learning_rate(optimizers, lr)
        inputs, targets = get_batch(train_tokens, config.seed, now.step, config.batch_size, config.block_size,
                                    process.rank, process.world_size)
        loss = accumulate_gradients(parallel, inputs.to(device), targets.to(device), n_micro, dtype, scaler,
                                    auxiliary_loss=auxiliary_loss and functools.partial(auxiliary_loss, model))
        is_logged = now.step % config.log_every == 0
        before = [weight.detach().clone() for weight in model.parameters()] if is_logged else None
        grad_norm, is_finite = clipped_update(model, optimizers, scaler, config.grad_clip, loss)
        extra = {} if after_update is None else after_update(model)
        synchronize(device)
        now.skipped = 0 if is_finite else now.skipped + 1
        now.seconds += time.perf_counter() - started

        if is_logged and is_finite:
            per_second = (now.step + 1 - logged) * tokens_per_step / (now.seconds - logged_seconds)
            logger.record(now.step, tokens=(now.step + 1) * tokens_per_step, seconds=now.seconds, loss=loss.item(), lr=lr,
                          grad_norm=grad_norm, update_ratio=update_ratio(before, list(model.parameters())),
                          tokens_per_second=per_second, mfu=flops * per_second / tokens_per_step / peak,
                          **{name: float(value) for name, value in extra.items()},
                          **({"memory_gib": memory / 2**30} if (memory := peak_memory(device)) else {}))
            bar.set_postfix(loss=f"{loss.item():.3f}", tokens_per_second=f"{per_second:,.0f}", refresh=False)
            logged, logged_seconds = now.step + 1, now.seconds
        if now.skipped:
            logger.record(now.step, skipped=now.skipped)
            if now.skipped > config.max_skips:
                raise InputError(f"loss or gradient was no number {now.skipped} times in a row, at step {now.step}: try a "
                                 f"smaller --lr than {config.lr}. The last good checkpoint is "
                                 f"{next(iter(checkpoint_files(out)), 'none')}")
        now.step += 1
        bar.update()
    bar.close()
    if now.step < config.steps:
        logger.close()
        saved_too = ", which is saved" if now.step else ""
        say(f"stopped at step {now.step}{saved_too}; go on with the same command and --resume auto")
        sys.exit(128 + (stop.signal or 15))  # as the shell would call it; another process may have got the signal

    summary = {**final_figures(model, val_tokens, tokenizer, dtype, config), "best_val_loss": now.best,
               "steps": config.steps, "tokens": config.steps * tokens_per_step, "params": n_params, "seconds": now.seconds,
               "tokens_per_second": config.steps * tokens_per_step / now.seconds, "save_seconds": now.save_seconds,
               "device": device.type}
    logger.finish(summary)
    logger.close()
    say(f"the run is in {out}; look at it with: python3 part_4/demo_training_run.py --run {out}")
    say(json.dumps(summary, indent=2))
    return logger.history


if __name__ == "__main__":
    run_script(main, Config, __doc__)
