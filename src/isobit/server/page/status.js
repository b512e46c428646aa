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
  } catch {
    status = null;
  }
  byId("load").classList.toggle("stale", status === null);
  if (status !== null) draw();
  told(status);
}

function draw() {
  const speed = status.tokens_per_second.generation;
  const usage = status.kv_cache.usage;
  byId("model-name").textContent = status.model;
  byId("model-format").hidden = !plan();
  byId("model-format").textContent = plan()?.scheme ?? "";
  byId("load-speed").textContent = speed > 0 ? `${number(speed)} tok/s` : status.state === "ready" ? "idle" : status.state;
  byId("load-queue").textContent = `${status.queue.running} / ${status.queue.waiting}`;
  byId("load-cache").textContent = `${Math.round(100 * usage)} %`;
  byId("load-meter").value = usage;
}

const plan = () => status.plan?.[0];

/** Fills the dialog about the model. */
export function about() {
  const home = byId("about");
  if (status === null) {
    home.replaceChildren(make("p", {}, "The server does not answer."));
    return;
  }
  home.replaceChildren(
    section("What it is", [
      ["Model", status.names.join(", ")], ["Family", status.title],
      ["Context", `${number(status.context_length)} tokens`],
      ["Weights", join(status.bits_per_weight && `${status.bits_per_weight.toFixed(2)} bits each`, bytes(status.file_bytes))],
      ["Linear layers", formats("linear")], ["Embedding", formats("embedding")],
    ], status.notes),
    ...(plan() ? [planned(plan())] : []),
    certified(status.certificate),
    section("Now", [
      ["State", status.state], ["Answers running", status.queue.running], ["Waiting", status.queue.waiting],
      ["KV cache", join(`${Math.round(100 * status.kv_cache.usage)} % used`, status.kv_cache.tokens && `${number(status.kv_cache.tokens)} tokens in all`)],
      ["Prompt tokens found in it", status.kv_cache.prefix_queries ? `${Math.round((100 * status.kv_cache.prefix_hits) / status.kv_cache.prefix_queries)} %` : ""],
      ["Up since", new Date(Date.now() - 1000 * status.uptime_seconds).toLocaleString()],
      ["isobit", status.version],
    ]));
}

function formats(kind) {
  const found = (status.formats ?? []).filter((one) => one.kind === kind);
  return found.map((one) => (found.length > 1 ? `${one.scheme} (${one.modules})` : one.scheme)).join(", ");
}

function planned({ board, target, how, decode_how, action, memory, speed, reasons, notes }) {
  return section("How it runs here", [
    ["Machine", join(board, target)], ["Arithmetic", `${action}: ${how}`], ["One token", decode_how === how ? "" : decode_how],
    ["Memory", memory && `${bytes(memory.total)} of ${bytes(memory.capacity)}`],
    ["KV cache", memory && `${bytes(memory.kv_per_token)} a token`],
    ["Expected", speed && join(`${number(speed.decode_tokens_per_second)} tokens/s for one answer`, `${number(speed.prefill_tokens_per_second)} of a prompt`)],
    ["", speed && (speed.measured_here ? `measured here, ${speed.measured_here}` : speed.measured ? "measured" : "estimated")],
  ], [...reasons, ...notes]);
}

function certified(rows) {
  if (!rows) return section("Fidelity", [], ["No certificate lies beside this checkpoint: isobit certify with --against measures what its format lost, and keeps it there."]);
  return make("div", {}, ...rows.map((row) => section(rows.length > 1 ? `Fidelity: ${row.path}` : "Fidelity", [
    ["Against", row.source], ["KL divergence", `${row.kl_mean.toPrecision(3)} nats a token, 99th percentile ${row.kl_p99.toPrecision(3)}`],
    ["Same first choice", `${(100 * row.top1).toFixed(1)} %`], ["Perplexity", `${row.perplexity_ratio.toFixed(4)} times the source's`],
    ["Measured", `${row.date.slice(0, 10)} on ${number(row.tokens)} tokens of ${row.text}`], ["By", rows.length > 1 ? "" : row.path],
  ])));
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
