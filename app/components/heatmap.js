/* The heat map "only this layer low": roles by blocks, coloured by the logarithm of what the layer costs by
   itself at the chosen width.

   This file, after dom.js and plan.js, is the body of a function that gr.HTML calls once, with element, props
   and watch as in equalizer.js; props.value is what heatmap.py says. The table is drawn again for another
   width, text or model. The last row is of each block's keys and values, where they were measured. A click on a cell tells the equaliser to go to that layer, by
   the DOM event quept:look {layer: its number}.

   The scale is the chosen width's own, from its smallest figure to its largest; the legend has the numbers. */

const LEGEND_STEPS = 24;
const FIRST_WIDTH = 3;
const SMALLEST = 1e-9; // where a measured zero stands on the logarithmic scale

const root = element.querySelector(".heatmap");
let data = {};
let source = 0; // 0: the table that predictions read, else the number of another
let items = []; // layers, then the blocks whose keys and values were measured: {name, block, role}
let column = 0; // of the widths
let scale = null; // [low, high], log10
let view;

const table = () => (source ? data.others[source - 1] : data);
const figureOf = (i) => (i < data.layers.length ? table().sensitivity[i] : table().cache[i - data.layers.length])[column];
const log = (x) => Math.log10(Math.max(x, SMALLEST));
const heat = (x) => (scale[1] > scale[0] ? clamp((log(x) - scale[0]) / (scale[1] - scale[0]), 0, 1) : 1);

function build() {
  data = props.value ?? {};
  source = 0;
  draw();
}

function draw() {
  view = { body: make("div", { class: "body" }) };
  root.replaceChildren(make("h3", {}, make("span", { class: "name", text: "Only this layer low" }),
    make("span", { class: "gist", text: "what each layer costs by itself, measured" })), view.body);
  if (!data.sensitivity?.length) {
    const text = data.empty || "Nothing has been measured yet.";
    return view.body.append(make("p", { class: "empty", text }));
  }
  const { bits: offered, cache = [], conditions } = table();
  column = Math.max(0, offered.indexOf(FIRST_WIDTH));
  items = [...data.layers, ...cache.map((_, i) => {
    const block = data.kv_blocks[i];
    return { name: `Keys and values of block ${data.blocks[block]}`, block, role: data.roles.length };
  })];
  const options = offered.map((bits, i) => ({ value: i, text: String(bits) }));
  const widths = choices("Width", "widths", options, (i) => { column = i; paint(); }, column);
  view.words = make("p", { class: "words", "data-heat-words": "" });
  view.legend = make("div", { class: "legend" });
  const label = (text) => make("span", { class: "label", text });
  const bar = make("div", { class: "toolbar" }, label("One layer at"), widths,
    label("bits, the rest untouched"), ...makeTexts(), make("span", { class: "space" }), view.legend);
  view.body.append(bar, make("div", { class: "scroller" }, makeTable()), view.words,
    make("p", { class: "conditions", text: `Mean KL divergence from full precision: ${conditions}.` }),
    ...(data.others ?? []).map(({ title, agreement }) => make("p", { class: "conditions", "data-agreement": "",
      text: `Measured on ${data.title} and on ${title}: ${agreement[0].toLowerCase()}${agreement.slice(1)}.` })));
  paint();
}

/* What the costs were measured on, where there is a choice. */
function makeTexts() {
  const texts = [data, ...(data.others ?? [])].map(({ title }, i) => ({ value: i, text: title }));
  if (texts.length < 2) return [];
  const choose = (i) => {
    source = i;
    draw();
    view.body.querySelector('.texts [aria-checked="true"]').focus();
  };
  return [make("span", { class: "label", text: "measured on" }), choices("Measured on", "texts", texts, choose, source)];
}

function makeTable() {
  const names = items.length > data.layers.length ? [...data.roles, "KV"] : data.roles;
  const grid = names.map(() => new Array(data.blocks.length));
  items.forEach(({ role, block }, i) => { grid[role][block] = i; });
  const heading = (scope, text, label) => make("th", { scope, text, "aria-label": label });
  const top = make("tr", {}, make("td"), ...data.blocks.map((name) => heading("col", name, `block ${name}`)));
  view.cell = new Array(items.length);
  const place = (i) => make("td", {}, ...(i === undefined ? [] : [makeCell(i)]));
  const rows = grid.map((line, role) =>
    make("tr", {}, heading("row", names[role], `role ${names[role]}`), ...Array.from(line, (i) => place(i)))); // where a block has no such layer, too
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
  const figures = items.map((_, i) => figureOf(i));
  const logs = figures.map(log);
  scale = [Math.min(...logs), Math.max(...logs)];
  view.median = [...figures].sort((a, b) => a - b)[figures.length >> 1];
  const bits = table().bits[column];
  view.table.caption.textContent = `Mean KL divergence with one layer at ${bits} bits and the rest untouched`;
  items.forEach((layer, i) => {
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
  const [worst, cache] = [[0, data.layers.length], [data.layers.length, items.length]].map(mostFragile);
  const layer = `Most fragile layer at ${table().bits[column]} bits: ${placeOf(data.layers[worst])}, KL ${smallWords(figureOf(worst))} `
    + `by itself, ${percentOf(figureOf(worst), sum)} of the ${smallWords(sum)} that all layers sum to`;
  const others = [["embeddings and head together", table().embeddings?.[column]]];
  if (cache !== null) others.push([`keys and values of block ${data.blocks[items[cache].block]}`, figureOf(cache)]);
  const rest = others.filter(([, kl]) => typeof kl === "number");
  const beside = (words, which) => {
    const found = rest.filter(([, kl]) => kl > figureOf(worst) === which).map(([name, kl]) => `${name}, ${smallWords(kl)}`);
    return found.length ? `${words}: ${found.join("; ")}` : "";
  };
  return `${[layer, beside("Even more fragile", true), beside("Less", false)].filter(Boolean).join(". ")}.`;
}

const placeOf = ({ name, role, block }) => `${data.roles[role]} in block ${data.blocks[block]} (${name})`;

/* Which of the items from one up to another costs most; null where there is none. */
function mostFragile([from, to]) {
  let most = null;
  for (let i = from; i < to; i += 1) if (most === null || figureOf(i) > figureOf(most)) most = i;
  return most;
}

const percentOf = (part, whole) => `${Number(((100 * part) / (whole || 1)).toPrecision(2))} %`;

function read({ target }) {
  const cell = target?.closest?.(".cell");
  if (!view.table.contains(cell)) return (view.words.textContent = gist());
  const i = Number(cell.dataset.layer), own = figureOf(i);
  const times = view.median > 0 ? `, ${Number((own / view.median).toPrecision(2))} times the median layer` : "";
  const words = `${items[i].name} at ${table().bits[column]} bits: KL ${smallWords(own)} by itself`;
  view.words.textContent = words + times;
}

function onClick({ target }) {
  const cell = target.closest(".cell");
  if (!cell) return;
  focusCell(cell);
  const layer = Number(cell.dataset.layer);
  if (layer >= data.layers.length) return;
  document.dispatchEvent(new CustomEvent("quept:look", { detail: { layer } }));
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
  const { role, block } = items[Number(cell.dataset.layer)];
  const next = grid[role + by[0]]?.[block + by[1]];
  if (next !== undefined) focusCell(view.cell[next]);
}

build();
watch("value", build);
