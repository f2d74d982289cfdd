"""The page in a real browser: images in, boxes out, nothing to or from another host."""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from urllib.parse import urlparse

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from msefpn.data.masks import encode_mask, resized_mask
from msefpn.inference.draw import class_colour, draw
from tests.web.serving import EVIL, Fixed, encoded, fixed_run, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed here")
NAME = "my <b>picture.v2.png"


@pytest.fixture(scope="module")
def found() -> Fixed:
    return Fixed()


@pytest.fixture(scope="module")
def url(found: Fixed) -> Iterator[str]:
    with serving([fixed_run("first", found), fixed_run("second")]) as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    hosts, said = set[str](), list[str]()
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname or "127.0.0.1"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.goto(url)
    expect(page.locator("#runs")).to_have_text("first and second")
    yield page
    assert hosts == {"127.0.0.1"}
    assert [text for text in said if "the server responded with a status of" not in text] == []
    page.context.close()


def drop(page: Page, data: bytes, name: str) -> None:
    transfer = page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    page.dispatch_event(".zone", "drop", {"dataTransfer": transfer})


def choose(page: Page, data: bytes, name: str = "mine.jpg") -> None:
    page.set_input_files(".zone input", {"name": name, "mimeType": "image/jpeg", "buffer": data})


def column(panel: Locator, number: int) -> list[str]:
    return panel.locator(f"tbody td:nth-child({number})").all_inner_texts()


def drawn(panel: Locator) -> NDArray[np.uint8]:
    """The picture of a panel, (H, W, 3) RGB."""
    uri = panel.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.array(image.convert("RGB"))


def assert_drawn_as_by_predict(picture: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Compare with the detections on an image, all but the font of the labels."""
    height, width = picture.shape[:2]
    found = Fixed()([image])[0]
    factor = np.array([width / image.shape[1], height / image.shape[0]] * 2, np.float32)
    masks = np.empty(2, dtype=object)
    masks[:] = [resized_mask(mask, (height, width)) for mask in found.masks]  # type: ignore[union-attr]  # it has some
    found = replace(found, boxes=found.boxes * factor, masks=masks)
    large = np.asarray(Image.fromarray(image).resize((width, height)))
    wanted = draw(large, found, Fixed.classes)
    wrong = np.abs(picture.astype(int) - wanted).max(2) > 12
    assert wrong.mean() < 0.03
    assert not wrong[100:].any(), "below the labels"
    plate = picture[:20, :200].reshape(-1, 3).astype(int)
    green = int(class_colour(1)[3:5], 16)
    letters = np.abs(plate[:, 1] - green) > 100
    assert 0.05 < letters.mean() < 0.5, "a label has letters"


def test_drop_slide_filter_download(page: Page, found: Fixed) -> None:
    drop(page, encoded(size=(80, 60)), NAME)
    panels = page.locator(".panel")
    expect(panels).to_have_count(2)
    assert panels.locator("h2").all_inner_texts() == ["first", "second"]
    assert page.locator(".state").inner_text() == NAME
    calls, first = found.calls, panels.first
    assert "2 of 2 boxes" in first.locator("header p").inner_text()
    assert "80 × 60 px" in first.locator("header p").inner_text()
    assert NAME in (first.locator("canvas").get_attribute("aria-label") or "")
    assert column(first, 1) == [EVIL, "circle"], "a class is shown as the text that it is"
    assert column(first, 2) == ["0.90", "0.40"]
    assert column(first, 3) == ["0, 0", "0, 0"]
    assert column(first, 4) == ["40 × 60", "80 × 30"]
    assert column(first, 5) == ["P5 / 32", "P2 / 4"]
    picture = drawn(first)
    assert picture.shape == (720, 960, 3)
    assert_drawn_as_by_predict(picture, np.zeros((60, 80, 3), np.uint8) + np.array([255, 0, 0], np.uint8))

    page.locator("#score").fill("0.6")
    assert column(first, 2) == ["0.90"]
    assert page.locator("#number").input_value() == "0.6"
    assert (picture[200, 700] != drawn(first)[200, 700]).any()
    page.locator("#number").fill("0.95")
    expect(first.locator(".hint")).to_be_visible()
    page.locator("#number").fill("0.1")
    assert len(column(first, 2)) == 2

    page.locator("summary").click()
    page.locator("#search").fill("ONERROR")
    expect(page.locator("#list li:visible")).to_have_count(1)
    page.locator("#list input:visible").check()
    assert column(first, 1) == [EVIL]
    assert page.locator("#chosen").inner_text() == EVIL
    assert page.title() == "msefpn", "a class name ran as a script"
    with page.expect_download() as waiting:
        first.locator(".save").click()
    assert waiting.value.suggested_filename.endswith("picture.v2-first.json")
    (result,) = json.loads(waiting.value.path().read_text())
    assert result == {
        "file_name": NAME,
        "category": EVIL,
        "image_id": 0,
        "category_id": 7,
        "bbox": [0, 0, 40, 60],
        "score": 0.9,
        "segmentation": {"size": [60, 80], "counts": result["segmentation"]["counts"]},
    }
    page.locator("#clear").click()
    assert len(column(first, 1)) == 2
    assert page.locator("#chosen").inner_text() == "all"
    assert found.calls == calls, "score and classes need no detection"


def test_a_bad_file_is_told_and_the_page_stays_up(page: Page, found: Fixed) -> None:
    bad = [
        ("note.jpg", b"not a picture at all", "note.jpg: is not a readable image"),
        ("empty.jpg", b"", "empty.jpg: is empty"),
        ("large.png", encoded(size=(900, 600)), "900 x 600, the page accepts 0.4 million"),
        ("heavy.jpg", bytes(400_000), "heavy.jpg: too large: 0.4 MB, the page accepts 0.3 MB"),
        ("half.jpg", encoded("JPEG")[:-300], "half.jpg: is damaged or incomplete"),
    ]
    choose(page, encoded())
    expect(page.locator(".panel")).to_have_count(2)
    calls = found.calls
    for name, data, message in bad:
        choose(page, data, name)
        expect(page.locator(".notice").first).to_contain_text(message)
        expect(page.locator(".panel")).to_have_count(2)
    assert found.calls == calls
    choose(page, encoded("JPEG"))
    expect(page.locator(".notice").first).to_be_hidden()
    expect(page.locator(".state")).to_have_text("mine.jpg")
    assert found.calls == calls + 1


def test_the_camera_takes_a_picture(page: Page) -> None:
    button = page.locator(".camera-button")
    button.click()
    expect(button).to_have_text("Take the picture")
    expect(page.locator("video.camera")).not_to_have_js_property("videoWidth", 0)
    button.click()
    expect(page.locator(".panel")).to_have_count(2)
    assert "camera.jpg" in (page.locator(".panel canvas").first.get_attribute("aria-label") or "")
    expect(page.locator("video.camera")).to_be_hidden()


def test_masks_are_read_as_they_were_written(page: Page) -> None:
    chance = np.random.default_rng(0)
    masks = [chance.random((37, 53)) < part for part in (0, 0.02, 0.5, 1)]
    for mask in masks:
        counts = page.evaluate("text => runLengths(text)", encode_mask(mask).decode())
        values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
        np.testing.assert_array_equal(values.reshape(53, 37).T, mask)


def test_the_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    choose(page, encoded())
    expect(page.locator(".panel")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert "left" not in page.locator(".panel thead").first.inner_text().lower()
