// The orientation in the metadata of image files, and the error for files that cannot be read.

export const MOST_PIXELS = 89478485; // Pillow's limit

// The message is a key of the texts.
export class Unreadable extends Error {
  constructor(key, values = {}) {
    super(key);
    this.values = values;
  }
}

export function checkSize(width, height) {
  if (!width || !height) throw new Unreadable("web_damaged");
  if (width * height > MOST_PIXELS) throw new Unreadable("web_too_large", { pixels: width * height, most: MOST_PIXELS });
}

// Return the orientation in an EXIF block, 1 to 8, or 0 if it has none.
export function exifOrientation(bytes) {
  const start = text(bytes.subarray(0, 6)) === "Exif\0\0" ? 6 : 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.byteLength - start);
  try {
    const little = view.getUint16(0) === 0x4949;
    const first = view.getUint32(4, little);
    for (let i = 0; i < view.getUint16(first, little); i += 1) {
      const at = first + 2 + 12 * i;
      if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 2, little) === 3 ? valid(view.getUint16(at + 8, little)) : valid(view.getUint32(at + 8, little));
    }
  } catch { /* cut off */ }
  return 0;
}

export function xmpOrientation(bytes) {
  const found = /tiff:Orientation(="|>)([0-9])/.exec(text(bytes));
  return found ? valid(Number(found[2])) : 0;
}

const valid = (orientation) => (orientation >= 1 && orientation <= 8 ? orientation : 0);

export function text(bytes) {
  return new TextDecoder("latin1").decode(bytes);
}

// Strip the metadata that a browser would apply from a JPEG file: { parts, orientation, components, ended }.
export function plainJpeg(bytes) {
  const kept = [bytes.subarray(0, 2)];
  let exif = 0, xmp = 0, components = 0, at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1], length = (bytes[at + 2] << 8) | bytes[at + 3];
    if (marker === 0xff) { at += 1; continue; }
    if (marker === 0xda) break;
    const body = bytes.subarray(at + 4, at + 2 + length), application = marker > 0xe0 && marker <= 0xef && marker !== 0xee;
    if (marker === 0xe1 && text(body.subarray(0, 6)) === "Exif\0\0") exif ||= exifOrientation(body);
    else if (marker === 0xe1) xmp ||= xmpOrientation(body);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      components = body[5];
      checkSize((body[3] << 8) | body[4], (body[1] << 8) | body[2]);
    }
    if (!application) kept.push(bytes.subarray(at, at + 2 + length));
    at += 2 + length;
  }
  kept.push(bytes.subarray(at));
  let last = bytes.length - 1;
  while (last > at && !(bytes[last] === 0xd9 && bytes[last - 1] === 0xff)) last -= 1;
  return { parts: kept, orientation: exif || xmp, components, ended: last > at };
}

// The same for a WebP file: { parts, orientation, animated }.
export function plainWebp(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const kept = [];
  let exif = 0, xmp = 0, animated = false, at = 12;
  while (at + 8 <= bytes.length) {
    const kind = text(bytes.subarray(at, at + 4)), length = view.getUint32(at + 4, true), end = at + 8 + length + (length % 2);
    let chunk = bytes.subarray(at, end);
    if (kind === "EXIF") exif ||= exifOrientation(chunk.subarray(8));
    if (kind === "XMP ") xmp ||= xmpOrientation(chunk.subarray(8));
    if (kind === "ANIM") animated = true;
    if (kind === "VP8X") { // its flags say which metadata follow
      chunk = chunk.slice();
      chunk[8] &= ~0x2c;
    }
    if (!["EXIF", "XMP ", "ICCP"].includes(kind)) kept.push(chunk);
    at = end;
  }
  const head = new Uint8Array(12);
  head.set(bytes.subarray(0, 12));
  new DataView(head.buffer).setUint32(4, 4 + kept.reduce((sum, chunk) => sum + chunk.length, 0), true);
  return { parts: [head, ...kept], orientation: exif || xmp, animated };
}
