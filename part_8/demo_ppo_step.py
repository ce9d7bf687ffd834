"""Lesson 8.4 - what does one PPO step do to the tokens of an answer?

Takes some steps as part_8/train_ppo.py does (at a constant learning rate, and without whitened rewards, so that they are in
units of the score), so that the policy has left the reference and the critic knows something. Then
one more, taken apart: a table, token by token, of what is known of an answer before anything is learnt from it, and of what
learning changed. For the clipping to be seen, this step has more epochs and a higher learning rate than the trainer's. What
to see: the reward model speaks at the last token only, yet advantages differ from token to token, as V changes where the
answer turns good or bad; probabilities move with the advantage, and beyond the clip range nothing pulls them further.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import pick_device, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, RED, SKY, figure_path, plt, save_figure
from part_4.optimizer import set_learning_rate
from part_8.experience import make_experience, rollout_figures
from part_8.policy import action_log_probs, build_actor_critic, distributions
from part_8.ppo_config import Config as PPOConfig
from part_8.ppo_loss import clipped_surrogate
from part_8.rewards import score_rollout
from part_8.rollout import collect
from part_8.stability import explained_variance
from part_8.stages import load_stages
from part_8.train_ppo import build_optimizers, learn

DEFAULTS = PPOConfig()
COLUMNS = ("log pi_old", "log pi_ref", "KL term", "reward", "V", "advantage", "return", "log pi_new", "ratio")
LINES = {"reference": BLACK, "old": BLUE, "new": ORANGE}


@dataclass(frozen=True)
class Config:
    sft: str = option(DEFAULTS.sft, "policy and reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(DEFAULTS.reward_model, "the reward, a checkpoint of part_7/train_reward_model.py")
    n_before: int = option(14, "steps before the one that is shown")
    batch_size: int = option(48, "answers a step")
    block_size: int = option(40, "most tokens of an answer")
    lr: float = option(6e-4, "the policy's learning rate in the step that is shown; before, that of the trainer")
    epochs: int = option(4, "times each answer is learnt from in the step that is shown; before, as often as in the trainer")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=PPOConfig.QUICK["sft"], reward_model=PPOConfig.QUICK["reward_model"], n_before=2,
                                 batch_size=8, block_size=12)

    def __post_init__(self):
        check_positive(self, "lr", "epochs", "batch_size", "block_size")
        if self.n_before < 0:
            raise InputError(f"--n_before must not be negative, but is {self.n_before}")

    def trainer(self):
        """The trainer's flags of the steps before; whitened rewards are left out, so that r_t is in units of the score."""
        return PPOConfig(sft=self.sft, reward_model=self.reward_model, batch_size=self.batch_size, seed=self.seed,
                         minibatch_size=-(-self.batch_size // 2), block_size=self.block_size,  # half of it, as there
                         whiten_rewards=False, n_held_out=0, n_tasks=0,
                         n_prompts=(self.n_before + 1) * self.batch_size)  # more than that are not asked


def answer_prompts(model, stages, config, step):
    """The Experience of a batch of prompts."""
    rng = np.random.default_rng([config.seed, step])
    chosen = [stages.prompts[i] for i in rng.choice(len(stages.prompts), config.batch_size, replace=False)]
    generator = torch.Generator(model.value.weight.device).manual_seed(int(rng.integers(2**63)))
    rollout = collect(model.policy, [one.ids for one in chosen], config.block_size, stages.stop_ids, generator=generator)
    scores = score_rollout(stages.reward_model, rollout, config.no_end_penalty)
    experience = make_experience(model, stages.reference, rollout, scores, config.beta, config.gamma, config.lam,
                                 config.whiten_rewards)
    return chosen, experience, rng


def token_table(row, experience, after, clip, beta):
    """The columns of COLUMNS of one answer, and whether its token's gradient is clipped now: a (T, 9) array, and (T,)."""
    mask, old = experience.rollout.mask[row], experience.log_probs
    _, clipped = clipped_surrogate(after, old, experience.advantages, clip)
    columns = (old, experience.ref_log_probs, -beta * (old - experience.ref_log_probs), experience.rewards,
               experience.values, experience.advantages, experience.returns, after, (after - old).exp())
    return np.stack([column[row][mask].cpu().numpy() for column in columns], 1), clipped[row][mask].cpu().numpy()


def draw(axes, tokens, table, clipped, clip):
    """The four panels of an answer, one above the other, over its tokens."""
    old, home, _, reward, value, advantage, _, new, ratio = table.T
    places = np.arange(len(tokens))
    for values, style, label in ((home, "s-", "reference"), (old, "o-", "old"), (new, "^-", "new")):
        axes[0].plot(places, values, style, color=LINES[label], linewidth=1.2, label=label)
    axes[1].bar(places, reward, 0.6, color=SKY, label="reward")
    axes[1].plot(places, value, color=BLACK, marker="o", label="V, before")
    axes[2].bar(places, advantage, 0.6, color=np.where(advantage > 0, GREEN, RED))
    axes[3].axhspan(1 - clip, 1 + clip, color="0.85", label="clip range")
    axes[3].scatter(places[~clipped], ratio[~clipped], s=50, color=BLUE, zorder=3, label="learns on")
    axes[3].scatter(places[clipped], ratio[clipped], s=80, color=RED, marker="X", zorder=3, label="clipped: no gradient")
    for ax in axes:
        ax.axhline(1 if ax is axes[3] else 0, color="0.5", linewidth=0.8, zorder=0)
    axes[3].set_xticks(places, tokens, rotation=90, parse_math=False)


def main(config):
    before = config.trainer()
    device = pick_device("auto")
    set_seed(config.seed)
    stages = load_stages(before, device)
    model = build_actor_critic(config.sft, before.critic, config.reward_model, device)
    optimizers = build_optimizers(model, before)
    for step in tqdm(range(config.n_before), unit="step", disable=None):
        set_learning_rate(optimizers[:1], 0.0 if step < config.n_before // 4 else before.lr)  # the critic alone, at first
        set_learning_rate(optimizers[1:], before.value_lr)
        _, experience, rng = answer_prompts(model, stages, before, step)
        learn(model, optimizers, experience, before, rng)

    chosen, experience, rng = answer_prompts(model, stages, before, config.n_before)
    set_learning_rate(optimizers[:1], config.lr)
    updates = learn(model, optimizers, experience, replace(before, epochs=config.epochs, kl_stop=0.0), rng)
    with torch.no_grad():
        after = action_log_probs(distributions(model(experience.rollout.tokens)[0]), experience.rollout.tokens)
    mask = experience.rollout.mask
    _, clipped = clipped_surrogate(after, experience.log_probs, experience.advantages, before.clip)
    figures, known = rollout_figures(experience), explained_variance(experience.values[mask], experience.returns[mask])
    print(f"after {config.n_before} steps of {config.batch_size} answers: KL {figures['kl']:.2f} nats an answer, "
          f"explained variance {known:.2f}, score {figures['score']:.2f}\nstep {config.n_before}: "
          f"{len(updates)} updates, lr {config.lr:g}; {clipped[mask].float().mean():.1%} of {int(mask.sum())} tokens are "
          "clipped now")
    order = experience.scores.argsort()
    rows = order[-1].item(), order[0].item()
    lengths = mask.sum(1)[list(rows)].tolist()
    fig, axes = plt.subplots(4, 2, figsize=(10.5, 10), sharex="col", sharey="row", height_ratios=(3, 3, 2, 3),
                             width_ratios=[length + 2 for length in lengths])
    for column, row, which in zip(axes.T, rows, ("highest", "lowest")):
        table, is_clipped = token_table(row, experience, after, before.clip, before.beta)
        tokens = [repr(stages.tokenizer.decode([id]))[1:-1] for id in experience.rollout.answers()[row]]
        print(f"\n{experience.text(row, chosen, stages.tokenizer)}\nscore {experience.scores[row]:.2f}, the {which} of the "
              f"batch\n{'token':14s}" + "".join(f"{name:>11s}" for name in COLUMNS) + "  clipped")
        for token, values, is_out in zip(tokens, np.round(table, 3) + 0.0, is_clipped):  # + 0.0: no minus before a zero
            print(f"'{token}'".ljust(14) + "".join(f"{value:11.3f}" for value in values) + "  yes" * bool(is_out))
        draw(column, tokens, table, is_clipped, before.clip)
        column[0].set_title(f"{which} score: {experience.scores[row]:.2f}", fontsize=14)
    for ax, label in zip(axes[:, 0], ("log-probability\n(nats)", "reward, value\n(units of score)", "advantage", "ratio")):
        ax.set_ylabel(label)
        if ax is not axes[2, 0]:
            ax.legend(loc="best", frameon=True)
    print(save_figure(
        fig, figure_path(__file__, "ppo_step", config.quick), title="One PPO step, token by token",
        caption=f"Two answers of one batch of {config.batch_size}, after {config.n_before} steps. Log-probabilities of the "
                f"reference, of the policy that sampled them (old), and after {len(updates)} updates at lr {config.lr:g} "
                "(new; more and higher than the trainer's, to show the clipping). Reward: KL penalty, at the last token the "
                "score too; rewards are not whitened. Advantages have mean 0 and spread 1 in the batch. Ratio: new over old "
                f"probability; crosses: beyond 1 +- {before.clip:g} in the direction that the advantage asks for.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
