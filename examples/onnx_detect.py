"""Detect objects with an exported detector; all that this needs is numpy, Pillow and onnxruntime.

python onnx_detect.py detector.onnx photo.jpg [--out found.jpg] [--score 0.3]
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def detect(session: onnxruntime.InferenceSession, image: Image.Image) -> list[dict]:
    """Return class, score and box (left, top, right, bottom; pixels) of each object, the best first."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["msefpn"])
    factor = min(about["size"][0] / max(image.size), about["size"][1] / min(image.size))
    width, height = (max(1, int(side * factor + 0.5)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = (max(about["sides"][0], -(-side // 32) * 32) for side in (height, width))
    padded = np.zeros((1, 3, rows, columns), np.uint8)  # the graph normalises
    padded[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    feed = {"images": padded, "sizes": np.array([[height, width]], np.int64)}
    boxes, scores, labels, valid = (x[0] for x in session.run(["boxes", "scores", "labels", "valid"], feed))
    boxes = boxes * (np.array(image.size * 2) / (width, height, width, height))
    found = zip(labels[valid], scores[valid], boxes[valid], strict=True)
    return [{"class": about["classes"][k], "score": float(s), "box": box.tolist()} for k, s, box in found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("image")
    parser.add_argument("--out", default="found.jpg")
    parser.add_argument("--score", type=float, default=0.3)
    given = parser.parse_args()
    session = onnxruntime.InferenceSession(given.detector, providers=["CPUExecutionProvider"])
    image = ImageOps.exif_transpose(Image.open(given.image)).convert("RGB")
    objects = [item for item in detect(session, image) if item["score"] >= given.score]
    for item in objects:
        ImageDraw.Draw(image).rectangle(item["box"], outline="red", width=2)
        ImageDraw.Draw(image).text(item["box"][:2], f"{item['class']} {item['score']:.2f}", "red")
    image.save(given.out)
    print(json.dumps(objects))
