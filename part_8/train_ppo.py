"""Lesson 8.4 - PPO: the fine-tuned model answers, the reward model judges, and what went better than expected is said more.

    python3 part_8/train_ppo.py                                        stories that please the annotator, in minutes
    python3 part_8/train_ppo.py --beta 0 --steps 120 --out part_8/runs/free        without the KL penalty
    python3 part_8/train_ppo.py --kl_target 3                          beta adapts to a divergence of 3 nats an answer
    python3 part_8/train_ppo.py --resume auto                          go on where it was stopped or killed

A step: sample prompts -> answer them with a cache -> score the answers -> per-token KL penalty -> whitened rewards ->
advantages and returns -> some epochs of shuffled minibatches. The policy starts as part_6/train_sft.py's model, which stays
as the reference, too; the reward model is part_7/train_reward_model.py's. best.pt is the policy alone, as it is at the end.

metrics.jsonl has a line a step: score; gold, the utility that the reward model was made to guess, for looking at only; kl of
an answer and kl_per_token; entropy; drift, half the squared log ratio of new and old; clip_fraction; explained_variance;
value_error; length; ended; both gradients' norms; seconds of generation, scoring and learning; beta, n_new (the most tokens
of an answer) and lr of the step; n_updates, and updated, the share of them that changed the weights.

summary.json has the held-out figures before and after. Its val_loss is that of validation tasks' reference answers: it shows
what is forgotten. Left out: several processes (part_9/train_grpo.py has them) and the balancing of experts.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import InputError, run_script
from part_0.device import autocast, grad_scaler, pick_device, pick_precision, set_seed, synchronize
from part_0.onednn import onednn_products
from part_2.checkpoint import save_checkpoint
from part_2.optimization import parameter_groups
from part_2.run_directory import cut_records, start_run
from part_4.checkpoint import StopRequest, save_numbered
from part_4.grad_accumulation import clipped_update
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import set_learning_rate
from part_4.run_logger import RunLogger
from part_4.run_state import Progress, find_checkpoint, restore, snapshot
from part_6.curriculum import draw_batch
from part_8.experience import gold_figures, make_experience, rollout_figures
from part_8.gae import masked_mean
from part_8.policy import action_log_probs, build_actor_critic, distributions, entropies
from part_8.policy_scores import reference_loss
from part_8.ppo_config import MAY_CHANGE, Config
from part_8.ppo_loss import policy_loss, value_loss
from part_8.prompts import TASKS
from part_8.rewards import score_rollout
from part_8.rollout import collect
from part_8.stability import RunningSpread, adapted_beta, adapted_length, approximate_kl, explained_variance
from part_8.stages import held_out_figures, load_stages


def main(config):
    """Train. Returns the history: the dicts of metrics.jsonl in order, the summary last."""
    device = pick_device(config.device)
    pick_precision(config.precision, device)
    state, path, damages = find_checkpoint(config, MAY_CHANGE)
    for damage in damages:
        tqdm.write(f"{damage}; the one before it is used")
    stages = load_stages(config, device)
    model = build_actor_critic(config.sft, config.critic, config.reward_model, device)
    if state and state["data_hash"] != stages.data_hash:
        raise InputError(f"{config.out} was started with other prompts, another --sft or another --reward_model than there "
                         "are now: start anew in another --out")
    with StopRequest() as stop:  # from here on a signal ends the run with a checkpoint
        return train(config, model, stages, state, path, stop)


def build_optimizers(model, config):
    """AdamW for the policy, and another one for all that only the values depend on."""
    return [torch.optim.AdamW(parameter_groups(learner, config.weight_decay), betas=(0.9, config.beta2), fused=True)
            for learner in model.learners()]


def learn(model, optimizers, experience, config, rng):
    """Some epochs of shuffled minibatches. model: ActorCritic; optimizers: of `build_optimizers`; rng: a NumPy generator.

    Returns the figures of each update, a list of dicts; updated: whether the weights changed, which they do not where loss
    or gradient is no number.
    """
    device, updates = experience.scores.device, []
    dtype = pick_precision(config.precision, device)
    no_scaler = grad_scaler(device, dtype)  # as there is no fp16 here
    for _ in range(config.epochs):
        drifts = []
        for rows in torch.from_numpy(rng.permutation(len(experience.scores))).split(config.minibatch_size):
            part = experience.select(rows.to(device))
            tokens, mask = part.rollout.tokens, part.rollout.mask
            with autocast(device, dtype), onednn_products(model):
                logits, values = model(tokens)
            log_probs = distributions(logits, config.temperature, part.kept)
            new = action_log_probs(log_probs, tokens)
            surrogate, clip_fraction = policy_loss(new, part.log_probs, part.advantages, mask, config.clip)
            entropy = masked_mean(entropies(log_probs), mask)
            value_error = value_loss(values[:, :-1], part.values, part.returns, mask, config.value_clip or None)
            loss = (surrogate - config.entropy_coef * entropy
                    + (config.value_coef if model.critic is None else 1.0) * value_error)
            loss.backward()
            (norm, fine), (value_norm, value_fine) = (
                clipped_update(learner, [optimizer], no_scaler, config.grad_clip, loss.detach())
                for learner, optimizer in zip(model.learners(), optimizers))
            drifts.append(masked_mean(approximate_kl(new.detach(), part.log_probs), mask).item())
            updates.append({"loss": surrogate.item(), "value_error": value_error.item(), "drift": drifts[-1],
                            "clip_fraction": clip_fraction.item(), "grad_norm": norm, "value_grad_norm": value_norm,
                            "updated": fine and value_fine})
        if 0 < config.kl_stop < sum(drifts) / len(drifts):  # the answers are no longer such as the policy would give
            break
    return updates


def train(config, model, stages, resumed, path, stop):
    """The run. model: an ActorCritic; stages: Stages; resumed, path: the checkpoint to go on from, or None; stop: a
    `StopRequest`."""
    out, say, now, spread = Path(config.out), tqdm.write, Progress(), RunningSpread()
    device = model.value.weight.device
    dtype, no_scaler = pick_precision(config.precision, device), grad_scaler(device, torch.float32)
    beta, n_new, prompts = config.beta, config.block_size, stages.prompts  # the first two may adapt
    set_seed(config.seed)
    optimizers = build_optimizers(model, config)
    if resumed:
        now = restore(resumed, model, optimizers, no_scaler, rank=0)
        beta, n_new, before = (resumed[name] for name in ("beta", "n_new", "before"))
        spread = RunningSpread(**resumed["spread"])
        say(f"going on from {path}")
        cut_records(out, now.step)
    else:
        say("what the fine-tuned model does")
        before = held_out_figures(stages.reference, stages, n_new, config.seed, "before")
        if previous := start_run(config):
            say(f"the run that was in {out} is now in {previous}")
    logger = RunLogger(out, config, now.step)
    facts = dict(config=dataclasses.asdict(config), tokenizer=stages.tokenizer.state(), data_hash=stages.data_hash,
                 before=before)
    lengths = [len(prompt.ids) for prompt in prompts]

    bar = tqdm(total=config.steps, initial=now.step, unit="step", disable=None)
    saved = now.step
    while True:
        ending = now.step == config.steps or stop.signal is not None
        if now.step > saved and (ending or now.step % config.save_every == 0):
            save_numbered(out, snapshot(now, model, optimizers, no_scaler, beta=beta, n_new=n_new,
                                        spread=dataclasses.asdict(spread), **facts), config.keep_last)
            saved = now.step
        if ending:
            break

        # 1. The policy answers a batch of prompts.
        clock = [time.perf_counter()]
        rng = np.random.default_rng([config.seed % 2**64, now.step])  # of the step alone: a resumed run draws the same
        chosen = [prompts[i] for i in draw_batch("uniform", lengths, lengths, config.seed, now.step, config.steps,
                                                 config.batch_size)]
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        rollout = collect(model.policy, [one.ids for one in chosen], n_new, stages.stop_ids, config.temperature,
                          config.top_k, config.top_p, generator)
        synchronize(device)
        clock.append(time.perf_counter())

        # 2. The reward model judges them. An answer whose score is no number is left out.
        scores = score_rollout(stages.reward_model, rollout, config.no_end_penalty, dtype)
        usable = scores.isfinite()
        if not usable.all():
            say(f"step {now.step}: {int((~usable).sum())} of {len(usable)} scores are no numbers; these answers are left "
                "out")
            rollout, scores = rollout.select(usable), scores[usable]
            chosen = [one for one, is_usable in zip(chosen, usable.tolist()) if is_usable]
        figures, updates = {}, []
        if chosen:
            if config.scale_scores:
                spread.add(scores)  # else its std stays 1
            experience = make_experience(
                model, stages.reference, rollout, scores / spread.std, beta, config.gamma, config.lam,
                config.whiten_rewards, config.whiten_advantages, config.temperature, config.top_k, config.top_p, dtype)
            mask = rollout.mask
            figures = {**rollout_figures(experience), "score": scores.mean().item(),
                       "score_std": scores.std(correction=0).item(), "beta": beta, "n_new": n_new}
            if not math.isnan(explained := explained_variance(experience.values[mask], experience.returns[mask])):
                figures["explained_variance"] = explained
            if (scores == scores[0]).all():
                say(f"step {now.step}: all answers have the score {figures['score']:.3f}: there is nothing to prefer")
        synchronize(device)
        clock.append(time.perf_counter())

        # 3. Policy and critic learn from them; in the first steps the critic alone.
        share = SCHEDULES[config.schedule](now.step, config.steps, 1.0, config.min_lr / config.lr, config.warmup_steps)
        lr = 0.0 if now.step < config.value_warmup else share * config.lr
        set_learning_rate(optimizers[:1], lr)
        set_learning_rate(optimizers[1:], share * config.value_lr)
        if chosen:
            updates = learn(model, optimizers, experience, config, rng)
        synchronize(device)
        clock.append(time.perf_counter())
        now.seconds += clock[-1] - clock[0]
        now.skipped = 0 if updates and updates[-1]["updated"] else now.skipped + 1
        if now.skipped > 20:
            raise InputError(f"score, loss or gradient was no number in {now.skipped} steps in a row, at step {now.step}: "
                             f"look at {config.reward_model}, or try a smaller --lr than {config.lr}")

        # 4. What was seen is written down, and what adapts is adapted.
        if chosen:
            figures |= {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
            figures |= gold_figures(experience, chosen, stages.tokenizer)
            now.tokens += int(rollout.mask.sum())
            moving = now.step >= config.value_warmup  # before, the divergence is 0 whatever beta is
            if config.kl_target and moving:
                beta = adapted_beta(beta, figures["kl"], config.kl_target, config.kl_horizon, len(chosen))
            if config.kl_length and moving:
                n_new = adapted_length(n_new, figures["kl"], config.kl_length, min(4, config.block_size),
                                       config.block_size)
            logger.sample(now.step, experience.text(0, chosen, stages.tokenizer), score=scores[0].item())
        seconds = dict(zip(("seconds_generation", "seconds_scoring", "seconds_learning"), np.diff(clock).tolist()))
        logger.record(now.step, tokens=now.tokens, seconds=now.seconds, lr=lr, n_updates=len(updates), **figures, **seconds)
        shown = {name: figures[name] for name in ("score", "gold", "kl", "entropy", "length") if name in figures}
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
        sys.exit(128 + stop.signal)  # as the shell would call it

    # What chat.py and Part 9 will load: the policy alone.
    save_checkpoint(out / "best.pt", {**facts, "step": now.step, "model": model.policy.state_dict(),
                                      "model_config": dataclasses.asdict(model.policy.config)})
    say("held-out prompts")
    summary = {**reference_loss(model.policy, stages.tokenizer, config.data == TASKS), "steps": config.steps,
               "tokens": now.tokens, "params": model.policy.n_params(), "seconds": now.seconds,
               "tokens_per_second": now.tokens / now.seconds, "device": device.type, **before,
               **held_out_figures(model.policy, stages, config.block_size, config.seed, "after")}
    logger.finish(summary)
    logger.close()
    say(f"the run is in {out}; ask the model something with: python3 part_6/chat.py --checkpoint {out / 'best.pt'}")
    say(json.dumps(summary, indent=2))
    return logger.history


if __name__ == "__main__":
    run_script(main, Config, __doc__)
