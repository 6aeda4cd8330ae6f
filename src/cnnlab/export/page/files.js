// Decode an image file to the same pixels as Pillow. The browser decodes JPEG, WebP, GIF and plain BMP; PNG and CMYK
// JPEG have decoders here. Other kinds are refused, since their answers could differ.

import { decodeCmyk } from "./cmyk.js";
import { Unreadable, checkSize, plainJpeg, plainWebp, text } from "./metadata.js";
import { decodePng, isPng } from "./png.js";

// Return { width, height, orientation, samples, values, alpha }, see png.js. Throws Unreadable.
export async function decodeFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new Unreadable("web_empty");
  if (isPng(bytes)) return decodePng(bytes);
  const start = text(bytes.subarray(0, 12));
  if (start.startsWith("\xff\xd8\xff")) {
    const jpeg = plainJpeg(bytes);
    if (!jpeg.ended) throw new Unreadable("web_cut");
    if (jpeg.components === 4) return { ...decodeCmyk(bytes), orientation: jpeg.orientation };
    return { ...await byBrowser(jpeg.parts), orientation: jpeg.orientation };
  }
  if (start.startsWith("RIFF") && start.endsWith("WEBP")) {
    const webp = plainWebp(bytes);
    if (webp.animated) throw new Unreadable("web_kind", { kind: "animated WebP" });
    return { ...await byBrowser(webp.parts), orientation: webp.orientation };
  }
  if (start.startsWith("GIF8")) {
    if (!fillsScreen(bytes)) throw new Unreadable("web_kind", { kind: "animated GIF" });
    return { ...await byBrowser([bytes]), orientation: 1 };
  }
  if (start.startsWith("BM") && bytes.length > 54) {
    const view = new DataView(bytes.buffer);
    if (![1, 4, 8, 24].includes(view.getUint16(28, true)) || view.getUint32(30, true) !== 0) throw new Unreadable("web_kind", { kind: "BMP" });
    return { ...await byBrowser([bytes]), orientation: 1 };
  }
  throw new Unreadable(kindOf(start) ? "web_kind" : "web_unknown", { kind: kindOf(start) });
}

function kindOf(start) {
  if (/^(II\*\0|MM\0\*|II\+\0|MM\0\+)/.test(start)) return "TIFF";
  if (/^....ftyp/s.test(start)) return { avif: "AVIF", heic: "HEIC", mif1: "HEIF" }[start.slice(8, 12)] ?? "HEIF";
  if (/^P[1-6]\s/.test(start)) return "PPM";
  if (start.startsWith("\x93NUMPY")) return "NumPy";
  if (/^\0\0\x01\0/.test(start)) return "ICO";
  return /^\s*<(\?xml|svg)/.test(start) ? "SVG" : "";
}

// Return whether the first frame of a GIF covers the whole picture.
function fillsScreen(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let at = 13 + table(bytes[10]);
  while (bytes[at] === 0x21) { // extensions: blocks, each with its length, until an empty one
    at += 2;
    while (bytes[at]) at += bytes[at] + 1;
    at += 1;
  }
  if (bytes[at] !== 0x2c || at + 10 > bytes.length) throw new Unreadable("web_damaged");
  const [x, y, w, h] = [1, 3, 5, 7].map((step) => view.getUint16(at + step, true));
  checkSize(view.getUint16(6, true), view.getUint16(8, true));
  return x === 0 && y === 0 && w === view.getUint16(6, true) && h === view.getUint16(8, true);
}

async function byBrowser(parts) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob(parts), { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Unreadable("web_damaged");
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  const canvas = drawing(width, height);
  canvas.drawImage(bitmap, 0, 0);
  bitmap.close();
  return opened(canvas, width, height);
}

// Return the context of a canvas, after checking that this browser returns what was drawn: some change a few pixels to
// protect their users from fingerprinting.
export function drawing(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [16, 16];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const wanted = context.createImageData(16, 16);
  wanted.data.forEach((_, i) => { wanted.data[i] = i % 4 === 3 ? 255 : (i * 73) & 255; });
  context.putImageData(wanted, 0, 0);
  const found = context.getImageData(0, 0, 16, 16);
  if (found.data.some((value, i) => value !== wanted.data[i])) throw new Unreadable("web_protected");
  [canvas.width, canvas.height] = [width, height];
  return context;
}

// Return the pixels of a context. A canvas multiplies colours by opacity, which loses bits where it is partial.
export function opened(context, width, height) {
  const { data } = context.getImageData(0, 0, width, height);
  const count = width * height, values = new Uint8Array(3 * count);
  let alpha = null;
  for (let i = 0; i < count; i += 1) {
    for (let c = 0; c < 3; c += 1) values[3 * i + c] = data[4 * i + c];
    if (data[4 * i + 3] < 255) {
      if (data[4 * i + 3]) throw new Unreadable("web_translucent");
      alpha ??= new Uint8Array(count).fill(255);
      alpha[i] = 0;
    }
  }
  return { width, height, samples: 3, values, alpha, orientation: 1 };
}
