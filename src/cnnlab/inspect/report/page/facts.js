// How the run was trained: speed, images, settings, environment, and the command that repeats it.

import { el } from "./dom.js";
import { duration, value, visible, whole } from "./format.js";
import { copyText, pairs, scroller, section } from "./parts.js";

export function factsSections(page, run) {
  return [training(page, run), dataChecks(page, run), settings(page, run)].filter(Boolean);
}

function training(page, run) {
  const { t } = page;
  const s = run.speed;
  const environment = Object.fromEntries(run.environment);
  const plan = ["plan", "compile", "memory_format", "dtype"].filter((key) => key in environment).map((key) => (key === "plan" ? environment[key] : `${key}: ${environment[key]}`)).join("; ");
  return section("training", t("training_section"),
    pairs([
      s.images_per_second && [t("throughput"), t("images_per_second", { n: whole(s.images_per_second), of: whole(s.examples_per_second) })],
      s.total_seconds && [t("total_time"), t("time_of", { time: duration(s.total_seconds), epochs: t("epochs", { n: run.epochs }) })],
      environment.device_name && [t("device"), [environment.device, environment.device_name].filter(Boolean).join(", ")],
      environment.memory_gib && [t("memory"), `${environment.memory_gib} GiB`],
      environment.threads && [t("threads"), environment.threads],
      plan && [t("plan"), plan],
      [t("input"), `${run.input.join(" × ")}${run.native !== run.input[1] ? ` (${t("resized", { native: run.native })})` : ""}`],
      s.skipped_updates ? [t("skipped_updates"), whole(s.skipped_updates)] : null,
    ]));
}

function dataChecks(page, run) {
  const { t } = page;
  const c = run.checks;
  const count = Object.entries(c.images).map(([split, n]) => `${whole(n)} ${page.split(split)}`).join(", ");
  const shared = Object.entries(c.shared).filter(([, n]) => n).map(([split, n]) => t("shared", { n, split: page.split(split) }));
  const sizes = run.counts.train.filter((n) => n > 0);
  return section("data", t("data"),
    pairs([
      [t("source"), page.short(run.data, 100)],
      count && [t("images"), count],
      [t("classes"), t(new Set(sizes).size > 1 ? "class_sizes" : "class_size", { n: run.classes.length, low: Math.min(...sizes), high: Math.max(...sizes) })],
      [t("duplicates"), shared.length ? shared.join("; ") : t("no_duplicates")],
      c.groups.by && [t("groups"), t("grouped", { by: visible(c.groups.by), groups: c.groups.groups, held: c.groups.held_out })],
      [t("damaged"), c.skipped ? t("n_skipped", { n: c.skipped }) : t("none")],
      Object.keys(c.passed_over).length ? [t("passed_over"), Object.entries(c.passed_over).map(([kind, n]) => `${n} ${page.short(kind, 30)}`).join(", ")] : null,
      [t("fingerprint"), el("code", {}, c.fingerprint)],
    ]),
    c.warnings.length ? el("ul", { class: "notes" }, c.warnings.map((text) => el("li", {}, page.short(text, 400)))) : null);
}

function settings(page, run) {
  const { t } = page;
  const changed = run.settings.filter(([, now, was]) => now !== was);
  const table = (rows, base) => scroller(t("settings"), el("table", { class: "settings" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("setting")), el("th", { scope: "col" }, t("value")), base && el("th", { scope: "col" }, t("in_recipe", { recipe: run.base })))),
    el("tbody", {}, rows.map(([key, now, was]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, key)), el("td", {}, value(now)), base && el("td", { class: "was" }, value(was)))))));
  const command = run.command && el("div", { class: "command" }, el("pre", { tabindex: "0" }, el("code", {}, visible(run.command))),
    el("button", { type: "button", class: "quiet", onclick: (event) => copyText(visible(run.command), event.currentTarget, t("copied")) }, t("copy")));
  return section("settings", t("settings"),
    el("h3", {}, t("repeat")),
    command || el("p", {}, t("no_command")),
    el("p", { class: "small" }, t("repeat_help"), run.shortened ? ` ${t("repeat_folders")}` : ""),
    el("h3", {}, run.base ? t("changed", { recipe: run.base }) : t("all_settings")),
    run.base ? (changed.length ? table(changed, true) : el("p", {}, t("nothing_changed"))) : null,
    el("details", {}, el("summary", {}, t("all_settings")), table(run.settings, false)),
    run.environment.length ? el("details", {}, el("summary", {}, t("environment")), scroller(t("environment"), el("table", { class: "settings" }, el("tbody", {}, run.environment.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, name)), el("td", {}, visible(text)))))))) : null);
}

