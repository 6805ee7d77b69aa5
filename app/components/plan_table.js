/* The plans measured so far as a table, beside the plot that shows the same. This file, after dom.js and
   points.js, is the body of a function that gr.HTML calls once, with element as in equalizer.js.

   What it shows it hears from the plot, by the DOM event quept:points {metrics, points}; a plan to load it tells
   the plot, by quept:point {id}. */

const root = element.querySelector(".plan-table");
const uid = element.id;
const count = make("span", { class: "count" });
const body = make("tbody", { role: "rowgroup" });
const head = make("tr", { role: "row" });
let metrics = [];

body.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) document.dispatchEvent(new CustomEvent("quept:point", { detail: { id: button.dataset.id } }));
});

function row(p) {
  const name = nameOf(p);
  const cell = (about, text) => make("td", { role: "cell", "data-name": about, text });
  const marker = p.kind === "preset" ? (isUniform(p) ? "uniform" : "named") : p.kind;
  const load = { type: "button", "data-id": p.id, "aria-label": `Load ${name}`, text: "Load" };
  return make(
    "tr", { role: "row" },
    make(
      "th", { scope: "row", role: "rowheader" },
      glyph(marker), make("span", { text: p.measured ? name : `${name} (predicted)` }),
    ),
    cell("MB", known(p.bytes) ? megabytes(p) : "–"),
    cell("bits", known(p.bits_per_param) ? fixed(p.bits_per_param, 2) : "–"),
    ...metrics.map(({ label, text }) => cell(lowered(label), text(p))),
    make("td", { role: "cell" }, ...(p.kind === "baseline" ? [] : [make("button", load)])),
  );
}

function draw({ points, metrics: found }) {
  metrics = found.map(metricOf);
  drawHead();
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const { uniform, named, best, tried, baseline } = seriesOf(points);
  const presets = [...named, ...uniform.reverse()];
  const rows = [];
  const list = (text, points) => {
    if (!points.length) return;
    const heading = make("th", { colspan: 4 + metrics.length, role: "cell", text });
    rows.push(make("tr", { class: "group", role: "row" }, heading), ...points.map(row));
  };
  list("Tried by you, newest first", [...tried].reverse());
  list("Best found for their size", best);
  list("Presets", presets);
  list("Other tools", baseline);
  body.replaceChildren(...rows);
  root.hidden = !rows.length;
  count.textContent = String(tried.length + best.length + presets.length + baseline.length);
  if (focused) [...body.querySelectorAll("button")].find((b) => b.dataset.id === focused)?.focus();
}

function drawHead() {
  const columns = ["Plan", "MB", "Bits per parameter", ...metrics.map(({ label }) => label), "Load"];
  const heads = columns.map((text) => make("th", { scope: "col", role: "columnheader" }, make("span", { text })));
  heads.at(-1).firstChild.className = "unseen";
  head.replaceChildren(...heads);
}

function onPoints({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:points", onPoints);
  draw(detail);
}

const table = make("table", { role: "table", "aria-labelledby": `${uid}-title` },
  make("thead", { role: "rowgroup" }, head), body);
const region = { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": `${uid}-title` };
root.replaceChildren(make("h4", { id: `${uid}-title`, text: "Measured so far " }, count), make("div", region, table));
document.addEventListener("quept:points", onPoints);
if (window.queptPoints) draw(window.queptPoints);
