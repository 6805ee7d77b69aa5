/* The live numbers: memory, bits per parameter, and whatever metrics the state brings (see numbers.py).

   This file, after dom.js and terms.js, is the body of a function that gr.HTML calls once, with element, props, watch as in equalizer.js.
   In comes props.value, the state of the measurement (see numbers.py), and the DOM event quept:predict; out goes
   quept:measured, once the plan on the screen is measured.

   Each number is marked as exact, predicted or measured. Prediction rules while the visitor drags and until
   numbers of the plan on screen arrive; every line is always there, so that nothing moves when one comes. */

const EARLY = 0.25; // of the data: before that no difference seen says nothing
const root = element.querySelector(".numbers");
const tiles = new Map();
let drawn = ""; // the names of the metrics that there are tiles for
let prediction = window.queptPrediction ?? null;
let state = {};
let status, conditions, detail, bar, live, widths, plainly, line, facts, back;

let metrics = []; // the latest that a state brought
const names = () => metrics.map(({ name }) => name).join();
const known = (x) => typeof x === "number" && Number.isFinite(x);

function size(bytes) {
  if (!known(bytes)) return "–";
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  if (bytes >= 1e5) return `${(bytes / 1e6).toFixed(bytes >= 1e6 ? 1 : 3)} MB`; // not KB beside MB
  return `${(bytes / 1e3).toFixed(1)} KB`;
}

/* Decimals that suit a number of this size: three digits that count. */
const decimals = (x) => (x === 0 ? 0 : [100, 10, 1, 0.01].filter((step) => Math.abs(x) < step).length);

/* A number that would round to nothing says what it is below. */
function number(x, places) {
  if (!known(x)) return "–";
  if (x !== 0 && Math.abs(x) < 0.5 * 10 ** -places) return `${x < 0 ? "−" : ""}<${(10 ** -places).toFixed(places)}`;
  if (Math.abs(x) >= 1e5) return x.toExponential(1).replace("e+", "e");
  return x.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

const plain = (x) => number(x, known(x) ? decimals(x) : 0);
const count = (x) => Math.round(x).toLocaleString("en");

/* "▲ 3.6 worse than …", or "▲ 13.2% worse" relative to `other`, which does not jump where the first tokens of
   a text are harder than the rest; a difference of at most `margin` is none. */
function compare({ value, unit, better }, other, margin, name, relative = false) {
  if (!known(value) || !known(other)) return { text: "" };
  const gap = value - other, size = Math.abs(gap);
  if (size <= Math.max(margin ?? 0, 1e-9)) {
    const going = state.status === "measuring", early = going && !(state.done > EARLY * state.total); // a wide interval holds everything
    const text = early ? "too early to say" : going ? `no difference to ${name} so far` : `≈ like ${name}`;
    return { text, short: going ? "–" : "≈ alike", tone: "even" };
  }
  const tone = gap > 0 === (better === "higher") ? "better" : "worse";
  const share = unit === "share", plainly = share ? `${number(100 * size, 1)} points` : number(size, decimals(value));
  const distance = relative && !share ? `${plain((100 * size) / Math.abs(other))}%` : plainly;
  const short = `${gap > 0 ? "▲" : "▼"} ${distance} ${tone}`;
  return { text: `${short} than ${name}`, short, tone };
}

/* Whether the state's numbers are of the plan on the screen. */
function isCurrent() {
  if (!state.estimate || prediction?.dragging) return false;
  if (!state.link || !prediction?.link) return true;
  const one = (link) => ["m", "w", "a", "kv", "k", "e"].map((name) => link[name] ?? "").join("&");
  return one(state.link) === one(prediction.link);
}

/* The metrics with what is known of them: measured, else predicted by the equaliser. */
function quality(measured) {
  const predicted = prediction && predictedOn(metrics, prediction);
  const off = (name) => (name === "kl" && prediction?.off_by) || NaN;
  return metrics.map((metric) => (measured ? { ...metric, origin: "measured" } : {
    ...metric, value: predicted?.[metric.name], margin: null, note: "",
    low: predicted?.[metric.name] / off(metric.name), high: predicted?.[metric.name] * off(metric.name),
    full: metric.full ?? prediction?.reference?.[metric.name], origin: known(predicted?.[metric.name]) ? "predicted" : "",
  }));
}

const percent = (x) => (known(x) ? `${number(100 * x, 1)}%` : "–");
const written = ({ unit }, value) => (unit === "share" ? percent(value) : plain(value));

/* What stands in the tile of a metric: "91.3%" and "89.4–92.9" of a share, else "21.8" and "± 0.4". */
function figure({ value, low, high, unit, origin }) {
  const share = unit === "share", scale = share ? 100 : 1, places = share ? 1 : decimals(value);
  const spread = high - value;
  const ends = share ? `${number(scale * low, 1)}–${number(scale * high, 1)}`
    : origin === "predicted" ? `${plain(low)}–${plain(high)}` : `± ${number(spread, places)}`;
  return { value: written({ unit }, value), error: known(low) && known(high) && (share || spread) ? ends : "", origin };
}

function againstFull(metric) {
  const { full, floor, value, unit } = metric;
  if (full === 0) return { text: known(floor) ? `0 is full, noise floor ${plain(floor)}` : "0 is full precision" };
  if (full === 1 && unit === "share") return { text: known(value) ? "100% is full precision" : "" };
  return compare(metric, full, metric.margin, `full, ${written(metric, full)}`, true);
}

function againstUniform(metric, uniform) {
  const margin = known(metric.low) && known(metric.high) ? metric.high - metric.low : 0; // two standard errors
  return compare(metric, uniform?.[metric.name], margin, uniform?.label ?? "uniform");
}

function drawTiles(measured) {
  const uniform = measured ? state.uniform : null, found = quality(measured);
  drawExact();
  for (const metric of found) {
    const last = metric.note ? { text: metric.note } : againstUniform(metric, uniform);
    put(metric.name, figure(metric), againstFull(metric), last);
    tiles.get(metric.name).tile.title = metric.title;
    tiles.get(metric.name).lines[0].title = known(metric.full) ? "Full precision on the same data" : "";
    tiles.get(metric.name).lines[1].title = (!metric.note && uniform?.label) || "";
  }
  drawLine(found);
  write(widths, prediction?.words ?? "");
  write(plainly, prediction?.plainly ?? "");
  const head = found.find(({ name }) => name === state.headline);
  const against = head ? againstUniform(head, uniform) : { text: "" };
  put("versus", { value: against.short ?? "–", origin: against.text ? head.label : "", tone: against.tone });
  tiles.get("versus").tile.title = uniform?.label ?? "";
}

/* Memory and bits per parameter are known at once and exactly; what the server measured stands below them. */
function drawExact() {
  const bytes = prediction?.bytes ?? state.deploy_bytes;
  const full = state.full_bytes ?? prediction?.full_bytes;
  const { resident_bytes: resident, memory, speed, switch_ms: ms, switch_kind: kind = "" } = state;
  put("memory", { value: size(bytes), origin: known(bytes) ? "exact" : "" },
    { text: known(bytes / full) ? `${Math.round((100 * bytes) / full)}% of full, ${size(full)}` : "" },
    { text: known(resident) ? `${size(resident)} held by this app, all in all` : "" });
  const held = { weights: "weights", cache: "keys and values of 512 tokens", scratch: "scratch" };
  tiles.get("memory").tile.title = memory
    ? Object.keys(held).map((part) => `${size(memory[part])} ${held[part]}`).join(", ") + (state.dense && `. ${state.dense}`)
    : "";
  put("bpp", { value: number(prediction?.bits_per_param, 2), origin: prediction ? "exact" : "" },
    { text: prediction ? `layers' mean ${number(prediction.weight_bits, 2)} bits` : "" },
    { text: rate(speed, bytes) || (known(ms) ? `switched in ${plain(ms)} ms, ${kind}` : "") });
}

/* Tokens a second: measured, or predicted from the bytes while the plan on screen is another one. */
function rate(speed, bytes) {
  if (!speed) return "";
  if (isCurrent() && speed.origin === "measured") {
    return `${number(speed.tokens_per_s, 0)} tok/s measured · first ${number(speed.first_token_ms, 0)} ms`;
  }
  const [fixed, each] = speed.line;
  return known(bytes) ? `≈ ${number(1 / (fixed + each * bytes), 0)} tok/s predicted` : "";
}

/* A first glimpse is not called measured. */
const originWords = (origin) => (origin === "measured" && state.status === "measuring" ? "so far" : origin);

function put(key, { value, error = "", origin = "", tone = "" }, ...lines) {
  const tile = tiles.get(key);
  write(tile.value, value);
  write(tile.error, error);
  write(tile.origin, originWords(origin));
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
  const { done, total, unit } = state;
  if (!done) return "Measuring…";
  return total ? `Measured on ${count(done)} of ${count(total)} ${unit}` : `Measured on ${count(done)} ${unit} so far`;
}

function statusWords() {
  const data = state.done ? ` on ${count(state.done)} ${state.unit}` : "";
  const words = {
    idle: state.message ? "Not measured" : "Drag a fader; quality is measured when you let go",
    opening: "Opening the model",
    queued: "Waiting to be measured" + (state.position > 0 ? `, place ${state.position} in the queue` : ""),
    measuring: progressWords(),
    done: `Measured${data}`,
    stored: `Measured earlier${data}`,
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

/* What the metrics say at length, on a line of its own where any of them has something. */
function drawDetail(measured) {
  write(detail, measured ? metrics.map((metric) => metric.detail).filter(Boolean).join(" · ") : "");
  detail.title = detail.textContent;
}

/* Screen readers hear the end of every plan's measurement and each change of status, not each step of it. */
function announce() {
  if (!["opening", "queued", "done", "stored", "error"].includes(state.status)) return;
  const lowered = (label) => label[0].toLowerCase() + label.slice(1);
  const result = quality(true).slice(0, 2).map((m) => `${lowered(m.label)} ${written(m, m.value)}`).join(", ");
  write(live, statusWords() + (isCurrent() && result ? `: ${result}` : ""));
}

function makeTile(key, label) {
  const parts = {
    value: make("span", { class: "value", "data-value": key }),
    error: make("span", { class: "error", "data-error": key }),
    origin: make("span", { class: "origin" }),
    lines: [make("div", { class: "line" }), make("div", { class: "line" })],
  };
  const name = make("div", { class: "name" }, term(key, label), parts.origin);
  parts.tile = make("div", { class: `tile ${key}`, "data-tile": key },
    name, make("div", { class: "figure" }, parts.value, parts.error), ...parts.lines);
  tiles.set(key, parts);
  return parts.tile;
}

function build() {
  drawn = names();
  tiles.clear();
  status = make("span", { class: "status", "data-status-line": "" });
  conditions = make("span", { class: "conditions" });
  detail = make("div", { class: "detail" });
  detail.hidden = metrics.every((metric) => metric.detail === null);
  live = make("span", { class: "unseen", role: "status", "aria-live": "polite" });
  bar = make("span", { class: "bar" });
  const range = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Measurement" };
  const track = make("div", { class: "track", role: "progressbar", ...range }, bar);
  const all = [["memory", "Deploy memory"], ["bpp", "Bits / parameter"]];
  all.push(...metrics.map(({ name, label }) => [name, label]), ["versus", "Against uniform"]);
  const row = make("div", { class: "tiles" }, ...all.map(([key, label]) => makeTile(key, label)));
  row.style.setProperty("--tiles", all.length - 1); // the last is for narrow pages
  widths = make("span", { class: "widths", "data-widths": "" });
  plainly = make("b", { class: "plainly" });
  facts = make("span", { class: "facts", "aria-hidden": "true" });
  back = make("button", { type: "button", class: "back", "aria-label": "Back to the plan before", title: "Back to the plan before" },
    icon(UNDO), make("span", { text: "Plan before" }));
  back.addEventListener("click", () => document.dispatchEvent(new CustomEvent("quept:undo")));
  line = make("div", { class: "state-line", "data-state-line": "" }, facts, back);
  const strip = make("div", { class: "strip" }, row, detail,
    make("div", { class: "words" }, plainly, widths, status, term("origin", "?"), conditions), track);
  root.replaceChildren(strip, line, live);
  sight.disconnect();
  sight.observe(strip);
}

/* The numbers in one line, and the way back, for where the strip is out of sight: nothing on the page moves when it comes. */
const sight = new IntersectionObserver(([entry]) => {
  line.classList.toggle("seen", !entry.isIntersecting && entry.boundingClientRect.bottom < 60);
}, { rootMargin: "-44px 0px 0px 0px" });

function drawLine(found) {
  const bytes = prediction?.bytes ?? state.deploy_bytes, full = state.full_bytes ?? prediction?.full_bytes;
  const share = known(bytes / full) ? ` ${Math.round((100 * bytes) / full)} %` : "";
  const [first, ...rest] = (prediction?.words ?? "").split(" · ");
  const parts = [make("b", { class: "plainly", text: prediction?.plainly ?? "" }), make("b", { class: "widths", text: first }, make("span", { class: "more", text: ["", ...rest].join(" · ") })),
    make("span", { text: size(bytes) + share })];
  for (const metric of found) {
    if (!known(metric.value)) continue;
    const own = metric.full && !(metric.unit === "share" && metric.full === 1); // full precision has a value of its own
    const { short, tone = "" } = own ? compare(metric, metric.full, metric.margin, "full", true) : {};
    const beside = make("span", { class: "beside", text: short && tone !== "even" ? ` ${short}` : "" });
    const words = `${metric.label} ${written(metric, metric.value)}`;
    parts.push(make("span", { "data-tone": tone, text: words }, beside));
  }
  const origin = found.find(({ value }) => known(value))?.origin;
  if (origin) parts.push(make("i", { text: originWords(origin) }));
  facts.replaceChildren(...parts);
  back.hidden = !prediction?.undo;
}

function draw() {
  const measured = isCurrent();
  drawTiles(measured);
  drawDetail(measured);
  drawStatus(measured);
  if (measured) tellMeasured();
}

/* The model that is being opened, else that on the faders: until its numbers come nothing of the one before is shown. */
const modelNow = () => (state.status === "opening" && state.model) || prediction?.link?.m;
const ofAnother = ({ link }) => Boolean(link?.m && modelNow() && link.m !== modelNow());
const readState = () => (props.value && typeof props.value === "object" ? props.value : { status: "idle" });

function forget() {
  metrics = metrics.map((metric) => ({ ...metric, full: null, floor: null }));
}

function onPrediction(event) {
  if (!element.isConnected) return document.removeEventListener("quept:predict", onPrediction);
  if (state.status === "opening") {
    if (ofAnother(event.detail)) return;
    state = { ...state, model: undefined }; // it is on the faders
  }
  prediction = event.detail;
  if (ofAnother(state)) {
    forget();
    state = { status: "idle" };
    if (!ofAnother(readState())) return onState(); // it came before the faders
  }
  draw();
}

/* What was measured of the plan on the screen, for whoever shows its prediction: quept:measured {link, values}. */
function tellMeasured() {
  if (!prediction || !["done", "stored"].includes(state.status)) return;
  const values = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  document.dispatchEvent(new CustomEvent("quept:measured", { detail: { link: prediction.link, values } }));
}

function onState() {
  const before = state.status + JSON.stringify(state.link ?? null);
  if (ofAnother(readState())) return; // a late one, of the model before
  state = readState();
  metrics = state.metrics ?? metrics;
  if (state.status === "opening" && prediction && ofAnother(prediction)) {
    prediction = null;
    forget();
  }
  if (drawn !== names()) build();
  draw();
  if (state.status + JSON.stringify(state.link ?? null) !== before) announce();
}

build();
document.addEventListener("quept:predict", onPrediction);
watch("value", onState);
onState();
