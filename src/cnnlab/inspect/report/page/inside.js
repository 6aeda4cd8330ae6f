// Inside the network: class-activation maps, the filters of the first layer, figures of each layer.

import { el } from "./dom.js";
import { number, percent, shorten, visible, whole } from "./format.js";
import { measuredOn } from "./header.js";
import { scroller, section } from "./parts.js";

export function insideSection(page, run) {
  const { inside } = run;
  if (!inside) return null;
  const { t } = page;
  return section("inside", t("inside"),
    el("p", { class: "small" }, measuredOn(page, run)),
    inside.notes.length ? el("ul", { class: "notes" }, inside.notes.map((text) => el("li", {}, visible(text).slice(0, 1000)))) : null,
    inside.maps.length ? [el("h3", {}, t("maps")), el("p", { class: "small" }, t("maps_help", { layer: inside.layer })), el("div", { class: "maps" }, inside.maps.map((one) => activation(page, run, one)))] : null,
    inside.filters ? filters(page, inside.filters) : null,
    inside.layers.length ? layers(page, run, inside) : null);
}

function activation(page, run, one) {
  const { t } = page;
  const r = run.evaluation.rows;
  const picture = (place, text) => el("div", { class: "one" },
    place === null ? el("span", { class: "empty" }, t("map_empty")) : el("img", { src: page.picture(place), alt: text }), el("bdi", {}, text));
  const guess = t("map_for", { name: page.className(run, r.top[one.row][0], 20) });
  const truth = t("map_for", { name: page.className(run, r.label[one.row], 20) });
  const places = [[r.picture[one.row], t("map_image")], [one.predicted, guess], [one.true, truth]].filter(([place]) => place === null || place >= 0);
  return el("figure", { class: "map" }, el("div", { class: "three" }, places.map(([place, text]) => picture(place, text))),
    el("figcaption", { class: "file", title: visible(r.id[one.row]).slice(0, 1000) }, el("bdi", {}, shorten(r.id[one.row], 44))));
}

function filters(page, f) {
  const { t } = page;
  const more = [f.channels !== 1 && f.channels !== 3 ? t("filters_mean", { n: f.channels }) : "", f.whitening ? t("filters_whitening") : ""].join(" ");
  return [el("h3", {}, t("filters")), el("p", { class: "small" }, t("filters_help", { n: f.count, size: f.size.join("×"), layer: f.layer }), " ", more),
    el("div", { class: "filters" }, f.pictures.map((place, n) => el("img", { src: page.picture(place), alt: String(n + 1) })))];
}

function layers(page, run, inside) {
  const { t } = page;
  const five = (values) => (values ? `${number(values[2])} (${number(values[0])} – ${number(values.at(-1))})` : "");
  const heads = ["layer", "type", "outputs", "zeros", "dead", "gamma", "beta", "gradient"];
  const row = (one) => [
    `${number(one.mean)} ± ${number(one.std)}`, percent(one.zeros), one.units === null ? "" : t("n_of", { n: one.dead, of: one.units }), five(one.gamma), five(one.beta),
    one.gradient_norm && one.weight_norm ? (one.gradient_norm / one.weight_norm).toExponential(1) : "",
  ];
  const advised = inside.layers.filter((one) => one.advice);
  return [el("h3", {}, t("layers")), el("p", { class: "small" }, t("layers_help", { n: inside.images, split: page.split(run.evaluation.split) })),
    advised.length ? el("ul", { class: "notes" }, advised.slice(0, 12).map((one) => el("li", {}, el("strong", {}, el("code", {}, one.path)), " ", one.advice))) : el("p", {}, t("no_advice")),
    el("details", {}, el("summary", {}, `${t("layers")} (${whole(inside.layers.length)})`), scroller(t("layers"), el("table", {}, el("thead", {}, el("tr", {}, heads.map((key, n) => el("th", { scope: "col", class: n > 1 ? "number" : "" }, t(key))))),
      el("tbody", {}, inside.layers.map((one) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, shorten(one.path, 40))), el("td", {}, shorten(one.type, 30)), row(one).map((text) => el("td", { class: "number" }, text))))))))];
}
