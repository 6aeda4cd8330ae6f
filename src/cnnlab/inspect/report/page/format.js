// Numbers and names as text. Pure functions: no DOM.

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

export function whole(value) {
  return missing(value) ? "–" : Math.round(value).toLocaleString("en-US");
}

export function fixed(value, digits = 3) {
  return missing(value) ? "–" : value.toFixed(digits);
}

export function percent(share, digits = 1) {
  return missing(share) ? "–" : `${(100 * share).toFixed(digits)}%`;
}

// A probability. It is not rounded to 0% or 100%: those stand for exactly 0 and 1.
export function probability(p) {
  if (missing(p)) return "–";
  if (p > 0.9995 && p < 1) return ">99.9%";
  if (p > 0 && p < 0.0005) return "<0.1%";
  return `${(100 * p).toFixed(1)}%`;
}

export function interval(pair, digits = 3) {
  return pair ? `${pair[0].toFixed(digits)}–${pair[1].toFixed(digits)}` : "–";
}

// A p-value as papers give it.
export function pValue(p) {
  return p < 0.001 ? "< 0.001" : `= ${p.toFixed(3)}`;
}

export function number(value) {
  if (missing(value)) return "–";
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en-US") : String(value);
  const size = Math.abs(value);
  return size >= 1000 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(4)));
}

export function duration(seconds) {
  if (missing(seconds)) return "–";
  const all = Math.round(seconds); // round first: 119.7 s are 2 min 0 s, not 1 min 60 s
  if (all < 60) return `${seconds.toFixed(1)} s`;
  const [h, m, s] = [Math.floor(all / 3600), Math.floor((all % 3600) / 60), all % 60];
  return h ? `${h} h ${m} min` : `${m} min ${s} s`;
}

// An untrusted name as one harmless line: control, invisible and reversing characters become escapes.
export function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// Untrusted lines, each as `visible`.
export function visibleLines(text) {
  return String(text).trimEnd().split(/\r?\n/).map(visible).join("\n");
}

// At most `most` characters: the beginning and the end, where names differ.
export function shorten(text, most = 40) {
  const letters = Array.from(visible(text));
  if (letters.length <= most) return letters.join("");
  const head = Math.ceil((most - 1) * 0.6);
  return `${letters.slice(0, head).join("")}…${letters.slice(letters.length - (most - 1 - head)).join("")}`;
}

// The address of a file below `folder`. Both paths use /.
export function address(folder, id) {
  const path = `${folder}/${id}`.split("/").map(encodeURIComponent).join("/");
  return path.startsWith("/") || path.startsWith("..") ? path : `./${path}`;
}

export function value(setting) {
  if (typeof setting === "boolean") return setting ? "true" : "false";
  if (typeof setting === "number") return number(setting);
  return setting === "" ? "–" : visible(setting);
}
