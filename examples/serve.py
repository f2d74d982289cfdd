"""Detect over HTTP; needs the extra `demo`.

MODEL=runs/mine uvicorn --factory serve:create_app --port 8000
curl -F images=@a.jpg -F images=@b.jpg 'http://127.0.0.1:8000/detect?score=0.5'

Requests are read in threads. The images of those that wait are detected on together, in one thread.
"""

import os
import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, UploadFile
from PIL import Image, ImageOps

import msefpn

MOST = 8
"""Images of a batch."""


class Batcher:
    """Detects on the images that wait, together; `submit` may be called from any thread."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.waiting: queue.SimpleQueue[tuple[np.ndarray, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, image: np.ndarray) -> Future:
        """Give an image (H, W, 3) RGB into the queue; the future has its `ImageResult`."""
        future: Future = Future()
        self.waiting.put((image, future))
        return future

    def _work(self) -> None:
        while True:
            group = [self.waiting.get()]
            while len(group) < MOST and not self.waiting.empty():
                group.append(self.waiting.get())
            images, futures = zip(*group, strict=True)
            try:
                results = self.detector.predict(list(images), batch=len(images), score=0.0)
            except Exception as error:  # of a GPU's memory, say: all that wait are told
                for future in futures:
                    future.set_exception(error)
                continue
            for future, result in zip(futures, results, strict=True):
                future.set_result(result)


def read(upload: UploadFile) -> np.ndarray:
    """Return the pixels of a file as RGB (H, W, 3), turned upright."""
    try:
        return np.array(ImageOps.exif_transpose(Image.open(upload.file)).convert("RGB"))
    except Exception:  # decoders raise nearly anything on broken bytes
        raise HTTPException(422, f"{upload.filename} is not an image that can be read") from None


def create_app(model: str | Path | None = None) -> FastAPI:
    """Load a run folder, a file of weights or an exported file, and serve it."""
    detector = msefpn.load(model or os.environ["MODEL"])
    batcher, app = Batcher(detector), FastAPI(title="msefpn")

    @app.get("/classes")
    def classes() -> list[str]:
        """Return the names of the classes."""
        return list(detector.classes)

    @app.post("/detect")
    def detect(
        images: list[UploadFile], score: Annotated[float, Query(ge=0, le=1)] = 0.3
    ) -> list[list[dict[str, Any]]]:
        """Return class, label, score and box (xyxy, pixels) of the objects of each image."""
        futures = [batcher.submit(image) for image in [read(upload) for upload in images]]
        found = [future.result().as_list() for future in futures]
        return [[item for item in objects if item["score"] >= score] for objects in found]

    return app
