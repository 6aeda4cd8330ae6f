// Browse the images of a source by split, class and group; search it for duplicates and for labels that may be wrong.

import { el, keepFocus } from "../report/dom.js";
import { probability, visible } from "../report/format.js";
import { get, post } from "./api.js";
import { address, duration } from "./route.js";

const COUNT = 60, PAIRS = 30;

export function dataPage(app) {
  const { t, names } = app;
  const source = el("input", { type: "text", id: "data-source", value: names[0] ?? "digits", placeholder: t("ui_source_help"), spellcheck: "false" });
  const form = el("form", { class: "field", onsubmit: (event) => { event.preventDefault(); if (source.value === names[0]) load(); else location.hash = address("data", source.value); } },
    el("label", { for: "data-source" }, t("ui_source")), source, el("button", { class: "more" }, t("ui_show")));
  const body = el("div", {}, el("p", { class: "small" }, t("ui_loading")));
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_data"))), form, el("p", { class: "small" }, t("ui_source_help")), body));
  const state = { view: "all", split: null, k: null, group: null, run: null };
  let ended = false, turn = 0, runs = [];
  app.end = () => { ended = true; seen.disconnect(); };
  // Load more when the button below the images comes into view.
  const seen = new IntersectionObserver((entries) => { for (const one of entries) if (one.isIntersecting) one.target.click(); }, { rootMargin: "400px" });

  function tabs(label, values, chosen, choose) {
    return el("div", { class: "tabs", role: "group", "aria-label": label, "data-key": label }, values.map(([value, text, count]) =>
      el("button", { type: "button", class: "tab", "aria-pressed": String(value === chosen), onclick: () => choose(value) },
        el("bdi", {}, app.short(text, 24)), count === undefined ? null : el("span", { class: "count" }, ` ${count.toLocaleString("en-US")}`))));
  }

  function choice(label, values, chosen, choose) {
    const select = el("select", { "aria-label": label, onchange: () => choose(select.value || null) }, values.map(([value, text]) => el("option", { value, selected: value === (chosen ?? "") }, text)));
    return el("div", { class: "choice", "data-key": label }, el("span", { class: "small" }, label), select);
  }

  function change(found, values) {
    Object.assign(state, values);
    draw(found);
  }

  function draw(found) {
    const views = ["all", "exact", "near", "suspects"].map((view) => [view, t(`ui_view_${view}`)]);
    const mine = ++turn;
    seen.disconnect();
    const current = () => !ended && mine === turn;
    keepFocus(body, () => body.replaceChildren(...found.notes.map((text) => el("p", { class: "small" }, visible(text))),
      tabs(t("ui_view"), views, state.view, (view) => change(found, { view })),
      ...(state.view === "all" ? browse(found, current) : search(found, current))));
  }

  // Load rows in parts: the first at once, more as the page is scrolled. next(shown) returns { nodes, total, text }.
  function parts(line, grid, current, next) {
    const more = el("button", { type: "button", class: "more", hidden: true, onclick: load }, t("ui_more"));
    let shown = 0, busy = false;
    async function load() {
      if (busy) return;
      busy = true;
      try {
        const { nodes, total, text } = await next(shown);
        if (!current()) return;
        grid.append(...nodes);
        shown += nodes.length;
        line.textContent = text ?? t("ui_of", { shown, n: total });
        more.hidden = shown >= total || !nodes.length;
        seen.unobserve(more);
        if (!more.hidden) seen.observe(more);
      } catch (error) {
        if (current()) { line.textContent = ""; app.fail(error); }
      }
      busy = false;
    }
    load();
    return more;
  }

  function browse(found, current) {
    const { split, k, group } = state;
    const counts = found.counts[split], groups = found.groups[split];
    const sum = (values) => values.reduce((total, n) => total + n, 0);
    const grid = el("div", { class: "grid" }), line = el("p", { class: "small", role: "status" });
    const splits = found.splits.map((name) => [name, app.split(name), sum(found.counts[name])]);
    const classes = [[null, t("ui_all"), sum(counts)], ...found.classes.map((name, i) => [i, name, counts[i]])];
    const all = found.all_groups[split] ?? 0;
    const more = parts(line, grid, current, async (start) => {
      const part = await get("data", { source: found.source, split, class: k, group, start, count: COUNT });
      return { total: part.total, nodes: part.images.map((image) => figure(image.picture, found.classes[image.label], image.id, image.group)) };
    });
    return [
      tabs(t("ui_split"), splits, split, (value) => change(found, { split: value, group: null })),
      tabs(t("ui_class"), classes, k, (value) => change(found, { k: value })),
      groups ? choice(t(groups.length < all ? "ui_groups_first" : "ui_group", { n: groups.length, of: all }), [["", t("ui_all")], ...groups.map(([name, n]) => [name, `${app.short(name, 60)} (${n.toLocaleString("en-US")})`])], group, (value) => change(found, { group: value })) : null,
      line, grid, more].filter(Boolean);
  }

  function figure(picture, label, id, group = null, more = null) {
    return el("figure", {},
      picture ? el("img", { src: picture, alt: app.short(id, 80) }) : el("p", { class: "unreadable small" }, t("ui_unreadable")),
      el("figcaption", {}, label === "" ? null : el("bdi", {}, app.short(label, 30)), el("span", { class: "file" }, el("bdi", {}, app.short(id, 60))),
        group === null ? null : el("span", { class: "file" }, t("ui_in_group"), " ", el("bdi", {}, app.short(String(group), 40))), more));
  }

  // A search is a process on the server: it starts on demand, and the page polls it.
  function search(found, current) {
    const kind = state.view;
    const line = el("p", { class: "small", role: "status" }), grid = el("div", { class: kind === "suspects" ? "grid wide" : "pairs-grid" }), place = el("div", {});
    const able = runs.filter((run) => run.data === found.data);
    state.run = able.some((run) => run.name === state.run) ? state.run : able[0]?.name ?? null;
    const button = el("button", { type: "button", class: "more primary", disabled: kind === "suspects" && !able.length, onclick: start }, t("ui_search"));
    async function start() {
      button.disabled = true;
      app.say("");
      grid.replaceChildren();
      place.replaceChildren();
      try {
        const { search } = await post("search", { kind, what: kind === "suspects" ? state.run : found.source });
        let answer;
        do {
          answer = await get("found", { search, source: found.source, count: PAIRS });
          if (!current()) return;
          if (!answer.done) {
            line.textContent = t("ui_searching", { time: duration(answer.seconds) });
            await new Promise((resolve) => { setTimeout(resolve, 500); });
          }
        } while (!answer.done && current());
        button.disabled = false;
        const first = answer;
        place.replaceChildren(parts(line, grid, current, async (from) => {
          const part = from === 0 ? first : await get("found", { search, source: found.source, start: from, count: PAIRS });
          return { total: part.total, text: part.total ? t(kind === "suspects" ? "ui_of" : "ui_of_pairs", { shown: from + part.rows.length, n: part.total }) : t("ui_nothing"), nodes: part.rows.map((row, i) => (kind === "suspects" ? suspect(row, part.pictures[i]) : pair(row, part.pictures.slice(2 * i, 2 * i + 2)))) };
        }));
      } catch (error) {
        button.disabled = false;
        line.textContent = "";
        if (current()) app.fail(error);
      }
    }
    return [
      el("p", { class: "small" }, t(`ui_help_${kind}`)),
      kind === "suspects" && able.length ? choice(t("ui_run"), able.map((run) => [run.name, app.short(run.name, 60)]), state.run, (value) => { state.run = value; }) : null,
      kind === "suspects" && !able.length ? el("p", {}, t("ui_no_run_on", { source: app.short(found.source, 60) })) : null,
      button, line, grid, place].filter(Boolean);
  }

  function pair(row, pictures) {
    const differ = row.labels[0] && row.labels[1] && row.labels[0] !== row.labels[1];
    return el("div", { class: "pair-card" },
      el("div", { class: "two" }, [0, 1].map((n) => figure(pictures[n], row.labels[n], row.ids[n], null, el("span", { class: "small" }, app.split(row.parts[n]))))),
      el("p", { class: "small" }, t("ui_similarity", { p: row.similarity.toFixed(3) }), differ ? el("strong", { class: "differ" }, ` ${t("ui_labels_differ")}`) : null));
  }

  function suspect(row, picture) {
    return figure(picture, row.label, row.path, null,
      el("span", { class: "small" }, t("ui_instead"), " ", el("bdi", {}, app.short(row.predicted, 30)), ` ${probability(row.probability)}; ${t("ui_own_label", { p: probability(row.label_probability) })}`));
  }

  async function load() {
    app.say("");
    try {
      const [found, listed] = await Promise.all([get("data", { source: source.value }), get("runs")]);
      if (ended) return;
      const whole = listed.runs.filter((run) => run.state === "finished" && !run.own && run.split === "validation");
      runs = [...Object.entries(listed.series).filter(([, kind]) => kind === "folds").map(([name]) => ({ name, data: whole.find((run) => run.name.startsWith(`${name}/`))?.data })), ...whole];
      Object.assign(state, { split: found.splits[0], k: null, group: null });
      draw(found);
    } catch (error) {
      body.replaceChildren();
      if (!ended) app.fail(error);
    }
  }
  load();
}
