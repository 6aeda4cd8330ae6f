// Addresses of the pages: #/run/NAME, with each part encoded, since names may contain slashes.

export function parse(hash) {
  const parts = hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  return { page: parts[0] ?? "runs", names: parts.slice(1) };
}

export function address(page, ...names) {
  return `#/${[page, ...names].map(encodeURIComponent).join("/")}`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Seconds, minutes and seconds, or hours and minutes.
export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

// The points of an SVG line through `values`, scaled to fill a box.
export function sparkline(values, width, height) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  return values
    .map((v, i) => `${((values.length > 1 ? i / (values.length - 1) : 1) * width).toFixed(1)},${((1 - (v - low) / span) * height).toFixed(1)}`)
    .join(" ");
}

// The rows whose texts contain every word of the filter.
export function filtered(rows, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => {
    const all = [row.name, row.model, row.data, row.recipe, row.state].join(" ").toLowerCase();
    return words.every((word) => all.includes(word));
  });
}
