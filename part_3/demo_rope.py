"""Lesson 3.2 - which positions can be read beyond the trained length?

Trains the same model with learned, sinusoidal and rotary positions on short windows, from three seeds; then lets each read
windows four times as long, and measures the loss at every position. The rotary model is also read with its positions divided
by four (interpolation) and with a larger base (NTK-aware), without training it again. What to see: plain RoPE reads a
little further than trained and then breaks down; divided positions serve everywhere alike, but badly as long as the model
is not trained on them; the larger base leaves the trained range alone and holds longest. The learned table has little
to lose: it is behind already within the trained length.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, band, figure_path, plt, save_figure
from part_2.dataset import windows_at
from part_2.loss import token_losses
from part_3.modern_gpt import reread
from part_3.rope import frequencies, ntk_base
from part_3.side_by_side import ComparisonConfig, compare

FACTOR = 4  # how many times longer than trained the models are read
STYLES = {"learned": (ORANGE, "-"), "sinusoidal": (PURPLE, "-."), "rope": (BLUE, "-"),
          f"rope, positions / {FACTOR}": (GREEN, "--"), "rope, NTK base": (SKY, ":")}


@dataclass(frozen=True)
class Config(ComparisonConfig):
    n_windows: int = option(128, "validation windows to read")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2, n_windows=8)

    def __post_init__(self):
        super().__post_init__()
        if self.n_windows < 1:
            raise InputError(f"--n_windows must be at least 1, not {self.n_windows}")


@torch.no_grad()
def loss_by_position(model, tokens, length, n_windows):
    """The mean loss at each position of windows of `length` tokens, evenly spread over the text: (length,)."""
    device = model.head.weight.device
    starts = torch.linspace(0, len(tokens) - length - 1, n_windows).long()
    losses = []
    for part in starts.split(32):
        inputs, targets = (side.to(device) for side in windows_at(tokens, part, length))
        losses.append(token_losses(model(inputs), targets))
    return torch.cat(losses).mean(dim=0).cpu()


def main(config):
    T, length = config.block_size, FACTOR * config.block_size
    variants = {name: dict(positions=name, block_size=length) for name in ("learned", "sinusoidal", "rope")}
    results = compare(config, variants, n_evals=1)  # the losses along the way are not drawn
    models = {name: runs.models for name, runs in results.items()}
    base, D = models["rope"][0].config.rope_base, models["rope"][0].config.d_head
    other_base = ntk_base(base, FACTOR, D)
    models[f"rope, positions / {FACTOR}"] = [reread(model, rope_scale=float(FACTOR)) for model in models["rope"]]
    models["rope, NTK base"] = [reread(model, rope_base=other_base) for model in models["rope"]]

    _, val_tokens = config.load_tokens()
    fig, (ax_loss, ax_angle) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(3, 2))
    size = max(1, T // 8)  # positions averaged over for one point
    for name, (color, line) in STYLES.items():
        losses = torch.stack([loss_by_position(model, val_tokens, length, config.n_windows) for model in models[name]])
        band(ax_loss, torch.arange(size / 2, length, size), losses.view(len(losses), -1, size).mean(dim=-1), color=color,
             linestyle=line, label=name)
        within, beyond = losses[:, T // 2:T].mean(dim=1), losses[:, -T:].mean(dim=1)
        print(f"{name:20s} loss at positions {T // 2} to {T}: {mean(within.tolist()):.2f}   at {length - T} to {length}: "
              f"{mean(beyond.tolist()):.2f} (seeds: {', '.join(f'{loss:.2f}' for loss in beyond)})")
    ax_loss.axvline(T, color=BLACK, linewidth=1)
    ax_loss.set(xlabel=f"position in the window (trained up to {T})", ylabel="loss (nats per byte)",
                title="loss by position")
    ax_loss.legend()
    pairs = torch.arange(D // 2)
    turns = frequencies(D, base) / (2 * torch.pi)
    ax_angle.semilogy(pairs, T * turns, color=BLACK, marker="o", label=f"trained: position {T}")
    for label, values, name in (("rope", length * turns, "rope"), (f"positions / {FACTOR}", length / FACTOR * turns,
                                f"rope, positions / {FACTOR}"),
                                ("NTK base", length * frequencies(D, other_base) / (2 * torch.pi), "rope, NTK base")):
        ax_angle.semilogy(pairs, values, color=STYLES[name][0], linestyle=STYLES[name][1], marker=".",
                          label=f"{label}: position {length}")
    ax_angle.set(xlabel="pair of columns, fastest first", ylabel="full turns at that position", xticks=pairs,
                 title="how far each pair has turned")
    ax_angle.legend()
    path = save_figure(
        fig, figure_path(__file__, "rope", config.quick), title="Reading four times further than trained",
        caption=f"Left: trained on {T} bytes, read on {length}; mean and range of {config.n_seed} seeds. Right of the line "
                "the positions are new. Right: why. Plain RoPE turns every pair further than in training; divided positions "
                "bring back the trained angles but squeeze neighbours together, so that even the nearest byte stands at a "
                "new angle; the NTK base leaves the fastest pair as it was and slows the slowest fourfold.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
