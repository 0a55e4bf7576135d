"""A backbone and a head as one model: images in, logits out."""

from __future__ import annotations

from torch import Tensor, nn

from mumoe.models.heads import Head

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Backbone, then head.

    Args:
        backbone: (rows, 3, height, width) -> (rows, num_features).
        head: (rows, num_features) -> (rows, num_classes).
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
