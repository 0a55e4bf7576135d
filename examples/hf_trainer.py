"""MuMoE blocks in a model of Hugging Face, trained with its `Trainer`.

pip install 'mumoe[text,vision]' && python examples/hf_trainer.py
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import mumoe

NAMES = ("dark", "grey", "light")


def shades(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Noisy images of three shades, as `Trainer` takes them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (count,), generator=generator)
    images = torch.randn(count, 3, 32, 32, generator=generator) + (labels - 1.0)[:, None, None, None]
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


class Logits(nn.Module):
    """The model as a function from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def small_vit() -> ViTForImageClassification:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=len(NAMES)))


def main(model: nn.Module | None = None, out: str = "hf-trainer", count: int = 1000, epochs: int = 3) -> None:
    torch.manual_seed(0)
    model = model or small_vit()
    mumoe.replace_modules(model, preset="hf-vit", num_experts=8)
    mumoe.replace_head(model, "CPMuMoE-r8-e16")

    settings = TrainingArguments(
        output_dir=f"{out}/trainer",
        num_train_epochs=epochs,
        learning_rate=3e-3,
        per_device_train_batch_size=32,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    Trainer(model, settings, train_dataset=shades(count, seed=0)).train()

    held_out = shades(count // 2, seed=1)
    tensors = TensorDataset(*(torch.stack([row[key] for row in held_out]) for key in ("pixel_values", "labels")))
    network = Logits(model.cpu().eval())
    loader = DataLoader(tensors, batch_size=64)
    print(mumoe.analyze(network, loader, labels=NAMES, layer="model.classifier", resamples=200))

    stack = mumoe.EditStack(model.classifier)
    stack.add(mumoe.Scale(0, 2.0))
    model.classifier = stack.fold()
    print(mumoe.export(network, f"{out}/model.pt2", tensors[:2][0], labels=NAMES, overwrite=True))


if __name__ == "__main__":
    main()
