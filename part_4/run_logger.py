"""Lesson 4.5 - logging: what to write down about a run, so that it can be understood while it lasts and long after.

    grad_norm     |g|, before clipping: spikes announce trouble; the mean must not sit at the clipping threshold
    update_ratio  |w_after - w_before| / |w_before|, a step's relative change of the weights, 1e-4 to 1e-2
    mfu           FLOPs needed a second / FLOP/s of this machine's fastest matrix product  (Chowdhery et al. 2022, PaLM, B)

metrics.jsonl holds every number, one JSON object a logged step, and the figures are drawn from it; TensorBoard shows the
same while the run lasts, with samples, attention and flags: tensorboard --logdir part_4/runs. Weights & Biases only if asked
for.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import torch

from part_0.cli import InputError
from part_0.pipeline_costs import training_flops
from part_2.checkpoint import write_json
from part_2.run_directory import append_record


def active_params(model):
    """Weights that one token uses: all but those of the experts that it does not choose (lesson 5.2)."""
    return model.n_params() - sum(getattr(module, "n_idle", 0) for module in model.modules())


def step_flops(model, n_tokens, block_size):
    """FLOPs that a training step needs: 6 for each weight that multiplies and each token, and attention's own products.

    model: a ModernGPT; the embedding is looked up, not multiplied, unless it is tied to the head. A query looks at half of
    the block on average, and costs 2 C FLOPs for a key's score and 2 C for its value, three times with the backward pass.
    """
    config = model.config
    looked_up = 0 if config.tie_embeddings else model.token_embedding.weight.numel()
    attention = 3 * 4 * config.d_model * config.n_layer * (block_size + 1) / 2
    return training_flops(active_params(model) - looked_up, n_tokens) + attention * n_tokens


def update_ratio(before, parameters):
    """The norm of the change of all weights over their norm. before: copies of `parameters` from before the step."""
    change = torch.nn.utils.get_total_norm([new.detach() - old for new, old in zip(parameters, before)])
    ratio = change / torch.nn.utils.get_total_norm(before)
    return (ratio.full_tensor() if hasattr(ratio, "full_tensor") else ratio).item()  # FSDP's weights are shared out


def attention_grid(maps):
    """The attention of one row of text as a picture: a layer a row, a head a column, brightest = the map's highest weight.

    maps: a list of L tensors (B, H, T, T), of which the first text is shown. Returns (L (T+1), H (T+1)), from 0 to 1.
    """
    maps = torch.stack([layer[0] for layer in maps]).float().cpu()  # (L, H, T, T)
    maps = torch.nn.functional.pad(maps / maps.amax(dim=(-2, -1), keepdim=True), (0, 1, 0, 1), value=1.0)
    return maps.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (L, T+1, H, T+1) -> (L (T+1), H (T+1))


def load_wandb():
    """The module wandb. InputError when it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError("--wandb needs its package: pip install wandb") from None


class RunLogger:
    """Writes a run's records to metrics.jsonl, TensorBoard and, if asked for, Weights & Biases.

    out: the run directory, or None for a process that only keeps `history` (all but rank 0). step: where the run begins or
    goes on; events from there on that an earlier attempt left are hidden. InputError when wandb is asked for and missing.
    """

    def __init__(self, out, config, step=0, wandb=False):
        self.out, self.config, self.history, self.tensorboard, self.wandb = out, config, [], None, None
        if out is None:
            return
        if wandb:
            self.wandb = load_wandb()
            self.wandb.init(project="llm-from-scratch", dir=str(out), config=dataclasses.asdict(config))
        from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes a second
        self.tensorboard = SummaryWriter(str(Path(out) / "tensorboard"), purge_step=step)
        self.tensorboard.add_text("config", json.dumps(dataclasses.asdict(config), indent=2), step)

    def record(self, step, **values):
        """Log numbers of one step by name."""
        self.history.append({"step": step, **values})
        if self.out is None:
            return
        append_record(self.out, "metrics.jsonl", self.history[-1])
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def sample(self, step, text, **values):
        """Log what the model wrote."""
        if self.out is not None:
            append_record(self.out, "samples.jsonl", {"step": step, **values, "text": text})
            self.tensorboard.add_text("sample", text, step)

    def attention(self, step, maps):
        """Log the attention of one text as an image. maps: as for `attention_grid`."""
        if self.out is not None:
            self.tensorboard.add_image("attention", attention_grid(maps), step, dataformats="HW")

    def finish(self, summary):
        """Write summary.json, and the flags with these final figures for TensorBoard's comparison of runs (HPARAMS)."""
        self.history.append(summary)
        if self.out is not None:
            write_json(Path(self.out) / "summary.json", summary)
            flags = {name: value if isinstance(value, (bool, int, float, str)) else str(value)
                     for name, value in dataclasses.asdict(self.config).items()}
            final = {f"final/{name}": value for name, value in summary.items() if isinstance(value, (int, float))}
            self.tensorboard.add_hparams(flags, final, run_name=".")
            if self.wandb:
                self.wandb.summary.update(summary)

    def close(self):
        """Flush what is not yet written."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()
