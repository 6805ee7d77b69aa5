/* The share card: a picture of a plan with its size, its quality, its link and the bits of its layers. This file
   goes in front of planbar.js. */

const CARD = { width: 1200, height: 630, paper: "#ffffff", ink: "#1c2333", soft: "#55607a", accent: "#4f46e5", line: "#e3e6ee" };
const LINES = 3; // of the link
const SMALLEST_PX = 12;

/* What a card says: telling as of quept:predict, measured: points and metrics as of quept:points. */
function cardOf(telling, { metrics, points: shown }, model, href) {
  const current = shown.find((p) => p.kind === "current" && p.measured && Math.abs(p.bytes - telling.bytes) <= 1);
  const found = current ?? predictedOn(metrics, telling) ?? {};
  const known = (x) => typeof x === "number" && Number.isFinite(x);
  const said = ({ name, label, unit, full = telling.reference?.[name] }) => {
    const x = found[name], words = (value) => (unit === "share" ? `${(100 * value).toFixed(1)} %` : smallNumber(value));
    if (!known(x)) return [];
    const own = known(full) && full !== 0 && full !== 1; // full precision has a value of its own
    return [`${label} ${words(x)}${own ? ` (full precision: ${words(full)})` : ""}`];
  };
  const quality = metrics.flatMap(said);
  return {
    model, widths: telling.words, bits: telling.plan.w,
    size: `${sizeWords(telling.bytes)}, ${((100 * telling.bytes) / telling.full_bytes).toFixed(0)} % of full precision's ${sizeWords(telling.full_bytes)}`,
    quality: quality.length ? `${quality.join(" · ")}, ${current ? "measured" : "predicted"}` : "quality not measured yet",
    link: addressWith(telling.link, href),
  };
}

const smallNumber = (x) => (x >= 100 ? x.toFixed(0) : x > 0 && x < 1e-4 ? "<0.0001" : String(Number(x.toPrecision(3))));

/* A link in lines that fit; of more than LINES only the first, and that there is more. */
function linesOf(link, fits) {
  const lines = [""];
  for (const character of link) {
    if (fits(lines.at(-1) + character)) lines[lines.length - 1] += character;
    else lines.push(character);
  }
  return lines.length > LINES ? [...lines.slice(0, LINES - 1), `${lines[LINES - 1].slice(0, -1)}…`] : lines;
}

function drawCard({ model, widths, bits, size, quality, link }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [CARD.width, CARD.height];
  const pen = canvas.getContext("2d"), left = 60, wide = CARD.width - 2 * left;
  const fill = (color, ...box) => { pen.fillStyle = color; pen.fillRect(...box); };
  const text = (words, y, px, color, weight = 400, x = left) => {
    pen.fillStyle = color;
    do pen.font = `${weight} ${px}px system-ui, sans-serif`;
    while (pen.measureText(words).width > wide && (px -= 1) > SMALLEST_PX);
    pen.fillText(words, x, y, wide);
  };
  fill(CARD.paper, 0, 0, CARD.width, CARD.height);
  fill(CARD.accent, 0, 0, CARD.width, 12);
  text(model, 88, 40, CARD.ink, 700);
  text(widths, 146, 34, CARD.accent, 600);
  text(size, 200, 32, CARD.ink);
  text(quality, 250, 32, CARD.ink);
  const step = wide / bits.length, floor = 500, tall = 210, most = Math.max(8, ...bits);
  for (let width = 2; width <= most; width += 2) {
    fill(CARD.line, left, floor - (tall * width) / most, wide, 1);
    text(String(width), floor - (tall * width) / most + 6, 16, CARD.soft, 400, left - 26);
  }
  bits.forEach((width, i) => {
    const height = (tall * width) / most;
    fill(CARD.accent, left + i * step, floor - height, Math.max(1, step - Math.min(2, step / 4)), height);
  });
  fill(CARD.soft, left, floor, wide, 1);
  text(`bits of each of ${bits.length} layers`, 528, 18, CARD.soft);
  pen.font = "16px system-ui, sans-serif";
  linesOf(link, (words) => pen.measureText(words).width <= wide).forEach((words, i) => text(words, 558 + 21 * i, 16, CARD.soft));
  return canvas;
}
