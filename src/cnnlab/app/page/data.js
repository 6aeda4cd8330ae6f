// Browse the images of a source by split and class.

import { el } from "../report/dom.js";
import { visible } from "../report/format.js";
import { get } from "./api.js";
import { address } from "./route.js";

const COUNT = 60;

export function dataPage(app) {
  const { t, names } = app;
  const source = el("input", { type: "text", id: "data-source", value: names[0] ?? "digits", placeholder: t("ui_source_help"), spellcheck: "false" });
  const form = el("form", { class: "field", onsubmit: (event) => { event.preventDefault(); location.hash = address("data", source.value); } },
    el("label", { for: "data-source" }, t("ui_source")), source, el("button", { class: "more" }, t("ui_show")));
  const body = el("div", {}, el("p", { class: "small" }, t("ui_loading")));
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_data"))), form, el("p", { class: "small" }, t("ui_source_help")), body));
  let split = null, k = null, ended = false, turn = 0;
  app.end = () => { ended = true; };

  function tabs(label, values, chosen, choose) {
    return el("div", { class: "tabs", role: "group", "aria-label": label }, values.map(([value, text, count]) =>
      el("button", { type: "button", class: "tab", "aria-pressed": String(value === chosen), onclick: () => choose(value) },
        el("bdi", {}, app.short(text, 24)), el("span", { class: "count" }, ` ${count.toLocaleString("en-US")}`))));
  }

  function draw(found) {
    const grid = el("div", { class: "grid" }), line = el("p", { class: "small", role: "status" });
    const more = el("button", { type: "button", class: "more", hidden: true, onclick: next }, t("ui_more"));
    const counts = found.counts[split], mine = ++turn;
    const total = counts.reduce((sum, n) => sum + n, 0);
    let shown = 0;
    const splits = found.splits.map((name) => [name, app.split(name), found.counts[name].reduce((sum, n) => sum + n, 0)]);
    const classes = [[null, t("ui_all"), total], ...found.classes.map((name, i) => [i, name, counts[i]])];
    body.replaceChildren(
      ...found.notes.map((text) => el("p", { class: "small" }, visible(text))),
      tabs(t("ui_split"), splits, split, (value) => { split = value; draw(found); }),
      tabs(t("ui_class"), classes, k, (value) => { k = value; draw(found); }), line, grid, more);
    async function next() {
      try {
        const part = await get("data", { source: found.source, split, class: k, start: shown, count: COUNT });
        if (ended || mine !== turn) return;
        grid.append(...part.images.map((image) => el("figure", {},
          image.picture ? el("img", { src: image.picture, alt: "", loading: "lazy" }) : el("p", { class: "small" }, t("ui_unreadable")),
          el("figcaption", {}, el("bdi", {}, app.short(found.classes[image.label], 30)), el("span", { class: "file" }, el("bdi", {}, app.short(image.id, 60)))))));
        shown += part.images.length;
        line.textContent = t("ui_of", { shown, n: part.total });
        more.hidden = shown >= part.total || !part.images.length;
      } catch (error) {
        if (!ended) app.fail(error);
      }
    }
    next();
  }

  (async () => {
    try {
      const found = await get("data", { source: source.value });
      if (ended) return;
      split = found.splits[0];
      draw(found);
    } catch (error) {
      body.replaceChildren();
      if (!ended) app.fail(error);
    }
  })();
}
