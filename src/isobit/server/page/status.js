// The model at a glance, and how busy the server is.

import { byId, make } from "./dom.js";
import { get } from "./stream.js";

const EVERY = 2000; // milliseconds

let status = null;
let told = () => {};

/** Asks for the status again and again, while somebody looks at the page; calls `changed` with it, or with null. */
export function watch(changed) {
  told = changed;
  const ask = async () => {
    if (!document.hidden) await refresh();
    setTimeout(ask, EVERY);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  return ask();
}

async function refresh() {
  try {
    status = await get("v1/isobit/status", status === null);
    draw();
  } catch {
    status = null;
    byId("load").classList.add("stale");
  }
  told(status);
}

function draw() {
  const { model, load, plan } = status;
  byId("load").classList.remove("stale");
  byId("model-name").textContent = model.id;
  byId("model-format").hidden = !plan?.scheme;
  byId("model-format").textContent = plan?.scheme ?? "";
  byId("load-speed").textContent = load.tokens_per_second > 0 ? `${number(load.tokens_per_second)} tok/s` : "idle";
  byId("load-queue").textContent = `${load.running} / ${load.waiting}`;
  byId("load-cache").textContent = `${Math.round(100 * load.kv_cache_usage)} %`;
  byId("load-meter").value = load.kv_cache_usage;
}

/** Fills the dialog about the model. */
export function about() {
  const home = byId("about");
  if (status === null) {
    home.replaceChildren(make("p", {}, "The server does not answer."));
    return;
  }
  const { model, plan, certificate, load } = status;
  home.replaceChildren(
    section("What it is", [
      ["Model", model.id], ["Family", model.family], ["Parameters", model.parameters && number(model.parameters)],
      ["Context", model.context && `${number(model.context)} tokens`],
    ]),
    section("How it runs here", [
      ["Machine", plan?.machine], ["Weights", join(plan?.scheme, bytes(plan?.weight_bytes))], ["Arithmetic", plan?.action],
      ["KV cache", join(plan?.kv_format, plan?.kv_bytes_per_token && `${bytes(plan.kv_bytes_per_token)} a token`)],
      ["Expected", join(plan?.decode && `${number(plan.decode)} tokens/s for one answer`, plan?.prefill && `${number(plan.prefill)} of a prompt`)],
    ], plan?.reasons ?? []),
    section("Fidelity", Object.entries(certificate?.figures ?? {}), certificate ? [] : ["No certificate lies beside this checkpoint; `isobit eval --against SOURCE` measures what the format lost."]),
    section("Now", [
      ["State", status.state], ["Running", load.running], ["Waiting", load.waiting],
      ["KV cache in use", `${Math.round(100 * load.kv_cache_usage)} %`],
      ["Prompt tokens found in it", load.prefix_hit_rate === undefined ? undefined : `${Math.round(100 * load.prefix_hit_rate)} %`],
      ["Up since", new Date(Date.now() - 1000 * load.uptime_seconds).toLocaleString()],
    ]));
}

function section(title, rows, notes = []) {
  const known = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  if (known.length === 0 && notes.length === 0) return "";
  return make("section", {}, make("h3", {}, title),
    make("dl", {}, ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])),
    ...notes.map((note) => make("p", { class: "help" }, note)));
}

const join = (...parts) => parts.filter(Boolean).join(", ");
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });

function bytes(count) {
  if (!count) return "";
  const power = Math.min(4, Math.floor(Math.log2(count) / 10));
  return `${number(count / 2 ** (10 * power))} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}
