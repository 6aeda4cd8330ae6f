// Scales, ticks and ranges of axes. Pure functions: no DOM.

// Map the domain [a, b] to the range [p, q]. A domain of one point maps to the middle.
export function linear([a, b], [p, q]) {
  const width = b - a;
  return (value) => (width === 0 ? (p + q) / 2 : p + ((value - a) / width) * (q - p));
}

// Return about `count` round numbers within [low, high].
export function ticks(low, high, count = 5) {
  if (!(high > low)) return Number.isFinite(low) ? [low] : [];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) ?? 10 * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toFixed(digits)));
  return found;
}

// Whole numbers only.
export function wholeTicks(low, high, count = 8) {
  const found = ticks(low, high, count).filter(Number.isInteger);
  return found.length ? found : [Math.round(low)];
}

// Return the index of the one of `values` that is nearest to `value`; -1 if there are none.
export function nearest(values, value) {
  let best = -1;
  for (let i = 0; i < values.length; i += 1) {
    if (best < 0 || Math.abs(values[i] - value) < Math.abs(values[best] - value)) best = i;
  }
  return best;
}

// The range between two points that were dragged, in order and within `whole`; null if it is too narrow to mean a zoom.
export function dragged(from, to, whole, least) {
  const low = Math.max(whole[0], Math.min(from, to));
  const high = Math.min(whole[1], Math.max(from, to));
  return high - low < least ? null : [low, high];
}

// Zoom `range` around `centre` by `factor` (below 1: closer), within `whole` and not below the width `least`.
export function zoomed(range, centre, factor, whole, least) {
  const width = Math.min(whole[1] - whole[0], Math.max(least, (range[1] - range[0]) * factor));
  const share = range[1] === range[0] ? 0.5 : (centre - range[0]) / (range[1] - range[0]);
  const low = Math.min(Math.max(whole[0], centre - share * width), whole[1] - width);
  return [low, low + width];
}

// The top of a loss axis: losses far above all others are off the scale, at most a tenth of them, or two.
export function lossTop(values) {
  const falling = values.filter(Number.isFinite).sort((a, b) => b - a);
  let outliers = 0;
  const most = Math.min(Math.max(2, Math.floor(falling.length / 10)), falling.length - 2);
  for (let k = 1; k <= most; k += 1) if (falling[k - 1] > 4 * Math.max(falling[k], 0.6)) outliers = k;
  return falling[outliers] || 1;
}

// The bottom of an axis of shares: the highest of 0, 0.5, 0.8 and 0.9 clearly below all values, so that curves fill it.
export function shareBottom(values) {
  const low = Math.min(...values.filter(Number.isFinite), 1);
  return [0.9, 0.8, 0.5].find((bottom) => low >= bottom + (1 - bottom) * 0.15) ?? 0;
}
