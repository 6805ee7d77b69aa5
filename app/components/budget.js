/* The budget: type or drag a size, and the faders go to the best bits for it; refine that plan by measuring.

   This file, after dom.js, plan.js and path.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.path ({model, path, error, activations, turn}: the plans that the slider runs through),
               props.answer and props.refined, what Python says to requests; see budget.py;
     trigger   trigger("solve" | "limit" | "refine", request) and trigger("cancel");
     watch     watch("answer", f) calls f when Python sent another answer.

   It talks with the equaliser through DOM events only: quept:predict says what the faders show and which
   layers are locked, quept:measured what was measured of them, quept:propose shows a plan on them and, at the end, hands it over as an edit; quept:budget
   {words} is a budget as if it were typed, and quept:solved {budget} says that its plan comes now. While the
   slider is dragged nothing leaves the browser: the path's steps up to the budget are proposed. On release,
   and on Enter in the text box, Python finds the exact answer. An answer to anything but the latest request,
   or to faders that were moved meanwhile, is dropped. */

const PLACES = 1000; // of the slider
const KEYS_PAUSE_MS = 350; // after the last arrow key on the slider the answer is asked for
const LIMITS_PAUSE_MS = 150;
const TICK_PX = 52; // room for a tick's words
const TIES = [
  { value: "none", text: "separate", title: "Every layer gets a width of its own" },
  { value: "qkv", text: "q=k=v, gate=up", title: "Layers that read the same input share a width" },
  { value: "block", text: "whole block", title: "All layers of a block share a width" },
];
const TARGETS = [ // what the bytes are of
  ["", "memory"], ["gguf", "GGUF file"], ["mlx", "MLX folder"], ["compressed-tensors", "vLLM folder"],
  ["packed", "packed file"],
];
const LIMITS = [["floor", "≥", "fewest bits"], ["ceiling", "≤", "most bits"]];
const WIDTHS = ["widths", "embeddings", "kv"]; // lists of bits that a file may say
const NO_LIMITS = {
  ties: "none", full_embeddings: false, activations: FULL, target: "", table: "", pins: [],
  pin: {}, floor: {}, ceiling: {},
};
const WORDS_SHOWN = 4; // limits of a file in words, before "and 3 more"
const LARGEST = 200_000; // characters of a file of constraints
const EXAMPLE = 0.13; // of the way from the fewest bytes to the most

const root = element.querySelector(".budget");
let faders = window.queptPrediction ?? null; // the latest quept:predict
let path = null; // what the slider runs through
let asked = null; // the request under way: {serial, faders}
let serial = 0;
let owned = null; // the link of the plan that a budget put on the faders, kept or only shown
let telling = false; // whether what the faders say now is of our making
let wanted = null; // bytes, or what was typed: the budget that holds now
let wasStuck = false; // whether the limits stood in each other's way
let sentLimits = "", turn = 0; // the limits that the path is of, and how often they changed
let said = noneSaid(); // what roles and files say, in the words of the command line
let refining = null; // {link} of the faders when the refinement began
let refined = null; // the plan that came out of it
let measured = null; // the latest quept:measured, its link as text
let note = ""; // what Python said beside the answer
let view, keysTimer = 0, limitsTimer = 0;

function noneSaid() {
  return { pin: {}, floor: {}, ceiling: {} };
}

const linkNow = () => JSON.stringify(faders?.link ?? null);

/* Put a plan on the faders, to keep once it is done; null takes back what was only shown. */
function propose(plan, done = false) {
  telling = true;
  document.dispatchEvent(new CustomEvent("quept:propose", { detail: { plan, done } }));
  telling = false;
  owned = plan ? linkNow() : null;
}

/* What the plan has to keep to, as Python wants it: locks are pins at the widths of now. */
function limits() {
  const locked = faders?.locked ?? [], plan = faders?.plan;
  return {
    ties: view.ties.querySelector('[aria-checked="true"]').dataset.value,
    full_embeddings: view.keep.checked,
    activations: view.inputs.checked ? "as weights" : inputWidth(plan),
    target: view.target.value,
    table: view.table.value,
    pins: plan ? locked.map((i) => [i, i < 0 ? plan.e : plan.w[i]]) : [],
    ...said,
  };
}

/* The one width of all inputs, or 16 where they differ: then they take no part. */
function inputWidth(plan) {
  const first = plan?.a[0] ?? FULL;
  return plan?.a.every((bits) => bits === first) ? first : FULL;
}

const button = (attributes) => make("button", { type: "button", class: "button", ...attributes });

function build() {
  const label = make("label", { class: "label", for: `${element.id}-text`, text: "Budget" });
  view = {
    text: make("input", {
      type: "text", class: "text", id: `${element.id}-text`, maxlength: 40,
      autocomplete: "off", spellcheck: "false", "aria-label": "Budget", "aria-describedby": `${element.id}-words`, "data-budget": "",
    }),
    target: make("select", { class: "target", "aria-label": "What the budget is for", "data-target": "" },
      ...TARGETS.map(([value, text]) => make("option", { value, text: `for: ${text}` }))),
    slider: make("input", {
      type: "range", class: "slider", min: 0, max: PLACES, step: 1, "aria-label": "Memory budget",
      "data-slider": "",
    }),
    ticks: make("div", { class: "ticks", "aria-hidden": "true" }),
    refine: button({ "data-refine": "" }),
    more: button({ "data-limits": "", "aria-expanded": "false", text: "Constraints" }),
    words: make("p", { class: "words", id: `${element.id}-words`, "data-words": "" }),
    live: make("span", { class: "unseen", role: "status", "aria-live": "polite" }),
    bar: make("span", { class: "bar" }),
    progress: make("div", { class: "progress", hidden: "" }),
    load: button({ "data-load": "", hidden: "", text: "Load refined plan" }),
  };
  const range = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Refinement" };
  view.track = make("div", { class: "track", role: "progressbar", ...range }, view.bar);
  view.told = make("span", { class: "told", "data-told": "" });
  view.progress.append(view.track, view.told, view.load);
  const along = make("div", { class: "along" }, view.slider, view.ticks);
  const bar = make("div", { class: "line" }, label, view.text, view.target, along, view.refine, view.more);
  root.replaceChildren(bar, view.words, view.progress, makeLimits(), view.live);

  view.target.addEventListener("change", () => {
    if (typeof wanted === "number") wanted = view.text.value.trim() || null; // the same words, of other bytes
    limitsChanged();
  });
  view.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); typed(); }
    if (event.key === "Escape") forget();
  });
  view.slider.addEventListener("input", slide);
  view.slider.addEventListener("change", () => {
    clearTimeout(keysTimer);
    keysTimer = setTimeout(() => ask(wanted), view.pressed ? 0 : KEYS_PAUSE_MS);
  });
  view.slider.addEventListener("pointerdown", () => { view.pressed = true; });
  for (const end of ["pointerup", "pointercancel"]) {
    view.slider.addEventListener(end, () => setTimeout(() => { view.pressed = false; }));
  }
  view.refine.addEventListener("click", refine);
  view.load.addEventListener("click", loadRefined);
  view.more.addEventListener("click", () => {
    const open = view.limits.hidden;
    view.limits.hidden = !open;
    view.more.setAttribute("aria-expanded", String(open));
  });
}

function makeLimits() {
  view.ties = choices("Layers that share a width", "ties", TIES, limitsChanged);
  view.keep = make("input", { type: "checkbox", "data-keep": "" });
  view.inputs = make("input", { type: "checkbox", "data-inputs": "" });
  view.pins = make("span", { class: "pins", "data-pins": "" });
  view.inputsLabel = make("label", { class: "check" }, view.inputs, "Activations as wide as weights (4 at least)");
  for (const box of [view.keep, view.inputs]) box.addEventListener("change", limitsChanged);
  view.table = make("select", { "data-table": "" });
  view.table.addEventListener("change", limitsChanged);
  view.tableLabel = make("label", { class: "check" }, "Sensitivities measured on", view.table);
  view.parts = make("div", { class: "parts", role: "group", "aria-label": "Fewest and most bits" });
  view.said = make("span", { class: "pins", "data-said": "" });
  view.file = make("input", { type: "file", accept: ".json,application/json", hidden: "", "data-constraints-file": "" });
  view.file.addEventListener("change", loadLimits);
  const act = (text, name, title, onClick) => {
    const made = button({ text, title, [`data-${name}`]: "" });
    made.addEventListener("click", onClick);
    return made;
  };
  view.clear = act("Clear", "clear-limits", "No pins, floors and ceilings but the locks", () => {
    said = noneSaid();
    drawParts();
    limitsChanged();
  });
  const files = make("span", { class: "files" }, view.file,
    act("Load file", "load-limits", "Pins, floors, ceilings and ties from a file", () => view.file.click()),
    act("Save file", "save-limits", "All of these as a file, for `quept allocate --constraints` too", saveLimits),
    view.clear);
  view.limits = make("div", { class: "limits", role: "group", "aria-label": "Constraints", hidden: "" },
    make("span", { class: "tied" }, make("span", { class: "label", text: "Bits" }), view.ties),
    make("label", { class: "check" }, view.keep, "Embeddings and head stay at 16"),
    view.inputsLabel, view.tableLabel, view.pins, view.parts, files, view.said);
  return view.limits;
}

/* The texts on which sensitivities were measured, where there is more than one. */
function drawTables() {
  const named = (path?.tables ?? []).map(([value, text]) => make("option", { value, text }));
  view.table.replaceChildren(...named);
  view.tableLabel.hidden = !named.length;
}

/* The fewest and the most bits of each role, of the embeddings and of the KV cache. */
function drawParts() {
  const label = make("span", { class: "label", text: "At least, at most" });
  view.parts.replaceChildren(label, ...(path?.parts ?? []).map(({ name, keys }) =>
    make("span", { class: "part" }, make("span", { text: name }),
      ...LIMITS.map(([limit, sign, words]) => partMenu(limit, sign, words, name, keys)))));
}

function partMenu(limit, sign, words, name, keys) {
  const select = make("select", { "aria-label": `${words} of ${name}`, [`data-${limit}`]: name },
    make("option", { value: "", text: sign }),
    ...LINK_BITS.map((bits) => make("option", { value: bits, text: `${sign} ${bits}` })));
  const now = new Set(keys.map((key) => said[limit][key]));
  select.value = now.size === 1 ? String([...now][0] ?? "") : "";
  select.addEventListener("change", () => {
    for (const key of keys) {
      delete said[limit][key]; // of limits that fit one layer the last counts
      if (select.value) said[limit][key] = Number(select.value);
    }
    limitsChanged();
  });
  return select;
}

/* The limits that no menu shows, as the command line says them: "pin model.layers.0.* = 8". */
function saidWords() {
  const shown = new Set((path?.parts ?? []).flatMap(({ keys }) => keys));
  const words = Object.entries({ pin: said.pin, floor: said.floor, ceiling: said.ceiling }).flatMap(([limit, rules]) =>
    Object.entries(rules).filter(([key]) => limit === "pin" || !shown.has(key))
      .map(([key, bits]) => `${limit} ${key} = ${bits}`));
  for (const name of WIDTHS) if (said[name]) words.push(`${name} ${said[name].join(", ")}`);
  const more = words.length - WORDS_SHOWN;
  return words.slice(0, WORDS_SHOWN).join(" · ") + (more > 0 ? ` and ${more} more` : "");
}

/* A file goes to Python, which says what it means, or what is wrong with it. */
async function loadLimits() {
  const [file] = view.file.files;
  if (!file) return;
  const text = await file.slice(0, LARGEST).text();
  view.file.value = "";
  turn += 1;
  trigger("limit", { turn, ...limits(), file: text });
}

function adopt({ tie, embeddings, activations, ...rest }) {
  said = { ...noneSaid(), ...rest };
  view.keep.checked = String(embeddings) === String(FULL);
  if (embeddings && !view.keep.checked) said.embeddings = embeddings;
  view.inputs.checked = activations === "as weights";
  drawParts();
  const chosen = view.ties.querySelector(`[data-value="${tie ?? "none"}"]`);
  if (chosen.getAttribute("aria-checked") === "true") limitsChanged();
  else chosen.click();
}

function saveLimits() {
  const { ties, full_embeddings: keep, activations, pins, target, table, ...rest } = limits();
  const names = faders?.lockedNames ?? [];
  const data = { format: "quept-constraints", version: 1, ...rest };
  data.pin = { ...data.pin, ...Object.fromEntries(pins.map(([, bits], i) => [names[i], bits])) };
  if (ties !== "none") data.tie = ties;
  if (keep) data.embeddings = [FULL];
  if (activations !== FULL) data.activations = activations;
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(data, null, 1)}\n`], { type: "application/json" }));
  make("a", { href: url, download: `${path?.model ?? "model"}-constraints.json` }).click();
  URL.revokeObjectURL(url);
}

/* A stricter or looser limit: another path, and another answer where the faders show one. */
function limitsChanged() {
  drawLimits();
  sendLimits();
  if (owned && owned === linkNow()) ask(wanted);
}

/* What the path depends on: one width of all inputs changes the cost of every plan alike. */
const limitsKey = ({ activations, ...rest }) =>
  JSON.stringify({ ...rest, activations: activations === "as weights" });

function sendLimits() {
  const now = limits(), key = limitsKey(now);
  if (!path || key === sentLimits) return;
  sentLimits = key;
  turn += 1;
  trigger("limit", { turn, ...now });
}

function slide() {
  clearTimeout(keysTimer);
  if (!path?.path) return;
  const ends = endsOf(path.path);
  const bytes = bytesAt(ends, view.slider.value / PLACES);
  wanted = bytes;
  view.text.value = sizeWords(bytes);
  const { w, e } = planWithin(path.path, bytes);
  propose(view.inputs.checked ? { w, e, a: inputsAsWeights(w) } : { w, e });
  nameSlider(bytes);
  say(planWords(), "predicted");
}

function typed() {
  const words = view.text.value.trim();
  if (!words) return say(`Type a budget: ${examples()}.`, "error");
  ask(words);
}

/* The exact answer, from Python. */
function ask(budget) {
  clearTimeout(keysTimer);
  if (budget === null || !faders) return;
  wanted = budget;
  serial += 1;
  asked = { serial, link: linkNow() };
  root.setAttribute("aria-busy", "true");
  trigger("solve", { serial, budget, ...limits() });
}

function onAnswer() {
  const { answer } = props;
  if (!asked || answer?.serial !== asked.serial) return;
  const moved = asked.link !== linkNow();
  asked = null;
  root.removeAttribute("aria-busy");
  if (answer.error) {
    if (owned && !moved && faders.dragging) propose(null);
    return say(answer.error, "error");
  }
  if (moved) return;
  document.dispatchEvent(new CustomEvent("quept:solved", { detail: { budget: wanted } }));
  propose(answer.plan, true);
  if (typeof wanted === "string") wanted = answer.budget;
  drawSlider(answer.budget);
  note = answer.note;
  const words = answerWords();
  say(words, "answer");
  view.live.textContent = `Best for ${sizeWords(answer.budget)}: ${words}`;
}

const answerWords = () => [planWords(), note].filter(Boolean).join(" · ");

/* The plan of the answer was measured: that takes the place of what was predicted. */
function onMeasured({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:measured", onMeasured);
  if (typeof detail.values.kl !== "number") return;
  measured = { ...detail, link: JSON.stringify(detail.link) };
  if (view.words.dataset.tone === "answer" && owned === measured.link) say(answerWords(), "answer");
}

function planWords() {
  if (!faders) return "";
  const { bytes, bits_per_param: bits, predicted } = faders;
  const found = measured?.link === linkNow() ? measured.values : predicted;
  const weights = `${sizeWords(bytes)}, ${bits.toFixed(2)} bits per parameter`;
  const size = path?.file ? `${fileWords()} · ${sizeWords(bytes)} packed` : weights;
  if (!found) return size;
  const score = "ppl" in found || "top1" in found ? `, ${scoreWords(found)}` : "";
  return `${size} · ${found === predicted ? "predicted" : "measured"} KL ${smallWords(found.kl)}${score}`;
}

/* "GGUF 84.1 MB": what the plan on the faders is as a file. */
function fileWords() {
  const bytes = fileBytes(path.file, faders.plan, LINK_BITS);
  return bytes === null ? `${path.file.title} lacks a width of this plan` : `${path.file.title} ${sizeWords(bytes)}`;
}

/* Bytes of the plan on the faders, of what the budget is for. */
function bytesNow() {
  const bytes = path?.file && faders?.plan ? fileBytes(path.file, faders.plan, LINK_BITS) : null;
  return bytes ?? faders?.bytes ?? 0;
}

function say(words, tone = "") {
  view.words.textContent = words;
  view.words.dataset.tone = tone;
  view.text.setAttribute("aria-invalid", String(tone === "error"));
  if (tone === "error") view.live.textContent = words;
}

/* The visitor has other plans: the box is empty again, and the slider shows the plan on the faders. */
function forget() {
  owned = null;
  wanted = null;
  view.text.value = "";
  say(hint());
  if (faders) drawSlider(bytesNow());
}

/* Budgets that this model can meet. */
function examples() {
  const [least, most] = path?.path ? endsOf(path.path) : [46e6, 269e6];
  const mb = (least + EXAMPLE * (most - least)) / 1e6;
  return `${mb >= 10 ? Math.round(mb) : Number(mb.toPrecision(2))} MB, 3.2 bits or 2 % worse`;
}

function hint() {
  if (path?.error) return path.error;
  if (!path?.path) return "";
  return `Type a budget, such as ${examples()}, or drag: the faders go to the best bits for it.`;
}

function drawSlider(bytes) {
  const usable = Boolean(path?.path);
  for (const control of [view.text, view.slider]) control.disabled = !usable;
  view.text.placeholder = examples();
  view.target.disabled = !usable && !path?.turn; // as with other limits, what cannot be had can be undone
  if (!usable) return;
  const place = Math.round(PLACES * clamp(placeOf(endsOf(path.path), bytes), 0, 1));
  // Sizes are rounded: a place beside is the same one, and keys must be able to leave it.
  if (!view.pressed && Math.abs(view.slider.value - place) > 1) view.slider.value = String(place);
  nameSlider(bytes);
}

function nameSlider(bytes) {
  view.slider.setAttribute("aria-valuetext", sizeWords(bytes));
}

function drawTicks() {
  const width = view.slider.clientWidth;
  if (!path?.path || !width) return view.ticks.replaceChildren();
  const ends = endsOf(path.path);
  const ticks = ticksOf(ends, TICK_PX / width);
  view.ticks.replaceChildren(...ticks.map((bytes, i) => {
    const edge = i === 0 ? "first" : i === ticks.length - 1 ? "last" : "";
    const size = sizeWords(bytes), text = edge ? size : size.replace(/\.0+ .*| .*/, "");
    return make("span", { class: `tick ${edge}`, style: `--at: ${placeOf(ends, bytes)}`, text });
  }));
}

function drawLimits() {
  const locked = faders?.locked ?? [];
  const layers = locked.filter((i) => i >= 0).length, embeddings = locked.length > layers;
  const parts = [layers ? layersWords(layers) : "", embeddings ? "the embeddings" : ""].filter(Boolean);
  view.pins.textContent = parts.length ? `Locked, and so kept: ${parts.join(" and ")}` : "";
  const rules = ["pin", "floor", "ceiling"].reduce((sum, name) => sum + Object.keys(said[name]).length, 0);
  view.said.textContent = saidWords();
  view.clear.hidden = !rules && !WIDTHS.some((name) => said[name]);
  const count = parts.length + rules + (view.keep.checked ? 1 : 0) + (view.inputs.checked ? 1 : 0)
    + (view.table.value ? 1 : 0)
    + (view.ties.querySelector('[aria-checked="true"]').dataset.value === "none" ? 0 : 1);
  view.more.textContent = count ? `Constraints (${count})` : "Constraints";
  view.inputsLabel.hidden = !path?.activations;
}

function onPredict({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:predict", onPredict);
  faders = detail;
  drawLimits();
  clearTimeout(limitsTimer);
  if (!detail.dragging) limitsTimer = setTimeout(sendLimits, LIMITS_PAUSE_MS);
  if (telling || (owned && owned === linkNow())) return;
  if (owned) forget();
  else drawSlider(bytesNow());
}

function onBudget({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:budget", onBudget);
  view.text.value = detail.words;
  typed();
}

function onPath() {
  const before = path?.model, next = props.path ?? null;
  if (next?.turn && next.turn !== turn) return; // limits have changed since
  path = next;
  if (path?.model !== before) {
    if (refining) trigger("cancel");
    refining = refined = asked = null;
    view.told.textContent = "";
    sentLimits = limitsKey(NO_LIMITS);
    said = noneSaid();
    drawTables();
    drawParts();
    drawLimits();
    forget();
    if (!faders || faders.link.m === path?.model) sendLimits(); // else the faders' first telling does
  }
  drawTicks();
  drawSlider(typeof wanted === "number" ? wanted : bytesNow());
  drawRefine();
  view.more.disabled = !path?.path && !path?.turn; // without a table; limits in each other's way can be undone
  const stuck = Boolean(path?.error && path.turn);
  if (path?.error) say(path.error, stuck ? "error" : "");
  else if (wasStuck && view.words.dataset.tone === "error" && !asked) say(hint());
  wasStuck = stuck;
  if (path?.said) adopt(path.said);
}

/* Refinement: a job of Python's; the faders stay free meanwhile. */

function refine() {
  if (refining) return cancel();
  refining = { link: linkNow() };
  view.told.textContent = "Waiting to begin";
  view.load.hidden = true;
  view.bar.style.transform = "scaleX(0)";
  drawRefine();
  const now = bytesNow();
  const budget = typeof wanted === "number" && owned ? Math.max(wanted, now) : now;
  trigger("refine", { budget, ...limits() });
}

/* The pass under way is the last: that this was heard is said at once. */
function cancel() {
  refining.stopping = true;
  view.told.textContent = view.live.textContent = "Stopping";
  drawRefine();
  trigger("cancel");
}

const RESTING = ["done", "cancelled", "error"];

function onRefined() {
  const state = props.refined;
  if (!state || !refining) return;
  const over = RESTING.includes(state.status);
  if (over || !refining.stopping) view.told.textContent = refinedWords(state);
  view.bar.style.transform = `scaleX(${over ? 1 : state.fraction || 0})`;
  view.track.setAttribute("aria-valuenow", Math.round(100 * (state.fraction || 0)));
  if (!over) return;
  const { link } = refining;
  refining = null;
  view.live.textContent = view.told.textContent;
  if (state.plan && state.better) {
    refined = state.plan;
    if (link === linkNow()) loadRefined();
    else view.load.hidden = false;
  }
  drawRefine(true);
}

function loadRefined() {
  view.load.hidden = true;
  note = "";
  propose(refined, true);
  say(planWords(), "answer");
}

function refinedWords(state) {
  const { status, message, tried, kl, start_kl: start, uniform_kl: uniform, seconds, limit } = state;
  if (message) return message;
  const figures = [`KL ${smallWords(kl)}`, `at the start ${smallWords(start)}`];
  if (typeof uniform === "number") figures.push(`uniform at these bytes ${smallWords(uniform)}`);
  const plans = `${tried} ${tried === 1 ? "plan" : "plans"} tried`;
  const ending = RESTING.includes(status) || seconds > limit; // what was found is checked then
  const time = `${Math.round(seconds)}${ending ? "" : ` of ${limit}`} s`;
  const found = state.better ? `refined to ${state.name}` : "nothing better found";
  const ended = { done: found, cancelled: "stopped" };
  const words = ended[status] ?? state.stage;
  const where = status === "done" ? "on text that the search did not see" : "measured";
  return `${words[0].toUpperCase()}${words.slice(1)}: ${figures.join(", ")}, ${where} · ${plans}, ${time}`;
}

function drawRefine(keep = false) {
  view.refine.textContent = refining ? "Cancel" : "Refine";
  view.refine.classList.toggle("stop", Boolean(refining));
  view.refine.disabled = refining ? Boolean(refining.stopping) : !path?.path;
  view.refine.title = refining
    ? "Stop; the best plan so far is kept"
    : "Measure neighbours of this plan for a minute and keep the best one of the same bytes";
  view.track.hidden = !refining;
  if (refining || keep) view.progress.hidden = false;
  else if (!view.told.textContent) view.progress.hidden = true;
}

build();
onPath();
drawLimits();
new ResizeObserver(drawTicks).observe(view.slider);
document.addEventListener("quept:predict", onPredict);
document.addEventListener("quept:budget", onBudget);
document.addEventListener("quept:measured", onMeasured);
watch("path", onPath);
watch("answer", onAnswer);
watch("refined", onRefined);
