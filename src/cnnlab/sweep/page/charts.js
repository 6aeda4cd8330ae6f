// Slices and parallel coordinates as SVG. Choosing a trial in one marks it in all.

import { el, svg } from "../report/dom.js";
import { section, scroller } from "../report/parts.js";
import { shorten } from "../report/format.js";
import { linear, ticks } from "../report/scale.js";
import { darkness, figureRange, settingAxis, spread } from "./axis.js";

const SLICE = 210;
const PARALLEL = 330;

// An SVG that is redrawn when its width changes.
function drawn(height, least, attributes, draw) {
  const picture = svg("svg", { class: "chart", height, ...attributes });
  let width = 0;
  const fit = (next) => {
    if (next === width) return;
    width = next;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(...draw(width).flat(3).filter(Boolean));
  };
  new ResizeObserver(([entry]) => fit(Math.max(least, Math.round(entry.contentRect.width)))).observe(picture);
  fit(Math.max(least, 360));
  return picture;
}

const valued = (rows) => rows.filter((row) => row.value !== null && (row.state === "finished" || row.state === "pruned"));

export function slicesSection(page) {
  const { t, payload } = page;
  const rows = valued(payload.rows);
  if (!rows.length) return null;
  const order = { name: null, low: 0, high: Math.max(1, ...payload.rows.map((row) => row.number)), log: false };
  const figures = [order, ...payload.search].map((space) => el("figure", { class: "plot" },
    el("figcaption", {}, el("h3", {}, space.name === null ? t("by_trial") : el("code", {}, space.name))), slice(page, space, rows)));
  return section("slices", t("slices"), el("p", { class: "small" }, t("slices_help")), el("div", { class: "slices" }, figures));
}

function slice(page, space, rows) {
  const low = figureRange(rows.map((row) => row.value));
  const name = space.name ?? page.t("by_trial");
  return drawn(SLICE, 240, { role: "img", "aria-label": `${page.t(`figure_${page.payload.figure}`)}, ${name}` }, (width) => {
    const x = settingAxis(space, [60, width - 14], Math.max(2, Math.floor(width / 80)));
    const y = linear(low, [SLICE - 30, 8]);
    return [
      ticks(...low, 5).map((v) => [svg("line", { class: "grid", x1: 52, x2: width - 6, y1: y(v), y2: y(v) }),
        svg("text", { class: "tick", x: 46, y: y(v) + 4, "text-anchor": "end" }, page.figure(v, true))]),
      x.marks.map(([place, text]) => svg("text", { class: "tick", x: place, y: SLICE - 8, "text-anchor": "middle" }, text)),
      rows.map((row) => svg("circle", {
        class: `trial ${row.state}`, "data-trial": row.number, cx: x.at(space.name === null ? row.number : row.params[space.name]) + spread(row.number, x.band),
        cy: y(row.value), r: 4.5, onpointerenter: () => page.choose(row.number), onpointerleave: () => page.choose(null),
      }, svg("title", {}, page.describe(row)))),
    ];
  });
}

export function parallelSection(page) {
  const { t, payload } = page;
  const rows = valued(payload.rows);
  const finished = rows.filter((row) => row.state === "finished");
  if (!finished.length) return null;
  const least = 120 * (payload.search.length + 1);
  const picture = drawn(PARALLEL, least, { tabindex: "0", role: "group", "aria-label": `${t("parallel")}: ${t("parallel_keys")}`, style: { "min-width": `${least}px` } }, (width) => {
    const step = (width - 110) / payload.search.length;
    const [top, bottom] = [54, PARALLEL - 14];
    const figure = figureRange(rows.map((row) => row.value));
    const last = linear(figure, payload.minimize ? [top, bottom] : [bottom, top]);
    const axes = payload.search.map((space, k) => ({ name: space.name, x: 58 + k * step, ...settingAxis(space, [bottom, top], 6), of: (row) => row.params[space.name] }));
    axes.push({ name: t(`figure_${payload.figure}`), x: 58 + payload.search.length * step, at: last, band: 0, of: (row) => row.value, marks: ticks(...figure, 6).map((v) => [last(v), page.figure(v, true)]) });
    const path = (row) => axes.map((axis, k) => `${k ? "L" : "M"}${axis.x.toFixed(1)} ${(axis.at(axis.of(row)) + spread(row.number, axis.band)).toFixed(1)}`).join("");
    return [
      [...rows].reverse().map((row) => {
        const dark = row.state === "finished" ? darkness(finished.indexOf(row), finished.length) : 0.5;
        const one = { d: path(row), "data-trial": row.number };
        return [svg("path", { ...one, class: `trial ${row.state}`, "stroke-opacity": dark.toFixed(2) }),
          svg("path", { ...one, class: "catch", onpointerenter: () => page.choose(row.number), onpointerleave: () => page.choose(null) })];
      }),
      axes.map((axis, k) => [
        svg("line", { class: "axis", x1: axis.x, x2: axis.x, y1: top - 6, y2: bottom + 6 }),
        svg("text", { class: "name", x: axis.x, y: k % 2 ? 34 : 16, "text-anchor": k === 0 ? "start" : k === axes.length - 1 ? "end" : "middle", dx: k === 0 ? -52 : k === axes.length - 1 ? 48 : 0 }, shorten(axis.name, 24)),
        axis.marks.map(([place, text]) => svg("text", { class: "tick", x: axis.x - 7, y: place + 4, "text-anchor": "end" }, text)),
      ]),
    ];
  });
  picture.addEventListener("keydown", (event) => {
    const place = finished.findIndex((row) => row.number === page.chosen);
    const next = { ArrowDown: place + 1, ArrowRight: place + 1, ArrowUp: place - 1, ArrowLeft: place - 1, Home: 0, End: finished.length - 1 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || (next === undefined && event.key !== "Escape")) return;
    event.preventDefault();
    page.choose(next === undefined ? null : finished[Math.min(finished.length - 1, Math.max(0, next))].number);
  });
  picture.addEventListener("blur", () => page.choose(null));
  return section("parallel", t("parallel"), el("p", { class: "small" }, t("parallel_help")), scroller(t("parallel"), picture), page.readout);
}

export function importanceSection(page) {
  const { t, payload } = page;
  const rows = payload.importance;
  const few = payload.finished < 20 && rows.length ? ` ${t("importance_doubt", { n: payload.finished })}` : "";
  return section("importance", t("importance"),
    el("p", { class: "small" }, rows.length ? t("importance_help") + few : t("importance_few")),
    rows.length ? el("dl", { class: "importance" }, rows.map(([name, share]) => el("div", {}, el("dt", {}, el("code", {}, name)),
      el("dd", {}, el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "share", style: { width: `${100 * share}%` } })), el("span", { class: "value" }, share.toFixed(2)))))) : null);
}

