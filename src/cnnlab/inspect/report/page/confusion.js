// The confusion matrix: each cell opens the images in it.

import { css, ink, ramp } from "./color.js";
import { el } from "./dom.js";
import { percent, whole } from "./format.js";
import { entry, openGallery } from "./gallery.js";
import { measuredOn } from "./header.js";
import { scroller, section } from "./parts.js";
import { frequentMistakes, nextCell } from "./sort.js";

const COUNTED = 40; // most classes for which cells show their counts
const DRAWN = 120; // most classes for which the matrix is drawn
const PAIRS = 10;

export function confusionSection(page, run) {
  const e = run.evaluation;
  if (!e) return null;
  const { t } = page;
  const k = run.classes.length;
  const counts = new Map(e.confusion.map(([i, j, n]) => [i * k + j, n]));
  const totals = new Array(k).fill(0);
  e.confusion.forEach(([i, , n]) => { totals[i] += n; });
  const open = (i, j) => openCell(page, run, i, j, counts.get(i * k + j));
  return section("confusion", t("confusion"),
    el("p", { class: "small" }, measuredOn(page, run), " ", t("confusion_help")),
    el("div", { class: k > 14 ? "confusion wide" : "confusion" },
      k <= DRAWN ? scroller(t("confusion"), matrix(page, run, counts, totals, open)) : el("p", {}, t("too_many_classes", { n: k })),
      pairsList(page, run, totals, open)));
}

function openCell(page, run, i, j, count) {
  const { t } = page;
  const r = run.evaluation.rows;
  const inside = r.id.map((_, row) => row).filter((row) => r.label[row] === i && r.top[row][0] === j);
  const title = t("cell_title", { true: page.className(run, i, 60), guess: page.className(run, j, 60) });
  const note = inside.length < count ? t(i === j ? "sample_of" : "first_of", { shown: inside.length, n: count }) : t("n_images", { n: count });
  inside.sort((a, b) => r.p[b][0] - r.p[a][0]);
  openGallery(page, title, note, inside.map((row) => entry(run, row)));
}

function matrix(page, run, counts, totals, open) {
  const { t } = page;
  const k = run.classes.length;
  const counted = k <= COUNTED;
  const size = k <= 12 ? "large" : counted ? "medium" : "tiny";
  const shortNames = size === "large" && run.classes.every((name) => name.length <= 4);
  const buttons = new Map();
  let current = null;
  function cell(i, j) {
    const n = counts.get(i * k + j);
    if (!n) return el("td", {});
    const share = n / totals[i];
    const [light, dark] = ["light", "dark"].map((theme) => ramp(share, i === j, theme));
    const label = t("cell_label", { true: page.className(run, i), guess: page.className(run, j), n });
    const button = el("button", {
      type: "button", tabindex: "-1", "aria-label": label, title: `${label} (${percent(share)})`, "data-cell": `${i},${j}`,
      style: { "--light": css(light), "--light-ink": ink(light), "--dark": css(dark), "--dark-ink": ink(dark) },
      onclick: () => { focusOn(i, j); open(i, j); },
    }, counted ? whole(n) : "");
    buttons.set(i * k + j, button);
    return el("td", {}, button);
  }
  // One stop for the tab key; the arrow keys go from cell to cell.
  function focusOn(i, j) {
    if (current) current.setAttribute("tabindex", "-1");
    current = buttons.get(i * k + j);
    current.setAttribute("tabindex", "0");
    current.focus();
  }
  const head = el("tr", {}, el("th", { class: "corner", scope: "col" }, el("span", {}, t("true_predicted"))),
    run.classes.map((_, j) => el("th", { scope: "col", title: page.fullName(run, j) }, el("span", { class: shortNames ? "turned short" : "turned" }, el("bdi", {}, page.className(run, j, 16))))));
  const rows = run.classes.map((_, i) => el("tr", {}, el("th", { scope: "row", title: page.fullName(run, i) }, el("bdi", {}, page.className(run, i, 18))), run.classes.map((_, j) => cell(i, j))));
  const table = el("table", { class: `matrix ${size}` }, el("thead", {}, head), el("tbody", {}, rows));
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  table.addEventListener("keydown", (event) => {
    const place = event.target.dataset?.cell;
    if (!place || !(event.key in arrows)) return;
    event.preventDefault();
    focusOn(...nextCell((i, j) => counts.has(i * k + j), place.split(",").map(Number), arrows[event.key], k));
  });
  current = buttons.values().next().value ?? null;
  current?.setAttribute("tabindex", "0");
  return table;
}

function pairsList(page, run, totals, open) {
  const { t } = page;
  const found = frequentMistakes(run.evaluation.confusion, PAIRS);
  if (!found.length) return el("p", { class: "pairs-list" }, t("no_mistakes"));
  return el("div", { class: "pairs-list" }, el("h3", {}, t("frequent")),
    el("ol", {}, found.map(([i, j, n]) => el("li", {}, el("button", { type: "button", class: "pair", onclick: () => open(i, j) },
      el("bdi", {}, page.className(run, i, 22)), el("span", { class: "arrow", "aria-label": t("predicted_as") }, " → "), el("bdi", {}, page.className(run, j, 22)),
      el("span", { class: "count" }, t("n_of", { n, of: totals[i] })))))));
}
