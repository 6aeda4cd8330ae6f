// Images worth looking at: confident mistakes, uncertain correct predictions, labels that may be wrong.

import { el } from "./dom.js";
import { cards, entry } from "./gallery.js";
import { measuredOn } from "./header.js";
import { section } from "./parts.js";

const FIRST = window.innerWidth < 560 ? 6 : 12;

export function imagesSection(page, run) {
  const e = run.evaluation;
  if (!e) return null;
  const { t } = page;
  const part = (title, help, entries, none) => el("div", { class: "strip" }, el("h3", {}, title), el("p", { class: "small" }, help), entries.length ? cards(page, entries, FIRST) : el("p", { class: "none" }, none));
  const suspects = e.suspects.map(([row, k, p, own]) => entry(run, row, { k, p, own }));
  const without = e.rows.picture.filter((place) => place < 0).length;
  const mistakes = e.images - e.correct;
  const listed = e.rows.id.filter((_, row) => e.rows.label[row] !== e.rows.top[row][0]).length;
  const left = [
    run.input[0] !== 1 && run.input[0] !== 3 ? t("channels_shown", { n: run.input[0] }) : null,
    without ? t("left_pictures", { n: without }) : null,
    listed < mistakes ? t("left_mistakes", { n: mistakes - listed }) : null,
    e.images > e.rows.id.length ? t("left_images", { n: e.rows.id.length, of: e.images }) : null,
  ].filter(Boolean);
  return section("images", t("images"),
    el("p", { class: "small" }, measuredOn(page, run), " ", left.join(" ")),
    part(t("confident_mistakes"), t("confident_help"), e.mistakes.map((row) => entry(run, row)), t("no_mistakes")),
    part(t("uncertain"), t("uncertain_help"), e.uncertain.map((row) => entry(run, row)), t("none")),
    part(t("suspects"), t(`suspects_${run.pooled ? "pooled" : e.suspects_from}`, { n: e.all_suspects }), suspects, t("no_suspects")));
}
