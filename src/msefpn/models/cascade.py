"""Cascade R-CNN's head: Cai and Vasconcelos, arXiv 1712.00726; the defaults are mmdetection 2.x's."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from msefpn.models.matching import SampledRegions
from msefpn.models.roi import RoIHead
from msefpn.structures import Detections, Proposals, Targets


class CascadeHead(nn.Module):
    """RoI heads in a row: each refines the boxes of the one before, and is trained at a higher IoU.

    In prediction the logits of all stages, or their scores, are averaged, on the boxes of the last. Boxes are
    class-agnostic.

    Args:
        channels: channels of the pyramid.
        strides: strides of the levels that are pooled.
        num_classes: K, without background, which is the last score.
        ious: IoU from which a region is positive, for each stage.
        stds: what the four deltas are divided by, for each stage.
        weights: weight of the losses of each stage.
        hidden, samples, score, nms_iou, max_per_image, pre_nms_top_k, min_size: see `RoIHead`.
        sampling_ratio: see `RoIAlign`.
        box_loss, class_loss: see `RoIHead`.
        beta: where smooth L1 turns quadratic; 0: L1.
        clamp_both: see `boxes.decode`.
        average_scores: average the stages' scores (detectron2), not their logits (mmdetection).

    Raises:
        ValueError: the stages' arguments differ in length.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        ious: Sequence[float] = (0.5, 0.6, 0.7),
        stds: Sequence[Sequence[float]] = (
            (0.1, 0.1, 0.2, 0.2),
            (0.05, 0.05, 0.1, 0.1),
            (0.033, 0.033, 0.067, 0.067),
        ),
        weights: Sequence[float] = (1.0, 0.5, 0.25),
        hidden: int = 1024,
        samples: int = 512,
        score: float = 0.05,
        nms_iou: float = 0.5,
        max_per_image: int = 100,
        pre_nms_top_k: int = 2000,
        min_size: float = 0.0,
        sampling_ratio: int = 0,
        box_loss: str = "smooth_l1",
        class_loss: str = "cross_entropy",
        beta: float = 1.0,
        clamp_both: bool = True,
        average_scores: bool = False,
    ) -> None:
        super().__init__()
        if not len(ious) == len(stds) == len(weights) >= 1:
            raise ValueError(
                "each stage has an IoU, stds and a weight, but there are "
                f"{len(ious)}, {len(stds)} and {len(weights)}"
            )
        self.levels, self.weights, self.average_scores = len(strides), list(weights), average_scores
        self.stages = nn.ModuleList(
            RoIHead(
                channels,
                strides,
                num_classes,
                positive_iou=iou,
                stds=deviations,
                class_agnostic=True,
                hidden=hidden,
                samples=samples,
                score=score,
                nms_iou=nms_iou,
                max_per_image=max_per_image,
                pre_nms_top_k=pre_nms_top_k,
                min_size=min_size,
                sampling_ratio=sampling_ratio,
                box_loss=box_loss,
                class_loss=class_loss,
                beta=beta,
                clamp_both=clamp_both,
            )
            for iou, deviations in zip(ious, stds, strict=True)
        )

    def forward(self, pyramid: list[Tensor], proposals: Proposals, sizes: Tensor) -> Detections:
        """Detect, see `RoIHead.forward`."""
        rois, logits = proposals.boxes, []
        for stage in self.stages:
            pooled = rois
            found, boxes = stage.refined(pyramid, rois, sizes)  # type: ignore[operator]  # a ModuleList forgets
            logits.append(found)
            rois = boxes.squeeze(2)
        last: RoIHead = self.stages[-1]  # type: ignore[assignment]  # likewise
        regions = Proposals(pooled, proposals.valid)
        if self.average_scores:  # of log-probabilities the softmax gives the probabilities
            mean = torch.stack([found.softmax(dim=-1) for found in logits]).mean(dim=0).clamp(min=1e-30).log()
        else:
            mean = torch.stack(logits).mean(dim=0)
        return last.selected(mean, rois[:, :, None], regions)

    def losses(
        self,
        pyramid: list[Tensor],
        proposals: Proposals,
        sizes: Tensor,
        targets: Targets,
        aux: Mapping[str, list[Tensor]] = MappingProxyType({}),
    ) -> tuple[dict[str, Tensor], SampledRegions]:
        """The losses `stage1_class`, `stage1_box`, ... of all stages, weighted, and the last stage's regions.

        A stage learns on regions sampled from the boxes of the one before and the ground truth.
        """
        losses = {}
        for number, (stage, weight) in enumerate(zip(self.stages, self.weights, strict=True), 1):
            found, regions = stage.losses(pyramid, proposals, sizes, targets, aux)  # type: ignore[operator]  # likewise
            for name, loss in found.items():
                losses[name.replace("roi", f"stage{number}")] = weight * loss
            with torch.no_grad():
                boxes = stage.decoded(regions.deltas, regions.rois, sizes).squeeze(2)  # type: ignore[operator]  # likewise
            proposals = Proposals(boxes, regions.proposed)
        return losses, regions
