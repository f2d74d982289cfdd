"""Which objects get a positive anchor in training, and which anchors would meet them: numpy, no model."""

from msefpn.data.anchors.advice import Chosen, advise_on_anchors, missed_share
from msefpn.data.anchors.choice import AnchorChoice, choose_anchors, with_choice
from msefpn.data.anchors.match import Objects, resized_objects
from msefpn.data.anchors.rules import number, options_part, rule_for, without_anchors
from msefpn.data.anchors.share import MANY_MISSED, AnchorShare, as_percent, measure_share

__all__ = [
    "MANY_MISSED",
    "AnchorChoice",
    "AnchorShare",
    "Chosen",
    "Objects",
    "advise_on_anchors",
    "as_percent",
    "choose_anchors",
    "measure_share",
    "missed_share",
    "number",
    "options_part",
    "resized_objects",
    "rule_for",
    "with_choice",
    "without_anchors",
]
