// Decode PNG as Pillow does: a canvas has only 8 bits and multiplies colours by opacity, which loses some of them.

import { Unreadable, checkSize, exifOrientation, xmpOrientation } from "./metadata.js";

const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // samples per pixel, by colour type
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]; // Adam7: x, y, steps

export const isPng = (bytes) => bytes[0] === 0x89 && bytes[1] === 0x50 && bytes[2] === 0x4e && bytes[3] === 0x47;

// Return { width, height, orientation, samples, values, alpha }: values (H, W, samples) without opacity, Uint16Array
// for 16 bits; alpha (H, W) Uint8Array, or null.
export async function decodePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts = [];
  let header = null, palette = null, clear = null, orientation = 0, ended = false;
  for (let at = 8; at + 12 <= bytes.length && !ended;) {
    const length = view.getUint32(at), kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw new Unreadable("web_cut");
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IHDR") header = readHeader(view, at + 8);
    else if (kind === "PLTE") palette = data;
    else if (kind === "tRNS") clear = data;
    else if (kind === "IDAT") parts.push(data);
    else if (kind === "eXIf") orientation ||= exifOrientation(data);
    else if (kind === "iTXt") orientation ||= xmpOrientation(data);
    ended = kind === "IEND";
    at += 12 + length;
  }
  if (!header || !parts.length || (header.type === 3 && !palette)) throw new Unreadable("web_damaged");
  const raw = await inflate(parts, rawLength(header));
  return { width: header.width, height: header.height, orientation, ...meaning(header, unpack(header, raw), palette, clear) };
}

function readHeader(view, at) {
  const header = { width: view.getUint32(at), height: view.getUint32(at + 4), depth: view.getUint8(at + 8), type: view.getUint8(at + 9), interlaced: view.getUint8(at + 12) === 1 };
  checkSize(header.width, header.height);
  const depths = { 0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8] }[header.type] ?? [8, 16];
  if (!(header.type in SAMPLES) || !depths.includes(header.depth)) throw new Unreadable("web_damaged");
  return header;
}

// Return [first x, first y, step x, step y, width, height, bytes of a row] of each pass that has pixels.
function passes({ width, height, depth, type, interlaced }) {
  return (interlaced ? PASSES : [[0, 0, 1, 1]]).map(([x, y, dx, dy]) => {
    const w = Math.ceil((width - x) / dx), h = Math.ceil((height - y) / dy);
    return [x, y, dx, dy, w, h, Math.ceil((w * SAMPLES[type] * depth) / 8)];
  }).filter(([, , , , w, h]) => w > 0 && h > 0);
}

const rawLength = (header) => passes(header).reduce((sum, [, , , , , h, row]) => sum + h * (1 + row), 0);

async function inflate(parts, length) {
  const raw = new Uint8Array(length);
  let done = 0;
  try {
    const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (let part = await reader.read(); !part.done && done < length; part = await reader.read()) {
      raw.set(part.value.subarray(0, length - done), done);
      done += part.value.length;
    }
  } catch {
    throw new Unreadable("web_damaged");
  }
  if (done < length) throw new Unreadable("web_cut");
  return raw;
}

// Undo the filters and unpack the bits: (H, W, samples).
function unpack(header, raw) {
  const { width, height, depth, type } = header, n = SAMPLES[type], size = Math.max(1, (n * depth) >> 3);
  const out = depth === 16 ? new Uint16Array(width * height * n) : new Uint8Array(width * height * n);
  let at = 0;
  for (const [x0, y0, dx, dy, w, h, row] of passes(header)) {
    let above = new Uint8Array(row);
    for (let y = 0; y < h; y += 1) {
      const line = raw.subarray(at + 1, at + 1 + row);
      unfilter(raw[at], line, above, size);
      for (let i = 0; i < w * n; i += 1) {
        const to = ((y0 + y * dy) * width + x0 + Math.floor(i / n) * dx) * n + (i % n);
        if (depth === 8) out[to] = line[i];
        else if (depth === 16) out[to] = (line[2 * i] << 8) | line[2 * i + 1];
        else out[to] = (line[(i * depth) >> 3] >> (8 - depth - ((i * depth) & 7))) & ((1 << depth) - 1);
      }
      above = line;
      at += 1 + row;
    }
  }
  return out;
}

function unfilter(kind, line, above, size) {
  if (kind > 4) throw new Unreadable("web_damaged");
  for (let i = 0; kind && i < line.length; i += 1) {
    const left = i >= size ? line[i - size] : 0, up = above[i], corner = i >= size ? above[i - size] : 0;
    let guess = kind === 1 ? left : kind === 2 ? up : (left + up) >> 1;
    if (kind === 4) {
      const p = left + up - corner, a = Math.abs(p - left), b = Math.abs(p - up), c = Math.abs(p - corner);
      guess = a <= b && a <= c ? left : b <= c ? up : corner;
    }
    line[i] += guess; // modulo 256
  }
}

// Convert samples to grey or colour, and opacity.
function meaning({ width, height, depth, type }, numbers, palette, clear) {
  // The transparent colour, 8 bits per channel: Pillow scales it from 1 bit, but not from 2 or 4.
  const count = width * height, key = clear && type !== 3 ? clear.filter((_, i) => i % 2).map((k) => (depth === 1 && k ? 255 : k)) : null;
  if (type === 3) {
    const values = new Uint8Array(count * 3), alpha = clear && new Uint8Array(count);
    for (let i = 0; i < count; i += 1) {
      for (let c = 0; c < 3; c += 1) values[3 * i + c] = palette[3 * numbers[i] + c] ?? 0;
      if (alpha) alpha[i] = clear[numbers[i]] ?? 255;
    }
    return { samples: 3, values, alpha };
  }
  const n = SAMPLES[type], colours = n - (n % 2 === 0);
  const values = depth === 16 ? new Uint16Array(count * colours) : new Uint8Array(count * colours);
  const scale = { 1: 255, 2: 85, 4: 17 }[depth] ?? 1;
  for (let i = 0; i < count; i += 1) for (let c = 0; c < colours; c += 1) values[i * colours + c] = numbers[i * n + c] * scale;
  let alpha = null;
  if (colours < n) {
    alpha = Uint8Array.from({ length: count }, (_, i) => (depth === 16 ? Math.floor(numbers[i * n + colours] * (255 / 65535) + 0.5) : numbers[i * n + colours]));
  } else if (key && depth < 16) { // Pillow keeps deep images opaque
    alpha = Uint8Array.from({ length: count }, (_, i) => (key.every((k, c) => values[i * colours + c] === k) ? 0 : 255));
  }
  return { samples: colours, values, alpha };
}
