// Pictures, videos and sounds that go with the next message: chosen, pasted or dropped; and how those of messages look.

import * as attic from "./attic.js";
import { byId, make, say } from "./dom.js";

// What of each kind the server reads: how browsers call it, and how files of it end.
const KINDS = {
  image: {
    word: "pictures", formats: "PNG, JPEG, WebP, GIF, BMP", endings: ["png", "jpg", "jpeg", "webp", "gif", "bmp"],
    types: ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/x-ms-bmp"],
  },
  audio: {
    word: "sounds", formats: "WAV, FLAC, Ogg, MP3", endings: ["wav", "flac", "ogg", "oga", "opus", "mp3"],
    types: ["audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/flac", "audio/x-flac", "audio/ogg", "audio/mpeg", "audio/mp3"],
  },
  video: {
    word: "videos", formats: "MP4, WebM, MOV, MKV", endings: ["mp4", "webm", "mov", "mkv"],
    types: ["video/mp4", "video/webm", "video/quicktime", "video/x-matroska", "video/matroska"],
  },
};
// Pictures that move are videos, too.
const MOVING = ["image/gif", "image/webp", "image/png"];

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
  const offered = takes.flatMap((kind) => [...KINDS[kind].types, ...KINDS[kind].endings.map((one) => `.${one}`)]);
  byId("files").accept = [...new Set([...offered, ...(takes.includes("video") ? [...MOVING, ".gif", ".webp", ".png"] : [])])].join(",");
  draw();
}

const words = () => takes.map((kind) => KINDS[kind].word).join(", ").replace(/, ([^,]*)$/, " or $1");

/** What a file is: image, audio or video; undefined for what no model is given. */
function kindOf(file) {
  const kinds = Object.keys(KINDS);
  const ending = file.name.split(".").at(-1).toLowerCase();
  return kinds.find((one) => KINDS[one].types.includes(file.type)) ?? kinds.find((one) => KINDS[one].endings.includes(ending));
}

/** Whether the bytes of a GIF, WebP or PNG hold more than one picture. */
export function moves(bytes) {
  const at = (place, text) => [...text].every((letter, i) => bytes[place + i] === letter.charCodeAt(0));
  const number = (place, little) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(place, little);
  if (at(0, "GIF8")) return gifFrames(bytes) > 1;
  if (at(0, "RIFF") && at(8, "WEBP")) {
    let frames = 0;
    for (let place = 12; place + 8 <= bytes.length; place += 8 + number(place + 4, true) + (number(place + 4, true) & 1)) frames += at(place, "ANMF");
    return frames > 1;
  }
  if (!at(0, "\x89PNG")) return false;
  for (let place = 8; place + 12 <= bytes.length && !at(place + 4, "IDAT"); place += 12 + number(place, false)) {
    if (at(place + 4, "acTL")) return number(place + 8, false) > 1;
  }
  return false;
}

// Two are enough to know.
function gifFrames(bytes) {
  const colours = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let place = 13 + colours(bytes[10]);
  let frames = 0;
  while (frames < 2 && place < bytes.length && bytes[place] !== 0x3b) {
    if (bytes[place] === 0x2c) {
      frames += 1;
      place += 11 + colours(bytes[place + 9]);
    } else {
      place += 2;
    }
    while (bytes[place] > 0) place += 1 + bytes[place];
    place += 1;
  }
  return frames;
}

/** The kind as which a file goes to the model: a picture that moves is a video, where the model takes those. */
async function meant(file) {
  const kind = kindOf(file);
  if (kind !== "image" || !takes.includes("video")) return kind;
  return !takes.includes("image") || moves(new Uint8Array(await file.arrayBuffer())) ? "video" : "image";
}

async function add(live) {
  tell("");
  for (const file of [...live]) { // a list of the browser is empty when the first of it has been read
    const name = file.name || "pasted";
    const kind = await meant(file).catch(() => kindOf(file));
    if (takes.length > 0 && !kind) {
      tell(`${name} is in no format that is read here: ${takes.map((one) => KINDS[one].formats).join(", ")}.`);
    } else if (!takes.includes(kind)) {
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
    const look = still(one.url) ? make("img", { src: one.url, alt: "" }) : make("span", { class: "sign", "aria-hidden": "true" }, ICONS[one.kind]);
    return make("li", { title: one.name }, look, make("span", { class: "name" }, one.name), make("button", { type: "button", class: "icon", "aria-label": `Remove ${one.name}`, onclick: away }, "✕"));
  }));
}

// What a browser shows as a picture, moving or not.
const still = (url) => url.startsWith("data:image/");

export const any = () => attached.length > 0;

/** What is attached, kept for its message; nothing is attached any more. */
export function taken() {
  const found = attached;
  attached = [];
  draw();
  for (const { id, url } of found) attic.put(id, url);
  return found.map(({ id, kind, name }) => ({ id, kind, name }));
}

/** Attaches the media of a message again, before what is attached; false if one of them is not kept any more. */
export async function giveBack(given) {
  const found = await Promise.all(given.map(async (one) => ({ ...one, url: await attic.take(one.id) })));
  if (!found.every(({ url }) => url)) return false;
  attached = [...found, ...attached];
  draw();
  return true;
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

/** What the server says of messages[2].content[0], with the name that the file has here. */
export function named(text, messages) {
  const told = text.replace(/messages\[(\d+)\]\.content\[(\d+)\](\.\w+)*/g, (place, message, part) => messages[message]?.media?.[part]?.name ?? place);
  const last = messages.at(-1)?.media;
  return last?.length === 1 && !messages.some(({ media }) => media?.some(({ name }) => told.includes(name))) ? `${last[0].name}: ${told}` : told;
}

/** The media of a message; `grown` is called when one of them has taken its room. */
export function show(home, media, grown) {
  home.replaceChildren(...(media ?? []).map((one) => {
    const place = make("figure", { class: `medium ${one.kind}` });
    attic.take(one.id).then((url) => {
      if (!url) place.append(make("figcaption", {}, `${one.name} (not kept)`));
      else if (still(url)) place.append(make("img", { src: url, alt: one.name, title: one.name, onload: grown }));
      else place.append(make(one.kind, { src: url, controls: true, "aria-label": one.name, onloadedmetadata: grown }), make("figcaption", {}, one.name));
      grown();
    });
    return place;
  }));
}
