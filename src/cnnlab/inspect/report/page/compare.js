// Several runs side by side.

import { calibrationSection } from "./calibration.js";
import { classesSection } from "./classes.js";
import { confusionSection } from "./confusion.js";
import { charts } from "./curves.js";
import { el } from "./dom.js";
import { figureTiles } from "./header.js";
import { imagesSection } from "./images.js";
import { interval, percent, probability, pValue, shorten, value, visible, whole } from "./format.js";
import { pairs, scroller, section } from "./parts.js";

export function compareHeader(page) {
  const { t, payload } = page;
  const { pooled } = payload;
  if (pooled) {
    return el("header", { class: "title" }, el("p", { class: "kicker" }, t("report")), el("h1", {}, el("bdi", {}, t("cross_validation", { name: page.short(pooled.name, 60) }))),
      el("p", { class: "lead" }, t("pooled_lead", { model: visible(pooled.model), parameters: whole(pooled.parameters), data: page.source(pooled.data), recipe: page.short(pooled.recipe, 120), of: pooled.pooled[1] })),
      figureTiles(page, pooled));
  }
  return el("header", { class: "title" }, el("p", { class: "kicker" }, t("report")), el("h1", {}, t("n_runs", { n: payload.runs.length })),
    el("p", { class: "lead" }, t("compare_lead")));
}

export function compareSections(page) {
  const { pooled } = page.payload;
  if (pooled) return [figures(page), curves(page), ...[confusionSection, imagesSection, classesSection, calibrationSection].map((part) => named(part(page, pooled)))];
  return [figures(page), curves(page), settingsThatDiffer(page), tests(page), disagreements(page)].filter(Boolean);
}

// Change the ids: below, each fold has sections with the same ones.
function named(section) {
  section.querySelector("h2").id = `pooled-${section.id}-title`;
  section.setAttribute("aria-labelledby", `pooled-${section.id}-title`);
  section.id = `pooled-${section.id}`;
  return section;
}

const label = (n) => String.fromCharCode(65 + n);

function figures(page) {
  const { t, payload } = page;
  const heads = ["run", "accuracy", "interval", "macro_f1", "images", "weights", "seed", "throughput"];
  return section("figures", t("figures"),
    scroller(t("figures"), el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, el("span", { class: "offstage" }, "#")), heads.map((key) => el("th", { scope: "col", class: key === "run" || key === "weights" ? "" : "number" }, t(key))))),
      el("tbody", {}, payload.runs.map((run, n) => {
        const e = run.evaluation;
        const cells = e
          ? [percent(e.accuracy, 2), interval(e.intervals.accuracy.map((v) => 100 * v), 1), e.macro_f1.toFixed(3), `${whole(e.images)} ${page.split(e.split)}`]
          : ["–", "–", "–", "–"];
        return el("tr", {}, el("td", {}, el("span", { class: `key run-${n % 8}` }, label(n))), el("th", { scope: "row" }, el("bdi", { title: visible(run.name).slice(0, 500) }, page.short(run.name, 32))),
          cells.map((text) => el("td", { class: "number" }, text)), el("td", {}, e ? t(`weights_${e.weights}`) : "–"), el("td", { class: "number" }, String(run.seed)),
          el("td", { class: "number" }, t("per_second", { n: whole(run.speed.images_per_second) })));
      })))));
}

function curves(page) {
  const { t, payload } = page;
  const lines = (key) => payload.runs.map((run, n) => ({ name: `${label(n)} ${shorten(run.name, 20)} (${page.split(run.eval_split)})`, x: run.history.epoch, y: run.history[key], kind: `run-${n % 8}` })).filter((line) => line.x.length);
  if (!lines("eval_acc").length) return null;
  return section("curves-together", t("curves"),
    charts(page, [{ title: t("loss_evaluated"), lines: lines("eval_loss"), share: false, marks: [] }, { title: t("accuracy_evaluated"), lines: lines("eval_acc"), share: true, marks: [] }]),
    el("p", { class: "small" }, t("curves_help")));
}

function settingsThatDiffer(page) {
  const { t, payload } = page;
  const rows = payload.compare.settings;
  return section("differences", t("differences"), rows.length
    ? scroller(t("differences"), el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("setting")), payload.runs.map((run, n) => el("th", { scope: "col", title: visible(run.name).slice(0, 500) }, label(n))))),
      el("tbody", {}, rows.map(([key, values]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, key)), values.map((one) => el("td", {}, shorten(value(one), 40))))))))
    : el("p", {}, t("same_settings")));
}

function tests(page) {
  const { t, payload } = page;
  const { compare } = payload;
  const title = t("mcnemar");
  if (compare.not_the_same) return section("mcnemar", title, el("p", {}, t(`not_same_${compare.not_the_same}`)));
  const n = payload.runs[0].evaluation.images;
  const heads = ["pair", "both_right", "only_first", "only_second", "both_wrong", "p_value"];
  return section("mcnemar", title,
    el("p", { class: "small" }, t("mcnemar_help", { n, split: page.split(payload.runs[0].evaluation.split) })),
    scroller(title, el("table", {}, el("thead", {}, el("tr", {}, heads.map((key) => el("th", { scope: "col", class: key === "pair" ? "" : "number" }, t(key))))),
      el("tbody", {}, compare.tests.map((one) => el("tr", {}, el("th", { scope: "row" }, `${label(one.runs[0])}, ${label(one.runs[1])}`),
        [one.both, one.first_only, one.second_only, one.neither].map((count) => el("td", { class: "number" }, whole(count))),
        el("td", { class: "number" }, `p ${pValue(one.p)}`)))))),
    compare.tests.length > 1 ? el("p", { class: "small" }, t("many_tests", { n: compare.tests.length })) : null);
}

function disagreements(page) {
  const { t, payload } = page;
  const d = payload.compare.disagreements;
  if (!d) return null;
  const first = payload.runs[0];
  const place = el("div", { class: "cards" });
  const more = el("button", { type: "button", class: "more", onclick: () => add(60) });
  let shown = 0;
  function add(count) {
    for (const end = Math.min(d.id.length, shown + count); shown < end; shown += 1) place.append(one(shown));
    more.textContent = t("show_more", { n: Math.min(60, d.id.length - shown) });
    more.toggleAttribute("hidden", shown >= d.id.length);
  }
  function one(k) {
    const uri = page.picture(d.picture[k]);
    return el("figure", { class: "card" },
      el("div", { class: "thumb" }, uri ? el("img", { src: uri, alt: shorten(d.id[k], 80), class: first.native <= 64 ? "pixels" : "" }) : el("span", { class: "no-picture" }, t("no_picture"))),
      el("figcaption", {}, el("p", { class: "file", title: visible(d.id[k]).slice(0, 1000) }, el("bdi", {}, shorten(d.id[k], 44))),
        el("p", { class: "truth" }, el("span", { class: "what" }, t("true_class")), " ", el("bdi", {}, page.className(first, d.label[k], 24))),
        el("ul", { class: "bars" }, d.predicted[k].map((guess, n) => el("li", { class: guess === d.label[k] ? "right" : "wrong" },
          el("span", { class: "bar", style: { width: `${Math.max(1, 100 * d.p[k][n])}%` } }),
          el("span", { class: "name" }, `${label(n)} `, el("bdi", {}, page.className(first, guess, 16))), el("span", { class: "p" }, probability(d.p[k][n])))))));
  }
  add(24);
  return section("disagreements", t("disagreements"),
    pairs([[t("differ_on"), t("n_of", { n: d.all, of: first.evaluation.images })], [t("some_right"), whole(d.solved)]]),
    d.id.length < d.all ? el("p", { class: "small" }, t("first_of", { shown: d.id.length, n: d.all })) : null,
    d.id.length ? el("div", {}, place, more) : el("p", {}, t("no_disagreements")));
}
