// The reliability diagram: how often a prediction of a given probability is correct, before and after calibration.

import { el, svg } from "./dom.js";
import { fixed, percent, whole } from "./format.js";
import { measuredOn } from "./header.js";
import { pairs, scroller, section } from "./parts.js";
import { linear } from "./scale.js";

const SIZE = 360;
const HISTOGRAM = 64;
const M = { left: 48, right: 22, top: 12, bottom: 40 };

export function calibrationSection(page, run) {
  const e = run.evaluation;
  if (!e) return null;
  const { t } = page;
  const c = e.calibration;
  const scaled = e.temperature !== 1;
  const series = scaled ? [["before", c.before], ["after", c.after]] : [["after", c.after]];
  return section("calibration", t("calibration"),
    el("p", { class: "small" }, measuredOn(page, run), " ", t(e.temperature === null ? "calibration_folds" : scaled ? "calibration_help" : "calibration_none", { temperature: fixed(e.temperature ?? 1, 2) })),
    el("div", { class: "calibration" },
      diagram(page, series),
      el("div", {},
        pairs([
          scaled && [t("ece_before"), fixed(c.ece_before, 4)],
          [t(scaled ? "ece_after" : "ece"), fixed(c.ece, 4)],
          [t("temperature"), e.temperature === null ? t("temperature_fold") : fixed(e.temperature, 2)],
          e.threshold > 0 && [t("threshold"), percent(e.threshold)],
          e.threshold > 0 && [t("accepted"), t("n_of", { n: e.accepted, of: e.images })],
          e.threshold > 0 && e.accepted > 0 && [t("accepted_accuracy"), percent(e.accepted_correct / e.accepted)],
        ]),
        el("details", {}, el("summary", {}, t("numbers")), table(page, series, c.bins)))));
}

function diagram(page, series) {
  const { t } = page;
  const x = linear([0, 1], [M.left, SIZE - M.right]);
  const y = linear([0, 1], [SIZE - M.bottom, M.top]);
  const last = series.at(-1)[1];
  const most = Math.max(...last.map(([n]) => n));
  const parts = [];
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(v), y2: y(v) }));
    parts.push(svg("text", { class: "tick", x: x(0) - 8, y: y(v) + 4, "text-anchor": "end" }, percent(v, 0)));
    parts.push(svg("text", { class: "tick", x: x(v), y: SIZE - M.bottom + 18, "text-anchor": "middle" }, percent(v, 0)));
  }
  parts.push(svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
  for (const [kind, bins] of series) {
    const points = bins.filter(([n]) => n);
    const total = points.reduce((sum, [n]) => sum + n, 0);
    parts.push(svg("g", { class: `dots ${kind}` },
      kind === "after" && points.map(([, p, a]) => svg("line", { x1: x(p), x2: x(p), y1: y(p), y2: y(a) })),
      points.map(([n, p, a]) => svg("circle", { cx: x(p), cy: y(a), r: 2.5 + 9 * Math.sqrt(n / total) }, svg("title", {}, `${t(kind)}: ${t("bin", { n, p: percent(p), accuracy: percent(a) })}`)))));
  }
  parts.push(svg("text", { class: "axis", x: x(0.5), y: SIZE - 4, "text-anchor": "middle" }, t("confidence")));
  const bars = last.map(([n], k) => svg("rect", {
    class: "bar", x: x(k / last.length) + 1, width: x(1 / last.length) - x(0) - 2, y: HISTOGRAM - (HISTOGRAM - 14) * (n / most), height: (HISTOGRAM - 14) * (n / most),
  }, svg("title", {}, t("n_images", { n }))));
  return el("figure", { class: "reliability" },
    el("div", { class: "legend" }, series.map(([kind]) => el("span", { class: "entry" },
      svg("svg", { class: `swatch dots ${kind}`, width: 12, height: 12, "aria-hidden": "true" }, svg("circle", { cx: 6, cy: 6, r: 4.5 })), t(series.length > 1 ? kind : "measured_accuracy"))),
      el("span", { class: "entry" }, svg("svg", { class: "swatch", width: 26, height: 10, "aria-hidden": "true" }, svg("path", { class: "ideal", d: "M1 5H25" })), t("ideal"))),
    svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": t("reliability") }, parts),
    svg("svg", { viewBox: `0 0 ${SIZE} ${HISTOGRAM}`, role: "img", "aria-label": t("histogram") }, bars),
    el("figcaption", { class: "small" }, t("histogram")));
}

function table(page, series, count) {
  const { t } = page;
  const heads = series.flatMap(([kind]) => [t("images"), t("confidence"), t("accuracy")].map((text) => (series.length > 1 ? `${text}, ${t(kind)}` : text)));
  return scroller(t("numbers"), el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("probability")), heads.map((text) => el("th", { scope: "col", class: "number" }, text)))),
    el("tbody", {}, Array.from({ length: count }, (_, k) => el("tr", {}, el("th", { scope: "row" }, `${percent(k / count, 0)}–${percent((k + 1) / count, 0)}`),
      series.flatMap(([, bins]) => [whole(bins[k][0]), percent(bins[k][1]), percent(bins[k][2])]).map((text) => el("td", { class: "number" }, text)))))));
}
