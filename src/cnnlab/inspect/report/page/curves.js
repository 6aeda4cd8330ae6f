// Loss and accuracy over the epochs, drawn as SVG: hover or arrow keys read values, dragging or +/- zooms.

import { el, svg } from "./dom.js";
import { fixed, percent } from "./format.js";
import { section } from "./parts.js";
import { dragged, linear, lossTop, nearest, shareBottom, ticks, wholeTicks, zoomed } from "./scale.js";

const HEIGHT = 260;
const MARGIN = { left: 46, right: 12, top: 10, bottom: 30 };

export function curvesSection(page, run) {
  const { t } = page;
  const h = run.history;
  if (!h.epoch.length) return null;
  const split = run.eval_split === "train" ? t("some_train") : page.split(run.eval_split);
  const lines = (a, b) => [
    { name: t("training"), x: h.epoch, y: a, kind: "train" },
    { name: split, x: h.epoch, y: b, kind: "eval" },
  ];
  const marks = run.best_epoch ? [{ x: run.best_epoch, text: t("best_epoch", { n: run.best_epoch }) }] : [];
  return section("curves", t("curves"),
    charts(page, [
      { title: t("loss"), lines: lines(h.train_loss, h.eval_loss), share: false, marks },
      { title: t("accuracy"), lines: lines(h.train_acc, h.eval_acc), share: true, marks },
    ]),
    el("p", { class: "small" }, t("curves_help"), marks.length ? ` ${t("best_help", { n: run.best_epoch })}` : ""));
}

// Several charts over the same epochs, with a shared zoom and cursor.
export function charts(page, specs) {
  const all = specs.flatMap((spec) => spec.lines.flatMap((line) => line.x));
  const [first, last] = [Math.min(...all), Math.max(...all)];
  const whole = first === last ? [first - 0.5, last + 0.5] : [first, last];
  const shared = { whole, range: whole, cursor: null, drawn: [] };
  const reset = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => zoom(whole) }, page.t("whole_range"));
  function zoom(range) {
    shared.range = range;
    const zoomedIn = range[0] > whole[0] || range[1] < whole[1];
    reset.toggleAttribute("hidden", !zoomedIn);
    shared.drawn.forEach((one) => one.draw());
  }
  shared.zoom = zoom;
  shared.point = (epoch) => { shared.cursor = epoch; shared.drawn.forEach((one) => one.point()); };
  shared.drawn = specs.map((spec) => chart(page, spec, shared));
  return el("div", { class: "charts" }, shared.drawn.map((one) => one.node), reset);
}

function chart(page, spec, shared) {
  const id = `clip-${(chart.count = (chart.count ?? 0) + 1)}`;
  const picture = svg("svg", {
    class: "chart", tabindex: "0", role: "group", "aria-label": `${spec.title}: ${page.t("chart_keys")}`, height: HEIGHT,
  });
  const readings = spec.lines.map((line) => el("span", { class: "reading" }));
  const epoch = el("span", { class: "epoch" });
  const legend = el("div", { class: "legend", "aria-live": "polite" },
    spec.lines.map((line, k) => el("span", { class: "entry" }, swatch(line.kind), el("bdi", {}, line.name), readings[k])), epoch);
  const node = el("figure", { class: "plot" }, el("figcaption", {}, el("h3", {}, spec.title), legend), picture);
  let width = 520;
  let x = linear(shared.range, [0, 1]);
  const values = (line) => line.y.filter((_, k) => line.x[k] >= shared.range[0] && line.x[k] <= shared.range[1]);
  const text = (value) => (spec.share ? percent(value) : fixed(value));

  function draw() {
    const seen = spec.lines.flatMap(values).filter((v) => v !== null);
    const domain = spec.share ? [shareBottom(seen), 1] : [0, lossTop(seen)];
    const plot = [MARGIN.left, width - MARGIN.right];
    x = linear(shared.range, plot);
    const y = linear(domain, [HEIGHT - MARGIN.bottom, MARGIN.top]);
    const parts = [svg("defs", {}, svg("clipPath", { id }, svg("rect", { x: plot[0] - 5, y: MARGIN.top - 6, width: plot[1] - plot[0] + 10, height: HEIGHT - MARGIN.top - MARGIN.bottom + 12 })))];
    for (const v of ticks(...domain, 5)) {
      parts.push(svg("line", { class: "grid", x1: plot[0], x2: plot[1], y1: y(v), y2: y(v) }));
      parts.push(svg("text", { class: "tick", x: plot[0] - 8, y: y(v) + 4, "text-anchor": "end" }, spec.share ? percent(v, 0) : String(v)));
    }
    for (const v of wholeTicks(...shared.range, Math.max(3, Math.floor(width / 80)))) {
      parts.push(svg("text", { class: "tick", x: x(v), y: HEIGHT - 10, "text-anchor": "middle" }, String(v)));
    }
    for (const mark of spec.marks) {
      if (mark.x >= shared.range[0] && mark.x <= shared.range[1]) parts.push(svg("line", { class: "mark", x1: x(mark.x), x2: x(mark.x), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }, svg("title", {}, mark.text)));
    }
    const drawing = spec.lines.map((line) => svg("g", { class: `line ${line.kind}`, "clip-path": `url(#${id})` },
      svg("path", { d: path(line, x, y) }),
      values(line).length <= 25 ? line.x.map((e, k) => line.y[k] !== null && svg("circle", { cx: x(e), cy: y(line.y[k]), r: 3 })) : null));
    parts.push(...drawing, svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" }),
      svg("rect", { class: "brush", y: MARGIN.top, height: HEIGHT - MARGIN.top - MARGIN.bottom, visibility: "hidden" }));
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.replaceChildren(...parts);
    point();
  }

  // Show the values at the cursor; without one, the last.
  function point() {
    const at = shared.cursor;
    spec.lines.forEach((line, k) => {
      const place = at === null ? line.x.length - 1 : line.x.indexOf(at);
      readings[k].textContent = place < 0 ? "–" : text(line.y[place]);
    });
    epoch.textContent = at === null ? page.t("last_epoch") : page.t("epoch", { n: at });
    const cursor = picture.querySelector(".cursor");
    if (!cursor) return;
    const shown = at !== null && at >= shared.range[0] && at <= shared.range[1];
    cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) { cursor.setAttribute("x1", x(at)); cursor.setAttribute("x2", x(at)); }
  }

  const epochs = [...new Set(spec.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const inverse = (event) => {
    const box = picture.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * width;
    return linear([MARGIN.left, width - MARGIN.right], shared.range)(px);
  };
  const least = Math.max(1, (shared.whole[1] - shared.whole[0]) / 200);
  let from = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = inverse(event);
    if (event.pointerType === "mouse") picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    const value = inverse(event);
    shared.point(epochs[nearest(epochs, value)]);
    const brush = picture.querySelector(".brush");
    const range = from === null ? null : dragged(from, value, shared.range, least / 2);
    brush.setAttribute("visibility", range ? "visible" : "hidden");
    if (range) { brush.setAttribute("x", x(range[0])); brush.setAttribute("width", x(range[1]) - x(range[0])); }
  });
  picture.addEventListener("pointerup", (event) => {
    const range = from === null ? null : dragged(from, inverse(event), shared.range, least);
    from = null;
    if (range) shared.zoom(range);
    else picture.querySelector(".brush").setAttribute("visibility", "hidden");
  });
  picture.addEventListener("pointercancel", () => { from = null; });
  picture.addEventListener("pointerleave", () => { if (from === null && document.activeElement !== picture) shared.point(null); });
  picture.addEventListener("dblclick", () => shared.zoom(shared.whole));
  picture.addEventListener("blur", () => shared.point(null));
  picture.addEventListener("keydown", (event) => {
    const at = shared.cursor ?? epochs.at(-1);
    const inside = epochs.filter((e) => e >= shared.range[0] && e <= shared.range[1]);
    const place = nearest(inside, at);
    const actions = {
      ArrowLeft: () => shared.point(inside[Math.max(0, place - 1)] ?? at),
      ArrowRight: () => shared.point(inside[Math.min(inside.length - 1, place + 1)] ?? at),
      Home: () => shared.point(inside[0] ?? at),
      End: () => shared.point(inside.at(-1) ?? at),
      "+": () => shared.zoom(zoomed(shared.range, at, 0.5, shared.whole, least)),
      "=": () => shared.zoom(zoomed(shared.range, at, 0.5, shared.whole, least)),
      "-": () => shared.zoom(zoomed(shared.range, at, 2, shared.whole, least)),
      0: () => shared.zoom(shared.whole),
      Escape: () => { shared.zoom(shared.whole); shared.point(null); },
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  });
  new ResizeObserver(([entry]) => {
    const next = Math.max(260, Math.round(entry.contentRect.width));
    if (next !== width) { width = next; draw(); }
  }).observe(picture);
  draw();
  return { node, draw, point };
}

function path(line, x, y) {
  let out = "";
  let pen = false;
  line.x.forEach((e, k) => {
    if (line.y[k] === null) { pen = false; return; }
    out += `${pen ? "L" : "M"}${x(e).toFixed(1)} ${y(line.y[k]).toFixed(1)}`;
    pen = true;
  });
  return out;
}

function swatch(kind) {
  return svg("svg", { class: `swatch line ${kind}`, width: 26, height: 10, "aria-hidden": "true" }, svg("path", { d: "M1 5H25" }));
}
