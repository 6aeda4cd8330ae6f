// The bar at the top: the sections, the language, light or dark.

import { el } from "./dom.js";

const THEMES = ["auto", "light", "dark"];

export function toolbar(page, parts, again) {
  const { state, t } = page;
  const links = parts
    .filter((part) => part.id && part.dataset.nav)
    .map((part) => el("a", { href: `#${part.id}`, onclick: (event) => go(event, part) }, part.dataset.nav));
  const root = document.documentElement;
  root.lang = page.language === "zh" ? "zh-CN" : "en";
  state.theme ??= "auto";
  const theme = el("button", { type: "button", class: "switch", onclick: turn }, "");
  function name() {
    root.dataset.theme = state.theme;
    theme.textContent = t(`theme_${state.theme}`);
    theme.setAttribute("aria-label", `${t("theme")}: ${t(`theme_${state.theme}`)}`);
  }
  function turn() {
    state.theme = THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length];
    name();
  }
  name();
  const language = el("button", {
    type: "button", class: "switch", lang: state.language === "zh" ? "en" : "zh-CN",
    onclick: () => { state.language = state.language === "zh" ? "en" : "zh"; again(); document.querySelector(".language").focus(); },
  }, state.language === "zh" ? "English" : "中文");
  language.classList.add("language");
  return el("header", { class: "toolbar" },
    el("div", { class: "inner" },
      el("span", { class: "brand" }, "cnnlab"),
      links.length ? el("nav", { "aria-label": t("contents") }, links) : el("span", { class: "space" }),
      el("div", { class: "switches" }, language, theme)));
}

// Scroll by script: in a notebook's frame, the address is not that of this page.
function go(event, part) {
  event.preventDefault();
  part.scrollIntoView({ block: "start" });
  part.setAttribute("tabindex", "-1");
  part.focus({ preventScroll: true });
}
