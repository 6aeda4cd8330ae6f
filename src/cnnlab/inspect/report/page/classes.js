// Precision, recall and F1 of each class with their intervals; a click on a heading sorts.

import { el } from "./dom.js";
import { fixed, whole } from "./format.js";
import { measuredOn } from "./header.js";
import { scroller, section } from "./parts.js";
import { sorted } from "./sort.js";

const FIGURES = ["precision", "recall", "f1"];

export function classesSection(page, run) {
  const e = run.evaluation;
  if (!e) return null;
  const { t } = page;
  const rows = e.classes.map((row, k) => ({ ...row, k }));
  const keys = { class: (row) => row.k, support: (row) => row.support, ...Object.fromEntries(FIGURES.map((key) => [key, (row) => row[key]])) };
  let [by, descending] = ["class", false];
  const body = el("tbody", {});
  const headings = Object.keys(keys).map((key) => el("th", { scope: "col", class: key === "class" ? "name" : key === "support" ? "number" : "" },
    el("button", { type: "button", onclick: () => sort(key) }, t(key === "class" ? "class" : key === "support" ? "images" : key), el("span", { class: "direction", "aria-hidden": "true" }))));
  function sort(key) {
    descending = key === by ? !descending : key === "support";
    by = key;
    draw();
  }
  function draw() {
    Object.keys(keys).forEach((key, n) => {
      headings[n].setAttribute("aria-sort", key === by ? (descending ? "descending" : "ascending") : "none");
      headings[n].querySelector(".direction").textContent = key === by ? (descending ? "▼" : "▲") : "";
    });
    body.replaceChildren(...sorted(rows, keys[by], descending).map((row) => el("tr", {},
      el("th", { scope: "row", class: "name", title: page.fullName(run, row.k) }, el("bdi", {}, page.className(run, row.k, 36))),
      el("td", { class: "number" }, whole(row.support)),
      FIGURES.map((key) => el("td", { class: "figure" }, figure(row[key], row[`${key}_interval`]))))));
  }
  draw();
  return section("classes", t("classes"),
    el("p", { class: "small" }, measuredOn(page, run), " ", t("classes_help")),
    scroller(t("classes"), el("table", { class: "sortable" }, el("thead", {}, el("tr", {}, headings)), body)));
}

// A figure, its interval in small print, and both on a line from 0 to 1.
function figure(value, interval) {
  if (value === null) return el("span", { class: "value" }, "–");
  const [low, high] = interval;
  return el("div", { class: "with-interval" },
    el("span", { class: "value" }, fixed(value)), el("span", { class: "range" }, `${low.toFixed(2)}–${high.toFixed(2)}`),
    el("span", { class: "whisker", "aria-hidden": "true" },
      el("span", { class: "span", style: { left: `${100 * low}%`, width: `${Math.max(0.5, 100 * (high - low))}%` } }),
      el("span", { class: "dot", style: { left: `${100 * value}%` } })));
}
