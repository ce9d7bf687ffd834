import torch

from part_2.corpus import load_corpus
from part_2.dataset import get_batch, split_tokens
from part_2.evaluate import windows_loss
from part_2.optimization import parameter_groups, warmup_cosine
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig, compare

SMALL = ComparisonConfig(steps=6, batch_size=2, block_size=8, n_layer=1, n_head=2, d_model=8, n_seed=2, precision="fp32")


def test_two_variants_of_one_design_end_exactly_alike_so_they_see_the_same_batches_from_the_same_start():
    results = compare(SMALL, {"a": {}, "b": {}})
    assert results["a"].val_loss == results["b"].val_loss
    assert results["a"].val_loss[0] != results["a"].val_loss[1]  # another seed


def test_a_variant_s_result_does_not_depend_on_who_trains_beside_it():
    alone = compare(SMALL, {"a": {}})["a"].val_loss
    assert compare(SMALL, {"other": dict(mlp="gelu"), "a": {}})["a"].val_loss == alone


def test_the_loop_is_the_one_of_the_book():
    # Many steps with a large rate, so that clipping and Adam's decay make a difference.
    [run] = compare(ComparisonConfig(**{**SMALL.__dict__, "n_seed": 1, "steps": 20, "lr": 0.05}), {"a": {}},
                    n_evals=4).values()
    tokens = torch.tensor(list(load_corpus("python-docs").encode()))
    train_tokens, val_tokens = split_tokens(tokens, 8)
    val_batch = get_batch(val_tokens, 64, 8, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = ModernGPT(SMALL.model_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1.0, betas=(0.9, 0.99))
    batches, expected = torch.Generator().manual_seed(1), []
    for step in range(20):
        if step % 5 == 0:
            expected.append(windows_loss(model, *val_batch))
        inputs, targets = get_batch(train_tokens, 2, 8, batches)
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, 20, 0.05, 0.005, 2)
        optimizer.step()
    expected.append(windows_loss(model, *val_batch))
    assert run.steps == [0, 5, 10, 15, 20]
    assert torch.allclose(torch.tensor(run.val_loss[0]), torch.tensor(expected), atol=1e-3)


def test_observe_sees_the_gradients_of_the_second_half():
    results = compare(SMALL, {"a": {}}, observe=lambda model: model.head.weight.grad.norm().item())
    assert [len(seen) for seen in results["a"].observed] == [3, 3]
    assert all(value > 0 for seen in results["a"].observed for value in seen)
    assert [len(seconds) for seconds in results["a"].seconds] == [6, 6]


def test_what_the_layers_lose_is_added_after_each_forward_pass_and_each_step_ends_in_after_update():
    calls, passes = [], []

    def auxiliary_loss(model):
        calls.append(("loss", model, model.head.weight.detach().clone()))
        return 0.5 * model.norm.weight.square().sum()

    def after_update(model):
        calls.append(("update", model, model.head.weight.detach().clone()))

    def observe(model):
        passes.append(model.norm.weight.grad.clone())

    results = compare(SMALL, {"a": {}, "b": dict(qk_norm=True)}, observe, auxiliary_loss=auxiliary_loss,
                      after_update=after_update)
    assert [name for name, *_ in calls] == ["loss", "update"] * 24  # 2 variants, 2 seeds, 6 steps
    for before, after in zip(calls[::2], calls[1::2]):
        assert before[1] is after[1] and not torch.equal(before[2], after[2])  # the step lies between the two
    for model in results["a"].models + results["b"].models:
        assert sum(called is model for _, called, _ in calls) == 12
    plain = []
    compare(SMALL, {"a": {}}, lambda model: plain.append(model.norm.weight.grad.clone()),
            auxiliary_loss=lambda model: 0.0)
    without = compare(SMALL, {"a": {}})["a"].val_loss
    assert compare(SMALL, {"a": {}}, auxiliary_loss=lambda model: 0.0)["a"].val_loss == without
    assert results["a"].val_loss != without
    # The loss's gradient is the norm's weight itself, near 1 after few steps; the task's is far smaller.
    assert all((grad - 1).abs().max() < 0.2 for grad in passes) and all(grad.abs().max() < 0.2 for grad in plain)


def test_the_loop_with_a_loss_of_the_layers_is_the_one_of_the_book():
    config = ComparisonConfig(**{**SMALL.__dict__, "n_seed": 1, "steps": 12, "lr": 0.05})
    [run] = compare(config, {"a": {}}, n_evals=3,
                    auxiliary_loss=lambda model: 0.3 * model.norm.weight.square().sum()).values()
    train_tokens, val_tokens = split_tokens(torch.tensor(list(load_corpus("python-docs").encode())), 8)
    val_batch = get_batch(val_tokens, 64, 8, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = ModernGPT(SMALL.model_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1.0, betas=(0.9, 0.99))
    batches = torch.Generator().manual_seed(1)
    for step in range(12):
        inputs, targets = get_batch(train_tokens, 2, 8, batches)
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        (loss + 0.3 * model.norm.weight.square().sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, 12, 0.05, 0.005, 1)
        optimizer.step()
    assert abs(run.val_loss[0][-1] - windows_loss(model, *val_batch)) < 1e-3


def test_a_comparison_trains_the_model_that_its_config_builds():
    built = []

    class Config(ComparisonConfig):
        def build_model(self, width=8):
            built.append(width)
            return ModernGPT(self.model_config(d_model=width))

    results = compare(Config(**{**SMALL.__dict__, "steps": 2}), {"narrow": {}, "wide": dict(width=16)})
    assert built == [8, 16] * 2
    assert [model.config.d_model for runs in results.values() for model in runs.models] == [8, 8, 16, 16]
