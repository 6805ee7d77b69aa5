/* The live numbers: memory, bits per parameter, perplexity or accuracy, divergence and share of equal answers.

   This file, after bus.js, is the body of a function that gr.HTML calls once, with element, props, watch as in equalizer.js.
   In comes props.value, the state of the measurement (see numbers.py), and the DOM event quept:predict.

   Each number is marked as exact, predicted or measured. Prediction rules while the visitor drags and until
   numbers of the plan on screen arrive; every line is always there, so that nothing moves when one comes. */

const root = element.querySelector(".numbers");
const PPL = { key: "ppl", label: "Perplexity" }, SAME = { key: "same", label: "Same top", long: " token" };
const TOP1 = { key: "top1", label: "Accuracy" }, AGREED = { key: "same", label: "Same answer" };
const TILES = {
  language: tilesWith(PPL, SAME),
  vision: tilesWith(TOP1, AGREED),
  "vision-language": tilesWith(TOP1, AGREED),
};
const UNITS = { language: "tokens", vision: "pictures", "vision-language": "questions" }; // what is measured on
const tiles = new Map();
let prediction = told.queptPrediction ?? null;
let state = {};
let status, conditions, types, bar, live;
let kind = ""; // of the model, a key of TILES: which tiles there are

function tilesWith(quality, same) {
  return [
    { key: "memory", label: "Deploy memory" },
    { key: "bpp", label: "Bits / parameter" },
    quality,
    { key: "kl", label: "Mean KL" },
    same,
    { key: "versus", label: "Against uniform" },
  ];
}

const kindOf = (state) => (Object.hasOwn(TILES, state.kind ?? "") ? state.kind : "language");
const known = (x) => typeof x === "number" && Number.isFinite(x);

function size(bytes) {
  if (!known(bytes)) return "–";
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} KB`;
}

/* Decimals that suit a number of this size: three digits that count. */
const decimals = (x) => [100, 10, 1, 0.01].filter((step) => Math.abs(x) < step).length;

function number(x, places) {
  if (!known(x)) return "–";
  if (Math.abs(x) >= 1e5) return x.toExponential(1).replace("e+", "e");
  return x.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

const plain = (x) => number(x, known(x) ? decimals(x) : 0);
const count = (x) => Math.round(x).toLocaleString("en");

/* "▲ 3.6 worse than …": lower is better for these; a difference inside two standard errors is none. */
function compare(value, other, error, name) {
  if (!known(value) || !known(other)) return { text: "" };
  const difference = value - other;
  const distance = number(Math.abs(difference), decimals(value));
  const margin = Math.max(2 * (error ?? 0), 1e-9);
  if (Math.abs(difference) <= margin) return { text: `≈ like ${name}`, short: "≈ alike", tone: "even" };
  const [arrow, tone] = difference > 0 ? ["▲", "worse"] : ["▼", "better"];
  const short = `${arrow} ${distance} ${tone}`;
  return { text: `${short} than ${name}`, short, tone };
}

/* Whether the state's numbers are of the plan on the screen. */
function isCurrent() {
  if (!state.estimate || prediction?.dragging) return false;
  if (!state.link || !prediction?.link) return true;
  const one = (link) => ["w", "a", "kv", "e"].map((name) => link[name] ?? "").join("&");
  return one(state.link) === one(prediction.link);
}

/* An accuracy against full precision's on the same pictures: higher is better. What counts is how many became
   right and how many wrong: where the two differ by less than two standard errors there is no difference. */
function compareShares(value, other, lost, gained) {
  if (!known(value) || !known(other)) return { text: "" };
  const points = 100 * (value - other), name = `full, ${percent(other)}`;
  const sure = Math.abs(gained - lost) > 2 * Math.sqrt(gained + lost);
  if (known(lost) && known(gained) && !sure) return { text: `≈ like ${name}`, tone: "even" };
  const [arrow, tone] = points > 0 ? ["▲", "better"] : ["▼", "worse"];
  return { text: `${arrow} ${number(Math.abs(points), 1)} points ${tone} than ${name}`, tone };
}

/* Value, error (or 95 % interval) and origin of the qualities. */
function quality(measured) {
  const from = measured ? state.estimate : prediction?.predicted;
  const origin = measured ? "measured" : prediction?.predicted ? "predicted" : "";
  const pick = (name) => ({
    value: from?.[name], error: from?.[`${name}_se`],
    low: from?.[`${name}_low`], high: from?.[`${name}_high`], origin,
  });
  return { ppl: pick("ppl"), kl: pick("kl"), same: pick("same_top"), top1: pick("top1") };
}

function drawAccuracy({ same, top1 }, measured) {
  const { estimate, reference } = state;
  const perfect = (measured && estimate.top1_ref) || reference?.top1;
  const { lost, gained } = measured ? estimate : {};
  put("top1", share(top1), compareShares(top1.value, perfect, lost, gained),
    { text: measured ? `${count(lost)} became wrong, ${count(gained)} right` : "" });
  const flips = measured ? Math.round((1 - same.value) * estimate.images) : null;
  put("same", share(same), { text: known(same.value) ? "as full precision" : "" },
    { text: known(flips) ? `${count(flips)} of ${count(estimate.tokens)} changed` : "" });
}

const percent = (x) => (known(x) ? `${number(100 * x, 1)}%` : "–");

/* A share with its interval: "91.3%" and "89.4–92.9". */
function share({ value, low, high, origin }) {
  const error = known(low) && known(high) ? `${number(100 * low, 1)}–${number(100 * high, 1)}` : "";
  return { value: percent(value), error, origin };
}

function drawTiles(measured) {
  const found = quality(measured), { ppl, kl, same } = found;
  const uniform = measured ? state.uniform : null;
  const reference = state.reference?.ppl ?? prediction?.reference?.ppl;
  const floor = state.reference?.kl_floor;
  const p99 = measured ? state.estimate.kl_p99 : null;
  const against = compare(kl.value, uniform?.kl, kl.error, "uniform");

  drawExact();
  if (kind !== "language") drawAccuracy(found, measured);
  else {
    put("ppl", figure(ppl),
      compare(ppl.value, reference, ppl.error, `full, ${plain(reference)}`),
      compare(ppl.value, uniform?.ppl, ppl.error, "uniform"));
    put("same", figure(same, 100, "%"),
      { text: known(same.value) ? "of full precision's choices" : "" },
      { text: known(p99) ? `99% of tokens: KL under ${plain(p99)}` : "" });
  }
  put("kl", figure(kl),
    { text: known(floor) ? `0 is full, noise floor ${plain(floor)}` : "0 is full precision" }, against);
  put("versus", { value: against.short ?? "–", origin: against.text ? "KL" : "", tone: against.tone });
  for (const key of ["ppl", "kl", "versus"]) {
    if (tiles.has(key)) tiles.get(key).lines[1].title = uniform?.label ?? "";
  }
}

/* Memory and bits per parameter are known at once and exactly; what the server measured stands below them. */
function drawExact() {
  const bytes = prediction?.bytes ?? state.deploy_bytes;
  const full = state.full_bytes ?? prediction?.full_bytes;
  const { elastic_bytes: elastic, switch_ms: ms, switch_kind: kind = "" } = state;
  put("memory", { value: size(bytes), origin: known(bytes) ? "exact" : "" },
    { text: known(bytes / full) ? `${Math.round((100 * bytes) / full)}% of full, ${size(full)}` : "" },
    { text: known(elastic) ? `${size(elastic)} resident, all widths` : "" });
  put("bpp", { value: number(prediction?.bits_per_param, 2), origin: prediction ? "exact" : "" },
    { text: prediction ? `layers' mean ${number(prediction.weight_bits, 2)} bits` : "" },
    { text: known(ms) ? `switched in ${plain(ms)} ms, ${kind}` : "" });
}

/* What a tile shows of {value, error, origin}; a percentage is scaled and has one decimal. */
function figure({ value, error, origin }, scale = 1, unit = "") {
  const places = unit ? 1 : decimals(value);
  return {
    value: known(value) ? number(scale * value, places) + unit : "–",
    error: known(error) ? `± ${number(scale * error, places)}` : "",
    origin,
  };
}

function put(key, { value, error = "", origin = "", tone = "" }, ...lines) {
  const tile = tiles.get(key);
  write(tile.value, value);
  write(tile.error, error);
  write(tile.origin, origin);
  tile.tile.dataset.origin = origin;
  tile.value.dataset.tone = tone;
  lines.forEach((line, i) => {
    write(tile.lines[i], line.text);
    tile.lines[i].dataset.tone = line.tone ?? "";
  });
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function progressWords() {
  const tokens = state.estimate?.tokens;
  if (!tokens) return "Measuring…";
  if (!(state.progress > 0)) return `Measured on ${count(tokens)} ${UNITS[kind]} so far`;
  return `Measured on ${count(tokens)} of ${count(Math.max(tokens, tokens / state.progress))} ${UNITS[kind]}`;
}

function statusWords() {
  const tokens = state.estimate?.tokens ? ` on ${count(state.estimate.tokens)} ${UNITS[kind]}` : "";
  const words = {
    idle: state.message ? "Not measured" : "Drag a fader; quality is measured when you let go",
    queued: "Waiting to be measured" + (state.position > 0 ? `, place ${state.position} in the queue` : ""),
    measuring: progressWords(),
    done: `Measured${tokens}`,
    stored: `Measured earlier${tokens}`,
    cancelled: "Measurement stopped",
    error: "Could not measure this plan",
  }[state.status] ?? "";
  return state.message ? `${words}: ${state.message}` : words;
}

function drawStatus(measured) {
  const waiting = state.estimate && !measured && state.status !== "error";
  const predicted = prediction?.dragging ? "Predicted; measured when you let go" : waiting ? "Predicted" : "";
  write(status, predicted || statusWords());
  status.title = status.textContent;
  root.dataset.status = predicted ? "predicted" : state.status ?? "idle";
  write(conditions, (measured ? state.conditions : prediction?.note) ?? "");
  const done = predicted ? 0 : ["done", "stored"].includes(state.status) ? 1 : state.progress || 0;
  bar.style.transform = `scaleX(${done})`;
  bar.parentNode.setAttribute("aria-valuenow", Math.round(100 * done));
}

/* Accuracy by type of question, with full precision's where it is another. */
function drawTypes(measured) {
  const found = measured ? Object.entries(state.estimate.types ?? {}) : [];
  const words = found.map(([name, { questions, right, right_ref: full }]) =>
    `${name} ${percent(right / questions)}` + (full === right ? "" : ` (full ${percent(full / questions)})`));
  write(types, words.length ? `By type: ${words.join(" · ")}` : "");
  types.title = types.textContent;
}

/* Screen readers hear the end of a measurement and every change of its status, not each step of it. */
function announce() {
  if (!["queued", "done", "stored", "error"].includes(state.status)) return;
  const { ppl, kl, top1 } = quality(isCurrent());
  const main = kind === "language" ? `perplexity ${plain(ppl.value)}` : `accuracy ${percent(top1.value)}`;
  const result = isCurrent() ? `: ${main}, mean KL ${plain(kl.value)}` : "";
  write(live, statusWords() + result);
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function makeTile({ key, label, long = "" }) {
  const parts = {
    value: make("span", { class: "value", "data-value": key }),
    error: make("span", { class: "error", "data-error": key }),
    origin: make("span", { class: "origin" }),
    lines: [make("div", { class: "line" }), make("div", { class: "line" })],
  };
  const words = make("span", {}, label, make("span", { class: "long" }, long));
  const name = make("div", { class: "name" }, words, parts.origin);
  parts.tile = make("div", { class: `tile ${key}`, "data-tile": key },
    name, make("div", { class: "figure" }, parts.value, parts.error), ...parts.lines);
  tiles.set(key, parts);
  return parts.tile;
}

function build() {
  kind = kindOf(state);
  tiles.clear();
  status = make("span", { class: "status", "data-status-line": "" });
  conditions = make("span", { class: "conditions" });
  types = make("div", { class: "types" });
  types.hidden = kind !== "vision-language";
  live = make("span", { class: "unseen", role: "status", "aria-live": "polite" });
  bar = make("span", { class: "bar" });
  const range = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Measurement" };
  const track = make("div", { class: "track", role: "progressbar", ...range }, bar);
  root.replaceChildren(
    make("div", { class: "tiles" }, ...TILES[kind].map(makeTile)),
    types, make("div", { class: "words" }, status, conditions), track, live);
}

function draw() {
  const measured = isCurrent();
  drawTiles(measured);
  drawTypes(measured);
  drawStatus(measured);
}

function onPrediction(event) {
  if (!element.isConnected) return bus.removeEventListener("quept:predict", onPrediction);
  prediction = event.detail;
  draw();
}

function onState() {
  const before = state.status;
  state = props.value && typeof props.value === "object" ? props.value : { status: "idle" };
  if (kind !== kindOf(state)) build();
  draw();
  if (state.status !== before) announce();
}

build();
bus.addEventListener("quept:predict", onPrediction);
watch("value", onState);
onState();
