/* Points of the plot as plain functions: how a metric is drawn and written, groups of points, their markers. This
   file goes after dom.js, in front of chart.js and plan_table.js. */

const STAR = "m0-9.6 2.6 6.2 6.7.6-5.1 4.4 1.6 6.6L0 4.7l-5.8 3.5 1.6-6.6-5.1-4.4 6.7-.6Z";
const UNIFORM = /^(?:uniform )?W(\d+)(?:, vision 8)?$/i; // the label of a preset on the uniform line

const known = (number) => typeof number === "number" && Number.isFinite(number);
const percent = (share) => (known(share) ? 100 * share : null);
const isUniform = (p) => p.kind === "preset" && UNIFORM.test(p.label);
const nameOf = (p) => (isUniform(p) ? "W" + UNIFORM.exec(p.label)[1] : p.label);
const lowered = (label) => label[0].toLowerCase() + label.slice(1);

/* How a metric is drawn: shares in percent on a straight axis, everything else on a log axis. of: a point's
   value there; full, floor: full precision's value and the noise floor there; names: where names stand. */
function metricOf({ name, label, title, unit, better, full, floor }) {
  const share = unit === "share", scale = share ? percent : (x) => x;
  return {
    name, button: label, label, better, log: !share, share, full: scale(full), floor: scale(floor),
    title: share ? `${title}, %` : title,
    names: better === "higher" ? "bottom right" : full === 0 ? "bottom left" : "top right",
    of: (p) => scale(p[name]),
    error: (p) => (known(p[`${name}_low`]) ? scale((p[`${name}_high`] - p[`${name}_low`]) / 2) : null),
    text: (p) => share ? interval(p[name], p[`${name}_low`], p[`${name}_high`])
      : measurement(p[name], (p[`${name}_high`] - p[`${name}_low`]) / 2),
  };
}

/* The points by what they are; each group in the order to draw. */
function seriesOf(points) {
  const of = (test) => points.filter(test);
  return {
    uniform: of(isUniform).sort((a, b) => a.bytes - b.bytes),
    named: of((p) => p.kind === "preset" && !isUniform(p)),
    best: of((p) => p.kind === "best").sort((a, b) => a.bytes - b.bytes),
    tried: of((p) => p.kind === "tried"),
    baseline: of((p) => p.kind === "baseline"),
  };
}

const inEnglish = (number, options) => new Intl.NumberFormat("en", options).format(number);
const rounded = (number, digits) => inEnglish(number, { maximumSignificantDigits: digits });
const fixed = (number, decimals) =>
  inEnglish(number, { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
const megabytes = (p) => fixed(p.bytes / 1e6, 1);
const share = (number) => fixed(100 * number, 1);

/* A number and its standard error, as precise as the error allows (two digits of it up to 2, then one). */
function measurement(number, error) {
  if (!known(number)) return "–";
  if (!known(error) || error <= 0 || number >= 10000) return rounded(number, number >= 10000 ? 2 : 3);
  if (error < 5e-7) return Math.abs(number) < 5e-7 ? "≈ 0" : rounded(number, 3);
  const decimals = Math.min(6, Math.max(0, 1 - Math.ceil(Math.log10(error / 2))));
  return `${fixed(number, decimals)} ± ${fixed(error, decimals)}`;
}

/* A share and its 95 % interval. */
function interval(number, low, high) {
  if (!known(number)) return "–";
  return `${share(number)} %` + (known(low) && known(high) ? ` (${share(low)}–${share(high)})` : "");
}

/* The marker of a legend entry, drawn like the one in the figure. */
function glyph(kind) {
  const shapes = {
    front: '<path d="M1 12 10 7 19 4" class="front"/>',
    uniform: '<path d="M1 8h18" class="line uniform"/><circle cx="10" cy="8" r="4.2" class="fill uniform"/>',
    best: '<path d="M1 8h18" class="line best"/><path d="M10 3 14.4 5.5v5L10 13 5.6 10.5v-5Z" class="fill best"/>',
    named: '<path d="M10 2.4 15.6 8 10 13.6 4.4 8Z" class="fill named"/>',
    tried: '<path d="M6 4h8v8H6Z" class="fill tried"/>',
    trail: '<path d="M1 8h18" class="line trail"/>',
    baseline: '<path d="M10 3 15.2 12.4H4.8Z" class="fill baseline"/>',
    own: '<path d="M10 2 12 6 16 8 12 10 10 14 8 10 4 8 8 6Z" class="fill own"/>',
    live: `<path d="${STAR}" transform="translate(10 8) scale(.82)" class="fill live"/>`,
    predicted: `<path d="${STAR}" transform="translate(10 8) scale(.82)" class="hollow live"/>`,
    reference: '<path d="M1 8h18" class="line reference"/>',
    guide: '<path d="M10 1v14" class="line guide"/>',
    floor: '<path d="M1 8h18" class="line floor"/>',
  };
  const svg = make("span", { class: "glyph", "aria-hidden": "true" });
  svg.innerHTML = `<svg viewBox="0 0 20 16" width="20" height="16">${shapes[kind]}</svg>`;
  return svg;
}

