// Chats, kept in this browser alone. A chat is a tree: editing a message or asking again begins a branch beside the old one.

const CHATS = "isobit.chats";
const LARGEST = 4_000_000; // characters: browsers keep about five million

let chats = load();

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(CHATS) ?? "[]");
    return Array.isArray(found) ? found.filter((chat) => chat && typeof chat.id === "string" && chat.nodes) : [];
  } catch {
    return [];
  }
}

/** Writes everything down; the oldest chats go when there is no room. */
export function save() {
  for (;;) {
    const text = JSON.stringify(chats);
    try {
      if (text.length <= LARGEST || chats.length <= 1) {
        localStorage.setItem(CHATS, text);
        return;
      }
    } catch { /* no room */ }
    if (chats.length <= 1) return;
    chats.pop();
  }
}

export const all = () => chats;

export function create() {
  const chat = { id: newId(), title: "", at: Date.now(), nodes: { root: { children: [], shown: 0 } } };
  chats.unshift(chat);
  return chat;
}

export function remove(chat) {
  chats = chats.filter((one) => one !== chat);
  save();
}

export function removeAll() {
  chats = [];
  save();
}

/** The chat was just used: first in the list. */
export function touch(chat) {
  chat.at = Date.now();
  chats = [chat, ...chats.filter((one) => one !== chat)];
}

/** A new message behind `parent`; it is the one shown from now on. */
export function append(chat, parent, message) {
  const id = newId();
  chat.nodes[id] = { ...message, parent, children: [], shown: 0 };
  const above = chat.nodes[parent];
  above.children.push(id);
  above.shown = above.children.length - 1;
  return id;
}

/** Takes a message and all that came behind it out of its chat; the branch beside it is shown again. */
export function take(chat, id) {
  const above = chat.nodes[chat.nodes[id].parent];
  const gone = [id];
  while (gone.length > 0) {
    const one = gone.pop();
    gone.push(...chat.nodes[one].children);
    delete chat.nodes[one];
  }
  above.children = above.children.filter((one) => one !== id);
  above.shown = Math.max(0, above.children.length - 1);
}

/** Ids of the messages that are shown, in order. */
export function path(chat) {
  const found = [];
  let node = chat.nodes.root;
  while (node && node.children.length > 0) {
    const id = node.children[Math.min(node.shown, node.children.length - 1)];
    found.push(id);
    node = chat.nodes[id];
  }
  return found;
}

/** Which of the branches at its place a message is, from 1 on, and how many there are. */
export function branch(chat, id) {
  const siblings = chat.nodes[chat.nodes[id].parent].children;
  return { place: siblings.indexOf(id) + 1, count: siblings.length };
}

/** Shows the branch `step` further at the place of a message. */
export function turn(chat, id, step) {
  const above = chat.nodes[chat.nodes[id].parent];
  above.shown = Math.max(0, Math.min(above.children.length - 1, above.children.indexOf(id) + step));
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
