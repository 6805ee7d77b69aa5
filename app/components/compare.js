/* Two plans layer by layer: menus, a table of totals, and a strip of the differences of bits.

   This file, after dom.js and plan.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.plans (what there is to choose from) and props.answer (two plans), see compare.py;
     trigger   trigger("compare", {turn, a, b, plan}) when another pair is wanted;
     watch     watch("plans", f) calls f when Python sent others.

   It asks when it comes into sight, when a menu changes, when the plan on the faders changes (quept:predict) and is
   one of the two, and when something was measured. An answer to an older request is dropped. */

const OWN = "equaliser"; // the menu's value of the plan on the faders
const PAUSE_MS = 250;
const MOST = 4; // bits of difference that have the full colour

const root = element.querySelector(".compare");
let plans = {};
let chosen = null; // [value, value]
let faders = window.queptPrediction ?? null;
let turn = 0, timer = 0;
let view = null;

function build() {
  const body = make("div", { class: "body" });
  const head = make("h3", {}, make("span", { class: "name", text: "Compare two plans" }),
    make("span", { class: "gist", text: "layer by layer: where the bits differ, and what it costs" }));
  view = { body, menus: ["a", "b"].map(makeMenu) };
  view.totals = make("tbody");
  view.strip = make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Differences" });
  view.words = make("p", { class: "words", "data-compare-words": "" });
  view.hover = make("p", { class: "hover", "data-compare-hover": "" });
  const swap = make("button", { type: "button", class: "swap", text: "⇄", "aria-label": "Swap the two plans" });
  swap.addEventListener("click", () => { chosen = [chosen[1], chosen[0]]; drawMenus(); ask(); });
  view.columns = make("tr");
  const table = make("table", {}, caption("The two plans, and the second less the first"),
    make("thead", {}, view.columns), view.totals);
  body.append(make("div", { class: "toolbar" }, view.menus[0].label, swap, view.menus[1].label),
    make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Totals" }, table), view.strip, view.hover, view.words);
  view.strip.addEventListener("pointerover", read);
  view.strip.addEventListener("pointerleave", () => { view.hover.textContent = ""; });
  root.replaceChildren(head, body);
}

const caption = (text) => make("caption", { class: "unseen", text });

function makeMenu(name, at) {
  const select = make("select", { [`data-${name}`]: "" });
  select.addEventListener("change", () => { chosen[at] = select.value; ask(); });
  const letter = make("span", { class: "label", text: name.toUpperCase() });
  return { select, label: make("label", { class: "side" }, letter, select) };
}

function onPlans() {
  const before = plans.model;
  plans = props.plans ?? {};
  const values = (plans.choices ?? []).map(([, value]) => value);
  if (plans.model !== before || !chosen) chosen = [values.includes("W4") ? "W4" : values[1], OWN];
  chosen = chosen.map((value) => (values.includes(value) ? value : OWN));
  drawMenus();
  if (plans.model !== before) clear();
  ask();
}

function drawMenus() {
  view.menus.forEach(({ select }, at) => {
    select.replaceChildren(...(plans.choices ?? []).map(([text, value]) => make("option", { value, text })));
    select.value = chosen[at];
  });
}

function clear() {
  view.totals.replaceChildren();
  view.strip.replaceChildren();
  view.words.textContent = "";
}

function ask() {
  if (!plans.choices || !root.offsetParent) return; // asked again when it comes into sight
  clearTimeout(timer);
  timer = setTimeout(() => {
    turn += 1;
    trigger("compare", { turn, a: chosen[0], b: chosen[1], plan: faders?.plan ?? null });
  }, 0);
}

function onPredict({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:predict", onPredict);
  const moved = JSON.stringify(detail.link) !== JSON.stringify(faders?.link);
  faders = detail;
  if (!moved || detail.dragging || !chosen?.includes(OWN)) return;
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE_MS);
}

function onAnswer() {
  const { answer } = props;
  if (answer?.turn !== turn) return;
  if (answer.error) {
    clear();
    view.words.textContent = answer.error;
    return;
  }
  view.answer = answer;
  drawTotals(answer);
  drawStrip(answer);
  view.words.textContent = [differences(answer), ofQuality(answer)].filter(Boolean).join(" ");
}

const known = (x) => typeof x === "number" && Number.isFinite(x);
const exact = (x, digits) => (known(x) ? x.toFixed(digits) : "–");

const lowered = (label) => label.slice(0, 1).toLowerCase() + label.slice(1);

/* Shares in percent, everything else as precise as it takes. */
const qualityWords = ({ unit }, x, share = "%") => (unit === "share" ? `${(100 * x).toFixed(1)} ${share}` : smallWords(x));
const intervalWords = ({ unit, value, low, high }) => !known(low) || !known(high) ? ""
  : unit === "share" ? ` (${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)})` : ` ± ${smallWords(high - value)}`;

function drawTotals({ a, b }) {
  const { metrics, headline } = plans;
  const head = metrics.find(({ name }) => name === headline);
  const columns = ["Plan", "MB", "Bits per parameter", ...metrics.map(({ label }) => label)];
  if (head) columns.push(`Predicted ${lowered(head.label)}`);
  view.columns.replaceChildren(...columns.map((text) => make("th", { scope: "col", text })));
  const first = (letter, text = "") =>
    make("th", { scope: "row" }, make("span", { class: "letter", text: letter }), make("span", { text }));
  const row = (letter, side, cells) =>
    make("tr", {}, first(letter, side.label), ...cells.map((text) => make("td", { text })));
  const found = (side, i) => side.metrics?.[i].value;
  const quality = (side, i) => (!side.metrics ? "not measured" : !known(found(side, i)) ? "–"
    : qualityWords(metrics[i], found(side, i)) + intervalWords(side.metrics[i]));
  const predicted = (side) => side.predicted?.[headline];
  const guess = (side) => (known(predicted(side)) ? qualityWords(head, predicted(side)) : "–");
  const of = (name, side) => row(name, side, [
    exact(side.bytes / 1e6, 1), exact(side.bits_per_param, 2),
    ...metrics.map((_, i) => quality(side, i)), ...(head ? [guess(side)] : []),
  ]);
  const signed = (x, words) => (known(x) ? `${x > 0 ? "+" : x < 0 ? "−" : "±"}${words(Math.abs(x))}` : "–");
  const less = (one, other) => (known(one) && known(other) ? one - other : null);
  const change = row("B − A", {}, [
    signed(less(b.bytes, a.bytes) / 1e6, (x) => x.toFixed(1)),
    signed(less(b.bits_per_param, a.bits_per_param), (x) => x.toFixed(2)),
    ...metrics.map((one, i) => signed(less(found(b, i), found(a, i)), (x) => qualityWords(one, x, "points"))),
    ...(head ? [signed(less(predicted(b), predicted(a)), (x) => qualityWords(head, x, "points"))] : []),
  ]);
  change.className = "change";
  view.totals.replaceChildren(of("A", a), of("B", b), change);
}

function drawStrip({ a, b }) {
  const table = make("table", { class: "strip" }, caption("Weight bits of B less those of A"));
  table.style.setProperty("--blocks", plans.blocks.length);
  const grid = plans.roles.map(() => new Array(plans.blocks.length));
  plans.layers.forEach(([role, block], i) => { grid[role][block] = i; });
  const head = make("tr", {}, make("td"), ...plans.blocks.map((text) => make("th", { scope: "col", text })));
  const place = (i) => (i === undefined ? make("td") : differenceCell(i, a.plan.w[i], b.plan.w[i]));
  const rows = grid.map((line, role) =>
    make("tr", {}, make("th", { scope: "row", text: plans.roles[role] }), ...line.map(place)));
  table.append(make("thead", {}, head), make("tbody", {}, ...rows));
  view.strip.replaceChildren(table);
}

function differenceCell(i, from, to) {
  const by = to - from;
  const text = by === 0 ? "·" : `${by > 0 ? "+" : "−"}${Math.abs(by)}`;
  const kind = by > 0 ? "more" : by < 0 ? "less" : "same";
  const cell = make("td", { class: kind, "data-layer": i }, make("span", { text }));
  cell.style.setProperty("--share", `${Math.round(30 + 70 * Math.min(1, Math.abs(by) / MOST))}%`);
  return cell;
}

function read({ target }) {
  const cell = target.closest("[data-layer]");
  if (!cell) return;
  const i = Number(cell.dataset.layer), [role, block] = plans.layers[i], { a, b } = view.answer;
  const where = `block ${plans.blocks[block]}, ${plans.roles[role]}`;
  view.hover.textContent = `${where}: A ${a.plan.w[i]} bits, B ${b.plan.w[i]} bits`;
}

/* Whether the two plans differ by more than what is known of them: measured where both were, else predicted. */
function ofQuality({ a, b }) {
  const at = plans.metrics.findIndex(({ name }) => name === plans.headline);
  const [one, other] = [a, b].map((side) => side.metrics?.[at] ?? {});
  const label = lowered(plans.metrics[at]?.label ?? "");
  if ([one.value, one.high, other.value, other.high].every(known)) {
    const error = Math.hypot(one.high - one.value, other.high - other.value);
    const differ = Math.abs(one.value - other.value) > error;
    return differ ? "" : `Measured, their ${label} does not differ by more than its error.`;
  }
  const [first, second] = [a, b].map((side) => side.predicted?.[plans.headline]);
  const off = plans.headline === "kl" && faders?.off_by;
  if (!off || !(first > 0) || !(second > 0) || Math.abs(Math.log(first / second)) > Math.log(off)) return "";
  return `Predicted, their ${label} does not differ by more than predictions are off here, a factor of ${off.toFixed(1)}.`;
}

function differences({ a, b }) {
  const more = b.plan.w.filter((bits, i) => bits > a.plan.w[i]).length;
  const less = b.plan.w.filter((bits, i) => bits < a.plan.w[i]).length;
  const inputs = b.plan.a.filter((bits, i) => bits !== a.plan.a[i]).length;
  const some = `B has more bits in ${layersWords(more)}, fewer in ${layersWords(less)}`;
  const parts = [more || less ? some : "the same weight bits in every layer"];
  if (inputs) parts.push(`other activation bits in ${layersWords(inputs)}`);
  for (const [key, words] of [["e", "embeddings and head"], ["kv", "KV cache"]]) {
    const [from, to] = [a, b].map(({ plan }) => cacheWords(plan[key]));
    if (String(a.plan[key]) !== String(b.plan[key])) parts.push(`${words} ${from} → ${to} bits`);
  }
  const words = parts.join("; ");
  return `${words[0].toUpperCase()}${words.slice(1)}.`;
}

new IntersectionObserver(([entry]) => { if (entry.isIntersecting) ask(); }).observe(root);
build();
onPlans();
document.addEventListener("quept:predict", onPredict);
watch("plans", onPlans);
watch("answer", onAnswer);
