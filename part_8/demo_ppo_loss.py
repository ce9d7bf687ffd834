"""Lesson 8.3 - what does clipping do, and does PPO find the best policy there is?

Draws the surrogate over the ratio, and by autograd where it has no gradient. Then PPO learns a language of 31 answers from
samples, with random scores and the KL penalty: all probabilities are known, the best policy's too. What to see: with many
epochs on one batch, the unclipped loss runs away from the best policy; at the usual few, PPO comes to it, unless the best
answer is one that the reference so seldom gives that it is hardly ever drawn.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, band, figure_path, plt, save_figure
from part_8.gae import generalised_advantages
from part_8.ppo_loss import clipped_surrogate, policy_loss, value_loss
from part_8.rewards import token_rewards
from part_8.toy_language import TablePolicy, ToyLanguage, optimum, total_variation

BETAS = {1.0: (BLUE, "-"), 0.5: (GREEN, "--"), 0.1: (RED, ":")}


@dataclass(frozen=True)
class Config:
    steps: int = option(75, "batches of answers in a run")
    batch_size: int = option(128, "answers of a batch")
    minibatch_size: int = option(64, "answers of an update")
    epochs: int = option(4, "passes over a batch")
    many_epochs: int = option(10, "passes over a batch where clipping is tried")
    lr: float = option(0.1, "highest learning rate; it falls to 0")
    clip: float = option(0.2, "eps, of policy and values")
    lam: float = option(0.95, "lambda of the advantages")
    world: int = option(0, "seed of the reference and the scores")
    n_seed: int = option(3, "runs of each kind")
    seed: int = option(1, "the first seed, of the samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=16, minibatch_size=8, many_epochs=6, n_seed=2)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "minibatch_size", "epochs", "many_epochs", "lr", "clip", "n_seed")
        if self.clip >= 1 or not 0 <= self.lam <= 1:
            raise InputError(f"--clip {self.clip} must be below 1, and --lam {self.lam} in [0, 1]")


def ppo(language, reference, scores, beta, config, seed, epochs, clipped=True):
    """PPO from the reference, a TablePolicy. scores: (N,), one a sequence. Returns the total variation from the optimum
    before each batch and at the end, the probabilities learnt (N,), and how often each sequence was drawn (N,)."""
    generator = torch.Generator().manual_seed(seed)
    policy = TablePolicy(language)
    policy.load_state_dict(reference.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), fused=True)
    bounds = (config.clip, None) if clipped else (1.0, math.inf)  # of the ratio: 0 to infinity bounds nothing
    with torch.no_grad():
        home, best = reference.probabilities(), optimum(reference.probabilities(), scores, beta)
        ref_log_probs = reference(torch.arange(len(home)))[0]
    distances, drawn = [], torch.zeros(len(home))
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        with torch.no_grad():
            probabilities = policy.probabilities()
            distances.append(total_variation(probabilities, best))
            rows = torch.multinomial(probabilities, config.batch_size, replacement=True, generator=generator)
            mask, (old, values) = language.mask[rows], policy(rows)
            rewards = token_rewards(scores[rows], old, ref_log_probs[rows], mask, beta)
            advantages, returns = generalised_advantages(rewards, values, mask, lam=config.lam)
            drawn += rows.bincount(minlength=len(home))
        for _ in range(epochs):
            for i in torch.randperm(config.batch_size, generator=generator).split(config.minibatch_size):
                new, new_values = policy(rows[i])
                loss = policy_loss(new, old[i], advantages[i], mask[i], *bounds)[0]
                loss = loss + value_loss(new_values, values[i], returns[i], mask[i], config.clip)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        probabilities = policy.probabilities()
    return [*distances, total_variation(probabilities, best)], probabilities, drawn


def draw_surrogate(ax, clip):
    """-loss over the ratio for both signs of the advantage, shaded where autograd finds a gradient of 0."""
    for advantage, color in ((1.0, BLUE), (-1.0, ORANGE)):
        ratio = torch.linspace(0.01, 2, 1000)
        new = ratio.log().requires_grad_()
        loss, _ = clipped_surrogate(new, torch.zeros(1000), torch.full((1000,), advantage), clip)
        [gradient] = torch.autograd.grad(loss.sum(), new)
        ax.plot(ratio, -loss.detach(), color=color, label=f"A = {advantage:+.0f}")
        ax.fill_between(ratio, 0, 2 * advantage, where=gradient == 0, color=color, alpha=0.25, linewidth=0,
                        label=f"gradient 0, A = {advantage:+.0f}")
    ax.axvline(1, color=BLACK, linewidth=1)
    ax.set(xlabel="ratio pi_new / pi_old", ylabel="surrogate (units of A)", title=f"the surrogate, eps = {clip}")
    ax.legend(loc="upper left", fontsize=10)


def main(config):
    language, reference = ToyLanguage(), TablePolicy(ToyLanguage(), config.world)
    scores = torch.randn(len(language.sequences), generator=torch.Generator().manual_seed(config.world + 100))
    home, seeds = reference.probabilities().detach(), range(config.seed, config.seed + config.n_seed)
    fig, axes = plt.subplot_mosaic([["surrogate"] * 2 + ["clip"] * 2, ["found"] * 2 + [0.5, 0.1]], figsize=(10.8, 7.8))
    draw_surrogate(axes["surrogate"], config.clip)
    print(f"total variation from the best policy of {len(scores)} answers, {config.steps} batches of {config.batch_size}"
          f"\n{'':12s}  before    after, seed {', '.join(map(str, seeds))}")

    def runs(ax, label, beta, *how, **line):
        """The runs of all seeds as a band; returns distances, probabilities and counts, an array with a row a seed each."""
        own = [np.array(part) for part in zip(*(ppo(language, reference, scores, beta, config, s, *how) for s in seeds))]
        band(ax, range(config.steps + 1), own[0], label=label, **line)
        print(f"{label:12s}  {own[0][0, 0]:.3f}     {', '.join(f'{x:.3f}' for x in own[0][:, -1])}")
        return own

    for clipped, color, line in ((True, BLUE, "-"), (False, PURPLE, "--")):
        runs(axes["clip"], "clipped" if clipped else "not clipped", 1.0, config.many_epochs,
             clipped, color=color, linestyle=line)
    for beta, (color, line) in BETAS.items():
        _, learnt, drawn = runs(axes["found"], f"beta {beta}", beta, config.epochs, color=color, linestyle=line)
        best = optimum(home, scores, beta)
        top = best.argmax()
        print(f"    the best policy's likeliest answer: probability {best[top]:.3f}, in the reference {home[top]:.4f}, "
              f"drawn {', '.join(f'{n:.0f}' for n in drawn[:, top])} times")
        if beta in axes:
            shown = torch.maximum(best, torch.tensor(learnt.mean(0))).argsort(descending=True)[:4]
            names = ["".join("ab."[token] for token in language.sequences[i]) for i in shown]  # . is the end token
            for i, (name, p, color) in enumerate((("reference", home, SKY), ("best policy", best, BLACK),
                                                  ("PPO, mean", learnt.mean(0), ORANGE))):
                axes[beta].bar(np.arange(4) + 0.27 * (i - 1), np.asarray(p)[shown], 0.27, color=color, label=name)
            axes[beta].set(xticks=range(4), xticklabels=names, ylim=(0, 1), xlabel="answer (. is its end)",
                           ylabel="probability", title=f"beta {beta}")
    axes[0.5].legend()
    for name, title, place in (("clip", f"{config.many_epochs} epochs on a batch, beta 1", "upper right"),
                               ("found", f"{config.epochs} epochs on a batch, clipped", "center right")):
        axes[name].set(xlabel="batches of answers", ylabel="total variation from the best", title=title, ylim=(0, None))
        axes[name].legend(loc=place)
    print(save_figure(
        fig, figure_path(__file__, "ppo_loss", config.quick), title="PPO's objective, where everything is known",
        caption="Above: the surrogate, shaded where its gradient is 0; and how far PPO is from the best policy with "
                f"{config.many_epochs} epochs on each batch, clipped and not. Below: {config.epochs} epochs, three betas; "
                "and the answers that the best policy or PPO gives most often. Lines are means, and bands go from lowest to "
                f"highest, of {config.n_seed} seeds. At beta 0.1 the best policy's likeliest answer has probability "
                f"{home[top]:.4f} in the reference, and was drawn {drawn[:, top].max():.0f} times at most among the "
                f"{config.steps * config.batch_size:,} answers of a run.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
