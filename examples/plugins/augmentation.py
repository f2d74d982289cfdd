"""An augmentation: now and then, a photograph in grey and a little blurred."""

from typing import Any

import torch
from torchvision.transforms import v2

from msefpn.plugins import register


@register("augmentation", "old_photo")
class OldPhoto:
    """Grey and blurred a third of the time, and flipped; resizing to the run's size is added after it."""

    def __init__(self) -> None:
        self.grey = v2.Compose([v2.Grayscale(3), v2.GaussianBlur(5)])
        self.flip = v2.RandomHorizontalFlip(0.5)

    def __call__(self, image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Change the image (3, H, W) uint8; the flip moves boxes and masks with it."""
        if torch.rand(()) < 1 / 3:
            image = self.grey(image)
        image, target = self.flip(image, target)
        return image, target
