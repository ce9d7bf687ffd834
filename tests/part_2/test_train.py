import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from part_0.cli import InputError
from part_0.device import DTYPES, supported_precisions
from part_2 import train
from part_2.checkpoint import load_checkpoint, load_model
from part_2.gpt import GPT, GPTConfig
from part_2.loss import cross_entropy
from part_2.run_directory import append_record, start_run

TINY = dict(steps=12, batch_size=4, block_size=16, n_layer=1, n_head=2, d_model=16, warmup_steps=2, eval_every=4,
            log_every=1, device="cpu", precision="fp32")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    random.seed(0)
    path.write_text("".join(random.choice("the cat sat ") for _ in range(3000)), encoding="utf-8")
    return path


def config(text, out, **changes):
    return train.Config(**{**TINY, "data": str(text), "out": str(out), **changes})


def records(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def test_a_run_directory_holds_all_that_was_promised(text, tmp_path):
    out = tmp_path / "run"
    history = train.main(config(text, out, n_layer=2))
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.jsonl", "samples.jsonl", "tensorboard",
                                                     "best.pt", "last.pt", "summary.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert history[:-1] == records(out) and history[-1] == summary
    assert {"val_loss", "bits_per_byte", "steps", "tokens", "params", "seconds", "tokens_per_second"} <= set(summary)
    assert summary["steps"] == 12 and summary["tokens"] == 12 * 4 * 16
    assert summary["bits_per_byte"] == pytest.approx(summary["val_loss"] / math.log(2))
    assert json.loads((out / "config.json").read_text())["n_layer"] == 2
    assert [record["step"] for record in records(out, "samples.jsonl")] == [0, 4, 8, 12]
    model, tokenizer, state = load_model(out / "last.pt")
    assert state["step"] == 12 and model.n_params() == summary["params"] and tokenizer.vocab_size == 256


def test_tensorboard_s_events_say_what_metrics_jsonl_says(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "val_loss", "lr"):
        written = {record["step"]: record[name] for record in records(tmp_path / "run") if name in record}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(written, rel=1e-6)


def test_a_text_that_repeats_is_learned_to_nearly_zero_loss(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_text("abcdefgh" * 500, encoding="utf-8")
    summary = train.main(config(path, tmp_path / "run", steps=200, lr=1e-2, eval_every=100))[-1]
    # Only the first byte of a window tells where in the cycle it is, and it is given: nothing is left to chance.
    assert summary["val_loss"] < 0.02


def test_a_text_of_coin_flips_cannot_be_learned_below_its_entropy(tmp_path):
    path = tmp_path / "flips.txt"
    random.seed(0)
    path.write_text("".join(random.choice("abcd") for _ in range(20_000)), encoding="utf-8")
    summary = train.main(config(path, tmp_path / "run", steps=150, lr=5e-3, eval_every=150))[-1]
    assert math.log(4) - 0.01 < summary["val_loss"] < math.log(4) + 0.05


def test_the_same_command_gives_the_same_numbers(text, tmp_path):
    first, again = (train.main(config(text, tmp_path / name)) for name in "ab")
    assert without_seconds(first[:-1]) == without_seconds(again[:-1])
    assert first[-1]["val_loss"] == again[-1]["val_loss"]
    assert without_seconds(train.main(config(text, tmp_path / "c", seed=1)))[:-1] != without_seconds(first)[:-1]


def by_the_book(text, c):
    """The final weights of a run with config `c`, from a second loop that shares only the model with the trainer: torch's
    plain AdamW, its cross-entropy, and each rule written out once more."""
    data = torch.tensor(list(text.read_bytes()))
    data = data[:len(data) - len(data) // 10]
    torch.manual_seed(c.seed)
    model = GPT(GPTConfig(256, c.block_size, c.n_layer, c.n_head, c.d_model, tie_embeddings=c.tie_embeddings))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=c.weight_decay), dict(params=others, weight_decay=0)],
                                  betas=(0.9, c.beta2), foreach=False)
    batches = torch.Generator().manual_seed(c.seed)
    for step in range(c.steps):
        if step < c.warmup_steps:
            lr = c.lr / c.warmup_steps * (step + 1)
        else:
            angle = math.pi * (step - c.warmup_steps) / (c.steps - c.warmup_steps)
            lr = c.min_lr + (c.lr - c.min_lr) * (math.cos(angle) / 2 + 0.5)
        starts = torch.randint(len(data) - c.block_size, (c.batch_size,), generator=batches)
        windows = torch.stack([data[s:s + c.block_size + 1] for s in starts])
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1, c.grad_clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("tied", [True, False])
def test_the_loop_does_what_a_second_loop_written_by_the_book_does(text, tmp_path, tied):
    c = config(text, tmp_path / "run", steps=9, lr=1e-2, min_lr=2e-3, warmup_steps=3, beta2=0.9, weight_decay=0.5,
               grad_clip=0.3, tie_embeddings=tied, seed=7)
    train.main(c)
    ours, theirs = load_checkpoint(tmp_path / "run" / "last.pt")["model"], by_the_book(text, c)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


def test_the_model_has_the_shape_that_the_flags_ask_for(text, tmp_path):
    train.main(config(text, tmp_path / "run", dropout=0.2, tie_embeddings=True))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["model_config"] == dict(
        vocab_size=256, block_size=16, n_layer=1, n_head=2, d_model=16, dropout=0.2, bias=True, tie_embeddings=True,
        positions="learned")


@pytest.mark.parametrize("precision", supported_precisions(torch.device("cpu")))
def test_matrix_products_run_in_the_precision_asked_for(text, tmp_path, monkeypatch, precision):
    seen = []

    def spy(logits, targets):
        seen.append(logits.dtype)
        return cross_entropy(logits, targets)

    monkeypatch.setattr(train, "cross_entropy", spy)
    train.main(config(text, tmp_path / "run", precision=precision, steps=1))
    assert seen == [DTYPES[precision]]


def test_the_validation_windows_are_64_fixed_ones_whatever_the_seed(text, tmp_path):
    data = torch.tensor(list(text.read_bytes()))
    val = data[len(data) - len(data) // 10:]
    starts = torch.randint(len(val) - 16, (64,), generator=torch.Generator().manual_seed(0))
    windows = torch.stack([val[s:s + 17] for s in starts])
    for seed in (1, 2):
        out = tmp_path / str(seed)
        train.main(config(text, out, seed=seed))
        model, _, state = load_model(out / "last.pt")
        with torch.no_grad():
            expected = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()
        assert state["val_loss"] == pytest.approx(expected, rel=1e-5)
        assert records(out)[-1]["val_loss"] == state["val_loss"]


def test_an_evaluation_stands_at_the_end_even_of_a_run_that_its_interval_does_not_divide(text, tmp_path):
    train.main(config(text, tmp_path / "run", steps=10))
    assert [r["step"] for r in records(tmp_path / "run") if "val_loss" in r] == [0, 4, 8, 10]


def test_every_record_counts_the_tokens_seen_so_far(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    for record in records(tmp_path / "run"):
        assert record["tokens"] == (record["step"] + ("loss" in record)) * 4 * 16


def test_best_is_the_checkpoint_with_the_lowest_validation_loss_also_across_a_resume(text, tmp_path, monkeypatch):
    out, losses = tmp_path / "run", iter([9.0, 3.0, 5.0, 4.0])  # at the steps 0, 4, 8 and 12
    monkeypatch.setattr(train, "windows_loss", lambda *arguments: next(losses))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 10)
        train.main(config(text, out))
    losses = iter([5.0, 4.0])  # step 8 once more, then 12
    summary = train.main(config(text, out, resume=True))[-1]
    assert summary["best_val_loss"] == 3.0
    assert load_checkpoint(out / "best.pt")["step"] == 4 and load_checkpoint(out / "last.pt")["step"] == 12


def test_seconds_are_those_of_training_alone_and_go_on_after_a_resume(text, tmp_path, monkeypatch):
    clock, out = [0.0], tmp_path / "run"
    originals = train.get_batch, train.windows_loss

    def get_batch(*arguments):
        clock[0] += 1
        return originals[0](*arguments)

    def windows_loss(*arguments):
        clock[0] += 1000
        return originals[1](*arguments)

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train, "windows_loss", windows_loss)
    monkeypatch.setattr(train, "get_batch", get_batch)
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 10)
        train.main(config(text, out))
    summary = train.main(config(text, out, resume=True))[-1]
    assert summary["seconds"] == 12 and summary["tokens_per_second"] == 4 * 16
    assert all(r["seconds"] == r["step"] + ("loss" in r) for r in records(out))


class Interruption(Exception):
    pass


def interrupt_after(monkeypatch, n_batches):
    original, calls = train.get_batch, []

    def get_batch(*arguments):
        calls.append(1)
        if len(calls) > n_batches + 1:  # the first call draws the validation windows
            raise Interruption
        return original(*arguments)

    monkeypatch.setattr(train, "get_batch", get_batch)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_interrupted_run_resumed_ends_bit_for_bit_like_the_uninterrupted_one(text, tmp_path, monkeypatch, dropout):
    whole = train.main(config(text, tmp_path / "whole", dropout=dropout))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 10)
        train.main(config(text, tmp_path / "parts", dropout=dropout))
    resumed = train.main(config(text, tmp_path / "parts", dropout=dropout, resume=True))
    assert resumed[0]["step"] == 8
    ours, theirs = (load_checkpoint(tmp_path / name / "last.pt") for name in ("parts", "whole"))
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    assert without_seconds(records(tmp_path / "parts")) == without_seconds(records(tmp_path / "whole"))
    assert records(tmp_path / "parts", "samples.jsonl") == records(tmp_path / "whole", "samples.jsonl")
    events = EventAccumulator(str(tmp_path / "parts" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [0, 4, 8, 12]
    assert resumed[-1]["val_loss"] == whole[-1]["val_loss"]


def test_a_damaged_newest_checkpoint_is_named_and_the_other_one_used(text, tmp_path, capsys):
    out = tmp_path / "run"
    train.main(config(text, out))
    best = load_checkpoint(out / "best.pt")
    (out / "last.pt").write_bytes((out / "last.pt").read_bytes()[:1000])
    history = train.main(config(text, out, resume=True))
    printed = capsys.readouterr().out
    assert "last.pt is damaged" in printed and f"best.pt, step {best['step']}" in printed
    assert len(history) > 0 and load_checkpoint(out / "last.pt")["step"] == 12


def test_resuming_a_finished_run_changes_nothing(text, tmp_path):
    out = tmp_path / "run"
    summary = train.main(config(text, out))[-1]
    before = without_seconds(records(out))
    assert train.main(config(text, out, resume=True))[-1]["val_loss"] == summary["val_loss"]
    assert without_seconds(records(out)) == before


@pytest.mark.parametrize("change, complaint", [(dict(d_model=32), "--d_model 16, not 32"),
                                               (dict(lr=1.0), "--lr 0.003, not 1"), (dict(seed=1), "--seed 1337, not 1"),
                                               (dict(steps=99), "--steps 12, not 99")])
def test_resuming_with_other_flags_is_refused_and_nothing_lost(text, tmp_path, change, complaint):
    out = tmp_path / "run"
    train.main(config(text, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=complaint):
        train.main(config(text, out, resume=True, **change))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_text_may_have_moved_when_a_run_is_resumed(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    moved = text.rename(tmp_path / "moved.txt")
    assert len(train.main(config(moved, tmp_path / "run", resume=True))) > 0


def test_resuming_on_another_text_is_refused(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    text.write_text(text.read_text(encoding="utf-8") + "more", encoding="utf-8")
    with pytest.raises(InputError, match="another text"):
        train.main(config(text, tmp_path / "run", resume=True))


def test_an_earlier_run_in_the_same_place_is_kept_aside(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out))
    old = (out / "last.pt").read_bytes()
    train.main(config(text, out, seed=5))
    assert (tmp_path / "run.previous" / "last.pt").read_bytes() == old
    assert json.loads((out / "config.json").read_text())["seed"] == 5
    train.main(config(text, out, seed=6))  # nothing that was made is ever deleted
    assert (tmp_path / "run.previous" / "last.pt").read_bytes() == old
    assert json.loads((tmp_path / "run.previous2" / "config.json").read_text())["seed"] == 5


def test_a_run_cut_off_before_its_first_checkpoint_pushes_no_finished_run_out_of_its_place(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out))
    finished = (out / "last.pt").read_bytes()
    start_run(config(text, out, seed=5))  # moves it aside, and is cut off
    append_record(out, "metrics.jsonl", {"step": 0, "loss": 99.0})
    (out / "notes.txt").write_text("mine")
    assert start_run(config(text, out, seed=6)) is None
    assert (tmp_path / "run.previous" / "last.pt").read_bytes() == finished
    assert not (out / "metrics.jsonl").exists() and (out / "notes.txt").exists()  # what is not a run's own stays


def test_a_folder_that_is_no_run_is_not_moved(text, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.pt").touch()
    assert start_run(config(text, tmp_path / "models")) is None and (tmp_path / "models" / "mine.pt").exists()


def test_a_run_that_diverges_says_so(text, tmp_path):
    with pytest.raises(InputError, match="loss is (nan|inf) at step .*smaller --lr"):
        train.main(config(text, tmp_path / "run", lr=1e30, min_lr=1e30, grad_clip=1e30))


def test_bf16_autocast_trains_to_nearly_the_same_loss(text, tmp_path):
    losses = [train.main(config(text, tmp_path / precision, precision=precision, steps=40, eval_every=40))[-1]["val_loss"]
              for precision in supported_precisions(torch.device("cpu"))]
    assert losses[0] < math.log(256) - 1 and losses == pytest.approx([losses[0]] * len(losses), rel=0.02)


def test_a_line_cut_short_by_a_crash_does_not_stop_a_resume(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out))
    before = without_seconds(records(out))
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1')
    train.main(config(text, out, resume=True))
    assert without_seconds(records(out)) == before


def test_a_validation_loss_that_is_no_number_ends_the_run_with_advice(text, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "windows_loss", lambda *arguments: math.nan)
    with pytest.raises(InputError, match="loss is nan at step 0.*smaller --lr"):
        train.main(config(text, tmp_path / "run"))
