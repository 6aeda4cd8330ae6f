// Images with the network's predictions, as cards on the page and in a dialog.

import { el } from "./dom.js";
import { address, probability, shorten, visible } from "./format.js";
import { copyText } from "./parts.js";

const STEP = 60; // cards at a time

// The listed image at `row` of a run. suspect: { k, p, own }: the contradicting class, its probability, the label's.
export function entry(run, row, suspect = null) {
  const r = run.evaluation.rows;
  return {
    run, suspect,
    id: r.id[row], label: r.label[row], top: r.top[row], p: r.p[row], picture: r.picture[row],
    file: r.folder !== null && r.file[row] ? { href: address(r.folder, r.id[row]), path: `${r.folder}/${r.id[row]}` } : null,
  };
}

export function card(page, one) {
  const { t } = page;
  const { run } = one;
  const uri = page.picture(one.picture);
  const wrong = one.top[0] !== one.label;
  const small = run.native <= 64;
  const image = uri
    ? el("img", { src: uri, alt: shorten(one.id, 80), class: small ? "pixels" : "" })
    : el("span", { class: "no-picture" }, t("no_picture"));
  return el("figure", { class: "card" },
    el("div", { class: "thumb" }, one.file ? el("a", { href: one.file.href, target: "_blank", rel: "noopener noreferrer", title: t("open_file") }, image) : image),
    el("figcaption", {},
      el("p", { class: "file", title: visible(one.id).slice(0, 1000) }, el("bdi", {}, shorten(one.id, 44))),
      el("p", { class: "truth" }, el("span", { class: "what" }, t("true_class")), " ", el("bdi", {}, page.className(run, one.label, 24))),
      el("ol", { class: "bars" }, one.top.map((k, n) => {
        const kind = k === one.label ? "right" : n === 0 && wrong ? "wrong" : "other";
        return el("li", { class: kind },
          el("span", { class: "bar", style: { width: `${Math.max(1, 100 * one.p[n])}%` } }),
          el("bdi", { class: "name", title: page.fullName(run, k) }, page.className(run, k, 18)), el("span", { class: "p" }, probability(one.p[n])));
      })),
      one.suspect ? el("p", { class: "suspect" }, t("suspect_card", { name: page.className(run, one.suspect.k, 24), p: probability(one.suspect.p), own: probability(one.suspect.own) })) : null,
      one.file ? el("button", { type: "button", class: "quiet copy", onclick: (event) => copyText(one.file.path, event.currentTarget, t("copied")), title: one.file.path.slice(0, 1000) }, t("copy_path")) : null));
}

// Cards for `entries`: some at first, and a button for more.
export function cards(page, entries, first = STEP) {
  const place = el("div", { class: "cards" });
  const more = el("button", { type: "button", class: "more" });
  let shown = 0;
  function add(count) {
    const next = entries.slice(shown, shown + count).map((one) => card(page, one));
    place.append(...next);
    shown += next.length;
    more.textContent = page.t("show_more", { n: Math.min(STEP, entries.length - shown) });
    more.toggleAttribute("hidden", shown >= entries.length);
    return next;
  }
  more.addEventListener("click", () => {
    const [one] = add(STEP);
    one?.setAttribute("tabindex", "-1");
    one?.focus();
  });
  add(first);
  return el("div", {}, place, more);
}

// A dialog over the page. Escape closes it, and focus returns to the button that opened it.
export function openGallery(page, title, note, entries) {
  const close = el("button", { type: "button", class: "close", "aria-label": page.t("close"), onclick: () => dialog.close() }, "×");
  const dialog = el("dialog", { class: "gallery", "aria-labelledby": "gallery-title" },
    el("div", { class: "head" }, el("div", {}, el("h2", { id: "gallery-title" }, title), el("p", { class: "small" }, note)), close),
    el("div", { class: "content", tabindex: "0", role: "group", "aria-label": page.t("images") }, cards(page, entries)));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}
