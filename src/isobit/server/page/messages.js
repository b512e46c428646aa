// How messages look, and what can be done with each.

import { copy, make } from "./dom.js";
import { show } from "./markdown.js";
import { show as showMedia } from "./media.js";
import { branch, turn } from "./store.js";

/**
 * One message.
 *
 * @param chat, id which
 * @param act what its buttons do: edit(id, text), again(id), redraw(), grown()
 */
export class Message {
  constructor(chat, id, act) {
    this.chat = chat;
    this.id = id;
    this.act = act;
    this.thought = make("details", { class: "thought", hidden: true }, make("summary", {}, "Reasoning"), make("div"));
    this.calls = make("div", { class: "calls" });
    this.media = make("div", { class: "media" });
    showMedia(this.media, this.node.media, act.grown);
    this.body = make("div", { class: "body" });
    this.end = make("div", { class: "end" });
    const user = this.node.role === "user";
    this.element = make("li", { class: user ? "message user" : "message" }, make("span", { class: "unseen" }, user ? "You:" : "Answer:"), this.thought, this.media, this.body, this.calls, this.end);
    this.draw();
  }

  get node() {
    return this.chat.nodes[this.id];
  }

  /** Shows what the message has now. */
  draw(writing = false) {
    const node = this.node;
    this.element.classList.toggle("writing", writing);
    if (node.role === "user") this.body.textContent = node.content;
    else if (node.tokens && node.tokens.length > 0) this.body.replaceChildren(probabilities(node.tokens));
    else show(this.body, node.content);
    this.thought.hidden = !node.reasoning;
    if (node.reasoning) {
      show(this.thought.lastChild, node.reasoning);
      this.thought.firstChild.textContent = writing && !node.content ? "Reasoning …" : "Reasoning";
    }
    this.calls.replaceChildren(...(node.calls ?? []).map(call));
    this.end.replaceChildren(...this.buttons(writing));
  }

  buttons(writing) {
    const node = this.node;
    if (writing) return [make("span", { class: "facts" }, facts(node))];
    const found = [];
    const { place, count } = branch(this.chat, this.id);
    if (count > 1) found.push(this.turner(place, count));
    if (node.error) found.push(make("span", { class: "wrong" }, node.error));
    const copyButton = make("button", { type: "button", class: "quiet", onclick: () => copy(node.content, copyButton) }, "Copy");
    found.push(copyButton);
    if (node.role === "user") found.push(make("button", { type: "button", class: "quiet", onclick: () => this.edit() }, "Edit"));
    else found.push(make("button", { type: "button", class: "quiet", onclick: () => this.act.again(this.id) }, "Regenerate"));
    const said = facts(node);
    if (said) found.push(make("span", { class: "facts" }, said));
    return found;
  }

  turner(place, count) {
    const step = (by) => {
      turn(this.chat, this.id, by);
      this.act.redraw();
    };
    return make("span", { class: "turner" },
      make("button", { type: "button", class: "quiet", disabled: place === 1, onclick: () => step(-1), "aria-label": "The branch before" }, "‹"),
      `${place}/${count}`,
      make("button", { type: "button", class: "quiet", disabled: place === count, onclick: () => step(1), "aria-label": "The next branch" }, "›"));
  }

  /** Lets the person change the message; what comes of it is a branch beside this one. */
  edit() {
    const area = make("textarea", { value: this.node.content, rows: Math.min(12, this.node.content.split("\n").length + 1), "aria-label": "Change the message" });
    const done = () => {
      if (area.value.trim() !== "" || this.node.media) this.act.edit(this.id, area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        done();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.act.redraw();
      }
    });
    this.body.replaceChildren(area);
    this.end.replaceChildren(
      make("button", { type: "button", class: "primary", onclick: done }, "Send"),
      make("button", { type: "button", class: "quiet", onclick: () => this.act.redraw() }, "Cancel"));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

function call({ name, arguments: given }) {
  let text = given;
  try {
    text = JSON.stringify(JSON.parse(given), null, 2);
  } catch { /* it is still being written */ }
  return make("figure", { class: "code" }, make("figcaption", {}, `calls ${name}`), make("pre", { tabIndex: 0 }, make("code", {}, text)));
}

// Tokens with their probability: the darker, the less probable.
function probabilities(tokens) {
  const home = make("p", { class: "tokens" });
  for (const { text, logprob, top } of tokens) {
    const share = Math.exp(logprob);
    const level = Math.min(5, Math.floor(-Math.log2(Math.max(share, 1e-9))));
    const beside = top.map((one) => `${percent(Math.exp(one.logprob))}  ${JSON.stringify(one.text)}`).join("\n");
    home.append(make("span", { class: `p${level}`, title: `${percent(share)}  ${JSON.stringify(text)}\n\n${beside}` }, text));
  }
  return home;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;

function facts(node) {
  if (!node.facts) return "";
  const { tokens, seconds, first, cached, reason } = node.facts;
  const parts = [];
  if (tokens) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens > 1 && seconds > first) parts.push(`${((tokens - 1) / (seconds - first)).toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${first < 1 ? `${Math.round(1000 * first)} ms` : `${first.toFixed(1)} s`}`);
  if (cached) parts.push(`${cached} prompt tokens read from the cache`);
  if (reason === "length") parts.push("ended at its longest");
  if (reason === "abort") parts.push("stopped");
  return parts.join(" · ");
}
