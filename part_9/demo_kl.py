"""Lesson 9.4 - five ways to put a divergence into a loss: what do they measure, and what do they pull at?

In a language of 31 answers, each taken for one choice, everything is summed exactly: policies go away from the reference,
and of each estimator of KL(pi || ref) are shown its mean, its spread and its expected gradient; then each alone is minimised
on samples. What to see: k1 is right on average, and its gradient nothing but noise; k2 is a little wrong, and its gradient
right; k3's spread is small only near the reference, and its gradient that of KL(ref || pi); importance-weighted, k1 and k3
are right in both.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, band, figure_path, plt, save_figure
from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.kl import kl_estimates

FORMS = {"k1": ("k1", False, ORANGE, ":"), "k2": ("k2", False, GREEN, "-."), "k3": ("k3", False, PURPLE, "--"),
         "weighted k1": ("k1", True, SKY, (0, (5, 1, 1, 1))), "weighted k3": ("k3", True, BLUE, "-")}


@dataclass(frozen=True)
class Config:
    n_shift: int = option(25, "policies between the reference and the farthest one")
    farthest: float = option(3.0, "how far the logits of the farthest are from the reference's (standard deviation)")
    start: float = option(1.5, "the same of the policy that is brought back")
    steps: int = option(200, "steps of gradient descent on samples")
    batch_size: int = option(64, "answers of a step")
    lr: float = option(0.3, "learning rate, of plain gradient descent")
    n_seed: int = option(3, "runs with each estimator")
    seed: int = option(0, "of the policies; the runs' own count on from it")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_shift=5, steps=5, n_seed=2)

    def __post_init__(self):
        check_positive(self, "farthest", "start", "steps", "batch_size", "lr", "n_seed")
        if self.n_shift < 2:
            raise InputError(f"--n_shift must be at least 2, not {self.n_shift}")


def moved(reference, direction, shift):
    """A TablePolicy whose logits are the reference's plus `shift` times `direction`."""
    policy = TablePolicy(reference.language)
    with torch.no_grad():
        policy.logits.copy_(reference.logits + shift * direction)
    return policy.double()


def gradient(loss, policy):
    """The gradient of a loss by the policy's logits, flat."""
    return torch.autograd.grad(loss, policy.logits, retain_graph=True)[0].flatten()


def exact_figures(policy, ref):
    """KL(pi || ref), and of each of FORMS five figures: mean and spread of the estimate; of its expected gradient the part
    along that of KL(pi || ref), in that one's lengths, and the cosines with it and with that of KL(ref || pi).

    ref: (N,) logarithms of the reference's probabilities.
    """
    p = policy.probabilities()
    new, weights = p.log(), p.detach()
    kl = (p * (new - ref)).sum()
    forward, backward = gradient(kl, policy), gradient((ref.exp() * (ref - new)).sum(), policy)
    rows = []
    for estimator, weighted, *_ in FORMS.values():
        estimates = kl_estimates(new, ref, estimator, new.detach() if weighted else None)
        mean = weights @ estimates.detach()
        spread = (weights @ (estimates.detach() - mean) ** 2).sqrt()
        found = gradient(weights @ estimates, policy)
        cosines = [(found @ one / found.norm() / one.norm()).item() for one in (forward, backward)]
        if found.norm() < 1e-9 * forward.norm():
            cosines = [np.nan, np.nan]  # no direction
        rows.append([mean.item(), spread.item(), (found @ forward / (forward @ forward)).item(), *cosines])
    return kl.item(), rows


def descend(policy, ref, estimator, weighted, config, seed):
    """KL(pi || ref) before each step of descent on an estimator's mean over samples, and after the last: a list."""
    generator, course = torch.Generator().manual_seed(seed), []
    for _ in range(config.steps + 1):
        logs = policy.probabilities().log()
        course.append((logs.exp() * (logs - ref)).sum().item())
        rows = torch.multinomial(logs.detach().exp(), config.batch_size, replacement=True, generator=generator)
        estimates = kl_estimates(logs[rows], ref[rows], estimator, logs[rows].detach() if weighted else None)
        [slope] = torch.autograd.grad(estimates.mean(), policy.logits)
        with torch.no_grad():
            policy.logits -= config.lr * slope
    return course


def main(config):
    reference = TablePolicy(ToyLanguage(), config.seed)
    direction = torch.randn(reference.logits.shape, generator=torch.Generator().manual_seed(config.seed + 100))
    ref = moved(reference, direction, 0.0).probabilities().detach().log()
    shifts = np.geomspace(config.farthest / 60, config.farthest, config.n_shift)
    kls, figures = zip(*(exact_figures(moved(reference, direction, shift), ref) for shift in shifts))
    kls, figures = np.array(kls), np.array(figures)  # (n_shift,) and (n_shift, form, figure)

    fig, axes = plt.subplots(2, 2, figsize=(13, 9))
    (ax_mean, ax_spread), (ax_gradient, ax_course) = axes
    shown = [np.abs(kls - kl).argmin() for kl in (0.01, 0.1, 1.0)]
    print(f"{'':12s}   KL     mean   spread   gradient along   cosine with that of KL(pi || ref)   of KL(ref || pi)")
    for column, (name, (*how, color, line)) in enumerate(FORMS.items()):
        mean, spread, along, *_ = figures[:, column].T
        for i in shown:
            row = figures[i, column]
            print(f"{name:12s}{kls[i]:6.3f}{row[0]:9.3f}{row[1]:9.3f}{row[2]:13.3f}{row[3]:21.3f}{row[4]:31.3f}")
        if not how[1]:  # a weighted estimate of the policy's own samples is the same number
            ax_mean.plot(kls, mean / kls, color=color, linestyle=line, label=name, linewidth=5 if name == "k1" else 2)
            ax_spread.plot(kls, spread / kls, color=color, linestyle=line, label=name)
        ax_gradient.plot(kls, along, color=color, linestyle=line, label=name, linewidth=4 if name == "k2" else 2)
        courses = [descend(moved(reference, direction, config.start), ref, *how, config, config.seed + 1 + i)
                   for i in range(config.n_seed)]
        band(ax_course, range(config.steps + 1), courses, color=color, linestyle=line, label=name)
        print(f"{name:12s}all policies: mean / KL {(mean / kls).min():.2f} to {(mean / kls).max():.2f}, along "
              f"{along.min():.2f} to {along.max():.2f}; minimised: KL {courses[0][0]:.3f} -> "
              + ", ".join(f"{one[-1]:.3f}" for one in courses))
    for ax, ylabel, title in ((ax_mean, "mean / KL(pi || ref)", "mean"), (ax_spread, "spread / KL(pi || ref)", "spread"),
                              (ax_gradient, "its part along that of KL(pi || ref)", "expected gradient")):
        ax.set(xlabel="KL(pi || ref) (nats)", ylabel=ylabel, title=title, xscale="log")
        ax.legend()
    ax_mean.set(ylim=(0, None))
    ax_spread.set(yscale="log")
    ax_course.set(xlabel="steps of descent", ylabel="KL(pi || ref) (nats)", title="each minimised on samples",
                  ylim=(0, None))
    ax_course.legend()
    print(save_figure(
        fig, figure_path(__file__, "kl", config.quick), title="Estimators of a divergence, and their gradients",
        caption=f"A language of {len(ref)} answers, an answer one choice. Above: mean and spread (standard deviation) of "
                "each estimate over the exact divergence. Below left: the part of its expected gradient along the gradient "
                "of KL(pi || ref), in that one's lengths: 1 pulls fully, 0 not at all; k2 and both weighted forms are one "
                f"line. Below right: gradient descent on each alone, {config.batch_size} answers a step, mean and band from "
                f"lowest to highest of {config.n_seed} seeds.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
