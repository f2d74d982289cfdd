"""The options of a prediction: what is given, and what is refused in a line."""

from pathlib import Path
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.prediction.request import PredictionOptions


def test_what_is_given_replaces_the_defaults() -> None:
    assert PredictionOptions.given(score=None, size=None) == PredictionOptions()
    options = PredictionOptions.given(
        classes=["b", "a", "b"], size=320, tile=True, tile_size="640x480", proposals="p.json", score=0
    )
    assert options.classes == ("b", "a")
    assert PredictionOptions.given(classes="cat").classes == ("cat",)
    assert (options.size, options.tile_size, options.score) == ("320", "640x480", 0)
    assert options.proposals == Path("p.json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tile_size": "640"}, "without --tile"),
        ({"tile": True, "tile_size": "huge"}, "size 'huge' is not understood"),
        ({"size": "big"}, "size 'big' is not understood"),
        ({"overlap": 0.9}, r"overlap is 0\.9"),
        ({"score": 1.5}, r"score is 1\.5: it must be 0 to 1"),
        ({"score": float("nan")}, "score is nan"),
        ({"batch": 0}, "batch is 0: .*at least 1"),
        ({"stride": 0}, "stride is 0: .*at least 1"),
        ({"frames": 0}, "frames is 0: .*at least 1"),
        ({"scroe": 0.5}, "unknown option 'scroe': did you mean 'score'"),
        ({"device": "tpu"}, "unknown device 'tpu': .*known: auto, cpu, gpu"),
    ],
)
def test_what_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PredictionOptions.given(**given)
