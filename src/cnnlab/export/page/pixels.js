// From decoded values to the network's input: upright, opaque, 8 bits, one or three channels. The arithmetic is
// Pillow's, so that the same file gives the same pixels as `cnnlab predict`.

// image: { width, height, orientation, samples, values, alpha }, see png.js. how: { channels, background, low, high }.
// Return { width, height, channels, data }, data (channels, H, W) Uint8Array.
export function prepared(image, how, invert) {
  const { width, height, samples, alpha } = image, count = width * height;
  const values = image.values instanceof Uint16Array ? scaled(image.values, how.low, how.high) : image.values;
  const under = how.background === "white" ? 255 : 0;
  const data = new Uint8Array(how.channels * count), pixel = [0, 0, 0];
  for (let i = 0; i < count; i += 1) {
    for (let c = 0; c < 3; c += 1) {
      pixel[c] = values[samples === 1 ? i : 3 * i + c];
      if (alpha) pixel[c] = over(pixel[c], under, alpha[i]);
    }
    if (how.channels === 1) data[i] = samples === 1 ? pixel[0] : grey(...pixel);
    else for (let c = 0; c < 3; c += 1) data[c * count + i] = pixel[c];
  }
  if (invert) for (let i = 0; i < data.length; i += 1) data[i] = 255 - data[i];
  return upright({ width, height, channels: how.channels, data }, image.orientation);
}

export const grey = (r, g, b) => (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;

function over(value, under, alpha) {
  const sum = value * alpha * 128 + under * (255 * 128 - alpha * 128) + (0x80 << 7);
  return alpha === 0 ? under : (((sum >> 8) + sum) >> 8) >> 7;
}

function scaled(values, low, high) {
  const [from, to] = high <= low ? [0, 65535] : [low, high];
  return Uint8Array.from(values, (value) => Math.min(255, Math.max(0, Math.trunc((value - from) * (255 / (to - from)) + 0.5))));
}

function upright(image, orientation) {
  if (!(orientation > 1)) return image;
  const { width: w, height: h, channels, data } = image, turned = orientation >= 5;
  const [width, height] = turned ? [h, w] : [w, h];
  const rows = [3, 4, 7, 8].includes(orientation), columns = [2, 3, 6, 7].includes(orientation);
  const out = new Uint8Array(data.length);
  for (let c = 0, at = 0; c < channels; c += 1) {
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 1) {
        const a = rows ? height - 1 - y : y, b = columns ? width - 1 - x : x;
        out[at] = data[c * w * h + (turned ? b * w + a : a * w + b)];
      }
    }
  }
  return { width, height, channels, data: out };
}
