// What this run is, how it scores, and on which images that was measured.

import { el } from "./dom.js";
import { fixed, interval, percent, visible, whole } from "./format.js";

// On which images, with which weights and seed: this accompanies every figure.
export function measuredOn(page, run) {
  const { t } = page;
  const e = run.evaluation;
  if (run.pooled) return t("measured_pooled", { n: e.images, folds: run.pooled[0], of: run.pooled[1], weights: t(`weights_${e.weights}`), seed: run.seed });
  const values = { n: e.images, split: page.split(e.split), weights: t(`weights_${e.weights}`), seed: run.seed };
  return t(e.data !== null ? "measured_other" : "measured", { ...values, data: page.short(e.data ?? "", 40) });
}

export function looksText(page, run) {
  const { t } = page;
  return [run.test_evaluations.each_epoch ? t("test_evaluations_each", { n: run.epochs }) : null, t("test_evaluations", { n: run.test_evaluations.times })].filter(Boolean).join(" ");
}

export function runHeader(page, run) {
  const { t } = page;
  const e = run.evaluation;
  const epochs = run.finished ? t("epochs", { n: run.epochs }) : t("epochs_of", { done: run.epochs, of: run.of });
  return el("header", { class: "title" },
    el("p", { class: "kicker" }, t("report")),
    el("h1", {}, el("bdi", {}, page.short(run.name, 60))),
    el("p", { class: "lead" },
      t("lead", { model: visible(run.model), parameters: whole(run.parameters), data: page.source(run.data), epochs, recipe: page.short(run.recipe, 120), seed: run.seed }),
      run.fold ? ` ${t("fold", { fold: run.fold[0], folds: run.fold[1] })}` : "",
      run.published ? ` ${t("published", { origin: page.short(run.published, 80) })}` : "",
      run.from ? ` ${t("from", { run: page.short(run.from, 60) })}` : ""),
    e ? figureTiles(page, run) : run.recorded && el("p", { class: "headline" }, recorded(page, run), " ", looksText(page, run)));
}

// What the training itself measured, for runs whose images or weights are gone.
function recorded(page, run) {
  const r = run.recorded;
  return page.t("recorded", { accuracy: percent(r.accuracy), interval: shares(r.interval), n: r.images, split: page.split(run.eval_split), weights: page.t(`weights_${r.weights}`), seed: run.seed });
}

export function figureTiles(page, run) {
  const { t } = page;
  const e = run.evaluation;
  const tile = (name, value, below) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, el("span", { class: "big" }, value), el("span", { class: "below" }, below)));
  return el("div", { class: "headline" },
    el("dl", { class: "tiles" },
      tile(t("accuracy"), percent(e.accuracy), t("interval95", { interval: shares(e.intervals.accuracy) })),
      tile(t("balanced_accuracy"), percent(e.balanced_accuracy), t("interval95", { interval: shares(e.intervals.balanced_accuracy) })),
      tile(t("macro_f1"), fixed(e.macro_f1), t("interval95", { interval: interval(e.intervals.macro_f1) })),
      tile(t("mistakes"), whole(e.images - e.correct), t("of_images", { n: e.images })),
      tile(t("ece"), fixed(e.calibration.ece), t("ece_without", { before: fixed(e.calibration.ece_before) }))),
    el("p", { class: "small" }, measuredOn(page, run), " ", run.pooled ? t("pooled_flatters") : looksText(page, run)));
}

const shares = ([low, high]) => `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)}%`;

// What is missing, and the findings of the training.
export function notes(page, run) {
  const list = [
    ...run.missing.map((text) => [page.t("missing"), text]),
    ...run.findings.map((text) => [page.t("finding"), text]),
    ...(run.finished ? [] : run.running ? [[page.t("running"), page.t("running_text", { done: run.epochs, n: run.of })]] : [[page.t("unfinished"), page.t("unfinished_text")]]),
  ];
  if (!list.length) return null;
  return el("ul", { class: "notes" }, list.map(([name, text]) => el("li", {}, el("strong", {}, name), " ", visible(text).slice(0, 2000))));
}
