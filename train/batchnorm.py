"""Batch norm over all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.distributed import sum_in_place, world


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, over all processes.

    PyTorch's own synchronised batch norm asks for GPUs; this one is the same on every device, so what is tested on
    CPUs is what runs.  Shards may differ in size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`."""
        if not self.training or world() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        output, mean, variance, count = _SharedNorm.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output  # type: ignore[no-any-return]


class _SharedNorm(torch.autograd.Function):
    """The normalisation and its gradient, in which the batch's mean and variance depend on all processes' rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return the output, mean and biased variance `(C,)`, and the number of values per channel."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        here = float(x.numel() // x.shape[1])
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        # In float64, E[x^2] - E[x]^2 loses nothing that float32 had.
        mean, variance = mean.double(), variance.double()
        sums = sum_in_place(torch.cat([mean * here, (variance + mean * mean) * here, mean.new_tensor([here])]))
        count = float(sums[-1])
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean * mean).clamp_min(0)
        mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, scale, mean, inverse)
        ctx.count = count
        gain = inverse * scale
        output = torch.addcmul(_channels(shift - mean * gain), wide, _channels(gain)).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of the input, here, and of scale and shift, this process's part."""
        x, scale, mean, inverse = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - _channels(mean)) * _channels(inverse)
        shift_part, scale_part = wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))
        by_shift, by_scale = (sum_in_place(torch.cat([shift_part, scale_part])) / ctx.count).chunk(2)
        to_input = (wide - _channels(by_shift) - normal * _channels(by_scale)) * _channels(inverse * scale)
        return to_input.to(x.dtype), scale_part, shift_part, None


def share_batch_norms(module: nn.Module) -> None:
    """Make every `BatchNorm2d` inside `module` one over all processes, in place; parameters and names stay."""
    if world() == 1:
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            # The same state under another forward: whoever holds the layer keeps holding it.
            child.__class__ = SharedBatchNorm2d


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
