"""Lesson 6.2 - supervised fine-tuning: the base model learns to answer; of a conversation only the answers are learnt.

    python3 part_6/train_sft.py                                    the task families of lesson 6.1, in minutes on a laptop
    python3 part_6/train_sft.py --data my.jsonl --out part_6/runs/mine     one's own conversations, in any form of lesson 6.1
    python3 part_6/train_sft.py --lora_rank 8 --optimizer adamw --out part_6/runs/lora      adapters instead of all weights
    python3 part_6/train_sft.py --resume auto                      go on where it was stopped or killed

It starts from part_4/train.py's base model. The run directory is as there; summary.json also says what share of held-out
tasks was answered rightly before and after, family by family, and what became of the loss on the base model's own text. The
logged loss is that of answers and replayed text together, val_loss that of the answers.
Left out: several processes, which are as in part_4/train.py.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path

from tqdm import tqdm

from part_0.cli import InputError, run_script
from part_0.device import grad_scaler, pick_device, pick_precision, set_seed, synchronize
from part_2.run_directory import cut_records, start_run
from part_4.checkpoint import StopRequest, give_second_name, save_numbered
from part_4.grad_accumulation import accumulate_gradients, clipped_update
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import build_optimizers, set_learning_rate
from part_4.run_logger import RunLogger
from part_4.run_state import Progress, find_checkpoint, restore, snapshot
from part_4.token_dataset import get_batch
from part_5.hybrid import after_update, auxiliary_loss
from part_6.chat_model import load_model, resize_vocabulary
from part_6.curriculum import draw_batch
from part_6.evaluation import held_out_tasks
from part_6.lora import add_lora
from part_6.prompt_template import chat_tokenizer
from part_6.sft_config import MAY_CHANGE, RUNS, Config
from part_6.sft_data import TASKS, base_text, load_examples, make_batch
from part_6.sft_scores import answer_figures, answer_losses, base_loss, task_scores


def main(config):
    """Fine-tune. Returns the history: the dicts of metrics.jsonl in order, the summary last."""
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    state, path, damages = find_checkpoint(config, MAY_CHANGE)
    for damage in damages:
        tqdm.write(f"{damage}; the one before it is used")
    base, base_tokenizer, base_state = load_model(config.base, device, "part_4/train.py")
    if base.config.positions in ("learned", "sinusoidal") and config.block_size > base.config.block_size:
        raise InputError(f"--block_size {config.block_size} is more than the {base.config.block_size} positions of "
                         f"{config.base}")
    tokenizer = chat_tokenizer(base_tokenizer)
    tqdm.write("making the examples" if config.data == TASKS else f"reading {config.data}")
    examples = load_examples(config.data, config.n_examples, config.seed, config.worked_steps, config.multi_turn, tokenizer,
                             config.block_size)
    if config.batch_size > len(examples.train):
        raise InputError(f"--batch_size {config.batch_size} is more than the {len(examples.train)} conversations there are")
    replayed = None
    if config.replay:
        try:
            text = base_text(base_state["config"]["data"], "train", 4_000_000)
        except InputError as error:
            raise InputError(f"--replay {config.replay} needs the base model's text, or say --replay 0: {error}") from None
        replayed = base_tokenizer.encode_to_tensor(text, allow_special=True)  # as the base model read it
        if len(replayed) <= config.block_size:
            raise InputError(f"--replay {config.replay}: the base model's text has {len(replayed)} tokens, too few for "
                             f"--block_size {config.block_size}")
    data_hash = hashlib.sha256(examples.sha256.encode() + (replayed.numpy().tobytes() if config.replay else b"")).hexdigest()
    if state and state["data_hash"] != data_hash:
        raise InputError(f"{config.out} was started with other conversations than --data {config.data} has now, or from "
                         f"another base model's text than --base {config.base} has: start anew in another --out")
    tasks = held_out_tasks(config.n_tasks) if config.data == TASKS else []
    with StopRequest() as stop:  # from here on a signal ends the run with a checkpoint
        return train(config, device, dtype, base, tokenizer, base_state, examples, replayed, data_hash, tasks, state, path,
                     stop)


def train(config, device, dtype, base, tokenizer, base_state, examples, replayed, data_hash, tasks, resumed, path, stop):
    """The run. base, base_state: the model to start from and its checkpoint; tokenizer: with the template's; examples:
    what `load_examples` gave; replayed: tokens of the base model's text, or None; data_hash: of both; tasks: held out, to
    be answered before and after; resumed, path: the checkpoint to go on from, or None; stop: a `StopRequest`."""
    out, say, now = Path(config.out), tqdm.write, Progress()
    set_seed(config.seed)
    model = resize_vocabulary(base, tokenizer.vocab_size).to(device).train()
    n_params, sizes = model.n_params(), dataclasses.asdict(model.config)
    if config.lora_rank:
        sizes["lora"] = {"r": config.lora_rank, "alpha": config.lora_alpha}
        add_lora(model, **sizes["lora"]).to(device)
    optimizers = build_optimizers(model, config.optimizer, config.lr, config.beta2, config.weight_decay)
    scaler = grad_scaler(device, dtype)
    if resumed:
        if resumed["model_config"] != sizes:
            raise InputError(f"{out} was started from a base model of another shape than --base {config.base}")
        now, before = restore(resumed, model, optimizers, scaler, rank=0), resumed["before"]
        say(f"going on from {path}")
        cut_records(out, now.step)
        if now.best_step == now.step > 0:  # a kill may have come between the save and this
            give_second_name(path, out / "best.pt")
    else:
        say("what the base model can do")
        before = {**base_loss(base, base_state, dtype, "before", say), **task_scores(model, tokenizer, tasks, "before")}
        if previous := start_run(config):
            say(f"the run that was in {out} is now in {previous}")
    logger = RunLogger(out, config, now.step)
    lengths = [len(inputs) for inputs, _ in examples.train]

    def save(is_best):
        save_numbered(out, snapshot(now, model, optimizers, scaler, config=dataclasses.asdict(config), model_config=sizes,
                                    tokenizer=tokenizer.state(), data_hash=data_hash, before=before),
                      config.keep_last, is_best)

    bar = tqdm(total=config.steps, initial=now.step, unit="step", disable=None)
    saved = now.step
    logged_tokens, logged_seconds = now.tokens, now.seconds
    while True:
        is_best, ending = False, now.step == config.steps or stop.signal is not None
        if now.step % config.eval_every == 0 or now.step == config.steps:
            val_loss = answer_losses(model, examples.val, config.block_size, dtype).mean().item()
            logger.record(now.step, tokens=now.tokens, seconds=now.seconds, val_loss=val_loss)
            say(f"step {now.step:5d}/{config.steps}   val loss {val_loss:.3f} nats/token   {now.seconds:5.1f} s")
            is_best = now.step > 0 and val_loss < now.best
            if is_best:
                now.best, now.best_step = val_loss, now.step
        if now.step > saved and (is_best or ending or now.step % config.save_every == 0):
            save(is_best)
            saved = now.step
        if ending:
            break

        started = time.perf_counter()
        lr = SCHEDULES[config.schedule](now.step, config.steps, config.lr, config.min_lr, config.warmup_steps)
        set_learning_rate(optimizers, lr)
        chosen = draw_batch(config.curriculum, examples.difficulties, lengths, config.seed, now.step, config.steps,
                            config.batch_size)
        windows = (list(zip(*get_batch(replayed, config.seed, now.step, config.replay, config.block_size)))
                   if config.replay else [])
        batch, n_micro = make_batch([examples.train[i] for i in chosen], config.block_size, config.packing, config.max_rows,
                                    windows)
        now.tokens += sum(lengths[i] for i in chosen) + config.replay * config.block_size
        batch = batch.to(device)
        loss = accumulate_gradients(model, batch.inputs, batch.targets, n_micro, dtype, scaler,
                                    auxiliary_loss=functools.partial(auxiliary_loss, model),  # of experts, if it has any
                                    context={"positions": batch.positions, "segments": batch.segments})
        grad_norm, is_finite = clipped_update(model, optimizers, scaler, config.grad_clip, loss)
        extra = after_update(model)
        synchronize(device)
        now.skipped = 0 if is_finite else now.skipped + 1
        now.seconds += time.perf_counter() - started
        if now.skipped:
            logger.record(now.step, skipped=now.skipped)
        if now.skipped > 20:
            raise InputError(f"loss or gradient was no number {now.skipped} times in a row, at step {now.step}: try a "
                             f"smaller --lr than {config.lr}")

        if now.step % config.log_every == 0 and is_finite:
            per_second = (now.tokens - logged_tokens) / (now.seconds - logged_seconds)
            logger.record(now.step, tokens=now.tokens, seconds=now.seconds, loss=loss.item(), lr=lr, grad_norm=grad_norm,
                          tokens_per_second=per_second, **extra)
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

    # What later parts will load: the best checkpoint, with adapters merged into the weights.
    model, tokenizer, _ = load_model(out / "best.pt", device)
    summary = {**answer_figures(model, tokenizer, examples.val, config.block_size, dtype), "best_val_loss": now.best,
               "steps": config.steps, "tokens": now.tokens, "params": n_params, "seconds": now.seconds,
               "tokens_per_second": now.tokens / now.seconds, "device": device.type, **before,
               **base_loss(model, base_state, dtype, "after", say),
               **task_scores(model, tokenizer, tasks, "after")}
    logger.finish(summary)
    logger.close()
    say(f"the run is in {out}; ask the model something with: python3 part_6/chat.py"
        + ("" if out == RUNS / "sft" else f" --checkpoint {out / 'best.pt'}"))
    say(json.dumps(summary, indent=2))
    return logger.history


if __name__ == "__main__":
    run_script(main, Config, __doc__)
