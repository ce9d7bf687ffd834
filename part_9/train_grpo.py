"""Lesson 9.5 - GRPO: several answers to each prompt, and those that are better than their group's mean are said more often.

    python3 part_9/train_grpo.py                                       stories that please the annotator, in minutes
    python3 part_9/train_grpo.py --preset verifier                     RL from verifiable rewards
    python3 part_9/train_grpo.py --reward my_reward.py:brevity         any function of prompts and answers
    torchrun --nproc_per_node=2 part_9/train_grpo.py --parallel ddp    several processes, each with a share of every batch
    python3 part_9/train_grpo.py --resume auto                         go on where it was stopped or killed

A step: sample prompts -> G answers to each, the prompt read once -> rewards -> advantages within the groups -> some epochs
of shuffled minibatches of the clipped loss, with the KL penalty in it. There is no critic. Rollout, log-probabilities,
clipping, run directory and figures are Part 8's; spread is the share of groups whose rewards differ, n_answers what was
learnt from. With --resample score is of all answers that were asked for, all else of those that were kept.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import InputError, run_script
from part_0.device import autocast, grad_scaler, pick_device, pick_precision, set_seed, synchronize
from part_0.onednn import onednn_products
from part_2.checkpoint import save_checkpoint
from part_2.run_directory import cut_records, start_run
from part_4.checkpoint import StopRequest, save_numbered
from part_4.distributed import from_main, process_group, sum_over_processes, world_size
from part_4.grad_accumulation import clipped_update
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import build_optimizers, set_learning_rate
from part_4.run_logger import RunLogger
from part_4.run_state import Progress, find_checkpoint, restore, snapshot
from part_6.chat_model import load_model
from part_6.prompt_template import decode_answer
from part_8.policy import action_log_probs, distributions, entropies
from part_8.experience import gold_figures, rollout_figures
from part_8.policy_scores import reference_loss
from part_8.prompts import TASKS
from part_8.stability import approximate_kl
from part_8.stages import held_out_figures, load_stages
from part_9.group_experience import gather_groups, make_group_experience
from part_9.grpo_config import MAY_CHANGE, Config
from part_9.grpo_loss import grpo_losses, token_weights
from part_9.reward_functions import Reward


def main(config):
    """Train. Returns the history: the dicts of metrics.jsonl in order, the summary last (in rank 0)."""
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    with process_group(config.parallel, device.type, "part_9/train_grpo.py") as process:
        if device.type == "cuda" and process.world_size > 1:
            device = torch.device("cuda", process.local_rank)
        if config.batch_size % (config.group_size * process.world_size) or config.minibatch_size < process.world_size:
            raise InputError(f"--batch_size {config.batch_size} must be a multiple of --group_size {config.group_size} "
                             f"times {process.world_size} processes, and --minibatch_size {config.minibatch_size} not be "
                             "less than these")
        if process.world_size > 1 and (config.rollout_size or 0) * process.world_size > config.batch_size:
            raise InputError(f"--rollout_size {config.rollout_size} is more than a process's share of --batch_size "
                             f"{config.batch_size}")
        state, path, damages = find_checkpoint(config, MAY_CHANGE)
        for damage in damages if process.is_main else []:
            tqdm.write(f"{damage}; the one before it is used")
        stages = load_stages(config, device, config.reward == "model", config.batch_size // config.group_size)
        reward = Reward(config.reward, stages.tokenizer, stages.reward_model, config.no_end_penalty, dtype)
        if state and state["data_hash"] != stages.data_hash:
            raise InputError(f"{config.out} was started with other prompts, another --sft or another --reward_model than "
                             "there are now: start anew in another --out")
        policy = load_model(config.sft, device)[0]
        with StopRequest() as stop:  # from here on a signal ends the run with a checkpoint
            return train(config, device, dtype, process, policy, stages, reward, state, path, stop)


def sum_gradients(model):
    """Add up the gradients of all processes, of which some may have none."""
    if world_size() > 1:
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.distributed.all_reduce(weight.grad)


def learn(policy, optimizers, experience, config, rng, process):
    """Some epochs of shuffled minibatches, of each of which a process takes its share. rng: a NumPy generator, the same in
    all processes.

    Returns the figures of each update, a list of dicts; updated: whether the weights changed, which they do not where loss
    or gradient is no number.
    """
    device, n, updates = experience.scores.device, len(experience.scores), []
    dtype = pick_precision(config.precision, device)
    no_scaler = grad_scaler(device, dtype)  # as there is no fp16 here
    for _ in range(config.epochs):
        for rows in np.array_split(rng.permutation(n), -(-n // config.minibatch_size)):
            rows = torch.from_numpy(rows).to(device)
            weights = token_weights(experience.mask[rows], config.aggregation, config.block_size)  # of all processes' tokens
            own = slice(process.rank, None, process.world_size)
            part, weights = experience.select(rows[own]), weights[own]
            loss, sums = torch.zeros((), device=device), [0.0, 0.0, 0]
            if len(weights):
                with autocast(device, dtype), onednn_products(policy):
                    logits = policy(part.rollout.tokens)
                log_probs = distributions(logits, config.temperature)
                new = action_log_probs(log_probs, part.rollout.tokens)
                # masked before and not after: a gradient of 0 times an infinite derivative would be no number
                new, old, ref = (torch.where(part.mask, x, 0.0) for x in (new, part.log_probs, part.ref_log_probs))
                losses, clipped = grpo_losses(new, old, ref, part.advantages, config.beta, config.kl, config.kl_weighted,
                                              config.clip, config.clip_high)
                if config.entropy_coef:
                    losses = losses - config.entropy_coef * entropies(log_probs)
                loss = torch.where(part.mask, losses * weights, 0.0).sum()
                loss.backward()
                sums = [torch.where(part.mask, x, 0.0).sum().item()
                        for x in (clipped.float(), approximate_kl(new.detach(), old), part.mask.float())]
            sum_gradients(policy)
            total, n_clipped, drift, n_tokens = sum_over_processes([loss.item(), *sums], device)
            norm, fine = clipped_update(policy, optimizers, no_scaler, config.grad_clip, total)
            updates.append({"loss": total, "clip_fraction": n_clipped / max(n_tokens, 1), "drift": drift / max(n_tokens, 1),
                            "grad_norm": norm, "updated": fine})
    return updates


def train(config, device, dtype, process, policy, stages, reward, resumed, path, stop):
    """The run, as each of its processes sees it; rank 0 alone prints and writes.

    policy: a ModernGPT; stages: Stages; reward: a `Reward`; resumed, path: the checkpoint to go on from, or None; stop: a
    `StopRequest`.
    """
    out, say = Path(config.out), tqdm.write if process.is_main else lambda line: None
    now, no_scaler = Progress(), grad_scaler(device, torch.float32)
    set_seed(config.seed)
    policy.train(False)  # no dropout: old and new probabilities would differ by chance
    optimizers = build_optimizers(policy, config.optimizer, config.lr, config.beta2, config.weight_decay)
    if resumed:
        now, before = restore(resumed, policy, optimizers, no_scaler, process.rank), resumed["before"]
        say(f"going on from {path}")
        if process.is_main:
            cut_records(out, now.step)
    else:
        say("what the fine-tuned model does")
        before = from_main(process, lambda: held_out_figures(stages.reference, stages, config.block_size, config.seed,
                                                             "before", reward.of_texts))
        if previous := from_main(process, lambda: start_run(config)):
            say(f"the run that was in {out} is now in {previous}")
    logger = RunLogger(out if process.is_main else None, config, now.step)
    facts = dict(config=dataclasses.asdict(config), model_config=dataclasses.asdict(policy.config),
                 tokenizer=stages.tokenizer.state(), data_hash=stages.data_hash, before=before)

    def save():
        state = snapshot(now, policy, optimizers, no_scaler, **facts)
        from_main(process, lambda: save_numbered(out, state, config.keep_last).name)

    bar = tqdm(total=config.steps, initial=now.step, unit="step", disable=None if process.is_main else True)
    saved = now.step
    while True:
        ending = now.step == config.steps or sum_over_processes([stop.signal is not None], device)[0] > 0
        if now.step > saved and (ending or now.step % config.save_every == 0):
            save()
            saved = now.step
        if ending:
            break

        # 1. The policy answers each prompt G times, and the answers are judged.
        clock = [time.perf_counter()]
        try:
            groups = gather_groups(policy, stages, reward, config, now.step, process)
        except InputError:  # of a reward function; what has been learnt so far is kept
            if now.step > saved:
                save()
            raise
        synchronize(device)
        clock.append(time.perf_counter())
        if groups.n_lost:
            say(f"step {now.step}: {groups.n_lost} answers are left out, in whose groups a reward was no number")
        figures, updates = {"spread": groups.n_spread / groups.n_asked, "n_answers": len(groups.answers)}, []
        if groups.answers:
            experience = make_group_experience(policy, stages.reference, groups, config, stages.stop_ids[0], dtype, process)
            figures |= rollout_figures(experience) | gold_figures(experience, groups.prompts, stages.tokenizer)
        if len(groups.asked_scores):
            figures["score"] = groups.asked_scores.mean().item()  # of groups that were not kept, too
        synchronize(device)
        clock.append(time.perf_counter())

        # 2. It learns from them.
        lr = SCHEDULES[config.schedule](now.step, config.steps, config.lr, config.min_lr, config.warmup_steps)
        set_learning_rate(optimizers, lr)
        if groups.answers:
            rng = np.random.default_rng([config.seed % 2**64, now.step])  # of the step alone: a resumed run draws the same
            updates = learn(policy, optimizers, experience, config, rng, process)
            figures |= {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
        synchronize(device)
        clock.append(time.perf_counter())
        now.seconds += clock[-1] - clock[0]
        now.tokens += sum(map(len, groups.answers))
        now.skipped = 0 if updates and updates[-1]["updated"] else now.skipped + 1
        if now.skipped > 20:
            raise InputError(f"in {now.skipped} steps in a row nothing could be learnt, up to step {now.step}: a reward, "
                             "loss or gradient was no number, or no group's rewards differed; look at the last lines of "
                             f"{out / 'metrics.jsonl'}")

        # 3. What was seen is written down.
        if groups.answers:
            text = decode_answer(groups.answers[0], stages.tokenizer)
            logger.sample(now.step, f"{groups.prompts[0].messages[-1]['content']} -> {text}", score=groups.scores[0].item())
        seconds = dict(zip(("seconds_generation", "seconds_scoring", "seconds_learning"), np.diff(clock).tolist()))
        logger.record(now.step, tokens=now.tokens, seconds=now.seconds, lr=lr, n_updates=len(updates), **figures, **seconds)
        shown = {name: figures[name] for name in ("score", "gold", "kl", "entropy", "length", "spread") if name in figures}
        bar.set_postfix(refresh=False, **{name: f"{value:.2f}" for name, value in shown.items()})
        if now.step % 10 == 0 or now.step == config.steps - 1:
            say(f"step {now.step:5d}/{config.steps}   "
                + "   ".join(f"{name} {value:6.3f}" for name, value in shown.items()) + f"   {now.seconds:5.1f} s")
        now.step += 1
        bar.update()
    bar.close()
    if now.step < config.steps:
        logger.close()
        saved_too = ", which is saved" if now.step else ""
        say(f"stopped at step {now.step}{saved_too}; go on with the same command and --resume auto")
        sys.exit(128 + (stop.signal or 15))  # as the shell would call it; another process may have got the signal

    def finish():
        save_checkpoint(out / "best.pt", {**facts, "step": now.step, "model": policy.state_dict()})
        say("held-out prompts")
        summary = {**reference_loss(policy, stages.tokenizer, config.data == TASKS), "steps": config.steps,
                   "tokens": now.tokens, "params": policy.n_params(), "seconds": now.seconds,
                   "tokens_per_second": now.tokens / now.seconds, "device": device.type, **before,
                   **held_out_figures(policy, stages, config.block_size, config.seed, "after", reward.of_texts)}
        logger.finish(summary)
        logger.close()
        say(f"the run is in {out}; ask the model something with: python3 part_6/chat.py --checkpoint {out / 'best.pt'}")
        say(json.dumps(summary, indent=2))

    from_main(process, finish)
    return logger.history


if __name__ == "__main__":
    run_script(main, Config, __doc__)
