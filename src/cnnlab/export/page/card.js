// The facts about the network, its filters, and the licences.

import { el } from "../report/dom.js";
import { pairs, section } from "../report/parts.js";
import { percent, visible } from "../report/format.js";

export function filtersSection(page) {
  const { t, payload: { filters } } = page;
  if (!filters) return null;
  const help = [t("filters_help", { n: filters.count, size: filters.size.join("×"), layer: visible(filters.layer) }),
    [1, 3].includes(filters.channels) ? null : t("filters_mean", { n: filters.channels }),
    filters.whitening ? t("filters_whitening") : null].filter(Boolean).join(" ");
  return section("filters", t("filters"), el("p", { class: "small" }, help), el("img", { class: "filters", src: filters.picture, alt: t("filters") }));
}

export function cardSection(page) {
  const { t, payload: p } = page;
  const names = p.classes.slice(0, 200).map((name) => page.short(name, 40)).join(", ") + (p.classes.length > 200 ? ", …" : "");
  const checked = p.checked;
  return section("card", t("web_card"),
    pairs([
      [t("web_run"), el("bdi", {}, page.short(p.run, 60))],
      [t("web_recipe"), el("bdi", {}, page.short(p.recipe, 60))],
      [t("data"), el("bdi", {}, page.source(p.data))],
      [t("web_classes", { n: p.classes.length }), el("bdi", {}, names)],
      checked && [t("accuracy"), t("web_accuracy", { accuracy: percent(checked.accuracy), n: checked.images, split: page.split(checked.split) })],
      checked && [t("web_same"), checked.changed ? t("web_changed_text", { n: checked.changed }) : t("web_same_text", { most: checked.difference.toExponential(1) })],
      [t("threshold"), p.threshold ? p.threshold.toFixed(3) : t("web_none_set")],
    ]),
    el("h3", {}, t("web_licences")),
    p.licences.map(([name, text]) => el("details", {}, el("summary", {}, page.short(name, 120)), el("pre", { class: "licence", tabindex: "0" }, text))));
}
