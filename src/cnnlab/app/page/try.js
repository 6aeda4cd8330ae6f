// Try an image: what a run says of it, where it looks, and which training images are like it.

import { el } from "../report/dom.js";
import { get, send } from "./api.js";
import { address } from "./route.js";

export function tryPage(app) {
  const { t } = app;
  const choice = el("select", { id: "try-run", onchange: () => { location.hash = address("try", choice.value); } });
  const result = el("div", { class: "result", "aria-live": "polite" });
  const picker = el("input", { type: "file", accept: "image/*", class: "offstage", id: "try-file", tabindex: "-1", "aria-label": t("ui_file"), onchange: () => { if (picker.files[0]) use(picker.files[0]); } });
  const video = el("video", { playsinline: true, muted: true, hidden: true });
  const shoot = el("button", { type: "button", class: "more", hidden: true, onclick: take }, t("ui_shoot"));
  const drop = el("div", { class: "drop" },
    el("p", {}, t("ui_drop")),
    el("div", { class: "tabs" },
      el("button", { type: "button", class: "more", onclick: () => picker.click() }, t("ui_file")),
      el("button", { type: "button", class: "more", onclick: film }, t("ui_camera")), shoot),
    picker, video);
  const form = el("div", { class: "field" }, el("label", { for: "try-run" }, t("ui_run")), choice);
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_try"))), form, drop, result));
  let count = 0, stream = null;

  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) use(event.dataTransfer.files[0]);
  });
  const paste = (event) => { const file = [...(event.clipboardData?.files ?? [])][0]; if (file) use(file); };
  document.addEventListener("paste", paste);
  app.end = () => { document.removeEventListener("paste", paste); stop(); };

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

  async function film() {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      video.hidden = shoot.hidden = false;
      await video.play();
    } catch (error) {
      app.fail(new Error(t("ui_no_camera", { why: error.message })));
    }
  }

  function take() {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => use(blob), "image/png");
    stop();
  }

  function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.hidden = shoot.hidden = true;
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
  const bars = found.top.map(([name, p]) =>
    el("div", { class: "chance" }, el("bdi", { class: "label" }, app.short(name, 40)),
      el("span", { class: "chance-track" }, el("span", { class: "chance-fill", style: { width: `${(100 * p).toFixed(2)}%` } })), el("span", { class: "number" }, p.toFixed(4))));
  const map = found.map && el("figure", {}, el("img", { src: found.map, alt: "" }), el("figcaption", {}, t("ui_map", { name: app.short(found.top[0][0], 40) })));
  return el("div", { class: "answer" },
    el("figure", {}, el("img", { src: found.picture, alt: "" }), el("figcaption", {}, t("ui_seen"))), map,
    el("div", { class: "bars" }, el("h2", {}, t("ui_probabilities")), bars,
      found.none_of_these ? el("p", { class: "none" }, t("ui_none_of_these", { p: found.threshold.toFixed(3) })) : null));
}

function neighbours(app, nearest) {
  const { t } = app;
  return el("section", {}, el("h2", {}, t("ui_nearest")), el("div", { class: "grid" }, nearest.map((one) =>
    el("figure", {}, el("img", { src: one.picture, alt: "" }),
      el("figcaption", {}, el("bdi", {}, app.short(one.label, 30)), el("span", { class: "file" }, el("bdi", {}, app.short(one.id, 60))), el("span", { class: "small" }, t("ui_distance", { d: one.distance.toFixed(3) })))))));
}
