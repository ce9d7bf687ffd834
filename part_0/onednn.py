"""Lesson 0.2 - oneDNN: matrix products of linear layers on a CPU, by a library that is often faster than torch's choice.

`packed_weights` is for inference: weights are rearranged once instead of in every call. `onednn_products` is for learning in
fp32, where torch would take MKL. Both change nothing where oneDNN is missing, on other devices, and in reduced precision.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def packed_weights(model):
    """Context in which the linear layers of `model` run from weights packed for this processor; for inference only.

    On a CPU, torch hands an fp32 matrix product to a library that rearranges the weights in every call, which is most of
    the work when there are only a few tokens to multiply with. Here it is done once, into oneDNN's own layout. Until the
    context is left the weights must not change, and they are held twice. Where gradients are recorded, on other devices and
    in reduced precision everything stays as it was.
    """
    packed = _fp32_linears(model)
    try:
        for linear in packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
            linear.forward = functools.partial(_packed_linear, linear, weight)
        yield
    finally:
        for linear in packed:
            linear.__dict__.pop("forward", None)  # the class's own again


def _fp32_linears(model):
    """The linear layers that oneDNN could take over: none where it is missing, or where autocast uses it anyhow."""
    if not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return []
    return [module for module in model.modules() if type(module) is torch.nn.Linear
            and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32]


def _packed_linear(linear, weight, x):
    if torch.is_grad_enabled():  # the packed product has no backward pass
        return F.linear(x, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, linear.bias, "none", [], "")


@contextlib.contextmanager
def onednn_products(model):
    """Context in which the linear layers of `model` that have no bias multiply by oneDNN, and so do their backward passes,
    even after the context was left. For training in fp32 on a CPU.

    On x86 torch gives fp32 products to MKL, which reached half of oneDNN's speed on the AMD processor where this was
    measured. Nothing is rounded more coarsely. On other devices and in reduced precision everything stays as it was.
    """
    found = [linear for linear in _fp32_linears(model) if linear.bias is None]
    try:
        for linear in found:
            linear.forward = functools.partial(_multiply, linear)
        yield
    finally:
        for linear in found:
            linear.__dict__.pop("forward", None)  # the class's own again


class _OneDNNProduct(torch.autograd.Function):
    """x W^T; x: (..., C), W: (D, C)."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (_onednn_product(rows, weight.t()).view_as(x) if ctx.needs_input_grad[0] else None,
                _onednn_product(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None)


def _multiply(linear, x):
    return _OneDNNProduct.apply(x, linear.weight)


def _onednn_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
