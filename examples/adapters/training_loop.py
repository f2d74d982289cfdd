"""A detector of msefpn in a training loop of your own: `losses()` gives the losses of a batch by name.

python training_loop.py trains on squares that it draws, and detects on one.
"""

import torch
from torch import Tensor

import msefpn
from msefpn.models import Detector, save
from msefpn.structures import Targets


def draw(count: int, side: int = 96) -> tuple[Tensor, Tensor, Targets]:
    """Images (B, 3, side, side) uint8 with a bright square each, their sizes (B, 2), and the squares."""
    images = torch.randint(0, 60, (count, 3, side, side), dtype=torch.uint8)
    sizes = torch.tensor([[side, side]] * count)  # without padding; H and W must be multiples of 32
    corners = torch.randint(0, side // 2, (count, 2))
    sides = torch.randint(side // 4, side // 2, (count, 1))
    boxes = torch.cat([corners, corners + sides], dim=1)  # (B, 4) xyxy
    for image, (left, top, right, bottom) in zip(images, boxes.tolist(), strict=True):
        image[:, top:bottom, left:right] = 220
    valid = torch.ones(
        count, 1, dtype=torch.bool
    )  # one object an image; pad with False where there are fewer
    return images, sizes, Targets(boxes[:, None].float(), torch.zeros(count, 1, dtype=torch.long), valid)


def train(detector: Detector, steps: int, *, batch: int = 4, side: int = 96, lr: float = 0.01) -> list[float]:
    """Train, and return the loss of each step."""
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    detector.train()
    history = []
    for _ in range(steps):
        images, sizes, targets = draw(batch, side)
        losses = detector.losses(images, sizes, targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        history.append(total.detach().item())
    detector.eval()
    return history


if __name__ == "__main__":
    built = msefpn.build(
        ["square"],
        backbone="mobilenetv2_100",
        neck="mse_fpn",
        neck_options={"out_channels": 64},
        backbone_options={"frozen_stages": -1, "train_norm": True},
        set=["size=96"],
    )
    print(f"loss {train(built, 100)[-1]:.2f}")
    save(built, "squares.safetensors")
    print(msefpn.load("squares.safetensors").predict(draw(1)[0][0]))
