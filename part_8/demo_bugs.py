"""Lesson 8.4 - what do the classic mistakes of this part look like?

The fine-tuned model answers at several temperatures, and log pi_old is taken as it should be and at temperature 1. Then an
untrained model, whose score is 1 where an answer ends and else 0, learns with and without the end token in the mask. What
to see: left and middle, ratios other than 1 and clipped tokens before anything has been learnt; right, a policy that is paid
for ending and goes on. Neither mistake raises an error.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, RED, figure_path, plt, save_figure
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.optimizer import set_learning_rate
from part_8.bugs import BUGS
from part_8.experience import make_experience
from part_8.policy import ActorCritic, action_log_probs, distributions
from part_8.ppo_config import Config as PPOConfig
from part_8.prompts import TASKS, load_prompts
from part_8.rollout import collect
from part_8.stages import load_fine_tuned
from part_8.train_ppo import build_optimizers, learn

TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.25, 1.5)
SHOWN = 0.7  # the one whose ratios are drawn
TEMPERATURE, END = BUGS
RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")


@dataclass(frozen=True)
class Config:
    sft: str = option(PPOConfig.sft, "the model that answers, a checkpoint of part_6/train_sft.py")
    n_answers: int = option(32, "its answers at each temperature")
    n_new: int = option(24, "most tokens of such an answer")
    steps: int = option(40, "steps in which the untrained model learns to end")
    batch_size: int = option(64, "answers a step")
    block_size: int = option(16, "most tokens of such an answer")
    vocab_size: int = option(128, "its tokens, of which the last one ends an answer")
    lr: float = option(3e-3, "learning rate")
    seed: int = option(1, "of weights, prompts, samples and minibatches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=PPOConfig.QUICK["sft"], n_answers=4, n_new=6, steps=3, batch_size=16)

    def __post_init__(self):
        check_positive(self, "n_answers", "n_new", "steps", "batch_size", "block_size", "lr")
        if self.vocab_size < 2:
            raise InputError(f"--vocab_size must be at least 2, not {self.vocab_size}: one token ends an answer")


def first_update(model, prompts, stop_ids, temperature, config):
    """Ratios of new and old probability of the sampled tokens, in order, and the figures of a first update that moves
    nothing, as the trainer would log them."""
    rollout = collect(model.policy, prompts, config.n_new, stop_ids, temperature,
                      generator=torch.Generator().manual_seed(config.seed))
    scores = torch.randn(len(prompts), generator=torch.Generator().manual_seed(config.seed))  # any will do
    experience = make_experience(model, model.policy, rollout, scores, 0.0, temperature=temperature)
    with torch.no_grad():
        new = action_log_probs(distributions(model(rollout.tokens)[0], temperature), rollout.tokens)
    trainer = replace(PPOConfig(critic="shared", epochs=1, temperature=temperature), minibatch_size=len(prompts))
    optimizers = build_optimizers(model, trainer)
    set_learning_rate(optimizers, 0.0)
    [update] = learn(model, optimizers, experience, trainer, np.random.default_rng(config.seed))
    return (new - experience.log_probs).exp()[rollout.mask].sort().values, update


def learn_to_end(config):
    """The share of answers that end, before each step of a policy that is paid for ending alone."""
    set_seed(config.seed)
    end, policy = config.vocab_size - 1, ModernGPT(ModernGPTConfig(config.vocab_size, 1 + config.block_size, 1, 2, 32))
    reference, model, shares = copy.deepcopy(policy).eval(), ActorCritic(policy), []
    trainer = PPOConfig(critic="shared", batch_size=config.batch_size, minibatch_size=config.batch_size, kl_stop=0.0)
    optimizers = build_optimizers(model, trainer)
    set_learning_rate(optimizers, config.lr)
    for step in tqdm(range(config.steps), unit="step", disable=None):
        rng = np.random.default_rng([config.seed, step])
        prompts = rng.integers(end, size=(config.batch_size, 1)).tolist()
        rollout = collect(policy, prompts, config.block_size, (end,),
                          generator=torch.Generator().manual_seed(int(rng.integers(2**63))))
        shares.append(rollout.ended.float().mean().item())
        rollout = rollout.select(rollout.mask.any(1))  # with the mistake, an answer of its end token alone has no token
        experience = make_experience(model, reference, rollout, rollout.ended.float(), 0.0, whiten_rewards=False)
        learn(model, optimizers, experience, trainer, rng)
    return shares


def main(config):
    policy, tokenizer, stop_ids = load_fine_tuned(config.sft)
    prompts = [one.ids for one in load_prompts(TASKS, "rl", config.n_answers, config.seed, ("story",), tokenizer)]
    model = ActorCritic(policy)
    updates, ended = [], []
    for wrong in (False, True):
        with TEMPERATURE.installed() if wrong else nullcontext():
            updates.append({t: first_update(model, prompts, stop_ids, t, config) for t in TEMPERATURES})
        with END.installed() if wrong else nullcontext():
            ended.append(learn_to_end(config))

    tail, clip = max(1, config.steps // 8), PPOConfig.clip
    shares = [np.mean(own[-tail:]) for own in ended]
    outside = [((own[SHOWN][0] - 1).abs() > clip).float().mean().item() for own in updates]
    print(TEMPERATURE.describe(*(
        f"sampled at {SHOWN}, before the first update {share:.1%} of the ratios are outside the clip range, "
        f"{own[SHOWN][1]['clip_fraction']:.1%} clipped, drift {own[SHOWN][1]['drift']:.4f}"
        for own, share in zip(updates, outside))))
    print(END.describe(*(f"{own[0]:.0%} of the answers end at first, {share:.0%} in the last {tail} of {config.steps} steps"
                         for own, share in zip(ended, shares))))
    fig, (ax_ratio, ax_clipped, ax_ended) = plt.subplots(1, 3, figsize=(13, 4.6))
    for own, share, style in zip(updates, ended, (RIGHT, WRONG)):
        ax_ratio.plot(np.linspace(0, 1, len(own[SHOWN][0])), own[SHOWN][0], **style)
        ax_clipped.plot(TEMPERATURES, [update["clip_fraction"] for _, update in own.values()], marker="o", **style)
        ax_ended.plot(share, **style)
    ax_ratio.axhspan(1 - clip, 1 + clip, color="0.85", zorder=0, label="clip range")
    ax_ratio.set(xlabel="tokens in the order of their ratio (share)", ylabel="ratio, new / old probability", ylim=(0, None),
                 title=f"before the first update, sampled at {SHOWN}")
    ax_clipped.set(xlabel="temperature of sampling", ylabel="share of tokens clipped", title="at the first update")
    ax_ended.set(xlabel="step", ylabel="share of answers that end", ylim=(0, 1.05), title=END.name)
    for ax in (ax_ratio, ax_clipped, ax_ended):
        ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="Two mistakes of Part 8 beside the right run",
        caption=f"Left and middle: {len(prompts)} answers of the fine-tuned model, log pi_old taken at the temperature of "
                f"sampling or at 1. Sampled at {SHOWN}, {outside[1]:.1%} of the tokens' ratios are outside the clip range "
                f"before anything is learnt. Right: an untrained model of {config.vocab_size} tokens, score 1 for an "
                f"answer that ends within {config.block_size} tokens, else 0. In the last {tail} steps {shares[0]:.0%} of "
                f"the answers end, and {shares[1]:.0%} where the end token is not in the mask.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
