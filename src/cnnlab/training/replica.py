"""A network that several processes train together, each on its part of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cnnlab.device.fast_layers import with_layers
from cnnlab.device.world import World


class Replica(nn.Module):
    """`model` with gradients that are averaged over the processes; it shares the parameters of `model`.

    Call `start_batch` before each batch. synced: whether batch norm normalises over the whole batch, not over this
    process's part. unused: whether a parameter may have no gradient.

    weight: the factor of this process's loss, see `World.weight`. parts: the images of each process, if all must
    divide theirs into equally many pieces, since batch norm exchanges sums in each piece; else empty.
    """

    def __init__(self, model: nn.Module, world: World, *, synced: bool = False, unused: bool = False) -> None:
        super().__init__()
        if synced:
            model = with_layers(model, lambda layer: SyncedBatchNorm if can_sync(layer) else None)
        self._synced = [layer for layer in model.modules() if isinstance(layer, SyncedBatchNorm)]
        for layer in self._synced:
            layer.world = world
        self._world = world
        self.weight, self._copies = 1.0, 1
        self.parts: list[int] = []
        device = next(p.device for p in model.parameters())
        self.parallel = DistributedDataParallel(
            model, [device] if device.type == "cuda" else None,
            find_unused_parameters=unused, gradient_as_bucket_view=True,
        )  # fmt: skip
        # Running statistics are not exchanged in each step: only the first process's count, see Trainer.take_buffers.
        # Set after construction, since the argument's name depends on PyTorch's version.
        self.parallel.broadcast_buffers = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.parallel(x)
        return logits

    def start_batch(self, images: int) -> None:
        """Prepare for a batch that has `images` in all processes together."""
        self.weight, self._copies = self._world.weight(images), self._world.copies(images)
        self.parts = self._world.lengths(images) if self._synced else []
        for layer in self._synced:
            layer.copies = self._copies

    def no_sync(self, wait: bool) -> AbstractContextManager[Any]:
        """Return a context for a backward pass. wait: only accumulate gradients; a later pass averages them."""
        return self.parallel.no_sync() if wait else nullcontext()

    def reduce(self, loss: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the correct predictions of the whole batch. loss: this process's, times `weight`."""
        loss, correct = self._world.sum(torch.stack((loss.float(), correct.float())))
        return loss / self._world.size, correct / self._copies


def can_sync(layer: nn.Module) -> bool:
    """Return whether `SyncedBatchNorm` computes the same as `layer`: a subclass may do more, such as an activation."""
    return type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes: (B, C, H, W), or (B, C), -> the same shape.

    PyTorch's own works on GPUs only. This one needs two sums over the processes in each direction.

    copies: how many processes have each image.
    """

    world: World
    copies = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the whole batch's statistics in training, by the running ones in eval mode."""
        if not self.training:
            return super().forward(x)
        dims, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        dtype = self.running_mean.dtype if self.running_mean is not None else torch.float32
        here = torch.full((1,), x.numel() // x.shape[1], dtype=dtype, device=x.device)  # values per channel
        sums = _Sum.apply(torch.cat((x.sum(dims, dtype=dtype), here)), self.world)
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = x - mean.view(shape)
        var = _Sum.apply(centred.square().sum(dims, dtype=dtype), self.world) / count
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
                self.running_mean.lerp_(mean, share)
                values = count / self.copies  # the variance is unbiased as if one process had the batch
                self.running_var.lerp_(var * values / (values - 1), share)
        normalized: Tensor = y.to(x.dtype)
        return normalized

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")


class _Sum(torch.autograd.Function):
    """The sum of the processes' tensors. Gradients are summed, too, since each process's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total: Tensor = ctx.world.sum(gradient.contiguous())
        return total, None
