// What a person can ask of the answers: one row a setting. Empty fields are the model's own choice, and are not sent.

import { byId, make } from "./dom.js";

const STORE = "isobit.settings";

const ROWS = [
  { name: "system", title: "System message", kind: "text", help: "Stands before every chat: who the model is, how it should answer." },
  { name: "temperature", kind: "number", min: 0, max: 2, step: 0.1, help: "0 always takes the most probable token; 1 is the model's own distribution; more is wilder." },
  { name: "top_p", title: "Top-p", kind: "number", min: 0.01, max: 1, step: 0.01, help: "Keeps the most probable tokens that reach this probability together." },
  { name: "top_k", title: "Top-k", kind: "whole", min: 0, max: 1_000_000, step: 1, help: "Keeps so many of the most probable tokens; 0 keeps all." },
  { name: "min_p", title: "Min-p", kind: "number", min: 0, max: 1, step: 0.01, help: "Drops tokens below this share of the most probable one's probability." },
  { name: "max_tokens", title: "Longest answer", kind: "whole", min: 1, max: 10_000_000, step: 1, help: "Tokens an answer may have." },
  { name: "repetition_penalty", title: "Repetition penalty", kind: "number", min: 0.01, max: 10, step: 0.05, help: "Above 1 discourages tokens of the chat and the answer; 1 is off." },
  { name: "presence_penalty", title: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1, help: "Above 0 discourages what the answer has said already." },
  { name: "frequency_penalty", title: "Frequency penalty", kind: "number", min: -2, max: 2, step: 0.1, help: "The same, for each time it was said." },
  { name: "seed", kind: "whole", min: 0, max: 2 ** 53 - 1, step: 1, help: "The same seed gives the same answer, whatever else the server does." },
  { name: "stop", title: "Stop at", kind: "lines", help: "Texts that end the answer, one a line; at most 64." },
  { name: "schema", title: "JSON schema", kind: "json", help: "The answer is JSON that this schema allows." },
  { name: "logprobs", title: "Show how probable each token was", kind: "check", help: "Colours tokens; point at one to see what stood beside it." },
];

let values = load();

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

/** Why a value cannot be used, or null. */
function problem(row, text) {
  if (text === "" || row.kind === "text" || row.kind === "check") return null;
  if (row.kind === "lines") return text.split("\n").filter(Boolean).length > 64 ? "At most 64 texts." : null;
  if (row.kind === "json") {
    try {
      const made = JSON.parse(text);
      return made && typeof made === "object" && !Array.isArray(made) ? null : "A schema is a JSON object.";
    } catch (error) {
      return `No JSON: ${error.message}`;
    }
  }
  const value = Number(text);
  if (!Number.isFinite(value)) return "A number, please.";
  if (row.kind === "whole" && !Number.isInteger(value)) return "A whole number, please.";
  return value < row.min || value > row.max ? `Between ${row.min} and ${row.max}.` : null;
}

/** The fields that a request gets, and the system message. Raises what is wrong with the settings. */
export function chosen() {
  const body = {};
  for (const row of ROWS) {
    const text = values[row.name] ?? "";
    const wrong = problem(row, text);
    if (wrong !== null) throw new Error(`${label(row)}: ${wrong} See the settings.`);
    if (text === "" || row.name === "system") continue;
    if (row.kind === "number" || row.kind === "whole") body[row.name] = Number(text);
    else if (row.kind === "lines") body[row.name] = text.split("\n").filter(Boolean);
    else if (row.kind === "check") Object.assign(body, { logprobs: true, top_logprobs: 5 });
    else body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text), strict: true } };
  }
  return { body, system: values.system ?? "" };
}

const label = (row) => row.title ?? row.name[0].toUpperCase() + row.name.slice(1);

/** Makes the fields; `used` are the model's own settings, shown where nothing is given. */
export function build(used) {
  byId("fields").replaceChildren(...ROWS.map((row) => field(row, used)));
  mark();
}

/** Forgets everything that was set. */
export function reset(used) {
  values = {};
  keep();
  build(used);
}

function keep() {
  localStorage.setItem(STORE, JSON.stringify(values));
  mark();
}

// The button shows that something is set.
function mark() {
  const any = Object.values(values).some((text) => text !== "");
  byId("settings-open").classList.toggle("marked", any);
}

function field(row, used) {
  const id = `set-${row.name}`;
  const help = make("p", { class: "help", id: `${id}-help` }, row.help);
  const wrong = make("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const input = control(row, id, used);
  input.setAttribute("aria-describedby", `${id}-help ${id}-wrong`);
  const check = () => {
    const reason = problem(row, values[row.name] ?? "");
    wrong.hidden = reason === null;
    wrong.textContent = reason ?? "";
    input.setAttribute("aria-invalid", String(reason !== null));
  };
  input.addEventListener("input", () => {
    values[row.name] = row.kind === "check" ? (input.checked ? "on" : "") : input.value.trim() === "" ? "" : input.value;
    keep();
    check();
  });
  check();
  const name = make("label", { htmlFor: id }, label(row));
  return make("div", { class: `field ${row.kind}` }, ...(row.kind === "check" ? [input, name] : [name, input]), help, wrong);
}

function control(row, id, used) {
  const value = values[row.name] ?? "";
  if (row.kind === "check") return make("input", { id, type: "checkbox", checked: value !== "" });
  if (row.kind === "text" || row.kind === "lines" || row.kind === "json") {
    return make("textarea", { id, rows: row.kind === "lines" ? 2 : 3, value, spellcheck: row.kind === "text" });
  }
  const own = used[row.name];
  return make("input", { id, type: "text", inputMode: "decimal", value, placeholder: own === undefined ? "" : String(own), autocomplete: "off" });
}
