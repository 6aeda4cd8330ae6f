// Start a training: a form made of the recipe's settings.

import { el } from "../report/dom.js";
import { visibleLines } from "../report/format.js";
import { get, post } from "./api.js";
import { address } from "./route.js";

export function trainPage(app) {
  const { t } = app;
  const data = text("data", "", "train-data");
  const model = text("model", "", "train-model", "models");
  const name = text("name", "", "train-name");
  const recipe = el("select", { id: "train-recipe", onchange: fill });
  const list = el("datalist", { id: "models" });
  const settings = el("div", { class: "settings" });
  const button = el("button", { class: "more primary" }, t("ui_start"));
  const output = el("div", {});
  let fields = {}, ended = false, waiting = null;
  app.end = () => { ended = true; };

  data.addEventListener("change", fill);
  model.addEventListener("change", fill);
  const form = el("form", { onsubmit: start },
    field("train-data", t("ui_source"), data, t("ui_source_help")), field("train-recipe", t("ui_recipe"), recipe),
    field("train-model", t("ui_model"), model, t("ui_optional")), field("train-name", t("ui_run_name"), name, t("ui_optional")), list,
    el("details", {}, el("summary", {}, t("ui_settings")), el("p", { class: "small" }, t("ui_settings_help")), settings), button);
  app.node.append(el("main", {}, el("div", { class: "head" }, el("h1", {}, t("ui_train"))), form, output));

  function text(key, value, id, options = null) {
    return el("input", { type: "text", id, name: key, value, list: options, spellcheck: "false", autocomplete: "off" });
  }

  function field(id, label, input, help = "") {
    return el("div", { class: "field" }, el("label", { for: id }, label), input, help ? el("span", { class: "small" }, help) : null);
  }

  // Show the recipe's values in the empty fields.
  async function fill() {
    try {
      const found = await get("recipe", { recipe: recipe.value, data: data.value, model: model.value });
      for (const [key, input] of Object.entries(fields)) {
        const value = String(found[key]);
        if (input.tagName === "SELECT") input.options[0].textContent = value; else input.placeholder = value;
      }
      data.placeholder = found.data;
      model.placeholder = found.model;
      app.say("");
    } catch (error) {
      app.fail(error);
    }
  }

  async function start(event) {
    event.preventDefault();
    const changed = Object.entries(fields).filter(([, input]) => input.value !== "").map(([key, input]) => `${key}=${input.value}`);
    button.disabled = true;
    try {
      const started = await post("train", { data: data.value, recipe: recipe.value, model: model.value, name: name.value, settings: changed });
      waiting = started.name;
    } catch (error) {
      button.disabled = false;
      app.fail(error);
      return;
    }
    follow();
  }

  // A request that fails does not end the training: ask again.
  async function follow() {
    try {
      await look();
      if (!ended) app.say("");
    } catch (error) {
      app.fail(error);
      if (!ended) setTimeout(follow, 2000);
    }
  }

  // Show the output of the process until the run's folder exists.
  async function look() {
    if (!waiting || ended) return;
    const found = await get("runs");
    const state = found.started.find((one) => one.name === waiting);
    if (found.runs.some((run) => run.name === waiting)) { location.hash = address("run", waiting); return; }
    output.replaceChildren(el("h2", {}, `${waiting}: ${t(state?.code === null ? "state_starting" : "state_failed")}`), el("pre", { class: "output" }, visibleLines(state?.output ?? "")));
    if (state?.code !== null) { waiting = null; button.disabled = false; return; }
    setTimeout(follow, 500);
  }

  (async () => {
    try {
      const found = await get("recipes");
      recipe.replaceChildren(el("option", { value: "" }, t("ui_default")), ...Object.keys(found.recipes).map((key) => el("option", { value: key }, key)));
      list.replaceChildren(...found.models.map((value) => el("option", { value })));
      fields = Object.fromEntries(found.settings.map((setting) => [setting.name, input(setting)]));
      settings.replaceChildren(...found.settings.map((setting) => field(`set-${setting.name}`, setting.name, fields[setting.name], setting.help)));
      await fill();
    } catch (error) {
      app.fail(error);
    }
  })();

  function input(setting) {
    const id = `set-${setting.name}`;
    const values = setting.type === "bool" ? ["true", "false"] : setting.choices;
    if (values.length) return el("select", { id }, el("option", { value: "" }, ""), values.map((value) => el("option", { value }, value)));
    return el("input", { type: "text", id, inputmode: setting.type === "str" ? "text" : "decimal", autocomplete: "off" });
  }
}
