// Try an image: what a run predicts, where it looks, and which training images are similar.

import { el } from "../report/dom.js";
import { answerBars, imageInput } from "../report/trying.js";
import { get, send } from "./api.js";
import { address } from "./route.js";

export function tryPage(app) {
  const { t } = app;
  const choice = el("select", { id: "try-run", onchange: () => { location.hash = address("try", choice.value); } });
  const result = el("div", { class: "result", "aria-live": "polite" });
  const input = imageInput(app, use, app.fail);
  const form = el("div", { class: "field" }, el("label", { for: "try-run" }, t("ui_run")), choice);
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_try"))), form, input.node, result));
  let count = 0;
  app.end = input.end;

  async function use(file) {
    const number = ++count, run = choice.value;
    if (!run) return;
    app.say("");
    result.replaceChildren(el("p", { class: "small" }, t("ui_loading")));
    try {
      const found = await send("try", { run }, file);
      if (number !== count) return;
      const near = el("div", {});
      result.replaceChildren(answer(app, found), near);
      const { nearest } = await send("try", { run, nearest: 1 }, file);
      if (number === count) near.replaceChildren(neighbours(app, nearest));
    } catch (error) {
      if (number !== count) return;
      if (!result.querySelector(".answer")) result.replaceChildren();
      app.fail(error);
    }
  }

  (async () => {
    try {
      const { runs } = await get("runs");
      const able = runs.filter((run) => run.state !== "damaged" && run.epochs > 0 && !run.own);
      choice.replaceChildren(...able.map((run) => el("option", { value: run.name }, app.short(run.name, 60))));
      if (app.names[0]) choice.value = app.names[0];
      if (!able.length) app.say(t("ui_only_finished"));
    } catch (error) {
      app.fail(error);
    }
  })();
}

function answer(app, found) {
  const { t } = app;
  const map = found.map && el("figure", {}, el("img", { src: found.map, alt: "" }), el("figcaption", {}, t("try_map", { name: app.short(found.top[0][0], 40) })));
  return el("div", { class: "answer" },
    el("figure", {}, el("img", { src: found.picture, alt: "" }), el("figcaption", {}, t("try_seen"))), map,
    answerBars(app, found.top, found.none_of_these ? found.threshold : null));
}

function neighbours(app, nearest) {
  const { t } = app;
  return el("section", {}, el("h2", {}, t("ui_nearest")), el("div", { class: "grid" }, nearest.map((one) =>
    el("figure", {}, el("img", { src: one.picture, alt: "" }),
      el("figcaption", {}, el("bdi", {}, app.short(one.label, 30)), el("span", { class: "file" }, el("bdi", {}, app.short(one.id, 60))), el("span", { class: "small" }, t("ui_distance", { d: one.distance.toFixed(3) })))))));
}
