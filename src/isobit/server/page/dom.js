// Elements. Text is always set as text: nothing here, or anywhere on this page, makes markup of a string.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, `on...` listeners, else properties or attributes) and children. */
export function make(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "object") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** What a screen reader is told, once. */
export function say(text) {
  byId("said").textContent = text;
}

/** Copies text; the button says whether that worked. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = copyByHand(text) ? "Copied" : "Not allowed";
  }
  setTimeout(() => { button.textContent = before; }, 1200);
}

// Without https, and beyond this machine, browsers have no clipboard for pages.
function copyByHand(text) {
  const area = make("textarea", { class: "unseen", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
