"""What is logged about a run, against counts and pictures made by hand, and read back from each place it is written to."""

import json
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode

from part_0.cli import InputError
from part_3.attention import scaled_dot_product_attention
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.run_logger import RunLogger, active_params, attention_grid, step_flops, update_ratio

TINY = dict(vocab_size=40, block_size=32, n_layer=2, n_head=4, d_model=16, n_kv_head=2, d_hidden=24)


@dataclass(frozen=True)
class Config:
    lr: float = 0.25
    steps: int = 3
    data: str = "text.txt"
    tied: bool = True
    window: int | None = None


def written_out(query, key, value, mask=None, causal=False, dropout=0.0):
    """Attention as two matrix products, which the counter sees on every device."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    lower = torch.ones(query.shape[2], query.shape[2]).tril().bool()
    return scaled_dot_product_attention(query, key, value, lower)[0]


@pytest.mark.parametrize("tied", [False, True])
def test_the_flops_of_a_step_are_those_that_torch_counts(monkeypatch, tied):
    monkeypatch.setattr("part_3.attention.grouped_attention", written_out)
    model = ModernGPT(ModernGPTConfig(**TINY, tie_embeddings=tied))
    tokens = torch.randint(40, (3, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    # The counter sees all T keys of every query, and none of the products with the norms' scales. In a block's weights:
    # qkv 16 * (4 + 2 + 2) * 4, project 16 * 16, SwiGLU 3 * 16 * 24; the head 40 * 16; norms 2 * 16 a block, 16 at the end.
    matrices, norms = 2 * (512 + 256 + 1152) + 640, 2 * 32 + 16
    attention = 3 * 2 * 2 * 2 * 32 * 16  # forward and backward, scores and values, 2 FLOPs, 2 layers, T keys, C
    assert counter.get_total_flops() == 96 * (6 * matrices + attention)
    # Ours takes the causal half of attention, (T + 1) / 2 keys, and the norms' scales as if they were matrices.
    assert step_flops(model, 96, 32) == 96 * (6 * (matrices + norms) + attention * 33 / 64)


def test_the_update_ratio_is_that_of_all_weights_as_one_vector():
    generator = np.random.default_rng(0)
    shapes = (5, 3), (7,), ()
    before, after = ([generator.normal(size=shape) for shape in shapes] for _ in range(2))
    change = np.concatenate([(new - old).ravel() for new, old in zip(after, before)])
    expected = np.linalg.norm(change) / np.linalg.norm(np.concatenate([old.ravel() for old in before]))
    old, new = ([torch.tensor(value) for value in values] for values in (before, after))
    assert update_ratio(old, [value.requires_grad_() for value in new]) == pytest.approx(expected)
    assert update_ratio([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]) == pytest.approx(0.1)


def test_the_attention_grid_has_a_layer_a_row_and_a_head_a_column_each_to_its_own_scale():
    # Two layers, three heads, T = 2. The head's number is in its weights; the second text must not be shown.
    maps = [torch.tensor([[[[1.0, 0.0], [0.5, 0.25 * (1 + head)]] for head in range(3)],
                          [[[9.0, 9.0], [9.0, 9.0]]] * 3]) * scale for scale in (1.0, 0.125)]
    a, b, c = 0.25, 0.5, 0.75
    row = [[1, 0, 1, 1, 0, 1, 1, 0, 1],
           [0.5, a, 1, 0.5, b, 1, 0.5, c, 1],
           [1, 1, 1, 1, 1, 1, 1, 1, 1]]  # white lines to the right of each map and below it
    assert torch.allclose(attention_grid(maps), torch.tensor(row + row, dtype=torch.float32))
    unequal = attention_grid([torch.tensor([[[[2.0, 0.0], [1.0, 1.0]]]]), torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])])
    assert torch.allclose(unequal[:2, :2], torch.tensor([[1, 0], [0.5, 0.5]]))
    assert torch.allclose(unequal[3:5, :2], torch.tensor([[0.5, 0], [0, 1.0]]))


def lines(out, name):
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def log_something(out, wandb=False, step=0):
    logger = RunLogger(out, Config(), step, wandb)
    for i in range(step, 3):
        logger.record(i, loss=2.0 / (i + 1), lr=0.1 * i)
    logger.record(3, val_loss=0.7)
    logger.sample(3, "The cat", val_loss=0.7)
    logger.attention(3, [torch.rand(1, 2, 4, 4)])
    logger.finish({"val_loss": 0.6, "steps": 3})
    logger.close()
    return logger


def events(out):
    return EventAccumulator(str(out / "tensorboard")).Reload()


def test_all_of_a_record_is_in_the_history_in_metrics_jsonl_and_in_tensorboard(tmp_path):
    logger = log_something(tmp_path)
    expected = [{"step": 0, "loss": 2.0, "lr": 0.0}, {"step": 1, "loss": 1.0, "lr": 0.1},
                {"step": 2, "loss": 2.0 / 3, "lr": 0.2}, {"step": 3, "val_loss": 0.7}]
    assert logger.history == [*expected, {"val_loss": 0.6, "steps": 3}]
    assert lines(tmp_path, "metrics.jsonl") == expected
    assert lines(tmp_path, "samples.jsonl") == [{"step": 3, "val_loss": 0.7, "text": "The cat"}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"val_loss": 0.6, "steps": 3}
    found = events(tmp_path)
    for name in ("loss", "lr", "val_loss"):
        written = {record["step"]: record[name] for record in expected if name in record}
        assert {event.step: event.value for event in found.Scalars(name)} == pytest.approx(written)


def test_tensorboard_has_the_sample_the_picture_the_flags_and_the_final_figures(tmp_path):
    log_something(tmp_path)
    found = events(tmp_path)
    [text] = found.Tensors("sample/text_summary")
    assert text.step == 3 and text.tensor_proto.string_val == [b"The cat"]
    [config] = found.Tensors("config/text_summary")
    assert json.loads(config.tensor_proto.string_val[0]) == {"lr": 0.25, "steps": 3, "data": "text.txt", "tied": True,
                                                             "window": None}
    [image] = found.Images("attention")
    assert image.step == 3 and (image.height, image.width) == (5, 10)
    assert [event.value for event in found.Scalars("final/val_loss")] == pytest.approx([0.6])
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    start = HParamsPluginData.FromString(found.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    given = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()}
    assert given == {"lr": 0.25, "steps": 3, "data": "text.txt", "tied": True, "window": "None"}


def test_a_resumed_run_hides_the_events_that_it_writes_anew(tmp_path):
    logger = RunLogger(tmp_path, Config())
    for step in range(6):
        logger.record(step, loss=100.0)
    logger.close()
    log_something(tmp_path, step=2)
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss")] == [
        (0, 100.0), (1, 100.0), (2, pytest.approx(2 / 3))]


def test_a_process_that_is_not_the_main_one_keeps_the_history_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = log_something(None, wandb=True)
    assert [record["step"] for record in logger.history[:-1]] == [0, 1, 2, 3] and logger.history[-1]["val_loss"] == 0.6
    assert list(tmp_path.iterdir()) == []


def test_without_its_package_wandb_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(InputError, match="--wandb needs its package: pip install wandb") as refusal:
        RunLogger(tmp_path, Config(), wandb=True)
    assert "\n" not in str(refusal.value) and list(tmp_path.iterdir()) == []
    log_something(tmp_path)  # and without --wandb it is not missed


def test_wandb_gets_the_flags_every_record_and_the_final_figures(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(("init", options))
    fake.log = lambda values, step: calls.append(("log", step, values))
    fake.finish = lambda: calls.append(("finish",))
    fake.summary = {}
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log_something(tmp_path, wandb=True)
    (_, options), *logged, finish = calls
    assert options["config"] == {"lr": 0.25, "steps": 3, "data": "text.txt", "tied": True, "window": None}
    assert options["dir"] == str(tmp_path) and finish == ("finish",)
    assert [call[:2] for call in logged] == [("log", 0), ("log", 1), ("log", 2), ("log", 3)]
    assert logged[1][2] == {"loss": 1.0, "lr": 0.1} and fake.summary == {"val_loss": 0.6, "steps": 3}


def test_weights_that_a_token_does_not_use_cost_nothing():
    model = ModernGPT(ModernGPTConfig(**TINY))
    n_params, flops = model.n_params(), step_flops(model, 96, 32)
    assert active_params(model) == n_params
    model.blocks[0].feed_forward.n_idle, model.blocks[1].feed_forward.n_idle = 700, 52  # as a layer of experts says it
    assert active_params(model) == n_params - 752 and model.n_params() == n_params
    assert step_flops(model, 96, 32) == flops - 6 * 96 * 752
