// Shared by all parts of the page: the payload, the language, and how names are shown.

import { texts } from "./text.js";
import { shorten, visible } from "./format.js";

export function context(payload, state) {
  state.language ??= (navigator.language ?? "").toLowerCase().startsWith("zh") ? "zh" : "en";
  const column = state.language === "zh" ? 1 : 0;
  // A text with its values filled in. English has two forms, as in `{n} image|{n} images`.
  function t(key, values = {}) {
    const forms = (texts[key]?.[column] ?? key).split("|");
    const form = forms[forms.length > 1 && values.n !== 1 && values.n !== "1" ? 1 : 0];
    return form.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? values[name].toLocaleString("en-US") : String(values[name] ?? "")));
  }
  return {
    payload,
    state,
    language: state.language,
    t,
    short: (text, most) => shorten(text, most),
    className: (run, k, most = 28) => shorten(run.classes[k] ?? "?", most),
    fullName: (run, k) => visible(run.classes[k] ?? "?").slice(0, 1000),
    picture: (place) => (place >= 0 ? payload.pictures[place] : null),
    // Only the last part of a path: the rest is shown under Data.
    source: (data) => shorten(data.replace(/^(\w+:).*\/(?=[^/])/, "$1"), 60),
    split: (name) => t(`split_${name}`),
  };
}
