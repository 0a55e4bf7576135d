"""A mixture-of-experts head in your own training loop: train it, look at its experts, edit one, export.

python examples/own_loop.py
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import mumoe

NAMES = ("upright", "falling", "level", "rising")


class Network(nn.Module):
    """A small convolutional network; any model with a linear classifier does as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.fc = nn.Linear(32 * 6 * 6, len(NAMES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


def stripes(count: int, seed: int) -> TensorDataset:
    """Noisy images of stripes, each with the number of their direction."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (count,), generator=generator)
    across, down = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")
    angle = (labels * torch.pi / 4)[:, None, None]
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    waves = torch.sin(0.8 * (across * angle.cos() + down * angle.sin()) + phase)
    return TensorDataset((waves + torch.randn(count, 32, 32, generator=generator))[:, None], labels)


def train(model: nn.Module, loader: DataLoader, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def main(model: nn.Module | None = None, out: str = "own-loop", count: int = 2000, epochs: int = 4) -> None:
    torch.manual_seed(0)
    model = model or Network()
    mumoe.replace_head(model, "CPMuMoE-r16-e16")  # in place; as a context manager it undoes at the end
    train(model, DataLoader(stripes(count, seed=0), batch_size=64, shuffle=True), epochs)

    loader = DataLoader(stripes(count // 2, seed=1), batch_size=64)
    study = mumoe.analyze(model, loader, labels=NAMES)
    experts = study.to_frame().sort_values("polysemanticity")  # the purest first
    print(study.headline())
    print(experts[["expert", "load", "polysemanticity", "top_classes"]].head(8).to_string(index=False))

    stack = mumoe.EditStack(model.fc)
    stack.add(mumoe.Ablate(int(experts["expert"].iloc[0])))
    model.fc = stack.fold()  # an ordinary layer again, with the edit in its weights
    print("\n".join(stack.describe()))

    images = next(iter(loader))[0]
    print(mumoe.export(model, Path(out) / "model.pt2", images, labels=NAMES, overwrite=True))


if __name__ == "__main__":
    main()
