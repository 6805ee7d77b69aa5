/* A plan in each format: what it weighs, what is rounded, what is refused and why; its file, and how to run it.

   This file, after dom.js and plan.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.offers, props.made and props.ran, see exports.py;
     trigger   trigger("make", {format}) and trigger("run", {});
     watch     watch("offers", f) calls f when Python sent others.

   "Use the nearest plan" hands it to the equaliser through the DOM event quept:propose. */

const FITS = { gguf: "GGUF file", mlx: "MLX folder", "compressed-tensors": "vLLM folder" }; // as the budget calls them
const root = element.querySelector(".exports");
const rows = make("div", { class: "rows", role: "list" });
const live = make("span", { class: "unseen", role: "status", "aria-live": "polite" });
let making = ""; // the format whose file is in the making
let made = null; // the file that was made last

const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
const percent = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)} % against packed`;
const button = (text, attributes) => make("button", { type: "button", class: "button", text, ...attributes });

function drawRow(row) {
  const fits = row.bytes !== null;
  const head = make("div", { class: "head" }, make("h3", { text: row.title }),
    make("span", { class: "soft", text: row.engines }));
  if (row.least) head.append(make("span", { class: "least", text: "smallest for other engines" }));
  const facts = make("div", { class: "facts" });
  if (fits) {
    facts.append(make("strong", { text: sizeWords(row.bytes), "data-bytes": row.bytes }),
      make("span", { class: "soft", text: percent(row.share) }));
  }
  const notes = make("ul", { class: "notes" });
  const note = (text) => notes.append(make("li", { text }));
  if (row.refused) note(row.refused);
  if (row.nearest && FITS[row.format]) note(`Plans that fit: choose “for: ${FITS[row.format]}” beside the budget`);
  else note(capital(row.exact) || "Exact: every value as on this page");
  if (row.adds.length) note(row.adds.join(" · "));
  const actions = make("div", { class: "actions" });
  if (fits && !(made?.format === row.format && made.status === "done")) {
    const start = button(making === row.format ? "Making …" : "Make file", { "data-make": row.format,
      "aria-label": `Make the ${row.title} file` });
    start.setAttribute("aria-disabled", Boolean(making));
    start.addEventListener("click", () => {
      if (making) return;
      making = row.format;
      made = null;
      draw();
      trigger("make", { format: row.format });
    });
    actions.append(start);
  } else if (!fits && row.nearest) {
    const near = button(`Use the nearest plan (${sizeWords(row.nearest.bytes)})`, { "data-nearest": row.format });
    near.addEventListener("click", () => propose(row.nearest.plan));
    actions.append(near);
  }
  const card = make("section", { class: `row${fits ? "" : " refused"}`, role: "listitem", "data-format": row.format },
    head, facts, notes, actions);
  if (made?.format === row.format || making === row.format) card.append(drawFile());
  return card;
}

function propose(plan) {
  document.dispatchEvent(new CustomEvent("quept:propose", { detail: { plan, done: true } }));
}

/* The file in the making, or made. */
function drawFile() {
  const state = made ?? {}, box = make("div", { class: "file" });
  if (state.status !== "done") {
    const share = Math.round(100 * (state.fraction ?? 0));
    const words = state.status === "error" ? state.message : `${state.message ?? "Waiting"} … ${share} %`;
    box.append(make("p", { class: state.status === "error" ? "wrong" : "soft", text: words, "data-told": "" }));
    return box;
  }
  const { root: base = ".", api_prefix: api = "/gradio_api" } = window.gradio_config ?? {};
  const href = `${base.replace(/\/$/, "")}${api}/file=${state.path}`;
  box.append(make("a", { class: "button download", href, download: state.name, "data-download": "",
    text: `Download ${state.name} (${sizeWords(state.bytes)})` }));
  if (state.format === "gguf") box.append(drawRun());
  const copy = button("Copy", { "aria-label": "Copy the lines that run it" });
  copy.addEventListener("click", async () => {
    const copied = await copyText(state.commands.join("\n"), root);
    live.textContent = copy.textContent = copied ? "Copied" : "Select and copy";
  });
  box.append(make("div", { class: "lines" }, make("pre", { text: state.commands.join("\n"), tabindex: "0",
    "aria-label": "Lines that run it" }), copy));
  return box;
}

function drawRun() {
  const missing = props.offers?.llama;
  if (missing) return make("p", { class: "soft", text: missing });
  if (made.ran?.words) {
    const line = make("p", { class: "ran", text: made.ran.words, "data-ran": "", tabindex: "-1" });
    if (made.ran.next) line.append(make("span", { class: "soft", text: ` ${made.ran.next} …` }));
    return line;
  }
  const run = button(made.ran ? "llama.cpp is running it …" : "Run it here in llama.cpp", { "data-run": "" });
  run.setAttribute("aria-disabled", Boolean(made.ran));
  run.addEventListener("click", () => {
    if (made.ran) return;
    made.ran = {};
    draw();
    trigger("run", {});
  });
  return run;
}

/* What had the focus keeps it, or what took its place in the row gets it. */
function draw() {
  const at = rows.contains(document.activeElement) ? document.activeElement : null;
  const [kind] = Object.keys(at?.dataset ?? {}), format = at?.closest("[data-format]").dataset.format;
  const weighing = make("p", { class: "soft", text: "Weighing your plan in each format …" });
  rows.replaceChildren(...(props.offers?.rows?.map(drawRow) ?? [weighing]));
  if (!at) return;
  const row = rows.querySelector(`[data-format="${format}"]`);
  (row?.querySelector(`[data-${kind}]`) ?? row?.querySelector(".button"))?.focus({ preventScroll: true });
}

function onOffers() {
  if (!making) made = null;
  draw();
}

function onMade() {
  const state = props.made;
  if (!state || state.format !== making) return;
  made = { ...state };
  if (["done", "error"].includes(state.status)) {
    making = "";
    live.textContent = state.message || `${state.name} is ready`;
  }
  draw();
}

function onRan() {
  if (!made || !props.ran) return;
  made.ran = props.ran;
  if (!made.ran.next) live.textContent = made.ran.words;
  draw();
}

root.replaceChildren(rows, live);
draw();
watch("offers", onOffers);
watch("made", onMade);
watch("ran", onRan);
