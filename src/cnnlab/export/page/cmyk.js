// Decode JPEG of four inks, CMYK or YCCK, bit-identical to libjpeg and Pillow: browsers round differently when they
// turn inks into colours. ITU-T T.81; the inverse transform is libjpeg's accurate integer one (Loeffler, Ligtenberg,
// Moschytz, 1989).

import { Unreadable } from "./metadata.js";

const ZIGZAG = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63];

// Return { width, height, samples: 3, values (H, W, 3), alpha: null }.
export function decodeCmyk(bytes) {
  const quantization = [], huffman = [];
  let frame = null, interval = 0, ycck = false, scans = 0;
  for (let at = 2; at + 4 <= bytes.length;) {
    const marker = bytes[at + 1];
    if (bytes[at] !== 0xff) throw new Unreadable("web_damaged");
    if (marker === 0xff) { at += 1; continue; }
    if (marker === 0xd9) break;
    const length = (bytes[at + 2] << 8) | bytes[at + 3], body = bytes.subarray(at + 4, at + 2 + length);
    at += 2 + length;
    if (marker === 0xee && body.length >= 12 && String.fromCharCode(...body.subarray(0, 5)) === "Adobe") ycck = body[11] === 2;
    else if (marker === 0xdb) readQuantization(body, quantization);
    else if (marker === 0xc4) readHuffman(body, huffman);
    else if (marker === 0xdd) interval = (body[0] << 8) | body[1];
    else if ([0xc0, 0xc1, 0xc2].includes(marker)) frame = readFrame(body, marker === 0xc2);
    else if (marker > 0xc2 && marker <= 0xcf) throw new Unreadable("web_damaged"); // arithmetic or lossless coding
    else if (marker === 0xda) {
      if (!frame) throw new Unreadable("web_damaged");
      at = readScan(bytes, at, body, frame, huffman, interval);
      scans += 1;
    }
  }
  if (!scans || frame.parts.some((part) => !quantization[part.table])) throw new Unreadable("web_damaged");
  const planes = frame.parts.map((part) => enlarged(frame, part, samples(part, quantization[part.table])));
  return { width: frame.width, height: frame.height, samples: 3, values: colours(frame, planes, ycck), alpha: null };
}

function readQuantization(body, tables) {
  for (let at = 0; at < body.length;) {
    const wide = body[at] >> 4, table = new Uint16Array(64);
    for (let k = 0; k < 64; k += 1) table[ZIGZAG[k]] = wide ? (body[at + 1 + 2 * k] << 8) | body[at + 2 + 2 * k] : body[at + 1 + k];
    tables[body[at] & 15] = table;
    at += 65 + 64 * wide;
  }
}

// A table as canonical codes: for each length, the first code, the index of its value, and the number of codes.
function readHuffman(body, tables) {
  for (let at = 0; at < body.length;) {
    const counts = body.subarray(at + 1, at + 17), total = counts.reduce((sum, n) => sum + n, 0);
    const first = [], place = [];
    for (let n = 0, code = 0, k = 0; n < 16; n += 1) {
      [first[n], place[n]] = [code, k];
      k += counts[n];
      code = (code + counts[n]) << 1;
    }
    tables[body[at]] = { counts, first, place, values: body.subarray(at + 17, at + 17 + total) };
    at += 17 + total;
  }
}

function readFrame(body, progressive) {
  const [height, width] = [(body[1] << 8) | body[2], (body[3] << 8) | body[4]];
  const parts = Array.from({ length: body[5] }, (_, i) => ({ id: body[6 + 3 * i], h: body[7 + 3 * i] >> 4, v: body[7 + 3 * i] & 15, table: body[8 + 3 * i], last: 0 }));
  if (body[0] !== 8 || parts.length !== 4 || parts.some((part) => !(part.h >= 1 && part.h <= 4 && part.v >= 1 && part.v <= 4))) throw new Unreadable("web_damaged");
  const [h, v] = [Math.max(...parts.map((part) => part.h)), Math.max(...parts.map((part) => part.v))];
  const [across, down] = [Math.ceil(width / (8 * h)), Math.ceil(height / (8 * v))];
  for (const part of parts) {
    [part.width, part.height] = [Math.ceil((width * part.h) / h), Math.ceil((height * part.v) / v)];
    [part.across, part.down] = [across * part.h, down * part.v];
    part.numbers = new Int16Array(64 * part.across * part.down);
  }
  return { width, height, progressive, parts, h, v, across, down };
}

// Read a scan that starts at `at`. Return where it ends.
function readScan(bytes, at, body, frame, huffman, interval) {
  const chosen = Array.from({ length: body[0] }, (_, i) => {
    const part = frame.parts.find((one) => one.id === body[1 + 2 * i]), tables = body[2 + 2 * i];
    if (!part) throw new Unreadable("web_damaged");
    return { part, dc: huffman[tables >> 4], ac: huffman[16 + (tables & 15)] };
  });
  const [start, end, bits] = body.subarray(1 + 2 * body[0], 4 + 2 * body[0]);
  const how = { start, end, high: bits >> 4, low: bits & 15, run: 0 };
  const input = { bytes, at, left: 0, value: 0 };
  const block = !frame.progressive ? whole8 : start === 0 ? (how.high ? refineDc : firstDc) : how.high ? refineAc : firstAc;
  const alone = chosen.length === 1;
  const [across, down] = alone ? [Math.ceil(chosen[0].part.width / 8), Math.ceil(chosen[0].part.height / 8)] : [frame.across, frame.down];
  for (let unit = 0; unit < across * down; unit += 1) {
    if (interval && unit && unit % interval === 0) restart(input, chosen, how);
    const [x, y] = [unit % across, Math.floor(unit / across)];
    for (const one of chosen) {
      const { part } = one, [h, v] = alone ? [1, 1] : [part.h, part.v];
      for (let k = 0; k < h * v; k += 1) {
        const place = (y * v + Math.floor(k / h)) * part.across + x * h + (k % h);
        block(input, one, part.numbers.subarray(64 * place, 64 * place + 64), how);
      }
    }
  }
  for (const { part } of chosen) part.last = 0;
  return nextMarker(bytes, input.at);
}

function nextMarker(bytes, at) {
  while (at + 1 < bytes.length && !(bytes[at] === 0xff && bytes[at + 1] !== 0 && !(bytes[at + 1] >= 0xd0 && bytes[at + 1] <= 0xd7))) at += 1;
  return at;
}

function restart(input, chosen, how) {
  input.left = how.run = 0;
  const { bytes } = input;
  while (input.at + 1 < bytes.length && !(bytes[input.at] === 0xff && bytes[input.at + 1] >= 0xd0 && bytes[input.at + 1] <= 0xd7)) input.at += 1;
  input.at += 2;
  for (const { part } of chosen) part.last = 0;
}

function bit(input) {
  if (!input.left) {
    const { bytes } = input;
    if (input.at >= bytes.length || (bytes[input.at] === 0xff && bytes[input.at + 1] !== 0)) throw new Unreadable("web_cut");
    input.value = bytes[input.at];
    input.at += input.value === 0xff ? 2 : 1;
    input.left = 8;
  }
  input.left -= 1;
  return (input.value >> input.left) & 1;
}

function readBits(input, bits) {
  let value = 0;
  for (let n = 0; n < bits; n += 1) value = (value << 1) | bit(input);
  return value;
}

// Read a signed number of `bits` bits: codes below 1 << (bits - 1) stand for the negative ones.
function signed(input, bits) {
  const value = readBits(input, bits);
  return bits && value < 1 << (bits - 1) ? value - (1 << bits) + 1 : value;
}

function symbol(input, table) {
  if (!table) throw new Unreadable("web_damaged");
  for (let n = 0, code = 0; n < 16; n += 1) {
    code = (code << 1) | bit(input);
    if (code - table.first[n] < table.counts[n]) return table.values[table.place[n] + code - table.first[n]];
  }
  throw new Unreadable("web_damaged");
}

function whole8(input, { part, dc, ac }, out) {
  part.last += signed(input, symbol(input, dc));
  out[0] = part.last;
  for (let k = 1; k < 64; k += 1) {
    const code = symbol(input, ac), bits = code & 15;
    if (!bits && code < 0xf0) return;
    k += code >> 4;
    if (bits) out[ZIGZAG[k]] = signed(input, bits);
  }
}

function firstDc(input, { part, dc }, out, how) {
  part.last += signed(input, symbol(input, dc));
  out[0] = part.last * (1 << how.low);
}

function refineDc(input, _, out, how) {
  if (bit(input)) out[0] |= 1 << how.low;
}

function firstAc(input, { ac }, out, how) {
  if (how.run) { how.run -= 1; return; }
  for (let k = how.start; k <= how.end; k += 1) {
    const code = symbol(input, ac), bits = code & 15, zeros = code >> 4;
    if (!bits && zeros < 15) {
      how.run = (1 << zeros) - 1 + readBits(input, zeros);
      return;
    }
    k += zeros;
    if (bits) out[ZIGZAG[k]] = signed(input, bits) * (1 << how.low);
  }
}

function refineAc(input, { ac }, out, how) {
  const one = 1 << how.low;
  let k = how.start;
  // Add one bit to the coefficients that are not zero; pass over `zeros` that are, and stop at the next.
  function pass(zeros) {
    for (; k <= how.end; k += 1) {
      const place = ZIGZAG[k];
      if (!out[place]) {
        if (!zeros) return;
        zeros -= 1;
      } else if (bit(input) && !(Math.abs(out[place]) & one)) out[place] += out[place] > 0 ? one : -one;
    }
  }
  while (k <= how.end && !how.run) {
    const code = symbol(input, ac), zeros = code >> 4;
    if (!(code & 15) && zeros < 15) {
      how.run = (1 << zeros) + readBits(input, zeros);
      break;
    }
    const value = code & 15 ? (bit(input) ? one : -one) : 0;
    pass(zeros);
    if (value && k <= how.end) out[ZIGZAG[k]] = value;
    k += 1;
  }
  if (how.run) {
    pass(64);
    how.run -= 1;
  }
}

// Return the samples of a component, (down * 8, across * 8).
function samples(part, table) {
  const stride = part.across * 8, out = new Uint8ClampedArray(stride * part.down * 8), block = new Int32Array(64);
  for (let n = 0; n < part.across * part.down; n += 1) {
    for (let k = 0; k < 64; k += 1) block[k] = part.numbers[64 * n + k] * table[k];
    for (let x = 0; x < 8; x += 1) transform(block, x, 8, 11);
    for (let y = 0; y < 8; y += 1) transform(block, 8 * y, 1, 18);
    const corner = Math.floor(n / part.across) * 8 * stride + (n % part.across) * 8;
    for (let k = 0; k < 64; k += 1) out[corner + (k >> 3) * stride + (k & 7)] = block[k] + 128;
  }
  return out;
}

// One row or column of libjpeg's jpeg_idct_islow, with constants of 13 bits; the result is shifted right.
function transform(block, from, step, shift) {
  const v = (k) => block[from + k * step], half = 1 << (shift - 1);
  let z1 = (v(2) + v(6)) * 4433;
  const a2 = z1 - v(6) * 15137, a3 = z1 + v(2) * 6270;
  const a0 = (v(0) + v(4)) * 8192, a1 = (v(0) - v(4)) * 8192;
  const even = [a0 + a3, a1 + a2, a1 - a2, a0 - a3];
  const [t0, t1, t2, t3] = [v(7), v(5), v(3), v(1)];
  const z5 = (t0 + t2 + t1 + t3) * 9633;
  z1 = (t0 + t3) * -7373;
  const z2 = (t1 + t2) * -20995, z3 = (t0 + t2) * -16069 + z5, z4 = (t1 + t3) * -3196 + z5;
  const odd = [t3 * 12299 + z1 + z4, t2 * 25172 + z2 + z3, t1 * 16819 + z2 + z4, t0 * 2446 + z1 + z3];
  for (let k = 0; k < 4; k += 1) {
    block[from + k * step] = (even[k] + odd[k] + half) >> shift;
    block[from + (7 - k) * step] = (even[k] - odd[k] + half) >> shift;
  }
}

// Return a component at the size of the image, (H, W). Half-size ones are upsampled with libjpeg's triangle filter.
function enlarged(frame, part, plane) {
  const { width, height } = frame, stride = part.across * 8;
  const [h, v] = [frame.h / part.h, frame.v / part.v];
  const smooth = (h === 2 && v <= 2 && part.width > 2) || (h === 1 && v === 2);
  if ((h > 1 || v > 1) && !smooth && (h !== Math.floor(h) || v !== Math.floor(v))) throw new Unreadable("web_kind", { kind: "CMYK JPEG" });
  const out = new Uint8Array(width * height), row = new Int32Array(part.width);
  for (let y = 0; y < height; y += 1) {
    const near = Math.floor(y / v), far = smooth && v === 2 ? Math.min(part.height - 1, Math.max(0, near + (y % 2 ? 1 : -1))) : near;
    for (let x = 0; x < part.width; x += 1) row[x] = smooth && v === 2 ? 3 * plane[near * stride + x] + plane[far * stride + x] : plane[near * stride + x];
    for (let x = 0; x < width; x += 1) out[y * width + x] = smooth ? between2(row, x, h, v, y % 2) : row[Math.floor(x / h)];
  }
  return out;
}

function between2(row, x, h, v, odd) {
  if (h === 1) return (row[x] + 1 + odd) >> 2;
  const i = x >> 1, other = x % 2 ? row[i + 1] : row[i - 1]; // undefined beyond the edges
  if (v === 1) return other === undefined ? row[i] : (3 * row[i] + other + 1 + (x % 2)) >> 2;
  return ((other === undefined ? 4 * row[i] : 3 * row[i] + other) + 8 - (x % 2)) >> 4;
}

// Convert inks, which Adobe stores inverted, to colours (H, W, 3).
function colours({ width, height }, [a, b, c, k], ycck) {
  const values = new Uint8Array(3 * width * height), limit = (value) => Math.min(255, Math.max(0, value));
  for (let i = 0; i < width * height; i += 1) {
    let inks = [a[i], b[i], c[i]];
    if (ycck) {
      const [y, cb, cr] = [a[i], b[i] - 128, c[i] - 128];
      inks = [y + ((91881 * cr + 32768) >> 16), y + ((-22554 * cb - 46802 * cr + 32768) >> 16), y + ((116130 * cb + 32768) >> 16)].map((value) => limit(255 - value));
    }
    for (let n = 0; n < 3; n += 1) {
      const product = (255 - inks[n]) * k[i] + 128;
      values[3 * i + n] = limit(k[i] - (((product >> 8) + product) >> 8));
    }
  }
  return values;
}
