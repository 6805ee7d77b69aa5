/* Why a layer has its bits: what it weighs, what its rounding costs, and what one step more or less would do.

   whyWords(model, plan, i) gives the lines; makeWhy(root) a tooltip that shows them beside a cell:
     show(cell, title, lines), hide(), box (the element, for aria-describedby).
   All figures are predictions from the sensitivity table. This file goes between plan.js and equalizer.js. */

function whyWords(model, plan, i) {
  const width = plan.w[i], at = model.levels.w.indexOf(width), bytes = model.bytesAt(i, width);
  const lines = [`${bitsWords(width)} · ${sizeWords(bytes)}`], { asked } = model.layers[i];
  if (asked !== undefined) lines.push(`its expert is asked by ${percentWords(asked)} of a text's tokens`);
  if (!model.curve) return [...lines, "No sensitivity table: what it costs is not known."];
  const now = harmOf(model, plan), added = cacheKl(model, plan.kv), own = model.harmAt(i, width) + model.inputHarmAt(i, plan.a[i]);
  if (uncovered(model, plan).length) return [...lines, `costs ${smallWords(own)} KL by itself`];
  const kl = qualityAt(model, now, added).kl;
  const share = now > 0 ? `, ${percentWords(own / now)} of the plan's sum` : "";
  lines.push(width === FULL && !own ? "costs nothing" : `costs ${smallWords(own)} KL by itself${share}`);
  const step = (other, verb) => {
    const there = now + model.harmAt(i, other) - model.harmAt(i, width);
    const size = Math.abs(model.bytesAt(i, other) - bytes);
    const change = qualityAt(model, Math.max(0, there), added).kl - kl, amount = Math.abs(change);
    const rate = size ? `, ${smallWords((amount / size) * 1e6)} a megabyte` : "";
    const kls = `${change > 0 ? "+" : "−"}${smallWords(amount)}`;
    return `at ${other}: ${verb} ${sizeWords(size)}, predicted KL ${kls}${rate}`;
  };
  if (at < model.levels.w.length - 1) lines.push(step(model.levels.w[at + 1], "takes"));
  if (at > 0) lines.push(step(model.levels.w[at - 1], "saves"));
  return lines;
}

const percentWords = (share) => (share < 0.001 ? "under 0.1 %" : `${Number((100 * share).toPrecision(2))} %`);

function makeWhy(root) {
  const title = make("div", { class: "title" }), body = make("div");
  const box = make("div", { class: "why", role: "tooltip", id: `${element.id}-why`, hidden: "" }, title, body);
  root.append(box);

  function show(cell, name, lines) {
    title.textContent = name;
    body.replaceChildren(...lines.map((text) => make("div", { text })));
    box.hidden = false;
    placeOver(box, cell, root);
  }

  return { box, show, hide: () => { box.hidden = true; } };
}

/* Over its cell, inside the component; under it where there is no room above. */
function placeOver(box, cell, root) {
  const home = root.getBoundingClientRect(), at = cell.getBoundingClientRect();
  const left = at.left + at.width / 2 - home.left - box.offsetWidth / 2;
  const above = at.top - home.top - box.offsetHeight - 6;
  box.style.left = `${clamp(left, 0, Math.max(0, home.width - box.offsetWidth))}px`;
  box.style.top = `${above >= 0 ? above : at.bottom - home.top + 6}px`;
}
