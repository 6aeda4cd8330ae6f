// Axes of searched settings and of the figure. Pure functions: no DOM.

import { number, shorten, value } from "../report/format.js";
import { linear, ticks } from "../report/scale.js";

// An axis over [from, to]: `at` maps a value to its position; `marks` are [position, text]. space: as in the payload.
export function settingAxis(space, [from, to], count) {
  if (space.choices) {
    const width = (to - from) / space.choices.length;
    const at = (one) => from + (space.choices.findIndex((choice) => choice === one) + 0.5) * width;
    return { at, band: Math.abs(width), marks: space.choices.map((choice) => [at(choice), shorten(value(choice), 12)]) };
  }
  const bend = space.log ? Math.log10 : (one) => one;
  const scale = linear([bend(space.low), bend(space.high)], [from, to]);
  const at = (one) => scale(bend(one));
  const steps = space.step ? Math.round((space.high - space.low) / space.step) : Infinity;
  const values = space.log ? decades(space.low, space.high, count)
    : steps < count ? Array.from({ length: steps + 1 }, (_, k) => space.low + k * space.step) : ticks(space.low, space.high, count);
  return { at, band: 0, marks: values.map((one) => [at(one), brief(one)]) };
}

// About `count` round values of a logarithmic axis: powers of ten, with 2 and 5 between a few of them.
export function decades(low, high, count) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const found = (steps) => {
    const values = [];
    for (let power = first; power <= last; power += 1) {
      for (const step of steps) {
        const one = Number((step * 10 ** power).toPrecision(3));
        if (one >= low * 0.9999 && one <= high * 1.0001) values.push(one);
      }
    }
    return values;
  };
  const tens = found([1]);
  if (tens.length < 3) return [found([1, 2, 5]), tens].find((values) => values.length && values.length <= count) ?? [low, high];
  const every = Math.ceil(tens.length / count);
  return tens.filter((_, k) => k % every === 0);
}

export function brief(one) {
  const size = Math.abs(one);
  return size > 0 && (size < 0.001 || size >= 1e5) ? one.toExponential(0).replace("e+", "e") : number(one);
}

// The range of the figure over some trials, slightly widened.
export function figureRange(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - pad, high + pad];
}

// How dark a trial is drawn: from 0.15 for the worst to 1 for the best, by rank.
export function darkness(rank, count) {
  return count < 2 ? 1 : 0.15 + 0.85 * (1 - rank / (count - 1)) ** 2;
}

// A fixed offset of a trial within the band of a choice, so that dots do not hide each other.
export function spread(trial, band) {
  return (((trial * 0.6180339887) % 1) - 0.5) * 0.55 * band;
}
