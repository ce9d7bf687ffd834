"""Lesson 8.2 - who is paid for what, and what goes wrong if the text is scored instead of the ids?

Lets a policy drift from its reference in a few steps of PPO and shows how one of its answers is paid, token by token. Then
samples answers at several temperatures, decodes them and encodes the text again. What to see: where the KL penalty is paid;
how often other ids come out, and how far their score is from that of the ids that were sampled. Last, answers are cut off:
what is one without an end token worth to the reward model, and what with the penalty?
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, ORANGE, PURPLE, figure_path, plt, save_figure
from part_4.optimizer import set_learning_rate
from part_6.prompt_template import decode_answer
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_model import load_reward_model
from part_8.experience import make_experience, rollout_figures
from part_8.policy import build_actor_critic
from part_8.ppo_config import Config as TrainConfig
from part_8.prompts import TASKS, load_prompts
from part_8.rewards import score_rollout
from part_8.rollout import as_rollout, collect
from part_8.stages import load_fine_tuned
from part_8.train_ppo import build_optimizers, learn


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "a checkpoint of part_7/train_reward_model.py")
    steps: int = option(8, "steps of PPO, in which the policy drifts")
    batch_size: int = option(64, "answers a step")
    lr: float = option(1e-3, "learning rate of policy and value head")
    beta: float = option(0.1, "weight of the KL penalty, in reward a nat")
    no_end_penalty: float = option(1.0, "taken off the score of an answer without end token")
    n_answers: int = option(300, "answers at each temperature")
    block_size: int = option(40, "most tokens of an answer")
    seed: int = option(1, "seed of prompts and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"),
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), steps=1, batch_size=8, n_answers=12,
                                 block_size=12)

    TEMPERATURES: ClassVar[tuple] = (1.0, 1.5, 2.0)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "lr", "n_answers", "block_size")
        if min(self.beta, self.no_end_penalty) < 0:
            raise InputError(f"--beta {self.beta} and --no_end_penalty {self.no_end_penalty} must not be negative")


def drift(config, reference, reward_model, tokenizer, stop_ids):
    """A policy after some steps of PPO. Returns the Experience of its next answers, which is not learnt from."""
    train = TrainConfig(batch_size=config.batch_size, minibatch_size=min(32, config.batch_size), lr=config.lr, kl_stop=0,
                        critic="shared")
    model = build_actor_critic(config.sft, train.critic)
    optimizers, rng = build_optimizers(model, train), np.random.default_rng(config.seed)
    set_learning_rate(optimizers, config.lr)
    prompts = load_prompts(TASKS, "rl", (config.steps + 1) * config.batch_size, config.seed, ("story",), tokenizer)
    generator = torch.Generator().manual_seed(config.seed)
    for step in tqdm(range(config.steps + 1), unit="step", disable=None):
        part = prompts[step * config.batch_size:(step + 1) * config.batch_size]
        rollout = collect(model.policy, [one.ids for one in part], config.block_size, stop_ids, generator=generator)
        scores = score_rollout(reward_model, rollout, config.no_end_penalty)
        experience = make_experience(model, reference, rollout, scores, config.beta)
        if step < config.steps:
            learn(model, optimizers, experience, train, rng)
    return experience


def encode_again(ids, tokenizer):
    """The ids of an answer's text, encoded as any text is, with the special token that ended it."""
    special = [id for id in ids[-1:] if id in tokenizer.special_ids.values()]
    return tokenizer.encode(" " + decode_answer(ids, tokenizer)) + special


def show(ids, tokenizer):
    """Answer's tokens, for people."""
    return "|".join(tokenizer.decode([id]) for id in ids)


def main(config):
    reference, tokenizer, stop_ids = load_fine_tuned(config.sft)
    reference.requires_grad_(False)
    reward_model = load_reward_model(config.reward_model)[0]
    fig, (ax_paid, ax_again, ax_cut) = plt.subplots(1, 3, figsize=(14, 5), width_ratios=(5, 3, 3))

    # 1. An answer of a policy that has drifted.
    experience = drift(config, reference, reward_model, tokenizer, stop_ids)
    mask, answers, figures = experience.rollout.mask, experience.rollout.answers(), rollout_figures(experience)
    sums = experience.rewards.sum(1)  # score - beta * log ratio
    penalties = experience.scores - sums
    row = (penalties - penalties.mean()).abs().argmin().item()
    rewards, words = experience.rewards[row, mask[row]], [tokenizer.decode([id]).strip() for id in answers[row]]
    rewards[-1] -= experience.scores[row]
    print(f"{len(sums)} answers after {config.steps} steps: score {figures['score']:.3f}, KL {figures['kl']:.3f} nats, "
          f"penalty {penalties.mean():.3f}, reward {sums.mean():.3f}\nthe answer with the most usual penalty: score "
          f"{experience.scores[row]:.3f}, penalty {penalties[row]:.3f}, reward {sums[row]:.3f}")
    print("".join(f"{word:>9s}" for word in words) + "\n" + "".join(f"{x:9.3f}" for x in rewards))
    ax_paid.bar(range(len(words)), rewards.tolist(), color=BLUE, label=f"-{config.beta} x log ratio")
    ax_paid.bar(len(words) - 1, experience.scores[row].item(), bottom=max(0, rewards[-1].item()), color=ORANGE, hatch="//",
                label="score")
    ax_paid.axhline(0, color="black", linewidth=1)
    ax_paid.set_xticks(range(len(words)), words, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax_paid.set(ylabel="reward", title=f"{experience.scores[row]:.2f} - {penalties[row]:.2f} = {sums[row]:.2f}")
    ax_paid.legend(loc="upper left")

    # 2. The same text, encoded anew.
    prompts = load_prompts(TASKS, "test", config.n_answers, config.seed, ("story",), tokenizer)
    generator, labels = torch.Generator().manual_seed(config.seed), []
    for place, temperature in enumerate(config.TEMPERATURES):
        rollout = collect(reference, [one.ids for one in prompts], config.block_size, stop_ids, temperature,
                          generator=generator)
        again, own_scores = [encode_again(ids, tokenizer) for ids in rollout.answers()], score_rollout(reward_model, rollout)
        changed = [i for i, (old, new) in enumerate(zip(rollout.answers(), again)) if old != new]
        labels.append(f"{temperature}\n{len(changed)} of {len(again)}")
        print(f"\ntemperature {temperature}: {len(changed)} of {len(again)} answers have other ids when encoded again "
              f"({len(changed) / len(again):.1%})")
        if place == 0:
            plain, whole = rollout, own_scores
        if not changed:
            continue
        other = as_rollout([prompts[i].ids for i in changed], [again[i] for i in changed], stop_ids[0])
        moved = score_rollout(reward_model, other) - own_scores[changed]
        print(f"their score moves by {moved.abs().mean():.3f} on average and {moved.abs().max():.3f} at most; mean "
              f"{moved.mean():+.3f}; the scores have spread {own_scores.std():.3f}")
        for i, x in sorted(zip(changed, moved.tolist()), key=lambda pair: -abs(pair[1]))[:3]:
            print(f"  {show(rollout.answers()[i], tokenizer)}\n  {show(again[i], tokenizer)}   {x:+.3f}")
        ax_again.plot(place + np.linspace(-0.25, 0.25, len(moved)), moved.tolist(), "o", color=PURPLE, markersize=5)
    ax_again.axhline(0, color="black", linewidth=1)
    ax_again.set_xticks(range(len(labels)), labels)
    ax_again.set(xlim=(-0.5, len(labels) - 0.5), xlabel="temperature; answers with other ids", ylabel="change of score",
                 title="text encoded again")

    # 3. Answers that are cut off; each point is of those that were longer.
    answers, at, rows = plain.answers(), [], []
    print(f"\n{'cut after':>10s}{'answers':>9s}{'whole':>9s}{'cut':>9s}{'and penalty':>13s}")
    for n in range(1, config.block_size, 3):
        long = [i for i, ids in enumerate(answers) if len(ids) > n]
        if len(long) < len(answers) / 10:
            break
        cut = as_rollout([prompts[i].ids for i in long], [answers[i][:n] for i in long], stop_ids[0])
        at.append(n)
        mean = score_rollout(reward_model, cut).mean().item()
        rows.append([whole[long].mean().item(), mean, mean - config.no_end_penalty])
        print(f"{n:10d}{len(long):9d}" + "".join(f"{x:{width}.3f}" for x, width in zip(rows[-1], (9, 9, 13))))
    for line, color, style, label in zip(zip(*rows), (BLACK, ORANGE, BLUE), ("-.", "--", "-"),
                                         ("whole", "cut off", f"and {config.no_end_penalty:g} off")):
        ax_cut.plot(at, line, color=color, linestyle=style, marker="o", markersize=4, label=label)
    ax_cut.set(xlabel="tokens kept", ylabel="mean score", title="answers without their end")
    ax_cut.legend()

    print(save_figure(
        fig, figure_path(__file__, "rewards", config.quick), title="Who is paid for what",
        caption=f"Left: of {len(sums)} answers after {config.steps} steps of PPO the one whose KL penalty is nearest to the "
                f"mean: each token pays {config.beta:g} times its log ratio to the reference, or is paid where the "
                "reference would have said it rather; the last one gets the score. Middle: the reference's answers at "
                f"three temperatures, decoded and encoded again: how many of {config.n_answers} have other ids then, and by "
                f"how much their score changes. Right: answers at temperature {config.TEMPERATURES[0]:g} cut off after so "
                "many tokens, those that were longer: the score, the same with the penalty, and that of the whole answers.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
