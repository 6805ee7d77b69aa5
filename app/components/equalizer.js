/* The equaliser: bits of every layer, one fader per block, painted by dragging; under it a map of all layers.

   This file, after dom.js, terms.js, plan.js, why.js, locks.js and picker.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.description, what describe(model) returns; props.value, the plan, which tells Python;
     trigger   trigger("commit") after an edit, never while the pointer is down;
     watch     watch("value", f) calls f when Python sent another value.

   Nothing leaves the browser during a drag. Every change is told to the page at once, as the DOM event
   quept:predict on document, and kept in window.queptPrediction: what tellingOf in plan.js makes of it, with
     plan      what the faders show, and locked, the numbers of the layers that may not move, and their names;
     dragging  whether the visitor has not let go yet;
     undo, redo  whether there is anything to take back, or to do again.
   The page may speak to it too, with DOM events on document:
     quept:propose {plan: {w, e, a, kv} or parts of it, done}: a plan to show, as if it were being painted, and
       with done to keep, as an edit of the visitor; plan null takes back what was shown;
     quept:undo, quept:redo: as the keys do;
     quept:look {layer}: go to this layer's cell.

   The elements are made once per model; a change writes only the cells and faders it touches, once per frame.
   All text is written as text nodes: names may come from anywhere.

   In order: edits and their history, drawing, painting, keys, the map, the link, the start. */

const HISTORY = 200; // undo steps kept
const KEY_PAUSE_MS = 600; // a key that never comes up commits after this
const TYPED = 'textarea, [contenteditable], input:not([type="range"], [type="radio"], [type="checkbox"], [type="file"])';
const SLOP_PX = 5; // a finger that moved less has tapped
const EDGE_PX = 30; // painting this near to the edge scrolls
const ALL = -1; // a row or column number that means all of them
const KINDS = { w: "weights", a: "activations", kv: "the KV cache" };
const MIXED = "mixed"; // in the menu of the KV cache, where blocks differ
const SINGLES = { // widths that are one for the whole model: label, and its end where there is room
  e: ["Embeddings", " and head"],
  kv: ["KV", " cache"],
};

const root = element.querySelector(".equalizer");
let model; // the description, indexed
let plan; // what the screen shows, changed in place during an edit
let committed; // the last plan that Python knows
let past, future; // committed plans, for undo and redo
let fresh; // a model was drawn before its plan came: the plan is then no edit
let switched = false; // another model was drawn, with the plan of the one before where that fits: its own comes now
let entry = "replaceState"; // how the address is written next: another model makes an entry in the history
let kind = "w"; // which bits the faders move: "w", "a" or "kv"
let filter = ALL; // the role the faders move
let drag = null; // the paint stroke in progress
let proposed = false; // whether the plan shown is one that the page proposed and that is not kept yet
let locks; // see locks.js
let why; // the tooltip, see why.js
let picker; // the dialog over the map, see picker.js
let view; // the elements
let shown; // what the elements show: bits per layer
let folded = Boolean(props.folded); // whether the map shows its first row only
let frame = 0, keyTimer = 0;

/* Names of layers that nobody outside of their library knows. */
const MEANINGS = {
  conv: "convolutions over a neighborhood, channel by channel",
  pw: "1x1 convolutions that widen a block to more channels",
  pwl: "1x1 convolutions that narrow a block back to few channels",
  reduce: "squeeze: the first layer of the weights that channels get",
  excite: "excitation: the second layer of the weights that channels get",
};
const rolesMoved = () => (filter === ALL ? model.roles.map((_, row) => row) : [filter]);
const layersOf = ({ rows, cols }) =>
  rows.flatMap((row) => cols.map((col) => model.grid[row][col])).filter((i) => i !== undefined);
const layersOfBlock = (block) => layersOf({ rows: rolesMoved(), cols: [block] });

/* What the bits of a kind are of: layers, or the blocks that keep keys and values, by their number. */
const ofCache = () => kind === "kv";
const cachedIn = (cols) => cols.map((col) => model.cached.indexOf(col)).filter((i) => i >= 0);
const moved = (range) => (ofCache() ? cachedIn(range.cols) : layersOf(range));
const movedOfBlock = (block) => moved({ rows: rolesMoved(), cols: [block] });

/* The rectangle between two cells; ALL for a row or column takes that whole side (of the filtered roles). */
function rangeBetween(a, b) {
  const side = (x, y, all) => (x === ALL || y === ALL ? all : span(Math.min(x, y), Math.max(x, y)));
  return {
    rows: side(a.row, b.row, rolesMoved()),
    cols: side(a.col, b.col, model.blocks.map((_, col) => col)),
  };
}

/* Those of the layers that may move; with none the visitor is told why nothing happens. */
function movable(layers) {
  if (ofCache()) return layers;
  const free = layers.filter((i) => !locks.has(i));
  if (layers.length && !free.length && !drag) announce("Locked. Press L or the lock to unlock.");
  return free;
}

function setBits(layers, bits) {
  for (const i of movable(layers)) {
    plan[kind][i] = bits;
    drag?.painted.set(i, bits);
  }
  draw();
}

function stepBits(layers, by) {
  const levels = model.levels[kind];
  for (const i of movable(layers)) {
    const at = levels.findIndex((bits) => bits >= plan[kind][i]);
    plan[kind][i] = levels[clamp(at + by, 0, levels.length - 1)];
  }
  draw();
}

/* The end of an edit: one undo step, one event. */
function commit() {
  clearTimeout(keyTimer);
  proposed = false;
  if (same(plan, committed)) return draw();
  remember(committed);
  send();
}

function remember(p) {
  fresh = switched = false;
  past.push(p);
  if (past.length > HISTORY) past.shift();
  future = [];
}

function send(words = "") {
  committed = copyOf(plan);
  drawNow();
  publishLink();
  announce(words + view.summary.textContent);
  props.value = { ...copyOf(plan), kv: together(plan.kv) };
  trigger("commit");
}

function publishLink() {
  if (fresh) return;
  const address = addressWith(linkOf(model, committed), window.location.href);
  window.history[entry](window.history.state, "", address);
  entry = "replaceState";
}

/* Back and Forward change the tab or the model, never the plan: it goes along. */
function onBack() {
  if (!element.isConnected) return window.removeEventListener("popstate", onBack);
  if (new URL(window.location.href).searchParams.get("m") === model?.model) publishLink();
}

function travel(from, to, words) {
  commit();
  if (!from.length) return;
  to.push(committed);
  plan = copyOf(from.pop());
  send(words);
}

const undoEdit = () => travel(past, future, "Undone. ");
const redoEdit = () => travel(future, past, "Redone. ");

/* A plan from Python (preset, link, chart) becomes an undo step; a stroke in progress goes on, over it. */
function adoptValue() {
  const next = model && readPlan(model, props.value);
  const begins = fresh || switched;
  switched = false;
  if (!next || same(next, committed)) return;
  if (begins || arrives(next)) past = [];
  else remember(committed);
  fresh = false;
  committed = next;
  plan = copyOf(next);
  drag?.painted.forEach((bits, i) => { plan[kind][i] = bits; });
  drawNow();
  publishLink();
  announce(view.summary.textContent);
}

/* Whether a plan is the one that the page was opened with, by its address, before the visitor did anything. */
function arrives(next) {
  const query = new URL(window.location.href).searchParams, link = linkOf(model, next);
  const untouched = !past.length && !future.length && same(plan, committed);
  return untouched && LINK_PARTS.every((name) => (query.get(name) ?? "") === (link[name] ?? ""));
}

/* A plan that the page proposes: shown while it is tried out, an edit once it is done. */
function onPropose({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:propose", onPropose);
  const parts = detail.plan;
  if (!model || drag || (parts?.w && parts.w.length !== model.layers.length)) return;
  if (!proposed) commit();
  plan = parts ? readPlan(model, { ...plan, ...parts }) : copyOf(committed);
  if (parts && !detail.locked) keepLocked();
  proposed = Boolean(parts) && !detail.done;
  if (!proposed) commit();
  drawNow(); // at once: who proposed it asks what it predicts
}

function keepLocked() {
  for (const i of locks.list()) {
    if (i === EMBEDDINGS) plan.e = committed.e;
    else plan.w[i] = committed.w[i];
  }
}

function onLook({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:look", onLook);
  const layer = model?.layers[detail.layer];
  if (!layer) return;
  if (ofCache()) root.querySelector('[data-kind="Weights"]').click();
  fold(false);
  focusMap(layer.role, layer.block);
  root.scrollIntoView({ block: "nearest" });
}

function adoptDescription() {
  if (drag) endDrag();
  clearTimeout(keyTimer);
  picker?.close();
  const before = model?.model;
  start();
  switched = before !== model.model;
  if (before && before !== model.model && !window.queptTravels) entry = "pushState";
  window.queptTravels = false;
  publishLink();
}

function tell() {
  const held = {
    plan: copyOf(plan), locked: locks.list(), lockedNames: locks.list().map(nameOf), dragging: Boolean(drag) || proposed,
    undo: past.length > 0 || !same(plan, committed), redo: future.length > 0,
  };
  const detail = { ...tellingOf(model, plan), ...held };
  window.queptPrediction = detail;
  document.dispatchEvent(new CustomEvent("quept:predict", { detail }));
  view.summary.textContent = summaryWords(plan, detail);
}

const nameOf = (i) => (i === EMBEDDINGS ? "embeddings" : model.layers[i].name);

function makeToolbar() {
  const bar = make("div", { class: "toolbar" });
  const named = (key, text, row) => bar.append(make("span", { class: "named" }, term(key, text), row));
  const options = [{ value: "w", text: "Weights" }];
  if (model.levels.a.some((bits) => bits < FULL)) options.push({ value: "a", text: "Activations" });
  if (model.cached.length > 1 && model.levels.kv.some((bits) => bits < FULL)) {
    options.push({ value: "kv", text: "KV cache", title: "The faders move the keys and values of each block" });
  }
  if (options.length > 1) {
    named("kinds", "Bits of", choices("Which bits the faders move", "kinds", options.map(withData("kind")), chooseKind));
  }
  if (model.roles.length > 1) {
    const options = [{ value: ALL, text: "all", title: "The faders move every layer of a block" }];
    model.roles.forEach((text, value) => {
      const [kind] = text.split(" "), means = MEANINGS[kind] ? `: ${MEANINGS[kind]}` : "";
      options.push({ value, text, title: `The faders move ${text} only${means}` });
    });
    named("roles", "in", choices("Layers the faders move", "roles", options.map(withData("filter")), chooseFilter));
  }
  bar.append(make("span", { class: "space" }));
  for (const name of ["e", "kv"]) {
    if (model.singles[name].some((bits) => bits < FULL)) bar.append(makeSingle(name));
  }
  if (model.roles.length > 1) bar.append(makeFold());
  return bar;
}

/* The map of the layers, a row for each role, unfolds under the faders. */
function makeFold() {
  view.fold = make("button", { type: "button", class: "fold-layers", "data-fold": "", text: "Layers" });
  view.fold.addEventListener("click", () => fold(!folded));
  return view.fold;
}

function fold(closed) {
  folded = closed;
  root.classList.toggle("folded", closed);
  view.fold?.setAttribute("aria-expanded", String(!closed));
}

const withData = (name) => (option) =>
  ({ ...option, title: option.title ?? option.text, data: { [`data-${name}`]: option.text } });

function makeSingle(name) {
  const select = make("select", { [`data-${name}`]: "" });
  for (const bits of [...model.singles[name]].sort((a, b) => b - a)) {
    select.append(make("option", { value: bits, text: bits === FULL ? "16 bits" : `${bits} bits` }));
  }
  if (name === "kv") select.append(make("option", { value: MIXED, text: MIXED, hidden: "", disabled: "" }));
  select.addEventListener("change", () => {
    const bits = Number(select.value);
    plan[name] = name === "kv" ? plan.kv.fill(bits) : bits;
    commit();
  });
  view.single[name] = select;
  const [text, more] = SINGLES[name];
  select.setAttribute("aria-label", text + more);
  const box = make("span", { class: "single" }, term(name, text), select);
  return name === "e" ? withLock(box) : box;
}

/* The embeddings can be locked like a layer. */
function withLock(label) {
  const tied = (model.embedding_names ?? []).length === 1;
  const size = sizeWords(model.embeddingBytesAt(FULL));
  label.title = tied
    ? `Token embeddings and output head: this model shares one tensor between them, ${size} at 16 bits`
    : `Token embeddings and output head: one width for both, ${size} at 16 bits`;
  view.lockE = lockButton({ "data-lock": "e", "aria-label": "Lock embeddings" });
  view.lockE.addEventListener("click", () => locks.toggle([EMBEDDINGS]));
  label.append(view.lockE);
  return label;
}

/* A lock was opened or closed. */
function onLock(of, on) {
  redrawAll();
  const one = of.length === 1 && (of[0] === EMBEDDINGS ? "Embeddings" : model.layers[of[0]].name);
  const what = one || layersWords(of.length);
  announce(`${what} ${on ? "locked" : "unlocked"}.`);
}

/* Of a model in sections: their names over the faders; a name sets all layers of its section. */
function makeSections() {
  if (!model.sections.length) return [];
  const row = make("div", { class: "sections", role: "group", "aria-label": "Sections of the model" });
  for (const { name, from, to } of model.sections) {
    const title = `${name}: set the bits of the whole section`;
    const style = `grid-column: ${from + 2} / ${to + 2}`;
    const button = make("button", { type: "button", "data-section": name, text: name, title, style });
    const range = () => ({ rows: rolesMoved(), cols: span(from, to - 1) });
    button.addEventListener("click", () => openPicker(range(), button));
    row.append(button);
  }
  return [row];
}

function makeFaders() {
  view.scale = make("div", { class: "scale", "aria-hidden": "true" });
  view.faders = make("div", { class: "faders", "data-faders": "" });
  view.fader = model.blocks.map((name, block) => {
    const cap = make("span", { class: "cap", text: "" });
    const fill = make("span", { class: "fill" }), range = make("span", { class: "range" });
    const fader = make("div", { class: "fader", role: "slider", "aria-orientation": "vertical" },
      make("span", { class: "slot" }), fill, range, cap);
    fader.dataset.block = block;
    fader.classList.toggle("first", model.sections.some(({ from }) => from === block && block));
    fader.tabIndex = block ? -1 : 0;
    view.faders.append(fader);
    return { fader, fill, range, cap, name };
  });
  listenToPointer(view.faders);
  view.faders.addEventListener("keydown", onFaderKey);
  return [view.scale, view.faders];
}

/* A grid in the ARIA sense: a row of block names, then a row per role; row and column ALL hold the names. */
function makeMap() {
  view.map = make("div", { class: "map", role: "grid", "aria-label": "Bits of every layer" });
  view.cell = new Array(model.layers.length);
  const head = make("div", { role: "row" }, mapButton("columnheader", ALL, ALL, "All", "every layer"));
  head.append(...model.blocks.map((name, col) => mapButton("columnheader", ALL, col, name, `block ${name}`)));
  view.map.append(head);
  model.roles.forEach((role, row) => {
    const line = make("div", { role: "row" }, mapButton("rowheader", row, ALL, role, `role ${role}`));
    const place = (i, col) => (i === undefined ? makeHole(row, col) : makeCell(i, row, col));
    line.append(...model.grid[row].map(place));
    view.map.append(line);
  });
  view.map.querySelector("button").tabIndex = 0;
  listenToMap(view.map);
  return view.map;
}

const placement = (row, col) => `grid-row: ${row + 2}; grid-column: ${col + 2}`;

function mapButton(role, row, col, text, label) {
  const button = make("button", { type: "button", role, text, style: placement(row, col), tabindex: -1 });
  Object.assign(button.dataset, { row, col });
  if (label) button.setAttribute("aria-label", `${label}: set bits`);
  button.className = row === ALL && col === ALL ? "name corner" : col === ALL ? "name side" : "name";
  return button;
}

function makeCell(i, row, col) {
  const cell = mapButton("gridcell", row, col, "", "");
  cell.className = "cell";
  cell.dataset.layer = model.layers[i].name;
  cell.dataset.role = model.roles[row];
  cell.dataset.block = col;
  const { asked } = model.layers[i]; // of a mixture: how often a text asks the expert
  if (asked !== undefined) cell.style.setProperty("--asked", asked);
  cell.classList.toggle("asked", asked !== undefined);
  view.cell[i] = cell;
  return cell;
}

const makeHole = (row, col) => make("span", { role: "gridcell", class: "hole", style: placement(row, col) });

function makeFoot() {
  view.summary = make("span", { class: "summary", "data-summary": "" });
  view.live = make("span", { class: "unseen", role: "status", "aria-live": "polite", "data-live": "" });
  view.inspect = make("span", { class: "inspect", "data-inspect": "" });
  const mouse = "Drag across the faders to paint. Click a cell, a name or All to set it; drag over cells "
    + "to set several. Keys: ← → block, ↑ ↓ bits, 2–8 set, 0 or F = 16, L lock.";
  const finger = "Move up or down on the faders, then across, to paint; swipe sideways to scroll. "
    + "Tap a cell, a name or All to set it.";
  const hint = make("span", { class: "hint" }, make("span", { class: "for-mouse", text: mouse }),
    make("span", { class: "for-finger", text: finger }));
  const under = make("div", { class: "under" }, hint, view.inspect);
  return make("div", { class: "foot" }, view.summary, under, view.live);
}

function build() {
  view = { single: {} };
  locks = makeLocks({
    blocks: model.blocks,
    layersOf: (block) => (block === ALL ? model.blocks.map((_, b) => b) : [block]).flatMap(layersOfBlock),
    changed: onLock,
  });
  const sheet = make("div", { class: "sheet" });
  sheet.style.setProperty("--blocks", model.blocks.length);
  view.scroller = make("div", { class: "scroller" }, sheet);
  root.replaceChildren(makeToolbar(), view.scroller);
  sheet.append(...makeSections(), ...makeFaders(), locks.row, makeMap());
  picker = makePicker({ id: `${element.id}-picker`, home: root, bitsOfKey, closed: () => markRange(null) });
  root.append(makeFoot(), picker.box);
  why = makeWhy(root);
  fold(folded);
  overflow.disconnect();
  overflow.observe(view.scroller);
  drawScale();
  redrawAll();
}

function drawScale() {
  const levels = model.levels[kind];
  view.scroller.style.setProperty("--levels", levels.length);
  view.mark = levels.map((bits, i) => make("span", { "data-bits": bits, style: `--at: ${i}`, text: bits }));
  view.scale.replaceChildren(...view.mark);
  for (const { fader } of view.fader) {
    fader.setAttribute("aria-valuemin", levels[0]);
    fader.setAttribute("aria-valuemax", levels.at(-1));
  }
}

/* Everything is drawn again: the bits shown or the layers moved are others. */
function redrawAll() {
  shown = new Array(model.layers.length).fill(0);
  const still = ({ role }) => filter !== ALL && role !== filter;
  model.layers.forEach((layer, i) => {
    view.cell[i].classList.toggle("still", still(layer));
    view.cell[i].classList.toggle("locked", locks.has(i));
    view.cell[i].setAttribute("aria-readonly", String(locks.has(i)));
  });
  locks.draw();
  const roleName = filter === ALL || ofCache() ? "" : `, ${model.roles[filter]} only`;
  for (const { fader, name } of view.fader) {
    fader.setAttribute("aria-label", `Block ${name}${roleName}, ${KINDS[kind]}`);
  }
  root.dataset.kind = kind;
  if (ofCache()) model.blocks.forEach((_, block) => drawFader(block));
  drawNow();
}

/* Ask for a drawing in the next frame. */
function draw() {
  if (!frame) frame = requestAnimationFrame(() => { frame = 0; drawNow(); });
}

function drawNow() {
  cancelAnimationFrame(frame);
  frame = 0;
  const touched = new Set();
  plan[kind].forEach((bits, i) => {
    if (bits === shown[i]) return;
    shown[i] = bits;
    if (!ofCache()) drawCell(view.cell[i], bits);
    touched.add(ofCache() ? model.cached[i] : model.layers[i].block);
  });
  touched.forEach(drawFader);
  drawSingles();
  markLevel(drag?.at ? drag.at.level : null);
  tell();
  if (drag) scrollAtEdge();
}

function drawSingles() {
  for (const [name, select] of Object.entries(view.single)) {
    const bits = together(plan[name]);
    select.value = Array.isArray(bits) ? MIXED : String(bits);
  }
  if (!view.lockE) return;
  view.single.e.disabled = locks.has(EMBEDDINGS);
  view.lockE.setAttribute("aria-pressed", String(locks.has(EMBEDDINGS)));
  view.lockE.title = `${locks.has(EMBEDDINGS) ? "Unlock" : "Lock"} the embeddings at their width`;
}

function drawCell(cell, bits) {
  cell.dataset.bits = bits;
  cell.firstChild.data = bits;
}

function drawFader(block) {
  const { fader, fill, range, cap } = view.fader[block];
  const layers = movedOfBlock(block), widths = layers.map((i) => plan[kind][i]);
  const locked = !ofCache() && locks.every(layers);
  fader.classList.toggle("locked", locked);
  fader.setAttribute("aria-readonly", String(locked));
  fader.classList.toggle("empty", !widths.length);
  if (!widths.length) return fader.setAttribute("aria-disabled", "true");
  fader.removeAttribute("aria-disabled");
  const low = Math.min(...widths), high = Math.max(...widths);
  const mean = widths.reduce((sum, bits) => sum + bits, 0) / widths.length;
  const mixed = low !== high;
  const position = (bits) => interpolate(model.levels[kind], span(0, model.levels[kind].length - 1), bits);
  const text = mixed ? String(Number(mean.toFixed(1))) : String(low);
  fader.style.setProperty("--low", position(low));
  fader.style.setProperty("--high", position(high));
  fader.style.setProperty("--at", position(mean));
  fader.classList.toggle("mixed", mixed);
  fill.dataset.bits = low;
  range.dataset.bits = high;
  cap.dataset.bits = mixed ? "mixed" : low;
  fader.setAttribute("aria-valuenow", text);
  const words = mixed ? `mixed, ${low} to ${high} bits, mean ${text}` : bitsWords(low);
  fader.setAttribute("aria-valuetext", words + (locked ? ", locked" : ""));
  cap.firstChild.data = text;
}

function markLevel(level) {
  view.mark.forEach((mark, i) => mark.classList.toggle("on", i === level));
  view.faders.style.setProperty("--guide", level ?? 0);
  view.faders.classList.toggle("guided", level !== null);
}

function announce(words) {
  view.live.textContent = words;
}

/* Words about the block or cell under the pointer or the focus, in the place of the hint; and why. */
function inspect(event) {
  if (drag || !view) return;
  explain(event.target.closest(".cell"), event);
  const fader = event.target.closest(".fader"), button = event.target.closest("[data-row]");
  if (fader) inspectBlock(Number(fader.dataset.block));
  else if (button) inspectButton(button);
  else view.inspect.textContent = "";
}

function inspectBlock(block) {
  const name = `block ${model.blocks[block]}`, [i] = movedOfBlock(block);
  if (!ofCache()) return inspectLayers(name, layersOfBlock(block));
  view.inspect.textContent = i === undefined ? "" : `${name} · keys and values at ${bitsWords(plan.kv[i])}`;
}

function inspectButton(button) {
  const place = placeOf(button);
  const i = model.grid[place.row]?.[place.col];
  if (ofCache()) return place.col === ALL ? undefined : inspectBlock(place.col);
  if (i !== undefined) return inspectLayers(model.layers[i].name, [i]);
  const range = rangeBetween(place, place);
  const layers = layersOf(range);
  inspectLayers(`${rangeWords(model, range)} · ${layersWords(layers.length)}`, layers);
}

/* The tooltip of a cell. A finger gets the same words in the picker. */
function explain(cell, event) {
  const shown = cell && !picker.isOpen() && !sweep?.moved && event?.pointerType !== "touch";
  view.map?.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
  if (!shown) return why.hide();
  const { row, col } = placeOf(cell), i = model.grid[row][col];
  why.show(cell, model.layers[i].name, whyWords(model, plan, i));
  cell.setAttribute("aria-describedby", why.box.id);
}

function inspectLayers(name, layers) {
  const widths = layers.map((i) => plan[kind][i]);
  const low = Math.min(...widths), high = Math.max(...widths);
  const bytes = layers.reduce((sum, i) => sum + model.bytesAt(i, plan.w[i]), 0);
  const bits = low === high ? bitsWords(low) : `${low} to ${high} bits`;
  const held = layers.every(locks.has) ? " · locked" : layers.some(locks.has) ? " · some locked" : "";
  view.inspect.textContent = layers.length ? `${name} · ${bits} · ${sizeWords(bytes)}${held}` : "";
}

function chooseKind(value) {
  commit();
  kind = value;
  picker.close();
  drawScale();
  redrawAll();
}

function chooseFilter(value) {
  commit();
  filter = value;
  picker.close();
  redrawAll();
}

function listenToPointer(faders) {
  faders.addEventListener("pointerdown", startDrag);
  faders.addEventListener("pointermove", moveDrag);
  faders.addEventListener("pointerup", finishDrag);
  faders.addEventListener("pointercancel", cancelDrag); // the browser took the finger, to scroll
  faders.addEventListener("lostpointercapture", finishDrag);
}

function startDrag(event) {
  if (drag || event.button !== 0 || !event.isPrimary) return;
  commit();
  view.faders.setPointerCapture(event.pointerId);
  // A finger may be about to scroll: it paints once it has moved up or down, or when it lifts.
  const waits = event.pointerType === "touch";
  drag = { id: event.pointerId, painted: new Map(), at: null, waits, x: event.clientX, y: event.clientY };
  window.addEventListener("keydown", onDragKey, true);
  root.classList.add("painting");
  if (!waits) paintTo(event.clientX, event.clientY);
  focusFader(cellUnder(event.clientX, event.clientY).block);
}

function moveDrag(event) {
  if (event.pointerId !== drag?.id) return;
  if (drag.waits && !hasSetOff(event)) return;
  drag.waits = false;
  paintTo(event.clientX, event.clientY);
}

const scrolls = () => view.scroller.classList.contains("overflows");

/* Whether a finger has begun to paint: up or down, or any way where there is nothing to scroll sideways. */
function hasSetOff(event) {
  const aside = Math.abs(event.clientX - drag.x), along = Math.abs(event.clientY - drag.y);
  return Math.max(aside, along) >= SLOP_PX && (along >= aside || !scrolls());
}

function finishDrag(event) {
  if (event.pointerId !== drag?.id) return;
  if (drag.waits) paintTo(event.clientX, event.clientY);
  focusFader(drag.at.block);
  endDrag();
  commit();
}

function cancelDrag(event) {
  if (event && event.pointerId !== drag?.id) return;
  plan = copyOf(committed);
  endDrag();
  drawNow();
}

function endDrag() {
  const { id } = drag;
  drag = null;
  window.removeEventListener("keydown", onDragKey, true);
  root.classList.remove("painting");
  if (view.faders.hasPointerCapture(id)) view.faders.releasePointerCapture(id);
}

function onDragKey(event) {
  if (event.key !== "Escape") return;
  event.preventDefault();
  event.stopPropagation();
  cancelDrag();
  announce("Cancelled. " + view.summary.textContent);
}

function cellUnder(x, y) {
  const box = view.faders.getBoundingClientRect();
  const blocks = model.blocks.length, levels = model.levels[kind].length;
  return {
    block: clamp(Math.floor(((x - box.left) / box.width) * blocks), 0, blocks - 1),
    level: clamp(Math.floor(((box.bottom - y) / box.height) * levels), 0, levels - 1),
  };
}

/* Paint from where the stroke was to here, every block in between included. */
function paintTo(x, y) {
  const to = cellUnder(x, y);
  const from = drag.at ?? to;
  const steps = Math.abs(to.block - from.block);
  for (let s = steps ? 1 : 0; s <= steps; s += 1) {
    const t = steps ? s / steps : 1;
    const between = (a, b) => Math.round(a + t * (b - a));
    setBits(movedOfBlock(between(from.block, to.block)), model.levels[kind][between(from.level, to.level)]);
  }
  Object.assign(drag, { at: to, x, y });
  inspectBlock(to.block);
  draw();
}

function scrollAtEdge() {
  if (drag.waits || !scrolls()) return;
  const box = view.scroller.getBoundingClientRect();
  const left = view.scale.getBoundingClientRect().right;
  const by = drag.x < left + EDGE_PX ? -8 : drag.x > box.right - EDGE_PX ? 8 : 0;
  const before = view.scroller.scrollLeft;
  view.scroller.scrollLeft += by;
  if (view.scroller.scrollLeft !== before) paintTo(drag.x, drag.y);
}

/* The bits a key stands for at the level list of now, or undefined. */
function bitsOfKey(key) {
  const bits = /^[2-8]$/.test(key) ? Number(key) : /^[0fF]$/.test(key) ? FULL : undefined;
  if (bits !== undefined && !model.levels[kind].includes(bits)) {
    announce(`${bits} bits is not offered for ${KINDS[kind]}.`);
    return undefined;
  }
  return bits;
}

/* An edit by key: committed when the key comes up, so a held arrow is one step of undo. */
function keyEdit(event, edit) {
  event.preventDefault();
  edit();
  clearTimeout(keyTimer);
  keyTimer = setTimeout(commit, KEY_PAUSE_MS);
}

const withModifier = (event) => event.ctrlKey || event.metaKey || event.altKey;

function onFaderKey(event) {
  const block = Number(event.target.closest("[data-block]").dataset.block);
  if (drag || withModifier(event)) return;
  const levels = model.levels[kind];
  const layers = movedOfBlock(block);
  const aside = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 2, PageDown: -2 }[event.key];
  const bits = { Home: levels[0], End: levels.at(-1) }[event.key] ?? bitsOfKey(event.key);
  if (aside) {
    event.preventDefault();
    focusFader(clamp(block + aside, 0, model.blocks.length - 1), true);
  } else if (steps) keyEdit(event, () => stepBits(layers, steps));
  else if (bits !== undefined) keyEdit(event, () => setBits(layers, bits));
  else if (event.key.toLowerCase() === "l" && !ofCache()) locks.toggle(layers);
}

function focusFader(block, show = false) {
  const { fader } = view.fader[block];
  for (const other of view.fader) other.fader.tabIndex = other.fader === fader ? 0 : -1;
  fader.focus({ preventScroll: true });
  if (show) fader.scrollIntoView({ block: "nearest", inline: "center" });
}

function onMapKey(event) {
  const button = event.target.closest("[data-row]");
  if (!button || withModifier(event)) return;
  const place = placeOf(button);
  const layers = moved(rangeBetween(place, place));
  const bits = bitsOfKey(event.key);
  const step = { "+": 1, "=": 1, "-": -1 }[event.key];
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (move) {
    event.preventDefault();
    focusMap(place.row + move[0], place.col + move[1]);
  } else if (step) keyEdit(event, () => stepBits(layers, step));
  else if (bits !== undefined) keyEdit(event, () => setBits(layers, bits));
  else if (event.key.toLowerCase() === "l" && !ofCache()) locks.toggle(layers);
  else return;
  if (!move) {
    inspectButton(button);
    explain(button.closest(".cell"));
  }
}

const buttonAt = (row, col) => view.map.querySelector(`[data-row="${row}"][data-col="${col}"]`);
const placeOf = (button) => ({ row: Number(button.dataset.row), col: Number(button.dataset.col) });

function focusMap(row, col) {
  const next = buttonAt(row, col);
  if (!next) return;
  for (const button of view.map.querySelectorAll('[tabindex="0"]')) button.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  next.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/* Undo and redo from wherever the focus is, but where one types or draws: there they are of the words or the drawing. */
function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  if (!(event.ctrlKey || event.metaKey) || event.altKey || drag) return;
  if (event.defaultPrevented || event.target.closest?.(TYPED)) return;
  const key = event.key.toLowerCase();
  const action = key === "z" ? (event.shiftKey ? redoEdit : undoEdit) : key === "y" ? redoEdit : null;
  if (!action) return;
  event.preventDefault();
  action();
}

function onKeyUp(event) {
  if (!drag && event.target.closest("[data-faders], .map")) commit();
}

let sweep = null; // cells being marked with the mouse: {from, to}

function listenToMap(map) {
  map.addEventListener("keydown", onMapKey);
  map.addEventListener("pointerdown", (event) => {
    const button = event.target.closest("[data-row]");
    sweep = null;
    if (!button || event.button !== 0 || event.pointerType === "touch") return;
    sweep = { from: placeOf(button), to: placeOf(button) };
    window.addEventListener("pointerup", dropSweepOutside, { once: true });
  });
  map.addEventListener("pointerover", (event) => {
    const button = event.target.closest("[data-row]");
    if (!button || !sweep || !event.buttons) return;
    sweep.to = placeOf(button);
    sweep.moved = true;
    why.hide();
    markRange(rangeBetween(sweep.from, sweep.to));
  });
  map.addEventListener("click", (event) => {
    const button = event.target.closest("[data-row]");
    const from = sweep?.from ?? (button && placeOf(button));
    if (!from) return;
    const to = sweep?.to ?? from;
    sweep = null;
    focusMap(to.row, to.col);
    openPicker(rangeBetween(from, to), buttonAt(to.row, to.col));
  });
}

function dropSweepOutside(event) {
  if (view.map.contains(event.target)) return;
  sweep = null;
  markRange(null);
}

function markRange(range) {
  const marked = new Set(range && !ofCache() ? layersOf(range) : []);
  view.cell.forEach((cell, i) => cell.classList.toggle("marked", marked.has(i)));
}

function openPicker(range, anchor) {
  const layers = moved(range);
  why.hide();
  markRange(range);
  const common = {
    levels: model.levels[kind],
    widths: () => layers.map((i) => plan[kind][i]),
    choose: (bits) => { setBits(layers, bits); commit(); },
    step: (by) => { stepBits(layers, by); commit(); },
  };
  picker.open(anchor, ofCache() ? {
    ...common,
    title: `Keys and values of ${sideWords(range.cols, model.blocks, "block")}`,
    why: () => [],
  } : {
    ...common,
    title: `${rangeWords(model, range)} · ${layersWords(layers.length)}`,
    lock: () => (locks.every(layers) ? "true" : locks.some(layers) ? "mixed" : "false"),
    why: () => (layers.length === 1 ? whyWords(model, plan, layers[0]) : []),
    toggleLock: () => locks.toggle(layers),
  });
}

function start() {
  if (!props.description) return;
  model = readModel(props.description);
  const first = readPlan(model, props.value);
  fresh = !first;
  plan = first ?? fullPlan(model);
  committed = copyOf(plan);
  past = [];
  future = [];
  kind = "w";
  filter = ALL;
  proposed = false;
  build();
  root.dataset.model = model.model;
}

/* Where all faders are in sight a finger may paint sideways too. */
const overflow = new ResizeObserver(() => {
  view.scroller.classList.toggle("overflows", view.scroller.scrollWidth > view.scroller.clientWidth);
});

document.addEventListener("keydown", onKey);
root.addEventListener("keyup", onKeyUp);
root.addEventListener("pointerover", inspect);
root.addEventListener("focusin", inspect);
root.addEventListener("pointerleave", () => {
  if (!view || drag) return;
  view.inspect.textContent = "";
  explain(null);
});
root.addEventListener("focusout", () => { if (view) explain(null); });
document.addEventListener("quept:propose", onPropose);
document.addEventListener("quept:look", onLook);
document.addEventListener("quept:undo", undoEdit);
document.addEventListener("quept:redo", redoEdit);
window.addEventListener("popstate", onBack);
watch("description", adoptDescription);
watch("value", adoptValue);
start();
