// A pad on which to draw digits and the like with mouse, finger or keys.

import { el } from "../report/dom.js";
import { drawing, opened } from "./files.js";

const SIDE = 280, PEN = 22;

// Calls drawn(image) as strokes are added. state.light: light strokes on a dark ground.
export function drawingPad(page, drawn, fail) {
  const { t, state } = page;
  const shown = el("canvas", { width: SIDE, height: SIDE, class: "pad", tabindex: "0", role: "img", "aria-label": t("web_pad_keys"), onpointerdown: start, onpointermove: move, onkeydown: key });
  const context = shown.getContext("2d", { willReadFrequently: true });
  const light = el("button", { type: "button", class: "more", "aria-pressed": String(state.light), onclick: swap }, t("web_light"));
  const node = el("div", { class: "pad-place" }, el("p", {}, t("web_draw")), shown,
    el("div", { class: "tabs" }, el("button", { type: "button", class: "more", onclick: clear }, t("web_clear")), light));
  let last = null, at = [SIDE / 2, SIDE / 2];
  state.strokes ??= [];
  repaint();

  function line([a, b], [c, d]) {
    context.strokeStyle = state.light ? "#fff" : "#000";
    Object.assign(context, { lineWidth: PEN, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(a, b);
    context.lineTo(c, d + 0.01);
    context.stroke();
  }

  function repaint() {
    context.fillStyle = state.light ? "#000" : "#fff";
    context.fillRect(0, 0, SIDE, SIDE);
    for (const [from, to] of state.strokes) line(from, to);
  }

  function place(event) {
    const box = shown.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  }

  function add(from, to) {
    state.strokes.push([from, to]);
    line(from, to);
    classifyDrawing();
  }

  function start(event) {
    if (event.button) return;
    event.preventDefault();
    shown.focus({ preventScroll: true });
    shown.setPointerCapture(event.pointerId);
    last = place(event);
    repaint(); // removes the cursor of the keys
    shown.onpointerup = shown.onpointercancel = () => { last = null; };
    add(last, last);
  }

  function move(event) {
    if (!last) return;
    const to = place(event);
    add(last, to);
    last = to;
  }

  // Arrow keys move the pen; with Shift they draw. Delete clears.
  function key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Delete" || event.key === "Escape") clear();
    if (!step) return;
    event.preventDefault();
    const to = at.map((v, i) => Math.min(SIDE, Math.max(0, v + 14 * step[i])));
    if (event.shiftKey) add(at, to);
    else { repaint(); context.fillStyle = "#888"; context.fillRect(to[0] - 3, to[1] - 3, 6, 6); }
    at = to;
  }

  function clear() {
    state.strokes = [];
    repaint();
  }

  function swap() {
    state.light = !state.light;
    light.setAttribute("aria-pressed", String(state.light));
    repaint();
    if (state.strokes.length) classifyDrawing();
  }

  function classifyDrawing() {
    try {
      drawing(1, 1);
      drawn(opened(context, SIDE, SIDE));
    } catch (error) {
      fail(error);
    }
  }

  return node;
}
