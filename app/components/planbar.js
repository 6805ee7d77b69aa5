/* The plan bar: plans by name, undo and redo, share, files, and three states worth seeing; see planbar.py.

   This file, after dom.js, terms.js, plan.js and card.js, is the body of a function that gr.HTML calls once, with
   element, props, trigger and watch as in equalizer.js. It speaks with the equaliser by DOM events alone:
   quept:predict says what the faders show; quept:propose, quept:undo and quept:redo change it; quept:budget
   {words} is a budget for budget.js to meet, which says quept:solved {budget} before it proposes the plan. */

const LARGEST = 2_000_000; // characters of a plan file
const ICONS = {
  undo: UNDO,
  redo: "M9.5 3.5 13 7 9.5 10.5M13 7H6.5a3.5 3.5 0 0 0 0 7H9",
  share: "M6.5 9.5l3-3M7 4.5l1.5-1.5a3 3 0 0 1 4.5 4.5L11.5 9M9 11.5 7.5 13A3 3 0 0 1 3 8.5L4.5 7",
  download: "M8 2.5v8M4.8 7.5 8 10.7l3.2-3.2M3 13.5h10",
  card: "M2.5 3.5h11v9h-11ZM5 10V8M8 10V6M11 10V7",
  upload: "M8 10.7v-8M4.8 5.7 8 2.5l3.2 3.2M3 13.5h10",
};
const GROUPS = { best: "Best found for their size", named: "Other plans" };

const root = element.querySelector(".planbar");
let faders = window.queptPrediction ?? null; // the latest quept:predict
const LEAD_MS = 5000;
const FLASH_MS = 1200, SAVED_MS = 4000;
let turn = 0;
let view;
// The state worth seeing that was pressed last: its label, the plan before and after it, the budget that is not solved
// yet, and whether it was pressed again.
let offered = null;

const shelf = () => props.plans ?? { plans: [], tries: [] };
const keyOf = (link) => ["w", "a", "kv", "k", "e"].map((name) => link?.[name] ?? "").join("&");
const sizeOf = ({ bytes }) => (bytes >= 1e8 ? `${Math.round(bytes / 1e6)} MB` : sizeWords(bytes));
const detailOf = (plan) => [sizeOf(plan), plan.quality].filter(Boolean).join(" · ");

function load(name) {
  const found = shelf().plans.find((plan) => plan.name === name);
  if (!found || !faders) return;
  const plan = planOfLink(found.link, faders.plan.w.length, faders.plan.kv.length);
  document.dispatchEvent(new CustomEvent("quept:propose", { detail: { plan, done: true, locked: true } }));
  say(`${found.label}: ${detailOf(found)}`);
}

/* One of the states worth seeing. */
function show({ label, plan, budget, tab }) {
  if (plan || budget) {
    const now = keyOf(faders?.link), again = offered?.label === label && offered.after === now;
    offered = again ? { ...offered, again } : { label, before: now, after: null, budget };
    if (again) flash();
  }
  if (plan) load(plan);
  if (budget) document.dispatchEvent(new CustomEvent("quept:budget", { detail: { words: budget } }));
  const button = tab && document.querySelector(`#tabs [role="tab"][data-tab-id="${tab}"]`);
  if (!button) return;
  button.click();
  const wide = matchMedia("(min-width: 1280px)").matches; // faders, plot and demo in sight together
  lead(document.getElementById(wide ? "bench" : "tabs"));
}

/* Brings a part of the page to the top, and keeps it there while what was just opened below it grows, until the
   visitor does something. */
function lead(part) {
  if (!part) return;
  const go = () => part.scrollIntoView({ block: "start" }), grown = new ResizeObserver(go);
  const done = new AbortController();
  const stop = () => { grown.disconnect(); done.abort(); };
  for (const event of ["wheel", "pointerdown", "keydown", "touchstart"]) {
    document.addEventListener(event, stop, { passive: true, signal: done.signal });
  }
  grown.observe(document.getElementById("tabs"));
  setTimeout(stop, LEAD_MS);
  go();
}

function action(name, label, onClick, title) {
  const [verb, ...rest] = label.split(" ");
  const word = make("span", { class: "word", text: verb });
  if (rest.length) word.append(make("span", { class: "more", text: ` ${rest.join(" ")}` }));
  const made = make("button", { type: "button", class: "action", "data-action": name, title }, icon(ICONS[name]), word);
  made.addEventListener("click", onClick);
  return made;
}

const ask = (name) => () => document.dispatchEvent(new CustomEvent(`quept:${name}`));

function build() {
  const { plans, tries } = shelf();
  view = { buttons: [], offers: [], live: make("span", { class: "unseen", role: "status", "aria-live": "polite" }) };
  const presets = make("div", { class: "presets", role: "group", "aria-label": "The same bits in every layer" });
  for (const plan of plans.filter(({ kind }) => kind === "uniform")) presets.append(makePreset(plan));
  const wanted = make("div", { class: "tries", role: "group", "aria-label": "Worth seeing" },
    ...tries.map((one) => {
      const button = make("button", { type: "button", class: "try", text: one.label });
      button.addEventListener("click", () => show(one));
      if (!one.plan && !one.budget) return button;
      button.setAttribute("aria-pressed", "false");
      view.offers.push(button);
      return button;
    }));
  view.undo = action("undo", "Undo", ask("undo"), "Undo (Ctrl+Z)");
  view.redo = action("redo", "Redo", ask("redo"), "Redo (Ctrl+Shift+Z)");
  view.share = action("share", "Share", share, "Copy a link to this page with this plan");
  view.file = make("input", { type: "file", accept: ".json,application/json", hidden: "", "data-file": "" });
  view.file.addEventListener("change", upload);
  view.saved = make("span", { class: "saved", "aria-hidden": "true" });
  view.save = action("download", "Save plan", download, "The plan as a file, for the command line or to come back to");
  const actions = make("div", { class: "actions" }, view.undo, view.redo, view.share,
    view.save,
    action("card", "Card", saveCard, "A picture of the plan with its size, quality and link"),
    action("upload", "Load plan", () => view.file.click(), "A plan file from your disk"), view.file, view.saved);
  view.changed = make("span");
  view.back = make("button", { type: "button", class: "action", "data-back": "", text: "Back to the plan before" });
  view.back.addEventListener("click", ask("undo"));
  view.note = make("p", { class: "note", role: "status", hidden: "" }, view.changed, view.back);
  offered = null;
  root.replaceChildren(make("div", { class: "top" }, wanted, actions), view.note,
    make("div", { class: "shelf" }, term("plan", "Plan", shelf().full), presets, makeMenu(plans)), view.live);
  draw();
}

function makePreset(plan) {
  const id = plan.label.replace(/\W/g, "");
  const button = make("button", { type: "button", class: "preset", id: `preset-${id}`, "aria-pressed": "false", title: plan.says },
    make("b", { text: plan.label }, make("i", { text: `${/\d+/.exec(plan.label) ?? FULL} bits` })), make("span", { text: detailOf(plan) }));
  button.addEventListener("click", () => load(plan.name));
  view.buttons.push({ button, key: keyOf(plan.link) });
  return button;
}

function makeMenu(plans) {
  view.select = make("select", { "data-plans": "", id: `${element.id}-named` }, make("option", { value: "", text: "–" }));
  view.named = new Map(plans.filter(({ kind }) => GROUPS[kind]).map(({ link, name }) => [keyOf(link), name]));
  for (const [kind, label] of Object.entries(GROUPS)) {
    const options = plans.filter((plan) => plan.kind === kind)
      .map((plan) => make("option", { value: plan.name, text: `${plan.label} · ${detailOf(plan)}` }));
    if (options.length) view.select.append(make("optgroup", { label }, ...options));
  }
  view.select.addEventListener("change", () => load(view.select.value));
  const label = make("label", { class: "menu", for: view.select.id }, make("span", { text: "Named" }), view.select);
  label.hidden = !view.named.size;
  return label;
}

/* The pressed button, and what the menu says, are those of the plan on the faders. */
function draw() {
  const key = keyOf(faders?.link);
  for (const one of view.buttons) one.button.setAttribute("aria-pressed", String(one.key === key));
  view.select.value = view.named.get(key) ?? "";
  view.undo.disabled = !faders?.undo;
  view.redo.disabled = !faders?.redo;
  drawNote(key);
}

/* A state worth seeing takes the place of the visitor's plan, or is that plan already: the page says so until the
   plan changes again. */
function drawNote(key) {
  if (offered?.budget && key !== offered.before) offered = null;
  if (offered && !offered.budget && !faders?.dragging && !offered.after) {
    offered.after = key;
    if (key === offered.before) flash();
  }
  const stays = offered?.after === key;
  if (offered?.after && !stays) offered = null;
  view.note.hidden = !stays;
  const there = stays && (offered.again || offered.before === key);
  const words = there ? "is on the faders already" : "replaced the plan on the faders: now";
  const changed = stays ? `“${offered.label}” ${words}${there ? ":" : ""} ${faders.plainly}.` : "";
  if (view.changed.textContent !== changed) view.changed.textContent = changed;
  view.back.hidden = !stays || offered.before === key;
  for (const button of view.offers) button.setAttribute("aria-pressed", String(stays && button.textContent === offered.label));
}

/* Draws the eye to the note where nothing else on the page moves. */
function flash() {
  view.note.animate([{ outline: "3px solid var(--color-accent)" }, { outline: "3px solid transparent" }], FLASH_MS);
}

function say(words) {
  view.live.textContent = words;
}

async function share() {
  const link = addressWith(faders.link, window.location.href);
  const copied = await copyText(link, root);
  view.share.focus({ preventScroll: true });
  if (!copied) return showLink(link);
  const word = view.share.querySelector(".word");
  word.textContent = "Copied";
  say("The link is on the clipboard.");
  setTimeout(() => { word.textContent = "Share"; }, 2000);
}

/* Where no way of copying is allowed: the link itself, selected. */
function showLink(link) {
  root.querySelector(".link")?.remove();
  const field = make("input", { class: "link", readonly: "", "aria-label": "Link to this plan to copy" });
  field.value = link;
  root.append(field);
  field.select();
}

function saveCard() {
  const chosen = document.querySelector("#model select")?.selectedOptions[0]?.text ?? faders.link.m;
  const known = window.queptPoints ?? { metrics: [], points: [] };
  const picture = drawCard(cardOf(faders, known, chosen, window.location.href));
  picture.toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `${fileName(`${faders.link.m} ${faders.words}`)}.png` }).click();
    URL.revokeObjectURL(url);
  });
}

const fileName = (words) => words.replace(/[^A-Za-z0-9.]+/g, "-");

function download() {
  turn += 1;
  trigger("download", { turn, plan: faders.plan });
}

function onFile() {
  if (props.file?.turn !== turn) return;
  const url = URL.createObjectURL(new Blob([props.file.text], { type: "application/json" }));
  make("a", { href: url, download: props.file.name }).click();
  URL.revokeObjectURL(url);
  say(`Saved ${props.file.name}`);
  view.saved.textContent = `Saved ${props.file.name}`;
  setTimeout(() => { view.saved.textContent = ""; }, SAVED_MS);
}

/* Too long a file is no plan: its first part says so to Python, which refuses it in words. */
async function upload() {
  const [file] = view.file.files;
  view.file.value = "";
  if (file) trigger("upload", { text: await file.slice(0, LARGEST).text() });
}

function onPredict({ detail }) {
  if (!element.isConnected) return stop();
  faders = detail;
  draw();
}

function onSolved({ detail }) {
  if (offered?.budget === detail.budget) offered.budget = null;
}

/* Back or Forward: to another model Python has to go along. */
function onBack() {
  if (!element.isConnected) return stop();
  const query = Object.fromEntries(new URL(window.location.href).searchParams);
  if ((query.m ?? shelf().first) === faders?.link.m) return;
  window.queptTravels = true;
  trigger("travel", { query });
}

function stop() {
  document.removeEventListener("quept:predict", onPredict);
  document.removeEventListener("quept:solved", onSolved);
  window.removeEventListener("popstate", onBack);
}

build();
document.addEventListener("quept:predict", onPredict);
document.addEventListener("quept:solved", onSolved);
window.addEventListener("popstate", onBack);
watch("plans", build);
watch("file", onFile);
