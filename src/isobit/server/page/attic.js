// Pictures, videos and sounds of chats, as data: URLs. They are too large to lie beside the texts: this browser keeps them
// in a database, or until the page is closed where it lets pages have none.

const NAME = "isobit";
const STORE = "media";

const near = new Map();
let database = null;

function open() {
  database ??= new Promise((resolve) => {
    try {
      const asked = indexedDB.open(NAME, 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = asked.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return database;
}

/** What `ask` asks of the database; undefined if there is none, or it refuses. */
async function run(mode, ask) {
  const found = await open();
  if (!found) return undefined;
  return new Promise((resolve) => {
    try {
      const asked = ask(found.transaction(STORE, mode).objectStore(STORE));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => resolve(undefined);
    } catch {
      resolve(undefined);
    }
  });
}

export function put(id, url) {
  near.set(id, url);
  return run("readwrite", (store) => store.put(url, id));
}

/** The data: URL of a medium; undefined where it is not kept any more. */
export async function take(id) {
  if (!near.has(id)) {
    const found = await run("readonly", (store) => store.get(id));
    if (typeof found === "string") near.set(id, found);
  }
  return near.get(id);
}

/** Forgets all but these. */
export async function keepOnly(ids) {
  const kept = new Set(ids);
  const known = (await run("readonly", (store) => store.getAllKeys())) ?? [];
  for (const id of new Set([...known, ...near.keys()])) {
    if (kept.has(id)) continue;
    near.delete(id);
    await run("readwrite", (store) => store.delete(id));
  }
}
