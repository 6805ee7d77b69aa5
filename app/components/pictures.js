/* A row of pictures, each with what the plan on the faders answers to it, again whenever that plan changes.

   This file, after dom.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.value (the pictures), props.answers (what was answered), props.again (another number asks
               anew), see pictures.py;
     trigger   trigger("look", {turn, id, plan}) when other answers are wanted;
     watch     watch("value", f) calls f when Python sent others.

   One look is under way at a time, and none while a fader moves. The rows of one page tell
   each other which picture is chosen by `quept:picture` on document: {id, item}. */

const PATIENCE_MS = 20000; // after which an answer that did not come is given up
const root = element.querySelector(".pictures");
const { live, paste_into: input } = props.value ?? {};
let value = {};
let chosen = null; // the chosen picture's item
let plan = window.queptPrediction?.plan ?? null;
let turn = 0, waiting = 0, stale = false, dragging = false, since = 0;
let rows = {};
let view = null;

function build() {
  view = {
    title: make("h3", { text: "" }),
    gist: make("p", { class: "gist", role: "status" }),
    strip: make("div", { class: "strip", role: "group" }),
    large: make("figure", { class: "large" }),
  };
  const list = make("div", { class: "list" }, make("div", { class: "head" }, view.title, view.gist), view.strip);
  root.replaceChildren(...(live ? [view.large] : []), list);
  view.strip.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button) choose(value.items[Number(button.dataset.at)]);
  });
  view.strip.addEventListener("keydown", onKey);
}

function onKey(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const buttons = [...view.strip.children], at = buttons.indexOf(document.activeElement);
  if (!by || at < 0) return;
  event.preventDefault();
  const next = buttons[Math.min(buttons.length - 1, Math.max(0, at + by))];
  next.focus();
  next.click();
}

function onValue() {
  value = props.value && typeof props.value === "object" ? props.value : {};
  value = { ...value, items: value.items ?? [] };
  view.title.firstChild.data = value.title ?? "";
  view.strip.setAttribute("aria-label", value.title ?? "Pictures");
  root.classList.toggle("none", !value.items.length);
  root.hidden = !live && !value.items.length && !value.empty; // nothing to show, nothing to say
  view.strip.classList.toggle("worded", !live); // its words do not change: they may take two lines
  view.strip.replaceChildren(...value.items.map(thumbnail));
  if (!value.items.length) view.gist.textContent = value.empty ?? "";
  else if (!live) view.gist.textContent = value.words ?? "";
  if (live) {
    const wanted = value.items.find(({ id }) => id === value.selected) ?? value.items[0] ?? null;
    if (wanted && wanted.id !== chosen?.id) return choose(wanted);
    if (!wanted) drawLarge();
    ask();
  }
  mark();
}

function thumbnail(item, at) {
  const picture = make("img", { src: item.source, alt: "", draggable: "false" });
  const words = make("span", { class: "words", text: item.words ?? "" });
  const button = make("button", { type: "button", "data-at": at, "data-id": item.id }, picture, words);
  if (at) button.tabIndex = -1;
  describe(button, item, item.words ?? "");
  return button;
}

function describe(button, item, words) {
  const label = [item.name, item.label && `labelled ${item.label}`, words].filter(Boolean).join(", ");
  button.setAttribute("aria-label", label);
  button.title = label;
}

function choose(item, quietly = false) {
  if (!item) return;
  chosen = item;
  mark();
  if (!quietly) document.dispatchEvent(new CustomEvent("quept:picture", { detail: { id: item.id, item } }));
  if (!live) return;
  drawLarge();
  remember();
  ask();
}

function onPicture({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:picture", onPicture);
  if (detail.id !== chosen?.id) choose(detail.item, true);
}

function mark() {
  const buttons = [...view.strip.children];
  const at = buttons.findIndex((button) => button.dataset.id === chosen?.id);
  buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === at));
    button.tabIndex = i === Math.max(at, 0) ? 0 : -1;
  });
}

/* The example chosen is part of the address; a picture of the visitor's own is on no server to come back to. */
function remember() {
  const url = new URL(window.location.href);
  const [kind, row] = chosen.id.split(":");
  if (url.searchParams.get("p") !== "classify") return;
  if (kind === "example") url.searchParams.set("i", row);
  else url.searchParams.delete("i");
  window.history.replaceState(window.history.state, "", url.href);
}

function drawLarge() {
  if (!chosen) return view.large.replaceChildren();
  const alt = `${chosen.name}${chosen.label ? `, labelled ${chosen.label}` : ""}`;
  const caption = make("figcaption", {}, make("b", { text: chosen.name }),
    make("span", { text: chosen.label ? `labelled ${chosen.label}` : chosen.note || "no label" }));
  const parts = [make("img", { src: chosen.source, alt, class: "main" })];
  if (chosen.seen) {
    const seen = make("img", { src: chosen.seen, alt: "the same picture as the model sees it" });
    parts.push(make("span", { class: "seen" }, seen, make("span", { text: "as the model sees it" })));
  }
  view.large.replaceChildren(make("div", { class: "frame" }, ...parts), caption);
}

/* ---- asking, and what is answered ---- */

function ask() {
  if (!live || !plan || !element.offsetParent) return void (stale = true);
  if (waiting && performance.now() - since < PATIENCE_MS) return void (stale = true);
  stale = false;
  turn += 1;
  waiting = turn;
  since = performance.now();
  root.classList.add("busy");
  trigger("look", { turn, id: chosen?.id ?? null, plan });
}

function onPredict({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:predict", onPredict);
  const moved = JSON.stringify(detail.plan) !== JSON.stringify(plan);
  plan = detail.plan;
  dragging = detail.dragging;
  stale ||= moved;
  if (stale && !dragging) ask(); // nothing is asked for while a fader moves
}

function onAnswers() {
  const { answers } = props;
  if (!answers || answers.turn !== waiting) return;
  waiting = 0;
  if (answers.error) view.gist.textContent = answers.error;
  else drawAnswers(answers.rows ?? {});
  root.classList.toggle("failed", Boolean(answers.error));
  root.classList.remove("busy");
  if (stale && !dragging) ask();
}

const percent = (share) => `${Math.round(100 * share)} %`;

function drawAnswers(found) {
  rows = found;
  let same = 0, all = 0;
  for (const button of view.strip.children) {
    const item = value.items[Number(button.dataset.at)], row = rows[item.id];
    if (!row) continue;
    const [theirs, , ours, share] = row;
    const changed = theirs !== ours;
    const words = button.querySelector(".words");
    all += 1;
    same += changed ? 0 : 1;
    button.classList.toggle("changed", changed);
    words.firstChild.data = changed ? `→ ${ours}` : `${ours}`;
    describe(button, item, changed ? `changed: ${theirs} became ${ours}, ${percent(share)}` : `${ours}, ${percent(share)}`);
  }
  const say = same === all ? "This plan answers all of them as full precision does."
    : `This plan changes the answer to ${all - same} of ${all}.`;
  if (all && view.gist.textContent !== say) view.gist.textContent = say;
}

/* A picture on the clipboard goes where an uploaded one goes. */
function onPaste(event) {
  if (!element.isConnected) return document.removeEventListener("paste", onPaste);
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (!file || !element.offsetParent) return;
  const field = document.querySelector(`#${CSS.escape(input)} input[type="file"]`);
  if (!field) return;
  event.preventDefault();
  const carrier = new DataTransfer();
  carrier.items.add(file);
  field.files = carrier.files;
  field.dispatchEvent(new Event("change", { bubbles: true }));
}

build();
document.addEventListener("quept:picture", onPicture);
if (live) {
  document.addEventListener("quept:predict", onPredict);
  document.addEventListener("paste", onPaste);
  new IntersectionObserver((seen) => { if (stale && seen.some((one) => one.isIntersecting)) ask(); }).observe(root);
  watch("answers", onAnswers);
  watch("again", ask);
}
watch("value", onValue);
onValue();
