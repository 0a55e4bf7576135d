"""MuMoE blocks in a vision transformer, trained with timm's optimizer, schedule, loss and meters, as its train.py does.

python examples/timm_loop.py
"""

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mumoe

NAMES = ("dark", "grey", "light")


def shades(count: int, seed: int) -> TensorDataset:
    """Noisy images of three shades."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (count,), generator=generator)
    images = torch.randn(count, 3, 32, 32, generator=generator) + (labels - 1.0)[:, None, None, None]
    return TensorDataset(images, labels)


def train_one_epoch(epoch: int, model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    loss_function, losses = LabelSmoothingCrossEntropy(0.1), AverageMeter()
    model.train()
    for images, labels in loader:
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(images))
    print(f"epoch {epoch}: loss {losses.avg:.4f}")
    return losses.avg


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader) -> float:
    top1 = AverageMeter()
    model.eval()
    for images, labels in loader:
        top1.update(accuracy(model(images), labels)[0].item(), len(images))
    return top1.avg


def main(model: nn.Module | None = None, out: str = "timm-loop", count: int = 1000, epochs: int = 3) -> None:
    torch.manual_seed(0)
    if model is None:
        model = timm.create_model("test_vit", img_size=32, num_classes=len(NAMES))
    print(mumoe.replace_modules(model, "blocks.*.mlp", num_experts=8).table())  # as many parameters as before
    mumoe.replace_head(model, "CPMuMoE-r8-e16")

    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)
    training, held_out = shades(count, seed=0), DataLoader(shades(count // 2, seed=1), batch_size=64)
    for epoch in range(epochs):
        train_one_epoch(epoch, model, DataLoader(training, batch_size=64, shuffle=True, drop_last=True), optimizer)
        scheduler.step(epoch + 1)
    print(f"accuracy {validate(model, held_out):.1f} %")

    study = mumoe.analyze(model, held_out, labels=NAMES, layer="head", resamples=200)
    print(study)
    images = next(iter(held_out))[0]
    print(mumoe.export(model, out, images, overwrite=True))  # a folder: mumoe.load opens it again


if __name__ == "__main__":
    main()
