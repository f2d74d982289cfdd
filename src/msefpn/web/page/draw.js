"use strict";
// Draws detections onto a canvas as `msefpn predict` draws them into a file; see inference/draw.py.

const OPACITY = 0.4;
const LETTERS = 32;

/** The runs of a mask in COCO's compressed form, column by column, background first. */
function runLengths(text) {
  const counts = [];
  for (let place = 0; place < text.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/** Tint the pixels of a mask that has the canvas's size. */
function drawMask(pen, counts, colour) {
  const { width, height } = pen.canvas;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const image = pen.getImageData(0, 0, width, height);
  let pixel = 0;
  counts.forEach((count, place) => {
    for (let end = pixel + count; pixel < end; pixel++) {
      if (place % 2 === 0) continue;
      const at = 4 * ((pixel % height) * width + Math.floor(pixel / height));
      image.data[at] += (red - image.data[at]) * OPACITY;
      image.data[at + 1] += (green - image.data[at + 1]) * OPACITY;
      image.data[at + 2] += (blue - image.data[at + 2]) * OPACITY;
    }
  });
  pen.putImageData(image, 0, 0);
}

/** Outline a box [left, top, right, bottom], pixels of the canvas. */
function drawBox(pen, box, colour, thickness) {
  const [left, top, right, bottom] = box.map(Math.round);
  const [width, height] = [Math.max(1, right - left), Math.max(1, bottom - top)];
  const line = Math.min(thickness, width, height);
  pen.fillStyle = colour;
  pen.fillRect(left, top, width, line);
  pen.fillRect(left, top + height - line, width, line);
  pen.fillRect(left, top, line, height);
  pen.fillRect(left + width - line, top, line, height);
}

/** Write one line at the upper left corner of a box, inside the image, on a plate of the box's colour. */
function drawLabel(pen, box, text, colour, letters) {
  const padding = Math.max(2, Math.round(letters / 4));
  const width = Math.round(pen.measureText(text).width) + 2 * padding;
  const height = Math.round(letters * 1.2) + padding;
  const x = Math.max(0, Math.round(Math.min(box[0], pen.canvas.width - width)));
  const y = Math.min(Math.max(0, Math.round(box[1] - height)), pen.canvas.height - height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  pen.fillStyle = colour;
  pen.fillRect(x, y, width, height);
  pen.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 150 ? "#000" : "#fff"; // luma of ITU-R BT.601
  pen.fillText(text, x + padding, y + height / 2);
}

function shortened(name) {
  const letters = [...name.trim().split(/\s+/).join(" ")];
  return letters.length <= LETTERS ? letters.join("") : letters.slice(0, LETTERS - 1).join("") + "…";
}

/**
 * Draw an image with boxes, labels and masks.
 * canvas: has the image's size; found: boxes in its pixels, best first; classes: names and colours.
 */
function drawDetections(canvas, image, found, classes) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const side = Math.min(canvas.width, canvas.height);
  const letters = Math.max(11, Math.round(side / 42));
  const thickness = Math.max(1, Math.round(side / 300));
  pen.drawImage(image, 0, 0);
  pen.font = `${letters}px "DejaVu Sans", Verdana, sans-serif`;
  pen.textBaseline = "middle";
  const order = [...found].reverse(); // the best on top
  for (const one of order) if (one.mask) drawMask(pen, runLengths(one.mask), classes[one.label].colour);
  for (const one of order) drawBox(pen, one.box, classes[one.label].colour, thickness);
  for (const one of order) {
    const { name, colour } = classes[one.label];
    drawLabel(pen, one.box, `${shortened(name)} ${one.result.score.toFixed(2)}`, colour, letters);
  }
}
