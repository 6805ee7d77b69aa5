/* The chart: quality against memory of every plan measured. It tells its points to the table of them, by the DOM
   event quept:points {metrics, points}, and keeps them in window.queptPoints.

   This file, after dom.js, terms.js and points.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.value ({metrics, headline, points, reference}, see chart.py), props.plotly_file (plotly.js);
     trigger   trigger("point", {id}) when the visitor chooses a plan;
     watch     watch("value", f) calls f when Python sent another value.

   The visitor's own plan follows the DOM event quept:predict, which the equaliser sends with every change:
   no request is made. It is hollow while it is predicted, and filled once Python has sent a measured point
   of kind "current" for it. It lies in a layer of its own above Plotly's figure, because an update of the
   figure takes longer than a frame. The figure is drawn once and then updated, never rebuilt; what the
   visitor zoomed to is kept for each quantity.

   plotly.js is loaded when the chart first comes into sight. Plotly reads a little HTML in its texts, so
   all of them pass through `plain`; everywhere else text is written with textContent. */

const MEMORIES = {
  bytes: { button: "MB", title: "Memory to deploy, MB", of: (p) => (known(p.bytes) ? p.bytes / 1e6 : null) },
  bits_per_param: {
    button: "Bits", title: "Bits per parameter, scales included", of: (p) => p.bits_per_param,
  },
  tokens_per_s: {
    button: "Speed", title: "Tokens a second here; predicted from bytes where not timed yet",
    of: (p) => p.tokens_per_s, fast: true,
  },
};
const MARKERS = {
  uniform: ["circle", 9], best: ["hexagon2", 11], named: ["diamond", 11], tried: ["square", 9],
  baseline: ["triangle-up", 11], own: ["star-diamond", 12],
};
const CROP = 6; // of what has another value than 0 at full precision: beyond this many times the best is above the edge
const NAME_PX = 40; // room beside the outermost points for their names
const NEAR = 0.98; // plans with this share of the full model's bytes start beyond the right edge

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const root = element.querySelector(".chart");
const uid = "chart-" + Math.random().toString(36).slice(2, 9);
let METRICS = {}; // by name, see metricOf
let value = readValue();
let prediction = window.queptPrediction ?? null; // the latest quept:predict
let met = null; // what was on the faders when the current plan's measurement arrived
let metric = "", memory = "bytes";
let zoom = {}; // by quantity: the range that the visitor chose
let shown = {}; // by quantity: the range on the screen
let Plotly = null; // the library, once loaded
let box = null; // once drawn: the figure's axes, {across, up, margin}
let speeds = false; // whether speeds were measured, and so are an axis
let legend = ""; // what the legend shows
let frame = 0;

function readValue() {
  const { metrics, headline, points, reference, trail, token_s } = props.value || {};
  const parts = { metrics: metrics ?? [], points: points ?? [], reference: reference ?? {}, trail: trail ?? [] };
  window.queptPoints = parts;
  document.dispatchEvent(new CustomEvent("quept:points", { detail: parts }));
  return { headline, token_s, ...parts };
}

const readMetrics = () => Object.fromEntries(value.metrics.map((one) => [one.name, metricOf(one)]));

const series = () => ({ ...seriesOf(value.points), own: props.own ?? [] });

const measuredCurrent = () => value.points.find((p) => p.kind === "current" && p.measured);
const faders = () => JSON.stringify(prediction.link ?? [prediction.bytes, prediction.predicted]);

/* A measurement is of what is on the faders if the bytes agree once both have arrived, in either order. */
function meet() {
  const current = measuredCurrent();
  if (!current || met || !prediction || prediction.dragging) return;
  if (Math.abs(current.bytes - prediction.bytes) <= 1) met = faders();
}

/* The visitor's plan as a point: measured if Python has measured this very one, else predicted. */
function live() {
  const current = measuredCurrent();
  if (current && (!prediction || met === faders())) return current;
  if (!prediction) return value.points.find((p) => p.kind === "current") ?? null;
  const { bytes, bits_per_param, note } = prediction, line = value.token_s;
  const tokens_per_s = line ? 1 / (line[0] + line[1] * bytes) : null;
  const taken = { bytes, bits_per_param, tokens_per_s };
  return { ...predictedOn(value.metrics, prediction), label: "your plan", kind: "current", ...taken, note, measured: false };
}

/* The points that no other point beats in both memory and quality, by memory. */
function front(points) {
  const { of: x, fast } = MEMORIES[memory], y = METRICS[metric].of;
  if (fast) return [];
  const sign = METRICS[metric].better === "lower" ? 1 : -1;
  let best = Infinity;
  return points
    .filter((p) => p.measured && drawable(p))
    .sort((a, b) => x(a) - x(b) || sign * (y(a) - y(b)))
    .filter((p) => sign * y(p) < best && ((best = sign * y(p)), true));
}

const hasSpeeds = () => value.points.some((p) => known(p.tokens_per_s));
const rated = (p) => known(METRICS[metric].of(p));

/* Whether a point has its place on the axes: a log axis has none for 0. */
function drawable(p) {
  const y = METRICS[metric].of(p);
  return known(MEMORIES[memory].of(p)) && known(y) && (y > 0 || !METRICS[metric].log);
}

function hover(p) {
  const lines = [`<b>${plain(nameOf(p))}</b>` + (p.measured ? "" : " (predicted)")];
  if (known(p.bytes)) lines.push(`${megabytes(p)} MB`);
  if (known(p.bits_per_param)) lines.push(`${fixed(p.bits_per_param, 2)} bits per parameter`);
  for (const { of, label, text } of Object.values(METRICS)) {
    if (known(of(p))) lines.push(`${plain(lowered(label))} ${plain(text(p))}`);
  }
  if (p.kind !== "own") {
    lines.push(p.kind === "baseline" ? "<i>another tool's: no plan to load</i>" : "<i>click to load this plan</i>");
  }
  return lines.map((line) => `\u00a0${line}\u00a0`).join("<br>");
}

function choice(name, label, options, chosen, choose) {
  const group = make("div", { class: "choices", role: "radiogroup", "aria-label": label });
  for (const [key, { button }] of Object.entries(options)) {
    const input = make("input", { type: "radio", name: `${uid}-${name}`, id: `${uid}-${key}`, value: key });
    input.checked = key === chosen;
    input.addEventListener("change", () => { choose(key); draw(); });
    group.append(input, make("label", { for: input.id, text: button }));
  }
  return group;
}

const view = {
  hint: make("p", { class: "hint" }),
  canvas: make("div", { class: "canvas" }),
  overlay: make("div", { class: "overlay", "aria-hidden": "true" }),
  yTitle: make("p", { class: "y-title" }),
  message: make("p", { class: "message", text: "The chart is being loaded." }),
  legend: make("ul", { class: "legend", "aria-label": "Legend" }),
  png: make("button", { type: "button", class: "png", disabled: "", text: "PNG", title: "Save the plot as a picture" }),
};
view.png.addEventListener("click", savePicture);

function build() {
  METRICS = readMetrics();
  metric = Object.hasOwn(METRICS, value.headline ?? "") ? value.headline : Object.keys(METRICS)[0];
  zoom = {};
  shown = {};
  speeds = hasSpeeds();
  if (memory === "tokens_per_s" && !speeds) memory = "bytes";
  const axes = Object.entries(MEMORIES).filter(([, { fast }]) => speeds || !fast);
  const title = make("h3", { class: "unseen", text: "Quality against memory", id: `${uid}-title` });
  const toolbar = make(
    "div", { class: "toolbar" }, title,
    choice("metric", "Quality shown", METRICS, metric, (key) => (metric = key)),
    choice("memory", "Memory shown", Object.fromEntries(axes), memory, (key) => (memory = key)),
    view.png,
  );
  const plot = make("div", { class: "plot" }, view.yTitle, view.canvas, view.overlay);
  view.overlay.innerHTML =
    `<svg><line class="guide"/><g class="star" style="display: none"><line class="error"/><path d="${STAR}"/><text/></g></svg>`;

  const figure = make("figure", { "aria-labelledby": `${uid}-title` }, plot, view.message);
  root.replaceChildren(toolbar, figure, make("div", { class: "under" }, view.legend, term("lines", "?")), view.hint);
}

function writeLegend(groups) {
  const own = live();
  const { full, floor } = METRICS[metric];
  const state = own && (!rated(own) ? "guide" : own.measured ? "live" : "predicted");
  const entries = [
    own && [state, state === "predicted" ? "your plan, predicted" : "your plan"],
    value.trail.length > 1 && ["trail", "your trail"],
    groups.tried.length && ["tried", "tried by you"],
    groups.best.length && ["best", "best found"],
    groups.named.length && ["named", "presets"],
    groups.uniform.length && ["uniform", "same bits in every layer"],
    groups.baseline.length && ["baseline", "other tools"],
    groups.own.length && ["own", "your own data"],
    value.points.length && ["front", "best for its size"],
    full !== 0 && known(full) && ["reference", "full precision"],
    known(floor) && ["floor", "noise floor"],
  ].filter(Boolean);
  if (legend === (legend = JSON.stringify(entries))) return;
  const items = entries.map(([kind, text]) => make("li", {}, glyph(kind), make("span", { text })));
  view.legend.replaceChildren(...items);
}

function colours() {
  const style = getComputedStyle(root);
  return (name) => style.getPropertyValue(name).trim();
}

/* The ranges that show all that matters, or the visitor's own, on the axes' scales (log axes: of log10). */
function ranges(groups) {
  const own = live(), points = Object.values(groups).flat().filter(drawable);
  const x = MEMORIES[memory].of, { of: y, full: atFull, floor, log } = METRICS[metric];
  const full = x(value.reference);
  const kept = own && drawable(own) ? [...points, own] : points;
  const near = (p) => MEMORIES[memory].fast || !known(full) || x(p) < NEAR * full;
  let xs = kept.filter((p) => p.kind === "current" || near(p)).map(x);
  if (own && known(x(own))) xs.push(x(own));
  if (!xs.length) xs = [known(full) ? full : 1];
  const low = Math.min(...xs), high = Math.max(...xs);
  const room = NAME_PX / Math.max(view.canvas.clientWidth - 2 * NAME_PX, 100);
  const pad = Math.max(room * (high - low), 0.02 * high);
  const across = [low - pad, high + pad];

  // Both ends of every interval: no axis is narrower than one of them.
  const { error } = METRICS[metric];
  const ends = (p) => {
    const spread = (p.measured && error(p)) || 0;
    return spread ? [Math.max(y(p) - spread, log ? 0.1 * y(p) : -Infinity), y(p) + spread] : [y(p)];
  };
  let ys = kept.flatMap(ends), up;
  if (log && atFull === 0) {
    // a prediction below the noise floor does not stretch the axis
    if (floor > 0) ys = [floor, ...points.flatMap(ends), ...kept.map((p) => Math.max(y(p), floor))];
    up = [Math.log10(Math.min(...ys)) - 0.4, Math.log10(Math.max(...ys)) + 0.3];
  } else if (log) {
    if (known(atFull) && atFull > 0) ys.push(atFull);
    const best = Math.min(...ys), limit = Math.max(CROP * best, own && drawable(own) ? y(own) : 0);
    const worst = Math.max(...ys.filter((p) => p <= limit));
    const span = Math.max(Math.log10(worst / best), 0.1);
    up = [Math.log10(best) - 0.09 * span, Math.log10(worst) + 0.14 * span];
  } else {
    if (known(atFull)) ys.push(atFull);
    const least = Math.min(...ys), span = Math.max(Math.max(...ys) - least, 2);
    up = [least - 0.06 * span, Math.max(...ys) + 0.07 * span];
  }
  const settle = (name, range) => {
    if (zoom[name]) return zoom[name];
    const [low, high] = (prediction?.dragging && shown[name]) || range; // while dragging it only grows
    return (shown[name] = [Math.min(low, range[0]), Math.max(high, range[1])]);
  };
  return { across: settle(memory, across), up: settle(metric, up) };
}

function trace(points, extra) {
  return {
    type: "scatter", mode: "markers",
    x: points.map(MEMORIES[memory].of), y: points.map(METRICS[metric].of), ...extra,
  };
}

function pointsTrace(kind, points, colour) {
  const [symbol, size] = MARKERS[kind];
  const tone = colour(`--${kind}`);
  const { of, error } = METRICS[metric];
  const errors = points.map((p) => (p.measured && error(p)) || 0);
  const extra = {
    name: kind,
    customdata: points.map((p) => p.id),
    hovertext: points.map(hover), hoverinfo: "text",
    error_y: {
      type: "data", symmetric: false, array: errors,
      arrayminus: errors.map((e, i) => Math.min(e, 0.9 * of(points[i]))), // a log axis has no 0
      color: tone, thickness: 1.2, width: 3,
    },
    marker: {
      symbol: points.map((p) => (p.measured ? symbol : `${symbol}-open`)), size, color: tone, opacity: 1,
      line: { width: 1.3, color: points.map((p) => (p.measured ? colour("--paper") : tone)) },
    },
  };
  if (kind === "best") Object.assign(extra, { mode: "lines+markers", line: { color: tone, width: 1.6 } });
  if (kind === "uniform") {
    Object.assign(extra, {
      mode: "lines+markers+text", line: { color: tone, width: 1.2 },
      text: points.map((p) => plain(nameOf(p))), textposition: METRICS[metric].names,
      textfont: { size: 11.5, color: colour("--soft") },
    });
  }
  return trace(points, extra);
}

/* Lines and words in the figure: the reference, the noise floor, and which presets lie above the edge. */
function marks(points, { across, up }, small, colour) {
  const { log, better, of, full, floor, share: shares, label } = METRICS[metric];
  const shapes = [], annotations = [];
  const place = (y) => (log ? Math.log10(y) : y);
  const inside = (y) => known(y) && (y > 0 || !log) && place(y) > up[0] && place(y) < up[1];
  const line = (y, dash, color) => shapes.push({
    type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
    line: { color, width: 1.4, dash },
  });
  const words = (text, at, color = colour("--soft")) => annotations.push({
    text, showarrow: false, xref: "paper", x: 0, xshift: 6, xanchor: "left", font: { size: 11, color }, ...at,
  });
  const { bytes, bits_per_param } = value.reference;
  let size = "";
  if (!small && memory === "bytes" && known(bytes)) size = ` (${megabytes(value.reference)} MB)`;
  if (!small && memory !== "bytes" && known(bits_per_param)) size = ` (${fixed(bits_per_param, 1)} bits)`;

  if (inside(floor)) {
    line(floor, "dot", colour("--floor"));
    const text = `noise floor of 16-bit arithmetic, ${rounded(floor, 1)}`;
    words(text, { y: place(floor), yanchor: "bottom" });
  }
  if (log && full === 0) {
    const bottom = { yref: "paper", y: 0, yshift: 1, yanchor: "bottom" };
    words(`↓ full precision, ${plain(label)} 0${size}`, bottom, colour("--ink"));
  } else if (inside(full)) {
    line(full, "dash", colour("--reference"));
    const text = `full precision ${shares ? `${fixed(full, 1)} %` : rounded(full, 3)}${size}`;
    words(text, { y: place(full), yanchor: better === "lower" ? "bottom" : "top" }, colour("--ink"));
  }
  for (const p of points) {
    const x = MEMORIES[memory].of(p);
    if (p.kind !== "preset" || x < across[0] || x > across[1] || place(of(p)) <= up[1]) continue;
    const text = `↑ ${plain(nameOf(p))}${small ? "" : `, ${rounded(of(p), 2)}`}`;
    words(text, { xref: "x", x, xshift: -4, yref: "paper", y: 1, yanchor: "top" });
  }
  return { shapes, annotations };
}

function layout(points, range, colour) {
  const small = view.canvas.clientWidth < 520;
  const family = getComputedStyle(root).fontFamily;
  const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line"), clear = "rgba(0,0,0,0)";
  const axis = {
    gridcolor: colour("--grid"), zeroline: false, showline: true, linecolor: line, ticks: "",
    tickfont: { size: 11.5, color: soft },
  };
  const title = { text: MEMORIES[memory].title, font: { size: 12, color: soft }, standoff: 8 };
  return {
    autosize: true, showlegend: false, hovermode: "closest", hoverdistance: 24,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    margin: { l: small ? 44 : 52, r: 14, t: 28, b: 46 }, // the title of y and Plotly's buttons lie above
    paper_bgcolor: clear, plot_bgcolor: clear,
    font: { family, color: ink, size: 12 },
    hoverlabel: {
      bgcolor: colour("--paper"), bordercolor: line, font: { family, color: ink, size: 12.5 }, align: "left",
    },
    modebar: { bgcolor: clear, color: soft, activecolor: ink, orientation: "h" },
    xaxis: { ...axis, range: range.across, title, nticks: small ? 6 : 10 },
    yaxis: { ...axis, range: range.up, ...(METRICS[metric].log ? logTicks(range.up) : { nticks: 7 }) },
    ...marks(points, range, small, colour),
  };
}

/* A log axis with round numbers, as many to a power of ten as its span leaves room for. */
function logTicks([low, high]) {
  const span = high - low;
  let steps = [1];
  if (span < 2.5) steps = [1, 2, 5];
  if (span < 1.1) steps = [1, 1.5, 2, 3, 4, 5, 6, 8];
  if (span < 0.5) steps = Array.from({ length: 45 }, (_, i) => 1 + i / 5);
  if (span < 0.15) steps = Array.from({ length: 180 }, (_, i) => 1 + i / 20);
  const tickvals = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    tickvals.push(...steps.map((step) => step * 10 ** power));
  }
  const seen = tickvals.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
  const every = Math.ceil(seen.length / 9);
  const kept = seen.filter((_, i) => i % every === 0);
  const word = (v) => (v >= 1e6 || v < 1e-4 ? powerWords(v) : rounded(v, 3));
  return { type: "log", tickmode: "array", tickvals: kept, ticktext: kept.map(word) };
}

/* 0.00002 as people write it: 2·10⁻⁵. */
function powerWords(v) {
  const [digit, power] = v.toExponential(0).split("e");
  const raised = [...String(Number(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  return `${digit === "1" ? "" : `${digit}·`}10${raised}`;
}

const RESET = {
  name: "resetZoom", title: "Show everything",
  icon: { width: 24, height: 24, path: "M12 5V1L7 6l5 5V7a5 5 0 1 1-5 5H5a7 7 0 1 0 7-7Z" },
  click: () => { zoom = {}; draw(); },
};
const CONFIG = {
  displaylogo: false, showSendToCloud: false, responsive: true,
  displayModeBar: matchMedia("(pointer: coarse)").matches ? false : "hover", // a finger has no hover: it would lie over the title
  scrollZoom: false, doubleClick: false,
  modeBarButtons: [["zoomIn2d", "zoomOut2d", RESET]],
};

function draw() {
  const groups = series();
  METRICS = readMetrics(); // what full precision and the noise floor are may have come
  if (!METRICS[metric]) return;
  const { better, title, log } = METRICS[metric];
  const side = MEMORIES[memory].fast ? "right" : "left";
  view.hint.textContent = `Further ${side} and ${better} is better. Choose a point to load its plan.`;
  view.yTitle.textContent = title + (log ? ", log scale" : "");
  writeLegend(groups);
  if (!Plotly) return;

  for (const kind of Object.keys(groups)) groups[kind] = groups[kind].filter(drawable);
  const points = Object.values(groups).flat();
  const own = live();
  const empty = !points.length && !(own && drawable(own));
  root.classList.toggle("empty", empty);
  view.message.hidden = !empty;
  view.png.disabled = empty;
  view.message.textContent = value.points.length
    ? "No plan here has been measured in this quantity yet. Choose another one above."
    : "Nothing has been measured yet. Move a fader or choose a preset: every plan you measure appears here.";
  if (empty) return;

  const colour = colours();
  const range = ranges(groups);
  const line = { color: colour("--front"), width: 9 };
  const steps = value.trail.map((id) => value.points.find((p) => p.id === id)).filter((p) => p && drawable(p));
  const path = { color: colour("--live"), width: 1.4, dash: "dot" };
  const data = [
    trace(front(value.points), { name: "front", mode: "lines", hoverinfo: "skip", line }),
    trace(steps, { name: "trail", mode: "lines", hoverinfo: "skip", line: path }),
    ...Object.keys(MARKERS).map((kind) => pointsTrace(kind, groups[kind], colour)),
  ];
  const style = layout(points, range, colour);
  const first = !box;
  box = { ...range, margin: style.margin };
  Plotly.react(view.canvas, data, style, CONFIG);
  placeLive();
  if (first) listen();
}

const drawSoon = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };

/* What the faders do: only the star moves, unless the axes no longer hold it or no longer need to. */
const moveSoon = () => {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (!box || root.classList.contains("empty")) return draw();
    const groups = series();
    const { across, up } = ranges(groups);
    if (String([across, up]) !== String([box.across, box.up])) return draw();
    writeLegend(groups);
    placeLive();
  });
};

/* The visitor's plan: a star at its memory and quality; a line at its memory while the quality is unknown. */
function placeLive() {
  const own = live();
  const { margin, across, up } = box;
  const { of, error, log, full } = METRICS[metric];
  const width = view.canvas.clientWidth - margin.l - margin.r;
  const height = view.canvas.clientHeight - margin.t - margin.b;
  const place = (y) => margin.t + height * (1 - ((log ? Math.log10(y) : y) - up[0]) / (up[1] - up[0]));
  const inside = (at, start, length) => at >= start - 1 && at <= start + length + 1;
  const set = (node, attributes) => {
    for (const [name, text] of Object.entries(attributes)) node.setAttribute(name, text);
  };

  const at = own ? MEMORIES[memory].of(own) : null;
  const x = known(at) ? margin.l + (width * (at - across[0])) / (across[1] - across[0]) : -1;
  const bottom = margin.t + height;
  let y = own && rated(own) ? (drawable(own) ? place(of(own)) : bottom) : null;
  if (log && full === 0 && y !== null && !zoom[metric]) y = Math.min(y, bottom); // better than the noise floor
  const guide = view.overlay.querySelector(".guide"), star = view.overlay.querySelector(".star");
  const seen = inside(x, margin.l, width);
  guide.style.display = seen && y === null ? "" : "none";
  star.style.display = seen && (y === null || inside(y, margin.t, height)) ? "" : "none";
  star.classList.toggle("predicted", !own?.measured);
  star.classList.toggle("unknown", y === null);
  set(star, { transform: `translate(${x.toFixed(1)} ${(y ?? margin.t + 16).toFixed(1)})` });
  set(guide, { x1: x, x2: x, y1: margin.t, y2: bottom });

  const right = x > margin.l + 0.75 * width; // then the words go to the left
  const words = star.querySelector("text");
  words.textContent = y === null ? "your plan, not measured yet" : own.measured ? "" : "predicted";
  set(words, { x: (y === null ? 8 : 15) * (right ? -1 : 1), y: 4, "text-anchor": right ? "end" : "start" });
  const spread = (own?.measured && drawable(own) && error(own)) || 0;
  const reach = (to) => place(Math.max(to, 0.1 * of(own))) - y;
  const bar = star.querySelector(".error");
  set(bar, spread ? { y1: reach(of(own) + spread), y2: reach(of(own) - spread) } : { y1: 0, y2: 0 });
}

/* The figure with its legend, its titles and the star, which lie outside of it on the page. */
async function savePicture() {
  const colour = colours(), own = live(), { data, layout: style } = view.canvas;
  const names = Object.fromEntries(JSON.parse(legend));
  const seen = own && drawable(own) ? [own] : [];
  const star = trace(seen, { name: "live", marker: { symbol: "star", size: 17, color: colour("--live") } });
  const named = [...data, star].map((one) =>
    ({ ...one, name: names[one.name] ?? (own?.measured ? "your plan" : "your plan, predicted"),
      showlegend: one.x.length > 0 && (one === star || one.name in names) }));
  const title = { text: plain(view.yTitle.textContent), font: { size: 12, color: colour("--soft") } };
  const whole = {
    ...style, showlegend: true, paper_bgcolor: colour("--paper"), margin: { l: 72, r: 20, t: 24, b: 56 },
    yaxis: { ...style.yaxis, title }, legend: { orientation: "h", y: -0.18 }, autosize: false,
  };
  const url = await Plotly.toImage({ data: named, layout: whole }, { format: "png", width: 960, height: 600, scale: 2 });
  make("a", { href: url, download: `${prediction?.link?.m ?? "model"}-${metric}-against-${memory}.png` }).click();
}

function listen() {
  const ranged = (change) => {
    for (const [axis, name] of [["xaxis", memory], ["yaxis", metric]]) {
      const range = change[`${axis}.range`] ?? [change[`${axis}.range[0]`], change[`${axis}.range[1]`]];
      if (range.every(known)) zoom[name] = [...range];
    }
    drawSoon();
  };
  const isPlan = (hit) => typeof hit?.customdata === "string" && hit.data.name !== "own";
  view.canvas.on("plotly_click", ({ points: [hit] }) => {
    if (isPlan(hit)) trigger("point", { id: hit.customdata });
  });
  view.canvas.on("plotly_hover", ({ points: [hit] }) => root.classList.toggle("over", isPlan(hit)));
  view.canvas.on("plotly_unhover", () => root.classList.remove("over"));
  view.canvas.on("plotly_doubleclick", RESET.click);
  view.canvas.on("plotly_relayout", ranged);
}

function loadPlotly() {
  window.queptPlotly ??= new Promise((resolve, reject) => {
    const { root: base = ".", api_prefix = "/gradio_api" } = window.gradio_config ?? {};
    const path = props.plotly_file.split("/").map(encodeURIComponent).join("/");
    const script = make("script", { src: `${base.replace(/\/$/, "")}${api_prefix}/file=${path}` });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      window.queptPlotly = undefined; // the next chart may try again
      reject(new Error(`cannot load ${script.src}`));
    };
    document.head.append(script);
  });
  return window.queptPlotly;
}

function onPoint({ detail }) {
  if (!element.isConnected) return stop();
  trigger("point", { id: detail.id });
}

function onPredict(event) {
  if (!element.isConnected) return stop();
  prediction = event.detail;
  meet();
  moveSoon();
}

const sight = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  sight.disconnect();
  const drawWith = (library) => {
    Plotly = library;
    draw();
  };
  const sayWhy = () => {
    view.message.textContent = "The chart could not be loaded; reload the page to try again.";
  };
  loadPlotly().then(drawWith, sayWhy);
}, { rootMargin: "300px" });
const size = new ResizeObserver(() => { if (box && view.canvas.clientWidth) drawSoon(); });
const theme = new MutationObserver(drawSoon);

function stop() {
  document.removeEventListener("quept:predict", onPredict);
  document.removeEventListener("quept:point", onPoint);
  for (const observer of [sight, size, theme]) observer.disconnect();
  if (box) Plotly.purge(view.canvas);
}

build();
meet();
draw();
sight.observe(root);
size.observe(view.canvas);
for (const node of [document.body, document.documentElement]) {
  theme.observe(node, { attributes: true, attributeFilter: ["class"] });
}
document.addEventListener("quept:predict", onPredict);
document.addEventListener("quept:point", onPoint);
watch("own", draw);
watch("value", () => {
  const before = JSON.stringify(measuredCurrent()), names = String(Object.keys(METRICS));
  value = readValue();
  if (String(value.metrics.map(({ name }) => name)) !== names || hasSpeeds() !== speeds) build();
  if (JSON.stringify(measuredCurrent()) !== before) met = null;
  meet();
    draw();
});
