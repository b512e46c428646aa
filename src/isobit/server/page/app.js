// The page: one chat is shown, one answer at most is being written.

import * as attic from "./attic.js";
import { byId, make, say } from "./dom.js";
import * as media from "./media.js";
import { Message } from "./messages.js";
import * as settings from "./settings.js";
import { about, watch } from "./status.js";
import * as store from "./store.js";
import { Problem, answer, onKeyWanted } from "./stream.js";

const NEAR = 48; // pixels from the end that still count as being there

let chat = null;
let shown = [];
let writing = null; // the AbortController of the answer under way
let status = null;
let follows = true; // the end was in sight when somebody scrolled last

const scroll = byId("scroll");
const prompt = byId("prompt");

// What is seen

function redraw() {
  const ids = chat ? store.path(chat) : [];
  shown = ids.map((id) => new Message(chat, id, { edit, again, redraw, grown }));
  byId("messages").replaceChildren(...shown.map((message) => message.element));
  byId("empty").hidden = ids.length > 0;
  drawChats();
}

function drawChats() {
  const rows = store.all().map((one) => {
    const open = make("button", { type: "button", class: "chat", onclick: () => choose(one), title: title(one) }, title(one));
    if (one === chat) open.setAttribute("aria-current", "true");
    const away = make("button", { type: "button", class: "icon away", "aria-label": `Delete the chat ${title(one)}`, onclick: () => discard(one) }, "✕");
    return make("li", {}, open, away);
  });
  byId("chats").replaceChildren(...rows);
  byId("forget").hidden = rows.length === 0;
}

const title = (one) => one.title || "New chat";
const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
  follows = true;
}

// A picture has taken its room: whoever was at the end stays there.
function grown() {
  if (follows) toEnd();
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight / 3)}px`;
}

// Chats

function choose(one) {
  stop();
  chat = one;
  redraw();
  toEnd();
  closeSide();
  prompt.focus();
}

function discard(one) {
  if (one === chat) {
    stop();
    chat = null;
  }
  store.remove(one);
  tidy();
  redraw();
}

// Media of chats that are no more.
function tidy() {
  attic.keepOnly(store.all().flatMap((one) => Object.values(one.nodes).flatMap((node) => (node.media ?? []).map(({ id }) => id))));
}

function fresh() {
  stop();
  chat = null;
  notice("");
  redraw();
  closeSide();
  prompt.focus();
}

function openSide() {
  document.body.classList.add("side-open");
  byId("shade").hidden = false;
  byId("new-chat").focus();
}

function closeSide() {
  document.body.classList.remove("side-open");
  byId("shade").hidden = true;
}

// Messages

function send(text) {
  if (writing || (text.trim() === "" && !media.any())) return;
  if (!usable()) return;
  const given = media.taken();
  if (chat === null) {
    chat = store.create();
    chat.title = (text.trim() || given[0].name).slice(0, 60);
  }
  prompt.value = "";
  grow();
  const ids = store.path(chat);
  write(store.append(chat, ids.at(-1) ?? "root", said(text, given)));
}

/** A message of the person. */
function said(text, given) {
  return { role: "user", content: text, ...(given?.length ? { media: given } : {}) };
}

function edit(id, text) {
  if (!usable()) return;
  stop();
  write(store.append(chat, chat.nodes[id].parent, said(text, chat.nodes[id].media)));
}

function again(id) {
  if (!usable()) return;
  stop();
  write(chat.nodes[id].parent);
}

function usable() {
  try {
    settings.chosen();
    notice("");
    return true;
  } catch (error) {
    notice(error.message);
    return false;
  }
}

function stop() {
  writing?.abort();
}

/** The messages down to `id`. */
function sent(mine, id, system) {
  const found = system.trim() ? [{ role: "system", content: system }] : [];
  const first = found.length;
  for (let at = id; at !== "root"; at = mine.nodes[at].parent) found.splice(first, 0, mine.nodes[at]);
  return found;
}

/** The same, as the server takes them. */
const history = (mine, id, system) => Promise.all(
  sent(mine, id, system).map(async ({ role, content, media: given }) => ({ role, content: await media.content(content, given) })));

/** Answers the message `above`. */
async function write(above) {
  const { body, system } = settings.chosen();
  const mine = chat;
  const id = store.append(mine, above, { role: "assistant", content: "", reasoning: "", facts: {} });
  const node = mine.nodes[id];
  store.touch(mine);
  store.save();
  redraw();
  toEnd();
  const control = new AbortController();
  writing = control;
  busy(true);
  const began = performance.now();
  const pace = drawer(mine, id);
  pace.soon();
  try {
    const messages = await history(mine, above, system);
    for await (const chunk of answer({ ...body, model: status?.model, messages }, control.signal)) {
      take(node, chunk, (performance.now() - began) / 1000);
      pace.soon();
    }
    say("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") node.facts.reason = "abort";
    else if (!(await givenBack(mine, above, id, error))) node.error = media.named(inWords(error), sent(mine, above, system));
  } finally {
    if (writing === control) {
      writing = null;
      busy(false);
    }
    pace.end();
    store.save();
  }
}

/**
 * Whether a message with media that the server refuses went back to where it was written. In the chat it would be sent,
 * and refused, with every later one.
 */
async function givenBack(mine, above, id, error) {
  const node = mine.nodes[above];
  const refused = error instanceof Problem && [400, 413, 422].includes(error.status);
  if (!refused || mine !== chat || !node?.media || node.children.some((child) => child !== id)) return false;
  const why = media.named(inWords(error), sent(mine, above, settings.chosen().system));
  const whole = await media.giveBack(node.media);
  if (!whole) return false;
  prompt.value = [node.content, prompt.value].filter((text) => text.trim()).join("\n");
  grow();
  store.take(mine, above);
  if (mine.nodes.root.children.length === 0) {
    store.remove(mine);
    chat = null;
  }
  store.save();
  redraw();
  notice(`${why} The message is below again: change it, or remove the file.`);
  return true;
}

function inWords(error) {
  if (error instanceof media.Lost) return error.message;
  if (!(error instanceof Problem)) return `Something went wrong on this page: ${error.message}`;
  if (error.status === 503) return `${error.message}${error.after ? ` Ask again in ${error.after} s.` : ""}`;
  return error.message;
}

/** Adds a chunk to a message. */
function take(node, chunk, seconds) {
  const facts = node.facts;
  if (chunk.usage) {
    facts.tokens = chunk.usage.completion_tokens;
    facts.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
  }
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning, reasoning_content, tool_calls } = choice.delta ?? {};
  node.content += content ?? "";
  node.reasoning += reasoning ?? reasoning_content ?? "";
  for (const part of tool_calls ?? []) {
    node.calls ??= [];
    const call = (node.calls[part.index] ??= { name: "", arguments: "" });
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  for (const one of choice.logprobs?.content ?? []) {
    node.tokens ??= [];
    node.tokens.push({ text: one.token, logprob: one.logprob, top: one.top_logprobs.map(({ token, logprob }) => ({ text: token, logprob })) });
  }
  if (content || reasoning || reasoning_content || tool_calls) {
    facts.first ??= seconds;
    facts.seconds = seconds;
  }
  if (choice.finish_reason) facts.reason = choice.finish_reason;
}

/** Draws a message at most once a frame while it is written. */
function drawer(mine, id) {
  let waits = false;
  let over = false;
  const draw = () => {
    waits = false;
    const message = shown.find((one) => one.chat === mine && one.id === id);
    if (!message) return;
    const follow = atEnd();
    message.draw(!over);
    if (follow) toEnd();
  };
  return {
    soon: () => {
      if (!waits) {
        waits = true;
        requestAnimationFrame(draw);
      }
    },
    end: () => {
      over = true;
      draw();
    },
  };
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("messages").setAttribute("aria-busy", String(is));
}

// Keys, buttons, themes

function keys(event) {
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key.toLowerCase() === "k") {
    event.preventDefault();
    fresh();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (document.body.classList.contains("side-open")) closeSide();
    else stop();
  }
}

function promptKeys(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send(prompt.value);
  } else if (event.key === "ArrowUp" && prompt.value === "" && !writing) {
    const last = shown.findLast((message) => message.node.role === "user");
    if (last) {
      event.preventDefault();
      last.edit();
    }
  }
}

function theme(next) {
  if (next) localStorage.setItem("isobit.theme", next);
  const kept = localStorage.getItem("isobit.theme");
  if (kept) document.documentElement.dataset.theme = kept;
}

function turnTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
}

function statusChanged(next) {
  if (next) media.offer(next);
  if (next && !status) {
    settings.build(next.sampling ?? {});
    document.title = `${next.model} · isobit`;
    byId("empty-text").textContent = next.chat === false
      ? "This model has no chat template: it goes on with the text it is given, and does not answer like an assistant."
      : `${next.model} runs here. Nothing you write leaves this server.`;
  }
  if (!next && status) notice("The server does not answer. This page looks for it again every two seconds.");
  if (next && !status) notice("");
  status = next;
}

function askForKey() {
  return new Promise((resolve) => {
    const dialog = byId("key");
    byId("key-text").value = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? byId("key-text").value.trim() : null), { once: true });
  });
}

function begin() {
  theme();
  onKeyWanted(askForKey);
  settings.build({});
  if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("new-chat-key").textContent = "⌘ K";
  document.addEventListener("keydown", keys);
  prompt.addEventListener("keydown", promptKeys);
  prompt.addEventListener("input", grow);
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(prompt.value); });
  byId("stop").addEventListener("click", stop);
  byId("new-chat").addEventListener("click", fresh);
  byId("side-open").addEventListener("click", openSide);
  byId("side-close").addEventListener("click", closeSide);
  byId("shade").addEventListener("click", closeSide);
  byId("theme").addEventListener("click", turnTheme);
  byId("settings-open").addEventListener("click", () => byId("settings").showModal());
  byId("settings-reset").addEventListener("click", () => settings.reset(status?.sampling ?? {}));
  byId("model-open").addEventListener("click", () => { about(); byId("model").showModal(); });
  byId("to-end").addEventListener("click", toEnd);
  byId("forget").addEventListener("click", () => { if (confirm("Delete all chats of this browser?")) { stop(); store.removeAll(); tidy(); chat = null; redraw(); } });
  scroll.addEventListener("scroll", () => { follows = atEnd(); byId("to-end").hidden = follows; }, { passive: true });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  media.begin(notice);
  redraw();
  tidy();
  watch(statusChanged);
  prompt.focus();
}

begin();
