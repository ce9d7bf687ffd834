"""Lesson 9.5 - one example through all parts: what does every lesson know of one answer's tokens?

Takes up a run of part_8/train_ppo.py in the middle (the oldest checkpoint that it keeps holds policy and critic), lets it
answer held-out prompts several times each, and makes one step of PPO and, from the same policy and the same answers, one of
GRPO, with the trainers' own functions. Nothing is saved. Then the ledger of one prompt: the question's tokens, and of each
answer a row a token, from its id to the ratio after the step. Without --prompt it is the one whose answers' scores differ
most. What to see: the score stands at the last token only; PPO's advantages differ from token to token, GRPO's do not; the
ratios follow the advantages, and where a token is clipped nothing pulls it further.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import textwrap
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, InputError, check_positive, check_text, command_line, option, run_script
from part_0.device import pick_device, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, RED, SKY, figure_path, plt, save_figure
from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files
from part_6.prompt_template import decode_answer, encode_prompt
from part_8.policy import build_actor_critic
from part_8.ppo_config import RUNS as PPO_RUNS
from part_8.ppo_config import Config as PPOConfig
from part_8.prompts import Prompt
from part_8.stages import load_stages
from part_9.group_advantage import as_groups
from part_9.grpo_config import Config as GRPOConfig
from part_9.token_ledger import COLUMNS, choice_columns, loss_mask, table_lines, take_steps, token_names

DEFAULTS = PPOConfig()


@dataclass(frozen=True)
class Config:
    run: str = option(str(PPO_RUNS / "ppo"), "a run of part_8/train_ppo.py, whose oldest checkpoint is policy and critic")
    sft: str = option(DEFAULTS.sft, "the reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(DEFAULTS.reward_model, "the score, a checkpoint of part_7/train_reward_model.py")
    prompt: str | None = option(None, "a question of one's own in place of a held-out one")
    group_size: int = option(4, "answers to each prompt")
    batch_size: int = option(128, "answers of the step, those to other held-out prompts with them")
    block_size: int = option(40, "most tokens of an answer")
    lr: float = option(6e-4, "learning rate of the step; the trainers' highest is 3e-4")
    epochs: int = option(4, "times each answer is learnt from; the trainers' is 2")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(run=str(PPO_RUNS / "quick"), sft=PPOConfig.QUICK["sft"], batch_size=16, block_size=12,
                                 reward_model=PPOConfig.QUICK["reward_model"])

    def __post_init__(self):
        check_positive(self, "batch_size", "block_size", "lr", "epochs")
        if self.prompt is not None:
            check_text(self, "prompt")
        self.trainers({})

    def trainers(self, flags):
        """The flags of both trainers, which are checked as theirs are; flags: a dict, what the run was started with."""
        n_asked = self.batch_size // max(self.group_size, 1)
        shared = dict(sft=self.sft, reward_model=self.reward_model, n_prompts=self.batch_size, batch_size=self.batch_size,
                      minibatch_size=min(self.batch_size, DEFAULTS.minibatch_size), block_size=self.block_size,
                      temperature=1.0, epochs=self.epochs, lr=self.lr, min_lr=0.0, n_tasks=0, seed=self.seed,
                      resume="no", quick=self.quick)
        grpo = GRPOConfig(**shared, group_size=self.group_size)
        return PPOConfig(**{**flags, **shared, "top_k": None, "top_p": None, "kl_stop": 0.0, "n_held_out": n_asked}), grpo


def load_run(config, device):
    """The policy and critic of a run's oldest checkpoint, both trainers' flags, and the checkpoint's path."""
    paths = checkpoint_files(config.run)
    if not paths:
        raise InputError(f"there is no checkpoint with a critic in {config.run}; make one with: python3 part_8/train_ppo.py")
    state = load_checkpoint(paths[-1])
    try:
        ppo, grpo = config.trainers(state["config"])
        model = build_actor_critic(config.sft, ppo.critic, config.reward_model, device)
        model.load_state_dict(state["model"])
    except (TypeError, KeyError, RuntimeError):  # what is missing, unknown, or of another shape
        raise InputError(f"{paths[-1]} is no checkpoint of part_8/train_ppo.py that began as {config.sft}") from None
    return model, ppo, grpo, paths[-1]


def draw(axes, names, columns, clip):
    """The five panels of an answer, one above the other, over its tokens; left of them the prompt's end, which is nobody's
    choice."""
    values = {name: column.cpu().numpy() for name, column in columns.items()}
    places = np.arange(len(names))
    axes[0].plot(places, values["log ref"], "s--", color=BLACK, label="reference")
    axes[0].plot(places, values["log pi"], "o-", color=BLUE, label="policy")
    axes[1].bar(places - 0.2, values["k1"], 0.4, color=BLUE, label="k1, PPO")
    axes[1].bar(places + 0.2, values["k3"], 0.4, color=ORANGE, label="k3, GRPO")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[2].bar(places, values["r white"], 0.6, color=GREEN, label="reward less KL")
    axes[2].plot(places, values["V"], "D-", color=BLACK, label="value V")
    axes[3].bar(places - 0.2, values["A ppo"], 0.4, color=BLUE, label="PPO")
    axes[3].bar(places + 0.2, values["A grpo"], 0.4, color=ORANGE, label="GRPO")
    axes[4].axhspan(1 - clip, 1 + clip, color="0.85", label="clip range")
    for name, flag, offset, mark, color in (("rho ppo", "clip ppo", -0.15, "o", BLUE),
                                            ("rho grpo", "clip grpo", 0.15, "^", ORANGE)):
        axes[4].scatter(places + offset, values[name], s=55, marker=mark, color=color, zorder=3, label=name[4:].upper())
        cut = values[flag]
        axes[4].scatter((places + offset)[cut], values[name][cut], s=190, marker="x", color=RED, linewidth=2.5, zorder=4,
                        label="clipped" if name == "rho grpo" else None)
    for ax in axes:
        ax.axhline(1 if ax is axes[4] else 0, color="0.5", linewidth=0.8, zorder=0)
        ax.axvspan(-1.6, -0.6, color=SKY, alpha=0.25, linewidth=0)
    axes[0].text(-1.1, 0.5, "loss mask 0", transform=axes[0].get_xaxis_transform(), rotation=90, ha="center", va="center")
    axes[4].set_xticks([-1.1, *places], ["prompt", *names], rotation=90, parse_math=False)
    axes[4].margins(y=0.12)
    axes[4].set_xlim(-1.6, len(names) - 0.4)


def main(config):
    device = pick_device("auto")
    set_seed(config.seed)
    model, ppo, grpo, path = load_run(config, device)
    stages = load_stages(ppo, device)
    tokenizer, prompts = stages.tokenizer, stages.held_out
    if config.prompt is not None:
        messages = [{"role": "user", "content": config.prompt}]
        prompts = [Prompt(messages, encode_prompt(messages, tokenizer), None), *prompts[1:]]
        if (sizes := model.policy.config).positions in ("learned", "sinusoidal") and (
                longest := len(prompts[0].ids) + config.block_size) > sizes.block_size:
            raise InputError(f"--prompt and an answer of up to {longest} tokens do not fit into the model's "
                             f"{sizes.block_size} positions")
    experience, group, after = take_steps(model, stages, prompts, ppo, grpo)
    columns = choice_columns(experience, group, *after, ppo, grpo)
    G, mask, scores = config.group_size, experience.rollout.mask, experience.scores
    shown = 0 if config.prompt is not None else as_groups(scores, G).std(1).argmax().item()

    cut = [columns[name][mask].float().mean().item() for name in ("clip ppo", "clip grpo")]
    print(f"policy and critic: {path}\nthe step: {config.epochs} epochs at lr {config.lr:g} of {len(scores)} answers to "
          f"{len(prompts)} prompts; clipped now: {cut[0]:.1%} of {mask.sum()} tokens by PPO, {cut[1]:.1%} by GRPO\n")
    for name, (lesson, meaning) in COLUMNS.items():
        print(f"{name:>8s}  {lesson}  {meaning}")
    prompt, answers = prompts[shown], experience.rollout.answers()
    learnt = loss_mask(prompt.ids, answers[shown * G])[:len(prompt.ids)]
    print("", *table_lines(prompt.ids, token_names(prompt.ids, tokenizer), learnt, {}), sep="\n")
    rows = range(shown * G, shown * G + G)
    for row in rows:
        own = {name: column[row][mask[row]] for name, column in columns.items()}
        print(f"\nanswer {row - rows[0] + 1} of {G}: {decode_answer(answers[row], tokenizer)!r}, score {scores[row]:.3f}")
        print(*table_lines(answers[row], token_names(answers[row], tokenizer),
                           loss_mask(prompt.ids, answers[row])[len(prompt.ids):], own), sep="\n")

    ends = [rows[i] for i in (scores[list(rows)].argmax().item(), scores[list(rows)].argmin().item())]
    fig, axes = plt.subplots(5, 2, figsize=(9, 11), sharex="col", sharey="row", height_ratios=(3, 2, 3, 3, 3),
                             width_ratios=[len(answers[row]) + 2 for row in ends])
    for column, row, which in zip(axes.T, ends, ("highest", "lowest")):
        draw(column, token_names(answers[row], tokenizer),
             {name: values[row][mask[row]] for name, values in columns.items()}, ppo.clip)
        column[0].set_title(f"{which} score: {scores[row]:.2f}", fontsize=14)
    for ax, label in zip(axes[:, 0], ("log-probability\n(nats)", "KL (nats,\nlog above 1)", "reward, value\n(whitened)",
                                      "advantage", "ratio after\nthe step")):
        ax.set_ylabel(label)
        ax.legend(loc="best", frameon=True, fontsize=10)
    print(save_figure(
        fig, figure_path(__file__, "token_ledger", config.quick),
        title=f"Token by token: {textwrap.shorten(prompt.messages[-1]['content'], 60)}",
        caption=f"Two of {G} answers to one prompt, whose own tokens (shaded) have no loss. From above: log-probabilities "
                "of the policy that answered, one of PPO's, and of the fine-tuned model; the KL as PPO (k1) and GRPO (k3) "
                "estimate it; PPO's whitened reward, the score at the last token and the price of the KL at each, with the "
                "critic's value; both advantages, GRPO's the same for all tokens; the probability after one step of each "
                f"over that before. Crosses: beyond 1 +- {ppo.clip:g} in the direction that the advantage asks for, so "
                f"without gradient; of all {mask.sum()} tokens {cut[0]:.1%} for PPO and {cut[1]:.1%} for GRPO, after "
                f"{config.epochs} epochs at lr {config.lr:g}, more than the trainers take.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
