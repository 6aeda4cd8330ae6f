// The pages: which one the address names, the bar above them, and messages.

import "./words.js";
import { el } from "../report/dom.js";
import { context } from "../report/context.js";
import { toolbar } from "../report/toolbar.js";
import { watch } from "./api.js";
import { address, parse } from "./route.js";
import { runsPage } from "./runs.js";
import { reportPage } from "./run.js";
import { tryPage } from "./try.js";
import { dataPage } from "./data.js";
import { trainPage } from "./train.js";

const PAGES = { runs: runsPage, run: reportPage, compare: reportPage, try: tryPage, data: dataPage, train: trainPage };
const IN_BAR = ["runs", "try", "data", "train"];

const shell = document.getElementById("shell");
const place = document.getElementById("page");
const box = document.getElementById("message");
const state = { run: 0, language: null, theme: null, ...kept() };
let current = null;

// Draw the page that the address names. `app` has its texts, node and messages; it may set `changed` and `end`.
function show() {
  const { page, names } = parse(location.hash);
  current?.end?.();
  const app = { ...context({}, state), node: place, names, state, say, fail, changed: null, end: null };
  current = app;
  bar(app, page);
  place.replaceChildren();
  (PAGES[page] ?? runsPage)(app);
  window.scrollTo(0, 0);
}

function bar(app, page) {
  const links = IN_BAR.map((name) =>
    el("a", { href: address(name), "aria-current": name === page ? "page" : null }, app.t(`ui_${name}`)));
  const reports = page === "run" || page === "compare"; // these have a bar of their own with the same switches
  const switches = reports ? null : toolbar(app, [], () => { keep(); show(); }).querySelector(".switches");
  shell.replaceChildren(
    el("header", { class: "pages" }, el("div", { class: "inner" },
      el("span", { class: "brand" }, "cnnlab"), el("nav", { "aria-label": app.t("ui_pages") }, links), switches)));
}

function say(text) {
  box.textContent = text;
  box.className = "";
  box.hidden = !text;
}

function fail(error) {
  say(error instanceof TypeError ? current.t("ui_lost") : error.message);
  box.className = "error";
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem("cnnlab") ?? "{}");
    return { language: found.language ?? null, theme: found.theme ?? null };
  } catch {
    return {};
  }
}

function keep() {
  try {
    localStorage.setItem("cnnlab", JSON.stringify({ language: state.language, theme: state.theme }));
  } catch { /* private windows keep nothing */ }
}

document.addEventListener("click", (event) => {
  if (!event.target.closest(".switches")) return;
  keep();
  if (state.language !== current.language) show(); // a report's own bar has changed it: the page around it follows
});
window.addEventListener("hashchange", () => { say(""); show(); });
watch((names) => current?.changed?.(names));
show();
