// How an image is shown: the square that the network sees, and a class-activation map over it.

import { el } from "../report/dom.js";

const MAP_SIDE = 224;
const HOT = [[87, 16, 110], [148, 38, 103], [203, 65, 73], [243, 118, 28], [246, 215, 70]]; // from matplotlib's inferno

function imageData(image) {
  const count = image.width * image.height, data = new Uint8ClampedArray(4 * count);
  for (let i = 0; i < count; i += 1) {
    for (let c = 0; c < 3; c += 1) data[4 * i + c] = image.data[(image.channels === 1 ? 0 : c * count) + i];
    data[4 * i + 3] = 255;
  }
  return new ImageData(data, image.width, image.height);
}

// Return a canvas of the image, fitted into a square of `side` pixels as for the network.
export function square(image, fit, side, label) {
  const whole = el("canvas", { width: image.width, height: image.height });
  whole.getContext("2d").putImageData(imageData(image), 0, 0);
  const canvas = el("canvas", { width: side, height: side, role: "img", "aria-label": label });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, side, side);
  const scale = (fit === "crop" ? Math.max : Math.min)(side / image.width, side / image.height);
  const [w, h] = fit === "stretch" ? [side, side] : [image.width * scale, image.height * scale];
  context.imageSmoothingEnabled = Math.min(w / image.width, h / image.height) < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, (side - w) / 2, (side - h) / 2, w, h);
  return canvas;
}

// Return a canvas of the image in grey under the map of class k; null if nothing supports the class.
export function activation(image, fit, map, k, label) {
  const [, h, w] = map.shape, values = Array.from(map.data.slice(k * h * w, (k + 1) * h * w), (v) => Math.max(0, v));
  const most = Math.max(...values);
  if (!(most > 0)) return null;
  const canvas = square(image, fit, MAP_SIDE, label), context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, MAP_SIDE, MAP_SIDE);
  for (let y = 0; y < MAP_SIDE; y += 1) {
    for (let x = 0; x < MAP_SIDE; x += 1) {
      const value = between(values, w, h, ((x + 0.5) / MAP_SIDE) * w - 0.5, ((y + 0.5) / MAP_SIDE) * h - 0.5) / most;
      const at = 4 * (y * MAP_SIDE + x), level = (pixels.data[at] + pixels.data[at + 1] + pixels.data[at + 2]) / 3;
      const place = Math.min(value, 0.999) * (HOT.length - 1), n = Math.floor(place);
      for (let c = 0; c < 3; c += 1) {
        const hot = HOT[n][c] + (HOT[n + 1][c] - HOT[n][c]) * (place - n);
        pixels.data[at + c] = level + 0.75 * value * (hot - level);
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Interpolate bilinearly.
function between(values, w, h, x, y) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const at = (a, b) => values[Math.min(h - 1, Math.max(0, b)) * w + Math.min(w - 1, Math.max(0, a))];
  const [p, q] = [x - left, y - top];
  return (1 - q) * ((1 - p) * at(left, top) + p * at(left + 1, top)) + q * ((1 - p) * at(left, top + 1) + p * at(left + 1, top + 1));
}
