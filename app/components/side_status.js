/* The line under an answer: what this side is doing, its speed and memory, and where it parts from the other side's answer.

   This file is the body of a function that gr.HTML calls once, with element, props and watch (see equalizer.js).
   In: props.value (see side_status.py) and the rendered answer in the Chatbot named by root.dataset.chat.
   The first token that differs is marked with a CSS highlight over the rendered text. Markdown drops characters, so text and
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
const bars = make("ol", "bars", root, { hidden: "" });
const facts = make("dl", "facts", root);
const track = make("div", "track", root, { role: "progressbar", "aria-label": "Preparing and reading", "aria-valuemin": 0, "aria-valuemax": 100 });
const bar = make("span", "bar", track);

/* ---- the mark ---- */

function style() {
  if (document.getElementById("quept-parting-style")) return;
  const sheet = document.createElement("style");
  sheet.id = "quept-parting-style";
  const both = (prefix) => ["left", "right"].map((side) => `${prefix}::highlight(quept-parting-chat-${side})`).join(", ");
  sheet.textContent =
    `${both("")} { background-color: #ffd166; color: #1f1300; text-decoration: underline 2px solid #b45309; }` +
    `${both(".dark ")} { background-color: #f6b73c; color: #1f1300; text-decoration: underline 2px solid #fff3d6; }`;
  document.head.append(sheet);
}

/* The range of the rendered answer that stands for text[start, start + length); null when none of it is on the screen yet.
   Where all of the token was dropped by the rendering (a line break, an asterisk) the next character stands for it. */
function locate(answer, text, start, length) {
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT, (node) =>
    node.parentElement.closest("button, svg") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT,
  );
  const end = start + length;
  let at = 0;
  let range = null;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const shown = node.data;
    for (let i = 0; i < shown.length; i += 1) {
      const character = shown[i];
      if (character.trim() === "") continue;
      let next = at;
      while (next < text.length && next - at < LOOK_AHEAD && text[next] !== character) next += 1;
      if (text[next] !== character) continue;
      at = next + 1;
      if (next < start) continue;
      if (next >= end && range) return range;
      if (!range) {
        range = document.createRange();
        range.setStart(node, i);
      }
      range.setEnd(node, i + 1);
      if (at >= end) return range;
    }
  }
  return range;
}

function mark() {
  asked = 0;
  if (chat) clean();
  if (!highlights) return;
  const answers = chat?.querySelectorAll('[data-testid="bot"]') ?? [];
  const answer = answers[answers.length - 1];
  const range = value.mark && answer ? locate(answer, value.text ?? "", value.mark[0], value.mark[1]) : null;
  if (range) highlights.set(NAME, new Highlight(range));
  else highlights.delete(NAME);
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

function draw() {
  value = props.value && typeof props.value === "object" ? props.value : {};
  root.dataset.state = value.state ?? "idle";
  say(words, value.words ?? "");
  say(line, value.line ?? "");
  line.dataset.parted = value.parted ? "yes" : "no";
  drawBars(Array.isArray(value.bars) ? value.bars : []);
  drawFacts(Array.isArray(value.facts) ? value.facts : []);
  const known = typeof value.progress === "number";
  track.classList.toggle("idle", !known);
  track.setAttribute("aria-valuenow", known ? Math.round(100 * value.progress) : 0);
  bar.style.transform = `scaleX(${known ? Math.min(1, Math.max(0, value.progress)) : 0})`;
  follow();
  soon();
}

style();
watch("value", draw);
draw();
