// Small parts that several sections use.

import { el } from "./dom.js";

export function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title`, "data-nav": title }, el("h2", { id: `${id}-title` }, title), children);
}

// A table of (name, value); values may be nodes.
export function pairs(rows) {
  return el("dl", { class: "pairs" }, rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// A box that scrolls, also by keyboard, for content that may be wider than the page.
export function scroller(label, ...children) {
  return el("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": label }, children);
}

export async function copyText(text, button, done) {
  button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "offstage" });
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done;
  setTimeout(() => { button.textContent = button.dataset.label; }, 1500);
}
