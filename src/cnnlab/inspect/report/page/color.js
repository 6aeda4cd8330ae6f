// The colours of the confusion matrix. Pure functions: no DOM.
// Two ramps that colour-blind readers can tell apart: blue for correct predictions, orange for mistakes.

const RAMPS = {
  light: { right: [[255, 255, 255], [29, 78, 137]], wrong: [[255, 255, 255], [184, 71, 10]] },
  dark: { right: [[27, 29, 33], [124, 176, 238]], wrong: [[27, 29, 33], [240, 150, 88]] },
};

// Return [red, green, blue] of a share in 0..1. The square root shows a single mistake beside many correct ones.
export function ramp(share, right, theme) {
  const [from, to] = RAMPS[theme][right ? "right" : "wrong"];
  const at = share > 0 ? 0.08 + 0.92 * Math.sqrt(Math.min(1, share)) : 0;
  return from.map((low, k) => Math.round(low + (to[k] - low) * at));
}

export function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function contrast(a, b) {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

// Black or white, whichever is easier to read on `rgb`.
export function ink(rgb) {
  return contrast(rgb, [255, 255, 255]) >= contrast(rgb, [0, 0, 0]) ? "#fff" : "#000";
}

export const css = (rgb) => `rgb(${rgb.join(" ")})`;
