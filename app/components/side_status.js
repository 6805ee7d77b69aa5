/* The line under an answer: what this side is doing, its speed and memory, how far it is from full precision, and where it
   parts from the other side's answer.

   This file is the body of a function that gr.HTML calls once, with element, props and watch (see equalizer.js).
   In: props.value (see side_status.py) and the rendered answer in the Chatbot named by root.dataset.chat.
   Tokens are marked with CSS highlights over the rendered text: by how far they are from full precision, and where they differ. Markdown drops characters, so text and
   rendering are walked side by side, white space left out. Browsers without CSS highlights show the sentence alone.
   The joiners that app/markdown.py puts into the Markdown go as soon as it is drawn, and never reach the clipboard. */

const root = element.querySelector(".side-status");
const LOOK_AHEAD = 80; /* characters of the text that the rendering may leave out in one place: a link's address, a table's rule */
const JOINER = "\u2060";
const NAME = `quept-parting-${root.dataset.chat}`;
const highlights = window.CSS?.highlights;
let value = {};
let chat = null;
let asked = 0;
let looking = 0;

function make(tag, name, parent, attributes = {}) {
  const node = document.createElement(tag);
  node.className = name;
  for (const [key, text] of Object.entries(attributes)) node.setAttribute(key, text);
  parent.append(node);
  return node;
}

const head = make("div", "head", root);
const state = make("div", "state", head, { role: "status", "aria-live": "polite" });
make("span", "dot", state, { "aria-hidden": "true" });
const words = make("span", "words", state);
const line = make("div", "line", head);
const note = make("div", "note", head);
const legend = make("div", "legend", head, { hidden: "" });
const bars = make("ol", "bars", root, { hidden: "" });
const facts = make("dl", "facts", root);
const tip = make("div", "tip", root, { role: "tooltip", hidden: "" });
const track = make("div", "track", root, { role: "progressbar", "aria-label": "Preparing and reading", "aria-valuemin": 0, "aria-valuemax": 100 });
const bar = make("span", "bar", track);

/* ---- the marks ---- */

/* From which KL a token is underlined, and how; the tint comes with it, so that colour alone says nothing. */
const LEVELS = [
  { from: 0.1, line: "dotted 2px", light: "#fdf0d5", dark: "#3d3217", tone: "#a86500" },
  { from: 0.5, line: "dashed 2px", light: "#fbdcc4", dark: "#54301c", tone: "#c2410c" },
  { from: 1.5, line: "double 4px", light: "#f8c4c4", dark: "#632428", tone: "#b91c1c" },
];
const levelOf = (kl) => LEVELS.filter(({ from }) => kl >= from).length;
const lit = (level) => `quept-kl-${level}-${root.dataset.chat}`;
/* Up to how many bits a word has a tint, where tokens got bits of their own: the fewer, the deeper. */
const SPENT = [
  { to: 3, light: "#bfdbfe", dark: "#1e3a8a" },
  { to: 4.5, light: "#dbeafe", dark: "#1e3a5f" },
  { to: 6, light: "#eff6ff", dark: "#1b2b45" },
];
const spentOf = (bits) => SPENT.findIndex(({ to }) => bits <= to);
const tinted = (i) => `quept-bits-${i}-${root.dataset.chat}`;
const DIFFERS = `quept-differs-${root.dataset.chat}`;
const scored = new Map(); /* turn -> {text, scores, differs} */
let places = []; /* [range, score, bits] of what is marked now, either null where it is not known */

function style() {
  if (document.getElementById("quept-parting-style")) return;
  const sheet = document.createElement("style");
  sheet.id = "quept-parting-style";
  const both = (prefix, name) =>
    ["left", "right"].map((side) => `${prefix}::highlight(${name}-chat-${side})`).join(", ");
  sheet.textContent =
    SPENT.map(({ light, dark }, i) =>
      `${both("", `quept-bits-${i}`)} { background-color: ${light}; }` +
      `${both(".dark ", `quept-bits-${i}`)} { background-color: ${dark}; }`,
    ).join("") +
    LEVELS.map(({ line, light, dark, tone }, i) =>
      `${both("", `quept-kl-${i + 1}`)} { background-color: ${light}; color: #1f1300; text-decoration: underline ${line} ${tone}; }` +
      `${both(".dark ", `quept-kl-${i + 1}`)} { background-color: ${dark}; color: #fff3d6; text-decoration: underline ${line} ${light}; }`,
    ).join("") +
    `${both("", "quept-differs")} { text-decoration: underline solid 2px #b45309; }` +
    `${both(".dark ", "quept-differs")} { text-decoration: underline solid 2px #f6b73c; }` +
    `${both("", "quept-parting")} { background-color: #ffd166; color: #1f1300; text-decoration: underline 2px solid #b45309; }` +
    `${both(".dark ", "quept-parting")} { background-color: #f6b73c; color: #1f1300; text-decoration: underline 2px solid #fff3d6; }`;
  document.head.append(sheet);
}

/* The ranges of the rendered answer that stand for spans of the text, [start, length], in their order; null for one
   of which none is on the screen yet. Where all of a token was dropped by the rendering (a line break, an asterisk)
   the next character stands for it. */
function locate(answer, text, spans) {
  const found = spans.map(() => null);
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT, (node) =>
    node.parentElement.closest("button, svg") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT,
  );
  let at = 0;
  let k = 0;
  for (let node = walker.nextNode(); node && k < spans.length; node = walker.nextNode()) {
    const shown = node.data;
    for (let i = 0; i < shown.length; i += 1) {
      const character = shown[i];
      if (character.trim() === "") continue;
      let next = at;
      while (next < text.length && next - at < LOOK_AHEAD && text[next] !== character) next += 1;
      if (text[next] !== character) continue;
      at = next + 1;
      while (k < spans.length && next >= spans[k][0] + spans[k][1] && (found[k] || !spans[k][1])) k += 1;
      if (k === spans.length) break;
      if (next < spans[k][0]) continue;
      found[k] ??= document.createRange();
      if (found[k].startContainer === document) found[k].setStart(node, i);
      found[k].setEnd(node, i + 1);
      if (at >= spans[k][0] + spans[k][1]) k += 1;
    }
  }
  return found;
}

function paint(name, ranges) {
  const known = ranges.filter(Boolean);
  if (known.length) highlights.set(name, new Highlight(...known));
  else highlights.delete(name);
}

function mark() {
  asked = 0;
  if (chat) clean();
  const answers = [...(chat?.querySelectorAll('[data-testid="bot"]') ?? [])];
  label(answers);
  if (!highlights) return;
  if (root.closest('[data-round="asking"]')) return unmark();
  const last = answers[answers.length - 1];
  const parting = value.mark && last ? locate(last, value.text ?? "", [value.mark]) : [];
  paint(NAME, parting);
  const tokens = LEVELS.map(() => []);
  const differs = [];
  const spent = SPENT.map(() => []);
  places = [];
  for (const [turn, { text, scores, bits, differs: spans }] of scored) {
    if (!answers[turn]) continue;
    locate(answers[turn], text, bits).forEach((range, i) => {
      if (!range) return;
      places.push([range, null, bits[i]]);
      if (spentOf(bits[i][2]) >= 0) spent[spentOf(bits[i][2])].push(range);
    });
    locate(answers[turn], text, scores).forEach((range, i) => {
      if (!range) return;
      places.push([range, scores[i], null]);
      const level = levelOf(scores[i][2]);
      if (level) tokens[level - 1].push(range);
    });
    differs.push(...locate(answers[turn], text, spans));
  }
  spent.forEach((ranges, i) => paint(tinted(i), ranges));
  tokens.forEach((ranges, i) => paint(lit(i + 1), ranges));
  paint(DIFFERS, differs);
}

/* In a blind round nothing says whose an answer is. */
function unmark() {
  places = [];
  tip.hidden = true;
  for (const name of [NAME, DIFFERS, ...LEVELS.map((_, i) => lit(i + 1)), ...SPENT.map((_, i) => tinted(i))]) highlights.delete(name);
}

/* Above every answer the plan that wrote it. */
function label(answers) {
  answers.forEach((answer, i) => {
    const plan = value.labels?.[i] ?? "";
    if ((answer.dataset.plan ?? "") !== plan) answer.dataset.plan = plan;
  });
}

/* What a token under the pointer has to say, in words beside it. */
function tell(event) {
  const caret = document.caretPositionFromPoint?.(event.clientX, event.clientY);
  const spots = caret ? places.filter(([range]) => range.isPointInRange(caret.offsetNode, caret.offset)) : [];
  tip.hidden = !spots.length;
  if (!spots.length) return;
  say(tip, spots.map(told).join(" · "));
  const box = spots[0][0].getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${box.top > 40 ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
}

function told([, score, bits]) {
  if (bits) return `${bits[2]} bits`;
  const [, , kl, other] = score;
  const said = other === null ? "full precision would say the same" : `full precision would say “${other.trim() || "another break"}”`;
  return `KL ${kl > 0 && kl < 1e-4 ? "<0.0001" : kl}: ${said}`;
}

function clean() {
  const walker = document.createTreeWalker(chat, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.data.includes(JOINER)) node.data = node.data.replaceAll(JOINER, "");
  }
}

function copyClean() {
  const clipboard = navigator.clipboard;
  if (!clipboard || Object.hasOwn(clipboard, "writeText")) return;
  clipboard.writeText = (text) => Clipboard.prototype.writeText.call(clipboard, text.replaceAll(JOINER, ""));
}

/* Gradio draws an answer a moment after it arrives, and may put the whole chat anew: look again whenever it changed. */
function soon() {
  if (!asked) asked = requestAnimationFrame(mark);
}

/* The chat may be drawn after this: then look again a little later. */
function follow() {
  if (!root.dataset.chat) return;
  const found = document.getElementById(root.dataset.chat);
  if (found === chat && chat) return;
  chat = found;
  if (chat) {
    copyClean();
    for (const happened of ["pointermove", "click"]) chat.addEventListener(happened, tell);
    chat.addEventListener("pointerleave", () => (tip.hidden = true));
    new MutationObserver(soon).observe(chat, { childList: true, subtree: true, characterData: true });
    soon();
  } else if (element.isConnected) {
    clearTimeout(looking);
    looking = setTimeout(follow, 250);
  }
}

/* ---- drawing ---- */

/* Writes only what changed: a live region speaks when it is written to. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function drawFacts(pairs) {
  while (facts.children.length > pairs.length) facts.lastChild.remove();
  pairs.forEach(([name, text, explained], i) => {
    const fact = facts.children[i] ?? make("div", "fact", facts);
    if (!fact.firstChild) {
      make("dt", "name", fact);
      make("dd", "value", fact);
    }
    fact.title = explained ?? "";
    say(fact.firstChild, name);
    say(fact.lastChild, text);
  });
}

function drawBars(rows) {
  bars.hidden = !rows.length;
  while (bars.children.length > rows.length) bars.lastChild.remove();
  rows.forEach(([name, share, more], i) => {
    const row = bars.children[i] ?? make("li", "choice", bars);
    if (!row.firstChild) for (const part of ["name", "more", "share", "gauge"]) make("span", part, row);
    const [label, words, value, gauge] = row.children;
    say(label, name);
    say(words, more ?? "");
    say(value, `${(100 * share).toFixed(1)} %`);
    gauge.style.setProperty("--share", share);
    row.title = name;
  });
}

function remember() {
  if (typeof value.turn !== "number") scored.clear();
  for (const turn of [...scored.keys()]) if (turn >= value.turn) scored.delete(turn);
  if (value.scores?.length || value.differs?.length || value.bits?.length) {
    const { text = "", scores = [], differs = [], bits = [] } = value;
    scored.set(value.turn, { text: text ?? "", scores: scores ?? [], differs: differs ?? [], bits: bits ?? [] });
  }
  const turns = [...scored.values()];
  legend.hidden = !turns.some(({ scores }) => scores.length);
  other.hidden = !turns.some(({ differs }) => differs.length);
}

function draw() {
  value = props.value && typeof props.value === "object" ? props.value : {};
  root.dataset.state = value.state ?? "idle";
  say(words, value.words ?? "");
  say(line, value.line ?? "");
  line.dataset.parted = value.parted ? "yes" : "no";
  say(note, [value.own, value.note].filter(Boolean).join(". "));
  remember();
  drawBars(Array.isArray(value.bars) ? value.bars : []);
  drawFacts(Array.isArray(value.facts) ? value.facts : []);
  const known = typeof value.progress === "number";
  track.classList.toggle("idle", !known);
  track.setAttribute("aria-valuenow", known ? Math.round(100 * value.progress) : 0);
  bar.style.transform = `scaleX(${known ? Math.min(1, Math.max(0, value.progress)) : 0})`;
  follow();
  soon();
}

for (const [i, { from, line, tone }] of LEVELS.entries()) {
  if (!i) legend.append("KL from full precision: ");
  const sample = make("span", "level", legend);
  sample.textContent = `over ${from}`;
  sample.style.textDecoration = `underline ${line} ${tone}`;
}
const other = make("span", "level", legend);
other.textContent = "not what the other side says";
other.style.textDecoration = "underline solid 2px #b45309";
legend.append("tap a word for its values");
style();
watch("value", draw);
document.addEventListener("quept:blind", function onBlind() {
  if (element.isConnected) return soon();
  document.removeEventListener("quept:blind", onBlind);
});
draw();
