// One run, or several side by side: the report, live while it trains.

import { el } from "../report/dom.js";
import { render } from "../report/report.js";
import { get } from "./api.js";
import { address } from "./route.js";
import { action, outputs } from "./runs.js";

export function reportPage(app) {
  const { t, names } = app;
  const line = el("div", { class: "actions" });
  const note = el("p", { class: "small", role: "status" }, t("ui_loading"));
  const failed = el("div", { class: "failed" }), place = el("div", {});
  app.node.append(el("div", { class: "above" }, line, note, failed), place);
  let busy = false, again = false, ended = false;
  app.end = () => { ended = true; };

  // Show the report without evaluation at once; evaluate the runs once training has ended.
  async function load() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const live = await get("report", { run: names, live: 1 });
      if (ended) return;
      const finished = live.runs.every((run) => run.finished);
      await actions();
      if (!place.childElementCount || !finished) draw(live);
      note.textContent = finished ? t("ui_evaluating") : "";
      if (finished) {
        const whole = await get("report", { run: names });
        if (ended) return;
        draw(whole);
        note.textContent = "";
      }
    } catch (error) {
      note.textContent = "";
      if (!ended) app.fail(error);
    }
    busy = false;
    if (again && !ended) { again = false; load(); }
  }

  function draw(payload) {
    const top = window.scrollY;
    render(payload, place, app.state);
    window.scrollTo(0, top);
  }

  async function actions() {
    if (names.length > 1) return;
    const found = await get("runs");
    const run = found.runs.find((one) => one.name === names[0]);
    if (!run || ended) return;
    failed.replaceChildren(...outputs(app, found, names[0]));
    const links = run.state === "finished" ? [el("a", { class: "quiet", href: address("try", run.name) }, t("ui_try")), el("a", { class: "quiet", href: address("data", run.data) }, t("ui_data"))] : [];
    line.replaceChildren(el("span", { class: `state ${run.state}` }, t(`state_${run.state}`)), ...[action(app, run, load), ...links].filter(Boolean));
  }

  app.changed = (changed) => { if (!changed.length || changed.some((name) => names.some((one) => name === one || name.startsWith(`${one}/`)))) load(); };
  load();
}
