// Markdown as answers have it, made into elements: headings, lists, tables, code, quotes, emphasis, links.
//
// Every text becomes a text node, so that what a model writes never becomes markup. Links lead to http, https and
// mailto only, and images are shown as links: an answer loads nothing. Each character is looked at a bounded number of
// times: an answer cannot make the page slow by opening what it never closes.

import { copy, make } from "./dom.js";

const DEEPEST = 6; // quotes and lists in each other
const MOST_COLUMNS = 64; // of a table: what is wider is shown as it was written

/** Shows an answer in `home`; blocks that are as they were keep their elements. */
export function show(home, text) {
  const blocks = split(text.split("\n"));
  const kept = home.shown ?? [];
  let same = 0;
  while (same < blocks.length && same < kept.length && kept[same] === blocks[same].source) same += 1;
  while (home.childNodes.length > same) home.lastChild.remove();
  for (const block of blocks.slice(same)) home.append(element(block, 0));
  home.shown = blocks.map((block) => block.source);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;

function split(lines) {
  const blocks = [];
  let at = 0;
  const take = (kind, end, more = {}) => {
    const part = lines.slice(at, end);
    blocks.push({ kind, lines: part, source: `${kind}\n${part.join("\n")}`, ...more });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") at += 1;
    else if (fence) take("code", fenceEnd(lines, at, fence[1]), { language: fence[2], fence: fence[1] });
    else if (HEADING.test(line)) take("heading", at + 1);
    else if (RULE.test(line)) take("rule", at + 1);
    else if (line.startsWith(">")) take("quote", end(lines, at, (one) => one.startsWith(">")));
    else if (ITEM.test(line)) take("list", listEnd(lines, at));
    else if (isTable(lines, at)) take("table", end(lines, at, (one) => one.includes("|")));
    else take("paragraph", end(lines, at + 1, (one) => one.trim() !== "" && !FENCE.test(one) && !HEADING.test(one) && !one.startsWith(">") && !ITEM.test(one)));
  }
  return blocks;
}

function end(lines, at, belongs) {
  while (at < lines.length && belongs(lines[at])) at += 1;
  return at;
}

function fenceEnd(lines, at, mark) {
  for (let next = at + 1; next < lines.length; next += 1) {
    const line = lines[next].trim();
    if (line.startsWith(mark) && line === line[0].repeat(line.length)) return next + 1;
  }
  return lines.length;
}

function listEnd(lines, at) {
  const [, indent, first] = ITEM.exec(lines[at]);
  const another = (line) => { // a list of the other kind beside this one
    const found = ITEM.exec(line);
    return found !== null && found[1].length <= indent.length && /\d/.test(found[2]) !== /\d/.test(first);
  };
  const inside = (line) => (ITEM.test(line) && !another(line)) || /^ {2,}\S/.test(line);
  while (at < lines.length) {
    if (inside(lines[at]) || (lines[at].trim() === "" && at + 1 < lines.length && inside(lines[at + 1]))) at += 1;
    else break;
  }
  return at;
}

function isTable(lines, at) {
  const next = lines[at + 1];
  if (next === undefined || !lines[at].includes("|") || !next.includes("-") || !next.includes("|") || !/^[\s|:-]+$/.test(next)) return false;
  const columns = cells(lines[at]).length;
  return columns <= MOST_COLUMNS && columns === cells(next).length;
}

function element(block, depth) {
  return MAKERS[block.kind](block, depth);
}

const MAKERS = {
  paragraph: ({ lines }) => make("p", {}, ...inline(lines.join("\n"))),
  rule: () => make("hr"),
  heading: ({ lines }) => {
    const level = HEADING.exec(lines[0])[1].length;
    return make(`h${Math.min(6, level + 2)}`, {}, ...inline(withoutMarks(lines[0].replace(HEADING, ""))));
  },
  code: ({ lines, language, fence }) => {
    const last = lines[lines.length - 1].trim();
    const closed = lines.length > 1 && last.startsWith(fence) && last === last[0].repeat(last.length);
    const text = lines.slice(1, closed ? -1 : undefined).join("\n");
    const button = make("button", { type: "button", class: "quiet", onclick: () => copy(text, button) }, "Copy");
    return make("figure", { class: "code" }, make("figcaption", {}, make("span", {}, language || "text"), button), make("pre", { tabIndex: 0 }, make("code", {}, text)));
  },
  quote: ({ lines }, depth) => {
    const inner = lines.map((line) => line.replace(/^> ?/, ""));
    return make("blockquote", {}, ...within(inner, depth));
  },
  list: ({ lines }, depth) => list(lines, depth),
  table: ({ lines }) => {
    const rows = lines.map(cells);
    const head = make("tr", {}, ...rows[0].map((cell) => make("th", { scope: "col" }, ...inline(cell))));
    const body = rows.slice(2).map((row) => make("tr", {}, ...row.slice(0, rows[0].length).map((cell) => make("td", {}, ...inline(cell)))));
    return make("div", { class: "table", tabIndex: 0 }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  },
};

/** A heading without the number signs that may close it. */
function withoutMarks(text) {
  const whole = text.trimEnd();
  let end = whole.length;
  while (end > 0 && whole[end - 1] === "#") end -= 1;
  return end === 0 || whole[end - 1] === " " ? whole.slice(0, end).trimEnd() : whole;
}

function within(lines, depth) {
  if (depth >= DEEPEST) return [make("p", {}, lines.join("\n"))];
  return split(lines).map((block) => element(block, depth + 1));
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= first[1].length + 1) items.push([line.slice(found[0].length)]);
    else items[items.length - 1].push(line.slice(Math.min(first[0].length, line.length - line.trimStart().length)));
  }
  const made = items.map((item) => {
    const blocks = within(item, depth);
    const lone = blocks.length > 0 && blocks[0].tagName === "P"; // an item's own text needs no paragraph of its own
    return make("li", {}, ...(lone ? [...blocks[0].childNodes, ...blocks.slice(1)] : blocks));
  });
  return make(ordered ? "ol" : "ul", ordered && Number.parseInt(first[2], 10) !== 1 ? { start: Number.parseInt(first[2], 10) } : {}, ...made);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split("|").map((cell) => cell.trim());
}

const ESCAPABLE = /[!-/:-@[-`{-~]/;
const MARKS = ["***", "**", "~~", "*", "__", "_"];
const TAGS = { "***": ["strong", "em"], "**": ["strong"], "__": ["strong"], "*": ["em"], _: ["em"], "~~": ["del"] };

/** Nodes of a run of text. */
export function inline(text, depth = 0) {
  const nodes = [];
  const none = {}; // marks that are not closed behind some place: nobody looks for them again
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  const find = (mark, from) => {
    if (none[mark] !== undefined && none[mark] <= from) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) none[mark] = from;
    return found;
  };
  let at = 0;
  while (at < text.length) {
    const letter = text[at];
    if (letter === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const found = letter === "`" ? code(text, at, find) : letter === "[" ? link(text, at, find, depth) : letter === "<" || letter === "h" ? address(text, at) : mark(text, at, find, depth);
    if (found === null) {
      plain += letter;
      at += 1;
    } else {
      flush();
      nodes.push(...found.nodes);
      at = found.end;
    }
  }
  flush();
  return nodes;
}

function code(text, at, find) {
  let ticks = 1;
  while (text[at + ticks] === "`" && ticks < 8) ticks += 1;
  const close = find("`".repeat(ticks), at + ticks);
  if (close < 0) return null;
  const inner = text.slice(at + ticks, close);
  return { nodes: [make("code", {}, /^ .* $/s.test(inner) ? inner.slice(1, -1) : inner)], end: close + ticks };
}

function link(text, at, find, depth) {
  const middle = find("](", at + 1);
  if (middle < 0 || middle - at > 1000) return null;
  const close = find(")", middle + 2);
  if (close < 0 || close - middle > 4000) return null;
  const target = safe(text.slice(middle + 2, close).trim().split(/\s/, 1)[0]);
  if (target === null) return null;
  const label = text.slice(at + 1, middle);
  return { nodes: [anchor(target, depth < DEEPEST ? inline(label, depth + 1) : [label])], end: close + 1 };
}

function address(text, at) {
  const open = text[at] === "<" ? 1 : 0;
  if (!text.startsWith("http://", at + open) && !text.startsWith("https://", at + open)) return null;
  const found = /^[^\s<>"`]{8,2000}/.exec(text.slice(at + open, at + open + 2000));
  if (found === null) return null;
  const shown = open ? found[0] : found[0].replace(/[.,;:!?)\]'*_]+$/, "");
  const target = safe(shown);
  if (target === null) return null;
  const closes = open && text[at + 1 + shown.length] === ">" ? 1 : 0;
  return { nodes: [anchor(target, [shown])], end: at + open + shown.length + closes };
}

function safe(target) {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(target).protocol) ? target : null;
  } catch {
    return null;
  }
}

const anchor = (href, nodes) => make("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...nodes);

function mark(text, at, find, depth) {
  const found = MARKS.find((one) => text.startsWith(one, at));
  if (found === undefined || depth >= DEEPEST) return null;
  const next = text[at + found.length] ?? " ";
  const word = /\w/;
  if (/\s/.test(next) || (found[0] === "_" && word.test(text[at - 1] ?? " "))) return null;
  let close = find(found, at + found.length + 1);
  for (let tries = 0; close >= 0 && tries < 8; tries += 1) {
    const inWord = found[0] === "_" && word.test(text[close + found.length] ?? " ");
    if (!/\s/.test(text[close - 1]) && !inWord) break;
    close = find(found, close + 1);
    if (tries === 7) return null;
  }
  if (close < 0 || close - at > 4000) return null;
  const nodes = TAGS[found].reduceRight((inner, tag) => [make(tag, {}, ...inner)], inline(text.slice(at + found.length, close), depth + 1));
  return { nodes, end: close + found.length };
}
