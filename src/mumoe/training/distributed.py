"""Several processes as one: gate statistics over the whole batch, sharding, small agreements, and failures.

What fails on one process is raised on all of them (`together`, `main_first`), and a process that is gone ends the
others with a `JobError` (`lost_process`).

A batch-normalized gate that saw only the rows of its own process would compute another function than on one
process. torch's SyncBatchNorm rejects CPU tensors, so this module has its own differentiable reduction:
the count and the sum of the rows are summed over processes, then the centred squares.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mumoe.devices import resolve
from mumoe.errors import JobError, UserError, reason_of, require
from mumoe.gating import BatchNorm, Gate
from mumoe.training.config import TrainConfig

__all__ = [
    "SynchronizedBatchNorm",
    "SynchronizedNorm",
    "agree",
    "agree_all",
    "from_main",
    "gathered",
    "is_main",
    "join",
    "leave",
    "lost_process",
    "main_first",
    "make_accelerator",
    "shard",
    "sum_over_processes",
    "synchronize_gates",
    "synchronize_norms",
    "together",
    "world_size",
]

Result = TypeVar("Result")

_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "store")
"""Words of torch's errors for a message that did not arrive; those of Gloo have no type of their own."""

_tell = logging.getLogger("mumoe.training").warning


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(device: str | torch.device, *, who: str) -> torch.device:
    """Join the processes that a launcher such as torchrun has started, if it has; returns this process's device.

    Raises:
        UserError: If there is no such device, or one is named for all processes.
    """
    if world_size() == 1 and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return resolve(device, who=who)
    if ":" in str(device):
        raise _one_for_all(who, str(device))
    found = resolve(device, who=who)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(found)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return found


def _one_for_all(who: str, device: str) -> UserError:
    return UserError(
        f"{who}: expected a device for each of several processes, got {device!r} for all of them. "
        "Leave `device` out, and choose devices with CUDA_VISIBLE_DEVICES."
    )


def is_main() -> bool:
    """Whether this process writes files and prints: the first of several, or the only one."""
    return world_size() == 1 or dist.get_rank() == 0


def together(work: Callable[[], Result]) -> Result:
    """Do some work on every process; an error on one of them is raised on all (collective).

    The work itself must send no messages.
    """
    if world_size() == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = gathered(None if failure is None else _sendable(failure))
    if failure is not None:
        raise failure
    for found in failures:
        if found is not None:
            raise found
    return result


def gathered(value: Result) -> list[Result]:
    """The value of each process, by rank (collective)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(work: Callable[[], Result]) -> Result:
    """What the main process returns, on every process; its error is raised on all of them (collective)."""
    if world_size() == 1:
        return work()
    found = [together(lambda: work() if is_main() else None)]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def main_first(work: Callable[[], Result]) -> Result:
    """Do some work on the main process, which may download, and then on the others (collective)."""
    if world_size() == 1:
        return work()
    found = together(lambda: work() if is_main() else None)
    rest = together(lambda: None if is_main() else work())
    return found if is_main() else rest  # type: ignore[return-value]


def _sendable(error: Exception) -> Exception:
    """An error that other processes can raise."""
    if isinstance(error, UserError | JobError | OSError):
        return error
    return JobError(f"{type(error).__name__}: {reason_of(error, 300)}")


@contextlib.contextmanager
def lost_process(who: str, remedy: str) -> Iterator[None]:
    """Turn a message that does not arrive, since another process ended, into a `JobError` with this remedy."""
    try:
        yield
    except JobError:
        raise
    except RuntimeError as error:
        known = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST)
        if world_size() == 1 or not known:
            raise
        raise JobError(
            f"{who}: expected {world_size()} processes, got fewer: another one ended or cannot be reached. {remedy}"
        ) from error


def leave(*, wait: bool = True) -> None:
    """If this is one of several processes, exit with status 0 once all get here, or at once; else do nothing.

    The interpreter is not shut down: Gloo's threads may still hold tensors and would abort the process
    (pytorch/pytorch#190489), so that the launcher would report a finished job as failed.
    """
    if world_size() == 1:
        return
    if wait:
        with lost_process("mumoe", "What this process had to write is written."):
            dist.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce: every process's loss depends on every process's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, with gradients; the tensor itself on one process."""
    if world_size() == 1:
        return tensor
    total: Tensor = _SumOverProcesses.apply(tensor)
    return total


class SynchronizedBatchNorm(BatchNorm):
    """A gate's batch normalization whose statistics span all processes, on any device.

    Shape:
        (rows, num_features) -> the same; rows may differ between processes, and be 0 on some.

    Raises:
        UserError: In training, if all processes together have fewer than two rows.
    """

    @classmethod
    def of(cls, norm: BatchNorm) -> SynchronizedBatchNorm:
        """A synchronized norm that shares the buffers of a local one."""
        synchronized = cls(norm.num_features)
        synchronized.eps, synchronized.momentum = norm.eps, norm.momentum
        for name, buffer in norm.named_buffers():
            setattr(synchronized, name, buffer)
        return synchronized.train(norm.training)

    def forward(self, input: Tensor, shift: Tensor | None = None) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input, shift)
        count = input.new_tensor([input.shape[0]])
        dist.all_reduce(count)
        if count.item() < 2:
            raise UserError("gate: expected at least 2 rows over all processes, got fewer. Use a larger batch.")
        mean = sum_over_processes(input.sum(0)) / count
        centred = input - mean
        variance = sum_over_processes(centred.square().sum(0)) / count
        whole = mean.detach() if shift is None else mean.detach() + shift
        self.remember(whole, variance.detach(), int(count))
        return centred * torch.rsqrt(variance + self.eps)


class SynchronizedNorm(nn.Module):
    """A backbone's batch normalization whose statistics span all processes; its tensors and parts keep their names.

    Args:
        norm: A `torch.nn.BatchNorm1d`, 2d or 3d, or timm's ``BatchNormAct2d``; its tensors are shared.

    Shape:
        (rows, channels, ...) -> the same; rows may differ between processes.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = norm._parameters, norm._buffers, norm._modules
        self._plain = [norm]  # in a list, since it is no part of this module
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        norm = self._plain[0]
        norm.training = self.training
        if not self.training or world_size() == 1:
            return norm(x)
        y = self._normalized(x, norm)
        for part in ("drop", "act"):  # of BatchNormAct2d
            y = getattr(norm, part)(y) if part in self._modules else y
        return y

    def _normalized(self, x: Tensor, norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        count = sum_over_processes(wide.new_tensor(x.numel() / x.shape[1]))
        mean = sum_over_processes(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(dims)) / count
        self._remember(norm, mean.detach(), variance.detach() * count / (count - 1))
        y = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _remember(self, norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            return
        norm.num_batches_tracked.add_(1)
        weight = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), weight)


def synchronize_norms(model: nn.Module) -> nn.Module:
    """Replace the batch norms of a backbone that is trained by synchronized ones, in place; tensors keep their names.

    Those of gates are left to `synchronize_gates`, and classes with a forward of their own that is not known are left
    alone.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child)
            if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or kind.__name__ == "BatchNormAct2d":
                setattr(parent, name, SynchronizedNorm(child))  # type: ignore[arg-type]
    return model


def synchronize_gates(model: nn.Module) -> nn.Module:
    """Replace every gate's batch norm by a synchronized one, in place; buffers keep their names.

    Other batch norms are left to `synchronize_norms`.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm) and not isinstance(child, SynchronizedBatchNorm):
                setattr(parent, name, SynchronizedBatchNorm.of(child))
    return model


def make_accelerator(config: TrainConfig) -> Any:
    """Accelerate's handle on the devices and processes of this job.

    Raises:
        UserError: If there is no such device, or it does not support the requested precision.
    """
    accelerate = require("accelerate", "vision", "train")
    states, tools = require("accelerate.state", "vision", "train"), require("accelerate.utils", "vision", "train")
    device = _own_device(config)
    # A second training in this process may ask for another precision, or for another device.
    states.AcceleratorState._reset_state(reset_partial_state=device is not None)
    mixed = {"fp32": "no"}.get(config.precision, config.precision)
    # `accelerate launch --use_fsdp` turns on our `shard`, the only way to shard, which also works on CPUs.
    settings = {"ACCELERATE_USE_FSDP": "false"} | ({} if device is None else {"ACCELERATE_TORCH_DEVICE": device})
    with tools.patch_environment(**settings):
        try:
            copies = tools.DistributedDataParallelKwargs(broadcast_buffers=False)
            cpu = config.device == "cpu" or not torch.accelerator.is_available()
            accelerator = accelerate.Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[copies])
        except ValueError as error:
            raise _no_precision(config, str(error)) from None
    _warn_of_lone_process()
    if mixed != "no" and not accelerator.native_amp:
        raise _no_precision(config, f"device {accelerator.device.type!r}")
    return accelerator


def _own_device(config: TrainConfig) -> torch.device | None:
    """The device of a job of one process; None if accelerate gives each of several processes its own.

    Raises:
        UserError: If there is no such device, or several processes are asked to share one.
    """
    several = world_size() > 1 or "LOCAL_RANK" in os.environ or (dist.is_available() and dist.is_initialized())
    if not several:
        found = resolve(config.device, who="train")
        if found.type == "cuda" and found.index is not None:
            torch.cuda.set_device(found)
        return found
    if ":" in config.device:
        raise _one_for_all("train", config.device)
    return None


def _warn_of_lone_process() -> None:
    """Warn that accelerate launch, asked for several processes on a CPU, starts only one without MPI."""
    asked = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= set(os.environ) and os.environ["ACCELERATE_USE_CPU"] == "True"
    if asked and "WORLD_SIZE" not in os.environ and world_size() == 1:
        _tell(
            "train: accelerate launch started one process, as it does on a CPU without MPI. "
            "For N processes: torchrun --standalone --nproc-per-node N -m mumoe.cli train ..."
        )


def _no_precision(config: TrainConfig, got: str) -> UserError:
    other = "bf16 or fp32" if config.precision == "fp16" else "fp32"
    return UserError(
        f"train: expected a device that computes in {config.precision}, got: {got}. Use {other} as `precision`."
    )


def wants_shard(config: TrainConfig) -> bool:
    """Whether this job shards: the config or the launcher asks for it, and there are several processes."""
    asked = config.shard or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return asked and world_size() > 1


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard parameters over the processes (FSDP2), block by block if the model has lists of blocks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # The loop changes no output in place, which is what torch warns of at the first step.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks that are called one after another: a gate's routers are part of its block."""
    for child in model.children():
        if isinstance(child, Gate):
            continue
        inside = isinstance(model, nn.ModuleList) and type(child).forward is not nn.Module.forward
        if inside and any(True for _ in child.parameters()):
            yield child
        else:
            yield from _blocks(child)


def agree(value: bool, device: torch.device) -> bool:
    """True on every process if it is true on any; every process must call it."""
    return agree_all((value,), device)[0]


def agree_all(values: tuple[bool, ...], device: torch.device) -> tuple[bool, ...]:
    """`agree` on several values with one message."""
    if world_size() == 1:
        return values
    flags = torch.tensor([float(value) for value in values], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return tuple(flag > 0 for flag in flags.tolist())
