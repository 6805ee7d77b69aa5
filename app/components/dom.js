/* Elements of a component, as functions that know nothing of it. All text is written as text nodes. This file
   goes in front of those that use it. */

/* One element: attributes by name, `text` as text, other children appended. */
function make(tag, attributes = {}, ...children) {
  const { text, ...rest } = attributes;
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) if (value !== undefined) made.setAttribute(name, value);
  if (text !== undefined) made.append(document.createTextNode(text));
  made.append(...children);
  return made;
}

const UNDO = "M6.5 3.5 3 7l3.5 3.5M3 7h6.5a3.5 3.5 0 0 1 0 7H7"; // the path of an icon that two components show

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
}

/* A row of choices, one of them on (the first unless `chosen` says which value): a radio group with one tab
   stop. */
function choices(label, className, options, onChoose, chosen = options[0].value) {
  const buttons = options.map(({ value, text, title, data }) =>
    make("button", { type: "button", role: "radio", "data-value": value, text, title, ...data }));
  const choose = (button) => {
    for (const other of buttons) {
      other.setAttribute("aria-checked", String(other === button));
      other.tabIndex = other === button ? 0 : -1;
    }
  };
  buttons.forEach((button, i) => {
    const pick = (next) => { choose(next); onChoose(options[buttons.indexOf(next)].value); };
    button.addEventListener("click", () => pick(button));
    button.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = buttons[(i + by + buttons.length) % buttons.length];
      next.focus();
      pick(next);
    });
  });
  choose(buttons[options.findIndex(({ value }) => value === chosen)]);
  return make("div", { class: `choices ${className}`, role: "radiogroup", "aria-label": label }, ...buttons);
}

/* What the faders are predicted to be, on the data that these metrics are measured on: the table's data may be others,
   and what carries over is the ratio to full precision. */
function predictedOn(metrics, { predicted, reference }) {
  const moved = ({ name, full, unit }) => {
    const ratio = full && reference?.[name] ? full / reference[name] : 1, value = predicted[name] * ratio;
    return [name, unit === "share" ? Math.min(value, 1) : value];
  };
  return predicted && { ...predicted, ...Object.fromEntries(metrics.filter(({ name }) => name in predicted).map(moved)) };
}

/* Whether the text got to the clipboard. That needs https or localhost; elsewhere the old way, by selecting
   hidden text inside `host`, which takes the focus. */
async function copyText(text, host) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = make("textarea", { class: "unseen", readonly: "" });
    field.value = text;
    host.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}
