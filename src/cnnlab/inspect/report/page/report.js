// The whole report: a function of the payload and the node to draw into.

import { el } from "./dom.js";
import { context } from "./context.js";
import { toolbar } from "./toolbar.js";
import { runHeader, notes } from "./header.js";
import { curvesSection } from "./curves.js";
import { confusionSection } from "./confusion.js";
import { imagesSection } from "./images.js";
import { classesSection } from "./classes.js";
import { calibrationSection } from "./calibration.js";
import { insideSection } from "./inside.js";
import { factsSections } from "./facts.js";
import { compareHeader, compareSections } from "./compare.js";

const KINDS = { curves: curvesSection, confusion: confusionSection, images: imagesSection, classes: classesSection, calibration: calibrationSection };

function sectionsOf(page, run) {
  return [...Object.values(KINDS).map((section) => section(page, run)), insideSection(page, run), ...factsSections(page, run)].flat().filter(Boolean);
}

function oneRun(page, run) {
  const header = runHeader(page, run);
  return [header, notes(page, run), ...sectionsOf(page, run)].filter(Boolean);
}

// Several runs: first what they have in common and where they differ, then each alone.
function severalRuns(page) {
  const { runs } = page.payload;
  const place = el("div", { class: "single" });
  const buttons = runs.map((run, n) =>
    el("button", { type: "button", class: "tab", "aria-pressed": String(n === page.state.run), onclick: () => show(n) }, el("bdi", {}, page.short(run.name, 30))),
  );
  function show(n) {
    page.state.run = n;
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === n)));
    place.replaceChildren(...oneRun(page, runs[n]));
  }
  show(page.state.run);
  return [
    compareHeader(page),
    ...compareSections(page),
    el("section", { id: "each", class: "each", "data-nav": page.t("each_run") }, el("h2", {}, page.t("each_run")), el("div", { class: "tabs", role: "group", "aria-label": page.t("each_run") }, buttons)),
    place,
  ];
}

function body(page) {
  const { payload } = page;
  if (payload.only) return [KINDS[payload.only](page, payload.runs[0])].flat().filter(Boolean);
  return payload.runs.length > 1 ? severalRuns(page) : oneRun(page, payload.runs[0]);
}

export function render(payload, node, state = null) {
  const kept = state ?? { run: 0, language: null, theme: null };
  const page = context(payload, kept);
  const again = () => render(payload, node, kept);
  const parts = body(page);
  const main = el("main", { class: payload.only ? "only" : "" }, parts);
  const footer = el("footer", {}, el("p", {}, page.t("footer", { version: payload.version, date: payload.created.replace("T", " ").replace("+00:00", " UTC") })));
  node.replaceChildren(toolbar(page, parts, again), main, ...(payload.only ? [] : [footer]));
  window.onbeforeprint = () => node.querySelectorAll("details").forEach((part) => part.setAttribute("open", ""));
}
