// The page of a sweep: draw the payload that it contains, and again when the language changes.

import "./words.js";
import { el } from "../report/dom.js";
import { context } from "../report/context.js";
import { duration, fixed, percent, value, visible, whole } from "../report/format.js";
import { copyText, pairs, scroller, section } from "../report/parts.js";
import { sorted } from "../report/sort.js";
import { toolbar } from "../report/toolbar.js";
import { importanceSection, parallelSection, slicesSection } from "./charts.js";

const STATES = ["finished", "pruned", "failed", "running"];

// Shared by the sections, besides the report's context: how a figure is written, and the chosen trial.
function sweepContext(payload, state) {
  const page = context(payload, state);
  const share = payload.figure.endsWith("acc");
  page.figure = (number, short = false) => (share ? percent(number, short ? 1 : 2) : fixed(number, short ? 2 : 4));
  page.describe = (row) => `${page.t("trial_n", { n: row.number })} (${page.t(`trial_${row.state}`)}): ${page.figure(row.value)}; ${payload.search.map(({ name }) => `${name} ${value(row.params[name])}`).join(", ")}`;
  page.readout = el("p", { class: "readout", "aria-live": "polite" });
  page.chosen = null;
  page.choose = (number) => {
    page.chosen = number;
    document.querySelectorAll("[data-trial]").forEach((node) => node.classList.toggle("chosen", node.dataset.trial === String(number)));
    const row = payload.rows.find((one) => one.number === number);
    page.readout.textContent = row ? page.describe(row) : "";
  };
  return page;
}

function sweepHeader(page) {
  const { t, payload } = page;
  const best = payload.rows.find((row) => row.number === payload.best);
  const tile = (name, big, below) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, el("span", { class: "big" }, big), below && el("span", { class: "below" }, below)));
  const lead = payload.rows.length < payload.trials ? "sweep_lead_of" : "sweep_lead";
  const seconds = payload.rows.reduce((sum, row) => sum + (row.seconds ?? 0), 0);
  return el("header", { class: "title" }, el("p", { class: "kicker" }, t("sweep")), el("h1", {}, el("bdi", {}, page.short(payload.name, 60))),
    el("p", { class: "lead" }, t(lead, { n: payload.rows.length, of: payload.trials, recipe: page.short(payload.base, 60), data: page.source(payload.data) }),
      payload.seeds > 1 ? ` ${t("sweep_seeds", { n: payload.seeds })}` : ""),
    el("div", { class: "headline" }, el("dl", { class: "tiles" },
      tile(t(`figure_${payload.figure}`), best ? page.figure(best.value) : "–", best && best.std !== null ? t("sweep_std", { std: page.figure(best.std) }) : null),
      tile(t("trial_finished"), whole(payload.finished)), tile(t("trial_pruned"), whole(payload.pruned)),
      tile(t("trial_failed"), whole(payload.failed), payload.running ? `${t("trial_running")}: ${whole(payload.running)}` : null), tile(t("total_time"), duration(seconds))),
      el("p", { class: "small" }, t("sweep_bias"))));
}

function bestSection(page) {
  const { t, payload } = page;
  const best = payload.rows.find((row) => row.number === payload.best);
  if (!best) return section("best", t("sweep_best"), el("p", {}, t("sweep_none")));
  const button = el("button", { type: "button", class: "quiet", onclick: (event) => copyText(payload.command, event.currentTarget, t("copied")) }, t("copy"));
  return section("best", t("sweep_best"),
    pairs([...payload.search.map(({ name }) => [el("code", {}, name), value(best.params[name])]), [t("run"), el("code", {}, best.runs.map(visible).join(", "))]]),
    el("p", { class: "small after" }, t("sweep_best_help", { n: best.number })),
    el("div", { class: "command" }, el("pre", { tabindex: "0" }, el("code", {}, visible(payload.command))), button));
}

function trialsSection(page) {
  const { t, payload } = page;
  const columns = [
    { key: "number", title: t("trial"), of: (row) => row.number },
    { key: "value", title: t(`figure_${payload.figure}`), of: (row) => row.value, text: (row) => `${page.figure(row.value)}${row.std === null ? "" : ` ± ${page.figure(row.std)}`}` },
    { key: "state", title: t("state"), of: (row) => STATES.indexOf(row.state), text: (row) => t(`trial_${row.state}`), name: true },
    { key: "epochs", title: t("epochs_short"), of: (row) => row.epochs, text: (row) => whole(row.epochs) },
    ...payload.search.map((space) => ({ key: `set-${space.name}`, title: el("code", {}, space.name), of: (row) => (typeof row.params[space.name] === "boolean" ? Number(row.params[space.name]) : row.params[space.name]), text: (row) => (row.params[space.name] === undefined ? "–" : value(row.params[space.name])), name: Boolean(space.choices) })),
  ];
  let [by, descending] = [null, false];
  const body = el("tbody", {});
  const headings = columns.map((column) => el("th", { scope: "col", class: column.name ? "" : "number" },
    el("button", { type: "button", onclick: () => { descending = column === by ? !descending : false; by = column; draw(); } }, column.title, el("span", { class: "direction", "aria-hidden": "true" }))));
  function draw() {
    headings.forEach((heading, k) => {
      heading.setAttribute("aria-sort", columns[k] === by ? (descending ? "descending" : "ascending") : "none");
      heading.querySelector(".direction").textContent = columns[k] === by ? (descending ? "▼" : "▲") : "";
    });
    const rows = by ? sorted(payload.rows, by.of, descending) : payload.rows;
    body.replaceChildren(...rows.map((row) => el("tr", { "data-trial": row.number, title: row.failed ? visible(row.failed).slice(0, 500) : page.describe(row), onpointerenter: () => page.choose(row.number), onpointerleave: () => page.choose(null) },
      columns.map((column, k) => el(k ? "td" : "th", { scope: k ? null : "row", class: column.name ? "" : "number" }, column.text ? column.text(row) : String(column.of(row)))))));
  }
  draw();
  return section("trials", t("trials"), el("p", { class: "small" }, t("trials_help")),
    scroller(t("trials"), el("table", { class: "sortable trials" }, el("thead", {}, el("tr", {}, headings)), body)));
}

function drawSweep(payload, node, state) {
  const page = sweepContext(payload, state);
  const parts = [sweepHeader(page), bestSection(page), importanceSection(page), slicesSection(page), parallelSection(page), trialsSection(page)].filter(Boolean);
  const date = payload.created.replace("T", " ").replace("+00:00", " UTC");
  node.replaceChildren(toolbar(page, parts, () => drawSweep(payload, node, state)), el("main", {}, parts), el("footer", {}, el("p", {}, page.t("footer", { version: payload.version, date }))));
}

drawSweep(JSON.parse(document.getElementById("payload").textContent), document.getElementById("report"), { language: null, theme: null });
