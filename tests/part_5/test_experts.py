import pytest
import torch
from torch import nn

from part_3.swiglu import SwiGLU
from part_5 import experts as module
from part_5.experts import Experts, GroupedLinear, grouped_linear

# Rows of each expert: some without any, the first, the last, or all of them.
GROUPS = pytest.mark.parametrize("sizes", [(3, 1, 5), (3, 0, 5, 1), (0, 0, 4), (2, 0, 0), (7,), (1, 1), (0, 0)],
                                 ids=lambda sizes: "-".join(map(str, sizes)))
# 16 bytes, which grouped products ask for, are 4 numbers in fp32 and 8 in bf16.
WIDTHS = pytest.mark.parametrize("d_model, d_hidden", [(16, 24), (6, 24), (16, 5)])


def ends_of(sizes):
    return torch.tensor(sizes).cumsum(0).to(torch.int32)


def loop(experts, x, sizes):
    """Each expert as a SwiGLU of Part 3 with its weights, run over its own rows."""
    layers = [SwiGLU(x.shape[1], down.shape[1]) for down in experts.contract.weight]
    for layer, up, down in zip(layers, experts.expand.weight, experts.contract.weight):
        layer.load_state_dict({"expand.weight": up.detach(), "contract.weight": down.detach()})
    return layers, torch.cat([layer(rows) for layer, rows in zip(layers, x.split(sizes))])


@pytest.fixture
def grouped_calls(monkeypatch):
    """The dtypes of the rows that torch's grouped product is called with."""
    calls, original = [], module.grouped_mm

    def recorded(x, *rest, **options):
        calls.append(x.dtype)
        return original(x, *rest, **options)

    monkeypatch.setattr(module, "grouped_mm", recorded)
    return calls


@GROUPS
@WIDTHS
def test_equals_a_loop_of_swiglu_layers_forward_and_backward(sizes, d_model, d_hidden):
    torch.manual_seed(0)
    experts, x = Experts(len(sizes), d_model, d_hidden), torch.randn(sum(sizes), d_model)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = experts(mine, ends_of(sizes))
    layers, expected = loop(experts, other, sizes)
    grad = torch.randn_like(expected)
    output.backward(grad)
    expected.backward(grad)
    assert output.shape == expected.shape and torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    for name in ("expand", "contract"):
        stacked = torch.stack([getattr(layer, name).weight.grad for layer in layers])
        assert torch.allclose(getattr(experts, name).weight.grad, stacked, atol=1e-5)


@GROUPS
def test_the_grouped_product_and_the_loop_give_the_same(sizes, monkeypatch, grouped_calls):
    torch.manual_seed(0)
    experts, x, results = Experts(len(sizes), 16, 24), torch.randn(sum(sizes), 16), []
    for dtypes in (module.GROUPED_DTYPES, ()):
        monkeypatch.setattr(module, "GROUPED_DTYPES", dtypes)
        experts.zero_grad()
        mine = x.clone().requires_grad_()
        output = experts(mine, ends_of(sizes))
        output.square().sum().backward()
        results.append((output, mine.grad, *(weight.grad for weight in experts.parameters())))
    assert len(grouped_calls) == 2  # of the first round: expand and contract
    assert all(torch.allclose(grouped, looped, atol=1e-5) for grouped, looped in zip(*results))


@pytest.mark.parametrize("dtype, widths, is_grouped", [
    (torch.float32, (4, 4), True), (torch.float32, (6, 4), False), (torch.float32, (4, 6), False),
    (torch.bfloat16, (8, 8), True), (torch.bfloat16, (4, 8), False), (torch.bfloat16, (8, 4), False),
    (torch.float64, (4, 4), False)])
def test_rows_of_16_bytes_are_grouped_and_others_go_through_the_loop(dtype, widths, is_grouped, grouped_calls):
    torch.manual_seed(0)
    x, weight = torch.randn(5, widths[0], dtype=dtype), torch.randn(3, widths[1], widths[0], dtype=dtype)
    output = grouped_linear(x, weight, ends_of((2, 0, 3)))
    expected = torch.cat((x[:2].double() @ weight[0].double().T, x[2:].double() @ weight[2].double().T))
    assert output.dtype == dtype
    assert torch.allclose(output.double(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5)
    assert grouped_calls == [dtype] * is_grouped


@pytest.mark.parametrize("width", [1, 4])
def test_each_row_meets_its_own_matrix_worked_by_hand(width):
    # Expert i multiplies by i + 1: rows 0 and 1 are expert 0's, none is expert 1's, rows 2 to 4 are expert 2's.
    weight = torch.eye(width) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None].repeat(1, width)
    assert grouped_linear(x, weight, torch.tensor([2, 2, 5], dtype=torch.int32))[:, 0].tolist() == [1, 2, 9, 12, 15]


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    experts = Experts(3, 3, 2).double()
    weights = [weight.detach().requires_grad_() for weight in experts.parameters()]

    def run(x, expand, contract):
        replaced = {"expand.weight": expand, "contract.weight": contract}
        return torch.func.functional_call(experts, replaced, (x, ends_of((2, 0, 1))))

    assert torch.autograd.gradcheck(run, (torch.randn(3, 3, dtype=torch.float64, requires_grad=True), *weights))


@WIDTHS
@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0, 5), (0, 0, 0)])
def test_an_expert_without_rows_has_a_gradient_of_zeros_and_no_other_has(sizes, d_model, d_hidden):
    torch.manual_seed(0)
    experts = Experts(3, d_model, d_hidden)
    experts(torch.randn(sum(sizes), d_model), ends_of(sizes)).square().sum().backward()
    for weight in experts.parameters():
        assert (weight.grad.flatten(1).abs().amax(dim=1) > 0).tolist() == [size > 0 for size in sizes]


def test_weights_start_within_the_bounds_of_nn_linear_and_differ_between_experts():
    # nn.Linear draws from +- 1/sqrt(in): with 100 inputs +- 0.1, whose standard deviation is 0.1/sqrt(3).
    torch.manual_seed(0)
    weight, linear = GroupedLinear(3, 100, 400).weight, nn.Linear(100, 400).weight
    for matrix in (*weight, linear):
        assert 0.0999 < matrix.amax() <= 0.1 and -0.1 <= matrix.amin() < -0.0999
        assert matrix.std().item() == pytest.approx(0.1 / 3 ** 0.5, rel=0.02) and abs(matrix.mean().item()) < 1e-3
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(weight[1], weight[2])
    assert weight.shape == (3, 400, 100) and Experts(3, 100, 50).contract.weight.abs().amax() > 0.14  # 1/sqrt(50) = 0.141


@WIDTHS
def test_under_autocast_products_are_bf16_and_weights_and_their_gradients_fp32(d_model, d_hidden, grouped_calls):
    torch.manual_seed(0)
    experts, x, sizes = Experts(3, d_model, d_hidden), torch.randn(9, d_model), (4, 0, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = experts(x, ends_of(sizes))
        layers, expected = loop(experts, x, sizes)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(output, expected, atol=4e-3)  # outputs are about 0.1, and bf16 has 8 bits
    output.float().square().sum().backward()
    assert {weight.grad.dtype for weight in experts.parameters()} == {torch.float32}
    assert set(grouped_calls) <= {torch.bfloat16} and bool(grouped_calls) == ((d_model, d_hidden) == (16, 24))


def test_an_experts_rows_do_not_depend_on_those_of_others():
    torch.manual_seed(0)
    experts, x = Experts(3, 16, 24), torch.randn(6, 16)
    changed = x.clone()
    changed[2:4] = torch.randn(2, 16)
    before, after = (experts(rows, ends_of((2, 2, 2))) for rows in (x, changed))
    assert (before != after).any(dim=1).tolist() == [False, False, True, True, False, False]


@WIDTHS
def test_without_autocast_dtypes_must_agree(d_model, d_hidden):
    with pytest.raises(RuntimeError, match="dtype|type"):
        Experts(2, d_model, d_hidden)(torch.randn(4, d_model).bfloat16(), ends_of((2, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_expert_after_the_other_is_the_same_as_all_at_once(dtype, grouped_calls, monkeypatch):
    torch.manual_seed(0)
    layer, x, ends = Experts(4, 16, 24), torch.randn(50, 16), ends_of((20, 0, 1, 29))
    upstream, results = torch.randn(50, 16).to(dtype), []
    for many, n_calls in ((13, 2), (12, 2)):  # 50 rows are fewer than 13 times 4 experts: two products; then none more
        monkeypatch.setattr(module, "MANY_ROWS", many)
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(inputs, ends)
        assert y.dtype == dtype and len(grouped_calls) == n_calls
        results.append([y, *torch.autograd.grad(y, [inputs, *layer.parameters()], upstream)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)
    assert results[1][2][1].abs().max() == 0  # expert 1 has no rows: zeros, not None


def test_rows_may_lie_in_memory_as_they_like():
    torch.manual_seed(0)
    layer, x, ends = Experts(3, 8, 16), torch.randn(8, 9), ends_of((4, 0, 5))
    torch.testing.assert_close(layer(x.T, ends), layer(x.T.contiguous(), ends))
