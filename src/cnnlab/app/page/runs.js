// All runs, live, including those that other processes train.

import { el, keepFocus, svg } from "../report/dom.js";
import { visible, visibleLines } from "../report/format.js";
import { get, post } from "./api.js";
import { address, duration, filtered, sparkline } from "./route.js";

const NUMBERS = ["epochs", "accuracy", "time"];

export function runsPage(app) {
  const { t } = app;
  const chosen = new Set();
  const body = el("tbody", {});
  const compare = el("a", { class: "quiet compare", "aria-disabled": "true" }, t("ui_compare_help"));
  const filter = el("input", { type: "search", placeholder: t("ui_filter"), "aria-label": t("ui_filter"), oninput: draw });
  const empty = el("p", { class: "small", hidden: true });
  const failed = el("div", { class: "failed" });
  let found = { runs: [], series: {}, started: [], folder: "" }, later = null;

  const heads = ["name", "state", "model", "source", "epochs", "accuracy", "curve", "time"];
  const table = el("table", { class: "runs" },
    el("thead", {}, el("tr", {}, el("th", {}), heads.map((name) => el("th", { scope: "col", class: NUMBERS.includes(name) ? "number" : "" }, t(`ui_${name}`))), el("th", {}))), body);
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_runs")), filter, compare), failed, el("div", { class: "scroller", tabindex: "0" }, table), empty));

  const seriesOf = (run) => run.name.slice(0, Math.max(0, run.name.lastIndexOf("/")));

  function row(run) {
    const box = el("input", { type: "checkbox", "aria-label": t("ui_choose", { name: app.short(run.name, 60) }), onchange: () => { choose(run.name, box.checked); } });
    box.checked = chosen.has(run.name);
    box.disabled = run.state === "damaged";
    const series = seriesOf(run);
    const within = series in found.series;
    const name = el("bdi", {}, app.short(within ? run.name.slice(series.length + 1) : run.name, 48));
    const points = run.curve?.length ? sparkline(run.curve, 96, 24) : "";
    const acc = run.acc === undefined || run.acc === null ? "" : run.acc.toFixed(4);
    return el("tr", { class: within ? "member" : null, "data-key": run.name },
      el("td", {}, box),
      el("td", { class: "name" }, run.state === "damaged" ? [name, el("span", { class: "why small" }, visible(run.error).slice(0, 300))] : el("a", { href: address("run", run.name) }, name)),
      el("td", {}, el("span", { class: `state ${run.state}` }, t(`state_${run.state}`))),
      el("td", {}, el("bdi", {}, app.short(run.model ?? "", 28))),
      el("td", {}, el("bdi", {}, app.short(run.data ?? "", 36))),
      el("td", { class: "number" }, run.of ? `${run.epochs} / ${run.of}` : ""),
      el("td", { class: "number" }, acc, acc ? el("span", { class: "split" }, ` ${app.split(run.split)}, ${t(`weights_${run.weights}`)}`) : null),
      el("td", {}, points ? svg("svg", { viewBox: "-1 -2 98 28", class: "spark", "aria-hidden": "true" }, svg("polyline", { points })) : null),
      el("td", { class: "number" }, run.seconds ? duration(run.seconds) : ""),
      el("td", {}, action(app, run, load)));
  }

  // A row for each run. A series has a row of its own, which leads to its page, above the rows of all its runs.
  function rows() {
    const shown = filtered(found.runs, filter.value), drawn = new Set();
    return shown.flatMap((run) => {
      const series = seriesOf(run);
      if (!(series in found.series)) return [row(run)];
      if (drawn.has(series)) return [];
      drawn.add(series);
      return [seriesRow(series, found.runs.filter((one) => seriesOf(one) === series)), ...shown.filter((one) => seriesOf(one) === series).map(row)];
    });
  }

  function seriesRow(name, runs) {
    const state = ["running", "damaged", "interrupted"].find((kind) => runs.some((run) => run.state === kind)) ?? "finished";
    return el("tr", { class: "series", "data-key": name }, el("td", {}),
      el("td", { class: "name" }, el("a", { href: address("run", name) }, el("bdi", {}, app.short(name, 48)))),
      el("td", {}, el("span", { class: `state ${state}` }, t(`state_${state}`))),
      el("td", {}, el("bdi", {}, app.short(runs[0].model ?? "", 28))), el("td", {}, el("bdi", {}, app.short(runs[0].data ?? "", 36))),
      el("td", { class: "number" }, t(`ui_series_${found.series[name]}`, { n: runs.length })), Array.from({ length: 4 }, () => el("td", {})));
  }

  function choose(name, on) {
    if (on) chosen.add(name); else chosen.delete(name);
    const enough = chosen.size > 1;
    compare.textContent = enough ? t("ui_compare", { n: chosen.size }) : t("ui_compare_help");
    compare.setAttribute("aria-disabled", String(!enough));
    if (enough) compare.setAttribute("href", address("compare", ...chosen)); else compare.removeAttribute("href");
  }

  function draw() {
    clearTimeout(later);
    if (body.querySelector(":active")) { later = setTimeout(draw, 50); return; } // a row replaced under the pointer loses the click
    keepFocus(body, () => body.replaceChildren(...rows()));
    empty.hidden = found.runs.length > 0;
    empty.textContent = t("ui_no_runs", { folder: found.folder });
    failed.replaceChildren(...outputs(app, found));
  }

  async function load() {
    try {
      found = await get("runs");
      for (const name of chosen) if (!found.runs.some((run) => run.name === name)) choose(name, false);
      draw();
    } catch (error) {
      app.fail(error);
    }
  }
  app.changed = load;
  load();
}

// The output of processes that are still starting, or that failed before their run was finished.
export function outputs(app, found, only = null) {
  const states = new Map(found.runs.map((run) => [run.name, run.state]));
  const shown = found.started.filter(({ name, code }) => (only === null || name === only) &&
    (states.has(name) ? code !== null && code !== 0 && code !== 130 && states.get(name) === "interrupted" : code !== 0 && code !== 130));
  return shown.map((one) => el("details", { open: true, class: "failed" },
    el("summary", {}, `${one.name}: ${app.t(one.code === null ? "state_starting" : "state_failed")}`), el("pre", { "aria-label": app.t("ui_output") }, visibleLines(one.output))));
}

// The button that stops or resumes a run, if that is possible.
export function action(app, run, after) {
  const can = { running: "stop", interrupted: run.own ? null : "resume" }[run.state];
  if (!can) return null;
  async function act(event) {
    event.target.disabled = true;
    try {
      await post(can, { run: run.name });
      if (can === "stop") app.say(app.t("ui_stopping"));
      after();
    } catch (error) {
      event.target.disabled = false;
      app.fail(error);
    }
  }
  return el("button", { type: "button", class: "quiet", onclick: act }, app.t(`ui_${can}`));
}
