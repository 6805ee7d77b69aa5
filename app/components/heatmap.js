/* The heat map "only this layer low": roles by blocks, coloured by the logarithm of what the layer costs by
   itself at the chosen width.

   This file, after dom.js and plan.js, is the body of a function that gr.HTML calls once, with element, props
   and watch as in equalizer.js; props.value is what heatmap.py says. The table is drawn again for another
   width or model. A click on a cell tells the equaliser to go to that layer, by
   the DOM event quept:look {layer: its number}.

   The scale is the chosen width's own, from its smallest figure to its largest; the legend has the numbers. */

const LEGEND_STEPS = 24;
const FIRST_WIDTH = 3;
const SMALLEST = 1e-9; // where a measured zero stands on the logarithmic scale

const root = element.querySelector(".heatmap");
let data = {};
let column = 0; // of the widths
let scale = null; // [low, high], log10
let view;

const figureOf = (i) => data.sensitivity[i][column];
const log = (x) => Math.log10(Math.max(x, SMALLEST));
const heat = (x) => (scale[1] > scale[0] ? clamp((log(x) - scale[0]) / (scale[1] - scale[0]), 0, 1) : 1);

function build() {
  data = props.value ?? {};
  view = { body: make("div", { class: "body" }) };
  root.replaceChildren(make("h3", {}, make("span", { class: "name", text: "Only this layer low" }),
    make("span", { class: "gist", text: "what each layer costs by itself, measured" })), view.body);
  if (!data.sensitivity?.length) {
    const text = data.empty || "Nothing has been measured yet.";
    return view.body.append(make("p", { class: "empty", text }));
  }
  column = Math.max(0, data.bits.indexOf(FIRST_WIDTH));
  const options = data.bits.map((bits, i) => ({ value: i, text: String(bits) }));
  const widths = choices("Width", "widths", options, (i) => { column = i; paint(); }, column);
  view.words = make("p", { class: "words", "data-heat-words": "" });
  view.legend = make("div", { class: "legend" });
  const label = (text) => make("span", { class: "label", text });
  const bar = make("div", { class: "toolbar" }, label("One layer at"), widths,
    label("bits, the rest untouched"), make("span", { class: "space" }), view.legend);
  view.body.append(bar, make("div", { class: "scroller" }, makeTable()), view.words,
    make("p", { class: "conditions", text: `Mean KL divergence from full precision: ${data.conditions}.` }));
  paint();
}

function makeTable() {
  const grid = data.roles.map(() => new Array(data.blocks.length));
  data.layers.forEach(({ role, block }, i) => { grid[role][block] = i; });
  const heading = (scope, text, label) => make("th", { scope, text, "aria-label": label });
  const top = make("tr", {}, make("td"), ...data.blocks.map((name) => heading("col", name, `block ${name}`)));
  view.cell = new Array(data.layers.length);
  const place = (i) => make("td", {}, ...(i === undefined ? [] : [makeCell(i)]));
  const rows = grid.map((line, role) =>
    make("tr", {}, heading("row", data.roles[role], `role ${data.roles[role]}`), ...line.map(place)));
  const caption = make("caption", { class: "unseen" });
  view.table = make("table", {}, caption, make("thead", {}, top), make("tbody", {}, ...rows));
  view.table.style.setProperty("--blocks", data.blocks.length);
  view.cell[grid[0].find((i) => i !== undefined) ?? 0].tabIndex = 0;
  view.table.addEventListener("click", onClick);
  view.table.addEventListener("keydown", (event) => onArrow(event, grid));
  view.table.addEventListener("pointerover", read);
  view.table.addEventListener("focusin", read);
  view.table.addEventListener("pointerleave", () => read({ target: document.activeElement }));
  return view.table;
}

function makeCell(i) {
  const cell = make("button", { type: "button", class: "cell", "data-layer": i, tabindex: -1 });
  view.cell[i] = cell;
  return cell;
}

function paint() {
  const figures = data.layers.map((_, i) => figureOf(i));
  const logs = figures.map(log);
  scale = [Math.min(...logs), Math.max(...logs)];
  view.median = [...figures].sort((a, b) => a - b)[figures.length >> 1];
  const bits = data.bits[column];
  view.table.caption.textContent = `Mean KL divergence with one layer at ${bits} bits and the rest untouched`;
  data.layers.forEach((layer, i) => {
    colour(view.cell[i], heat(figures[i]));
    view.cell[i].setAttribute("aria-label", smallWords(figures[i]));
  });
  paintLegend();
  view.words.textContent = gist();
}

/* Two mixtures: from cold to warm in the lower half of the scale, from warm to hot in the upper. */
function colour(node, share) {
  node.classList.toggle("upper", share > 0.5);
  node.style.setProperty("--share", `${Math.round(100 * (share > 0.5 ? 2 * share - 1 : 2 * share))}%`);
}

function paintLegend() {
  const steps = Array.from({ length: LEGEND_STEPS }, (_, i) => make("span", { class: "step" }));
  steps.forEach((step, i) => colour(step, i / (LEGEND_STEPS - 1)));
  const [low, high] = scale;
  view.legend.replaceChildren(make("span", { text: smallWords(10 ** low) }),
    make("span", { class: "ramp", "aria-hidden": "true" }, ...steps),
    make("span", { text: `${smallWords(10 ** high)} KL` }),
    make("span", { class: "unseen", text: "on a logarithmic scale" }));
}

function gist() {
  const sum = data.layers.reduce((total, _, i) => total + figureOf(i), 0);
  const worst = data.layers.reduce((most, _, i) => (figureOf(i) > figureOf(most) ? i : most), 0);
  const parts = [`at ${data.bits[column]} bits the sum of all layers is ${smallWords(sum)}`,
    `${data.layers[worst].name} has ${percentOf(figureOf(worst), sum)} of it`];
  const own = data.embeddings?.[column];
  if (typeof own === "number") parts.push(`the embeddings and the head cost ${smallWords(own)}`);
  const words = parts.join("; ");
  return `${words[0].toUpperCase()}${words.slice(1)}.`;
}

const percentOf = (part, whole) => `${Number(((100 * part) / (whole || 1)).toPrecision(2))} %`;

function read({ target }) {
  const cell = target?.closest?.(".cell");
  if (!view.table.contains(cell)) return (view.words.textContent = gist());
  const i = Number(cell.dataset.layer), own = figureOf(i);
  const times = view.median > 0 ? `, ${Number((own / view.median).toPrecision(2))} times the median layer` : "";
  const words = `${data.layers[i].name} at ${data.bits[column]} bits: KL ${smallWords(own)} by itself`;
  view.words.textContent = words + times;
}

function onClick({ target }) {
  const cell = target.closest(".cell");
  if (!cell) return;
  focusCell(cell);
  document.dispatchEvent(new CustomEvent("quept:look", { detail: { layer: Number(cell.dataset.layer) } }));
}

function focusCell(cell) {
  for (const other of view.cell) other.tabIndex = other === cell ? 0 : -1;
  cell.focus({ preventScroll: true });
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function onArrow(event, grid) {
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest(".cell");
  if (!by || !cell) return;
  event.preventDefault();
  const { role, block } = data.layers[Number(cell.dataset.layer)];
  const next = grid[role + by[0]]?.[block + by[1]];
  if (next !== undefined) focusCell(view.cell[next]);
}

build();
watch("value", build);
