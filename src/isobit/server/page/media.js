// Pictures, videos and sounds that go with the next message: chosen, pasted or dropped; and how those of messages look.

import * as attic from "./attic.js";
import { byId, make, say } from "./dom.js";

// What files of each kind are called, where the browser does not know, and what it offers to choose.
const KINDS = {
  image: { word: "pictures", endings: ["png", "jpg", "jpeg", "webp", "gif", "bmp"] },
  audio: { word: "sounds", endings: ["wav", "mp3", "flac", "ogg", "oga", "opus"] },
  video: { word: "videos", endings: ["mp4", "webm", "mkv", "mov"] },
};
/** A medium that the browser has not kept. */
export class Lost extends Error {}

const ICONS = { audio: "♪", video: "▶" };

let takes = []; // kinds that the model reads
let largest = Infinity; // bytes of a file
let attached = [];
let tell = () => {};

/** Listens to the button, pasting and dropping; `notice` shows what is wrong. */
export function begin(notice) {
  tell = notice;
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    add(byId("files").files);
    byId("files").value = "";
  });
  byId("prompt").addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!carries(event)) return;
      event.preventDefault(); // else the browser leaves the page and shows the file
      document.body.classList.toggle("dropping", takes.length > 0);
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carries(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
}

/** What the model reads, from the server's status. */
export function offer(status) {
  const before = takes.join();
  takes = Object.keys(KINDS).filter((kind) => status?.input_modalities?.includes(kind));
  largest = status?.media_bytes ?? Infinity;
  if (takes.join() === before) return;
  byId("attach").hidden = takes.length === 0;
  const name = `Attach ${words()}`;
  byId("attach").setAttribute("aria-label", name);
  byId("attach").title = name;
  byId("files").accept = takes.flatMap((kind) => [`${kind}/*`, ...KINDS[kind].endings.map((one) => `.${one}`)]).join(",");
  draw();
}

const words = () => takes.map((kind) => KINDS[kind].word).join(", ").replace(/, ([^,]*)$/, " or $1");

function kindOf(file) {
  const kind = file.type.split("/")[0];
  if (kind in KINDS) return kind;
  const ending = file.name.split(".").at(-1).toLowerCase();
  return Object.keys(KINDS).find((one) => KINDS[one].endings.includes(ending));
}

async function add(live) {
  tell("");
  for (const file of [...live]) { // a list of the browser is empty when the first of it has been read
    const name = file.name || "pasted";
    const kind = kindOf(file);
    if (!takes.includes(kind)) {
      tell(takes.length > 0 ? `${name}: this model reads text and ${words()}.` : `${name}: this model reads text only.`);
    } else if (file.size > largest) {
      tell(`${name} has ${file.size.toLocaleString()} bytes; the server takes ${largest.toLocaleString()}.`);
    } else {
      try {
        attached.push({ id: crypto.getRandomValues(new Uint32Array(3)).join("-"), kind, name, url: await read(file) });
        say(`${name} is attached.`);
      } catch {
        tell(`${name} cannot be read.`);
      }
    }
  }
  draw();
  byId("prompt").focus();
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function draw() {
  byId("attached").hidden = attached.length === 0;
  byId("attached").replaceChildren(...attached.map((one) => {
    const away = () => {
      attached = attached.filter((other) => other !== one);
      say(`${one.name} is removed.`);
      draw();
      byId("prompt").focus();
    };
    const look = one.kind === "image" ? make("img", { src: one.url, alt: "" }) : make("span", { class: "sign", "aria-hidden": "true" }, ICONS[one.kind]);
    return make("li", { title: one.name }, look, make("span", { class: "name" }, one.name), make("button", { type: "button", class: "icon", "aria-label": `Remove ${one.name}`, onclick: away }, "✕"));
  }));
}

export const any = () => attached.length > 0;

/** What is attached, kept for its message; nothing is attached any more. */
export function taken() {
  const found = attached;
  attached = [];
  draw();
  for (const { id, url } of found) attic.put(id, url);
  return found.map(({ id, kind, name }) => ({ id, kind, name }));
}

/** The content of a message as the server takes it. Raises what of it is not kept any more. */
export async function content(text, media) {
  if (!media?.length) return text;
  const parts = [];
  for (const { id, kind, name } of media) {
    const url = await attic.take(id);
    if (!url) throw new Lost(`${name} is not kept by this browser any more: attach it to a new message`);
    if (kind === "audio") parts.push({ type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format: name.split(".").at(-1).toLowerCase() } });
    else parts.push({ type: `${kind}_url`, [`${kind}_url`]: { url } });
  }
  return text.trim() ? [...parts, { type: "text", text }] : parts;
}

/** The media of a message; `grown` is called when one of them has taken its room. */
export function show(home, media, grown) {
  home.replaceChildren(...(media ?? []).map((one) => {
    const place = make("figure", { class: `medium ${one.kind}` });
    attic.take(one.id).then((url) => {
      if (!url) place.append(make("figcaption", {}, `${one.name} (not kept)`));
      else if (one.kind === "image") place.append(make("img", { src: url, alt: one.name, title: one.name, onload: grown }));
      else place.append(make(one.kind, { src: url, controls: true, "aria-label": one.name, onloadedmetadata: grown }), make("figcaption", {}, one.name));
      grown();
    });
    return place;
  }));
}
