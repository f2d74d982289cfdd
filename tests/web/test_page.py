"""The page in a real browser: pictures in, boxes out, nothing to or from another host."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect, sync_playwright

from msefpn.config import load_recipe
from msefpn.inference.detect import Predictions
from msefpn.inference.predictor import Predictor
from msefpn.models import build, save
from msefpn.models.roi import RoIHead
from msefpn.web.page import build_page
from msefpn.web.server import listen, make_server
from msefpn.web.session import ServedRun
from msefpn.web.upload import UploadLimits
from tests import TINY

EVIL = "<img src=x onerror=\"document.title='broken in'\">${1 + 1}{{value}}"
CLASSES = ["circle", EVIL]
LIMITS = UploadLimits(megabytes=0.3, megapixels=0.4)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed here")


class Counted(Predictor):
    """Counts its forwards."""

    forwards = 0

    def __call__(self, images: Sequence[NDArray[np.uint8]], **options: Any) -> list[Predictions]:
        self.forwards += 1
        return super().__call__(images, **options)


def weights(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    detector = build(load_recipe(str(TINY)), CLASSES, category_ids=[3, 7])
    (head,) = (module for module in detector.modules() if isinstance(module, RoIHead))
    head.box.classes.weight.data.mul_(40)  # so that scores differ
    folder.mkdir()
    save(detector, folder / "best.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ServedRun]:
    folder = tmp_path_factory.mktemp("secret")
    names = ("first", "second")
    return [
        ServedRun(name, Counted.open(weights(folder / name, seed), device="cpu"))
        for seed, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def url(runs: list[ServedRun]) -> Iterator[str]:
    server = make_server(build_page(runs, LIMITS), LIMITS)
    with listen("127.0.0.1", 0) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA])
        yield started
        started.close()


@pytest.fixture
def hosts() -> set[str]:
    """The hosts that pages asked."""
    return set()


@pytest.fixture
def page(browser: Browser, url: str, hosts: set[str]) -> Iterator[Page]:
    opened = visitor(browser, url, hosts)
    yield opened
    assert hosts == {"127.0.0.1"}
    opened.context.close()


def visitor(browser: Browser, url: str, hosts: set[str]) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname or "127.0.0.1"))
    page.goto(url)
    page.wait_for_selector(".zone")
    return page


def file_of(image: Path, name: str = "mine.jpg") -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": image.read_bytes()}


def drop(page: Page, image: Path, name: str) -> None:
    text = base64.b64encode(image.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [text, name],
    )
    page.dispatch_event(".zone", "drop", {"dataTransfer": transfer})


def column(panel: Locator, number: int) -> list[str]:
    return panel.locator(f"tbody td:nth-child({number})").all_inner_texts()


def forwards(runs: list[ServedRun]) -> list[int]:
    return [run.predictor.forwards for run in runs if isinstance(run.predictor, Counted)]


def test_drop_slide_filter_download(page: Page, runs: list[ServedRun], tiny_set: Path) -> None:
    before = forwards(runs)
    drop(page, tiny_set / "val" / "000001.jpg", "my <b>picture.jpg")
    panels = page.locator(".panel")
    expect(panels).to_have_count(2)
    assert panels.locator("h2").all_inner_texts() == ["first", "second"]
    assert forwards(runs) == [count + 1 for count in before]
    first = panels.first
    expect(first.locator("header p")).to_contain_text(" ms")
    scores, image = column(first, 2), first.locator("img").get_attribute("src")
    assert len(scores) > 3
    assert min(map(float, scores)) >= 0.3
    assert scores == sorted(scores, reverse=True)
    assert {level.split(" / ")[0] for level in column(first, 5)} <= {"P2", "P3", "P4", "P5"}

    page.locator("#score input[type=range]").fill("0.6")
    expect(first.locator("tbody tr")).not_to_have_count(len(scores))
    assert column(first, 2) == [score for score in scores if float(score) >= 0.6]
    assert first.locator("img").get_attribute("src") != image
    page.locator("#score input[type=range]").fill("0.1")
    expect(first.locator("tbody tr")).not_to_have_count(len(column(first, 2)))
    assert set(column(first, 1)) == set(CLASSES), "a class is shown as the text that it is"

    page.get_by_label("Classes").click()
    page.get_by_role("option").filter(has_text="onerror").click()
    expect(first.locator("tbody tr").filter(has_text="circle")).to_have_count(0)
    assert set(column(first, 1)) == {EVIL}
    assert page.title() == "msefpn", "a class name ran as a script"
    with page.expect_download() as waiting:
        first.locator(".save").click()
    assert waiting.value.suggested_filename.endswith("-first.json")
    results = json.loads(waiting.value.path().read_text())
    assert [f"{item['score']:.2f}" for item in results] == column(first, 2)
    assert {(item["category_id"], item["category"]) for item in results} == {(7, EVIL)}
    assert {item["file_name"] for item in results} == {"my <b>picture.jpg"}
    assert {len(item["bbox"]) for item in results} == {4}
    assert forwards(runs) == [count + 1 for count in before], "score and classes need no forward"


def test_a_bad_file_is_told_and_the_page_stays_up(page: Page, runs: list[ServedRun], tiny_set: Path) -> None:
    large = BytesIO()
    Image.new("RGB", (900, 600)).save(large, "PNG")
    good = file_of(tiny_set / "val" / "000002.jpg")
    half = good["buffer"][: len(good["buffer"]) // 2]
    bad = [
        ("note.jpg", b"not a picture at all", "note.jpg is not a readable image"),
        ("empty.jpg", b"", "empty.jpg is empty"),
        ("large.png", large.getvalue(), "900 x 600, the page accepts 0.4 million"),
        ("heavy.jpg", bytes(400_000), "heavy.jpg is too large: 0.4 MB, the page accepts 0.3"),
        ("half.jpg", half, "half.jpg cannot be read: image file is truncated"),
    ]
    page.set_input_files(".zone input", good)
    expect(page.locator(".panel")).to_have_count(2)
    before = forwards(runs)
    for name, data, message in bad:
        page.set_input_files(".zone input", {"name": name, "mimeType": "image/jpeg", "buffer": data})
        expect(page.locator("#controls")).to_contain_text(message)
        expect(page.locator(".panel")).to_have_count(2)
    assert forwards(runs) == before
    page.set_input_files(".zone input", good)
    expect(page.locator(".notice")).to_have_count(0)
    assert forwards(runs) == [count + 1 for count in before]


def test_two_visitors_at_once(
    page: Page, browser: Browser, url: str, tiny_set: Path, hosts: set[str]
) -> None:
    other = visitor(browser, url, hosts)
    pictures = [tiny_set / "val" / f"{number:06}.jpg" for number in (1, 2)]
    for visiting, picture in zip((page, other), pictures, strict=True):
        visiting.set_input_files(".zone input", file_of(picture, picture.name))
    for visiting, picture in zip((page, other), pictures, strict=True):
        with Image.open(picture) as image:
            size = f"{image.width} × {image.height} px"
        expect(visiting.locator(".panel header p").first).to_contain_text(size)
        assert picture.name in (visiting.locator(".panel img").first.get_attribute("alt") or "")
    shown, mine = other.locator("#shown").inner_html(), page.locator(".panel header p").first
    before = mine.inner_text()
    page.locator("#score input[type=range]").fill("0.9")
    expect(mine).not_to_have_text(before)
    assert other.locator("#shown").inner_html() == shown
    other.context.close()


def test_the_camera_takes_a_picture(page: Page) -> None:
    button = page.locator(".camera-button")
    button.click()
    expect(button).to_have_text("Take the picture")
    page.wait_for_function("document.querySelector('video.camera').videoWidth > 0")
    button.click()
    expect(page.locator(".panel")).to_have_count(2)
    assert "camera.jpg" in (page.locator(".panel img").first.get_attribute("alt") or "")
    expect(page.locator("video.camera")).to_be_hidden()


def test_no_path_of_the_server_leaves_it(page: Page, url: str, runs: list[ServedRun], tiny_set: Path) -> None:
    page.set_input_files(".zone input", file_of(tiny_set / "val" / "000003.jpg"))
    expect(page.locator(".panel")).to_have_count(2)
    texts = [page.content(), *(page.request.get(url + part).text() for part in ("", "config", "theme.css"))]
    for path in ("secret", str(tiny_set.parent), str(Path.cwd()), str(Path.home()) + "/", "site-packages"):
        assert not any(path in text for text in texts), path
    for part in ("gradio_api/file=/etc/hostname", "gradio_api/upload", "gradio_api/info", "static/../config"):
        assert page.request.post(url + part, data="x").status in (404, 405)
    assert page.request.get(url + "gradio_api/file=/etc/hostname").status == 404
    assert page.request.post(url + "gradio_api/queue/join", data="x" * 600_000).status == 413
