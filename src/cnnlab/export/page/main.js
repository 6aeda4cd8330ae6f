// The page of an exported network: an image goes in, probabilities come out, and nothing leaves the browser.

import "./words.js";
import { el, keepFocus } from "../report/dom.js";
import { context } from "../report/context.js";
import { visible, whole } from "../report/format.js";
import { toolbar } from "../report/toolbar.js";
import { answerBars, imageInput } from "../report/trying.js";
import { cardSection, filtersSection } from "./card.js";
import { decodeFile } from "./files.js";
import { openNetwork } from "./network.js";
import { drawingPad } from "./pad.js";
import { prepared } from "./pixels.js";
import { activation, square } from "./shown.js";

const TOP = 5;
const payload = JSON.parse(document.getElementById("payload").textContent);
const state = { language: null, theme: null, light: payload.light, invert: false, status: ["web_loading", {}], file: null, last: null, shown: null };
const root = document.getElementById("page");
let page = null, current = null, busy = false, next = null, classify = null;

function draw() {
  current?.end();
  page = context(payload, state);
  const { t } = page;
  current = imageInput(page, use, fail);
  const invert = payload.how.channels === 1 && el("label", { class: "choice" }, el("input", { type: "checkbox", checked: state.invert, onchange: (event) => { state.invert = event.target.checked; if (state.file) use(state.file); } }), t("web_invert"));
  const parts = [filtersSection(page), cardSection(page)].filter(Boolean);
  root.replaceChildren(
    toolbar(page, parts, draw),
    el("main", {},
      el("header", { class: "title" }, el("p", { class: "kicker" }, t("web_kicker")), el("h1", {}, el("bdi", {}, page.short(payload.run, 60))),
        el("p", { class: "lead" }, t("web_lead", { model: visible(payload.model), parameters: whole(payload.parameters), data: page.source(payload.data) }))),
      el("p", { class: "small", id: "status", role: "status" }),
      el("div", { class: payload.drawable ? "inputs two-inputs" : "inputs" }, el("div", {}, current.node, invert), payload.drawable ? drawingPad(page, drawn, fail) : null),
      el("div", { id: "result", "aria-live": "polite" }), parts),
    el("footer", {}, el("p", {}, t("web_footer", { version: payload.version, date: payload.created.replace("T", " ").replace("+00:00", " UTC") }))));
  say(...state.status);
  if (state.last) answer();
}

function say(key, values = {}, wrong = false) {
  state.status = [key, values, wrong];
  const line = document.getElementById("status");
  line.textContent = page.t(key, values);
  line.classList.toggle("none", wrong);
}

function fail(error) {
  document.getElementById("result").replaceChildren();
  state.last = null;
  say(String(error.message ?? error), error.values ?? {}, true);
}

// A file that takes long to decode must not replace one, or a drawing, that came after it.
async function use(file) {
  state.file = file;
  try {
    const image = await decodeFile(file);
    if (state.file === file) await classifyLatest(prepared(image, payload.how, state.invert));
  } catch (error) {
    if (state.file === file) fail(error);
  }
}

function drawn(image) {
  state.file = null;
  classifyLatest(prepared(image, payload.how, false)).catch(fail);
}

// Classify one image at a time; of those that arrive meanwhile, only the last. Show no answer over a later file.
async function classifyLatest(image) {
  next = { image, file: state.file };
  await classifyWaiting();
}

async function classifyWaiting() {
  if (busy || !classify) return;
  busy = true;
  try {
    while (next) {
      const { image, file } = next;
      next = null;
      const start = performance.now();
      const found = await classify(image);
      if (file !== state.file) continue;
      state.last = { image, ...found, ms: performance.now() - start };
      state.shown = null;
      say(...state.ready);
      answer();
    }
  } finally {
    busy = false;
  }
}

function answer() {
  const { t } = page, { how, classes } = payload, { image, probabilities, none, map, ms } = state.last;
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
  const k = state.shown ?? order[0], name = page.short(classes[k], 40);
  const mapped = map && map.shape[1] * map.shape[2] > 1; // a map of a single cell shows nothing
  const heat = mapped && activation(image, how.fit, map, k, t("try_map", { name }));
  const choice = mapped && order.length > 1 && el("select", { "aria-label": t("web_map_of"), onchange: (event) => { state.shown = Number(event.target.value); answer(); } },
    order.map((one) => el("option", { value: one, selected: one === k }, page.short(classes[one], 40))));
  const result = document.getElementById("result");
  keepFocus(result, () => result.replaceChildren(
    el("div", { class: mapped ? "answer" : "answer no-map" },
      el("figure", {}, square(image, how.fit, how.size, t("try_seen")), el("figcaption", {}, t("try_seen"))),
      mapped && el("figure", { "data-key": "map" }, heat, el("figcaption", {}, t(heat ? "try_map" : "web_no_map", { name }), choice)),
      el("div", { class: "bars" }, answerBars(page, order.map((one) => [classes[one], probabilities[one]]), none ? payload.threshold : null),
        el("p", { class: "small" }, t("web_time", { ms: ms.toFixed(ms < 10 ? 1 : 0) }))))));
}

function ranked({ probabilities }) {
  return Array.from(probabilities, (probability, k) => ({ label: payload.classes[k], probability })).sort((a, b) => b.probability - a.probability);
}

async function start() {
  try {
    classify = await openNetwork(payload.files);
    // For scripts of your own: cnnlab.classify(file) -> [{ label, probability }, ...], most probable first.
    window.cnnlab = { classify: async (file) => ranked(await classify(prepared(await decodeFile(file), payload.how, false))) };
    state.ready = ["web_ready"];
    say(...state.ready);
    classifyWaiting().catch(fail);
  } catch (error) {
    say("web_broken", { why: error.message }, true);
    return;
  }
  if (!payload.worker || !navigator.serviceWorker) return; // without one, the page works as long as its server does
  try {
    await navigator.serviceWorker.register(`./${payload.worker}`);
    await navigator.serviceWorker.ready;
    state.ready = ["web_offline"];
    if (state.status[0] === "web_ready") say(...state.ready);
  } catch { /* service workers need https */ }
}

draw();
start();
