// Sorting of tables. Pure functions: no DOM.

// Return the rows by `key`, a function of a row. Rows without a value come last in both directions; ties keep their order.
export function sorted(rows, key, descending = false) {
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  return rows
    .map((row, place) => ({ row, place, value: key(row) }))
    .sort((a, b) => {
      if (missing(a.value) || missing(b.value)) return missing(a.value) - missing(b.value) || a.place - b.place;
      return (descending ? -1 : 1) * order(a.value, b.value) || a.place - b.place;
    })
    .map((entry) => entry.row);
}

// The cells of a confusion matrix that are mistakes, the most frequent first. cells: [true, predicted, images].
export function frequentMistakes(cells, most) {
  return sorted(cells.filter(([i, j]) => i !== j), (cell) => cell[2], true).slice(0, most);
}

// The next cell with images from [row, column] in a direction; the same cell if there is none.
export function nextCell(filled, [row, column], [down, right], size) {
  let [i, j] = [row + down, column + right];
  while (i >= 0 && j >= 0 && i < size && j < size) {
    if (filled(i, j)) return [i, j];
    [i, j] = [i + down, j + right];
  }
  // Nothing straight ahead: the nearest one in that direction.
  let best = null;
  for (let a = 0; a < size; a += 1) {
    for (let b = 0; b < size; b += 1) {
      const [ahead, aside] = down ? [(a - row) * down, Math.abs(b - column)] : [(b - column) * right, Math.abs(a - row)];
      if (ahead > 0 && filled(a, b) && (best === null || aside * size + ahead < best.cost)) best = { cost: aside * size + ahead, at: [a, b] };
    }
  }
  return best === null ? [row, column] : best.at;
}
