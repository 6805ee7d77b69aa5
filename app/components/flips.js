/* The table of changed answers, class by class. This file, after dom.js, is the body of a function that gr.HTML
   calls once, with element, props and watch (see equalizer.js). In: props.value, see flips.py. */

const root = element.querySelector(".flips");
const COLUMNS = ["Class", "Pictures", "Right, full", "Right, this plan", "Changed answers"];

function row([name, images, rightRef, right, flips], most) {
  const by = right - rightRef;
  const change = make("span", { class: by > 0 ? "better" : "worse", text: by ? ` ${by > 0 ? "▲" : "▼"} ${Math.abs(by)}` : "" });
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", most ? flips / most : 0);
  return make("tr", {},
    make("th", { scope: "row", text: name }), make("td", { text: images }), make("td", { text: rightRef }),
    make("td", { text: right }, change),
    make("td", {}, make("span", { class: "cell" }, make("span", { class: "number", text: flips }), bar)));
}

function draw() {
  const { rows = [], total, left, words = "", empty = "" } = props.value ?? {};
  const head = make("div", { class: "head" }, make("h3", { text: "Changed answers by class" }),
    make("p", { class: "gist", text: rows.length ? words : empty }));
  if (!rows.length) return root.replaceChildren(head);
  const most = Math.max(...rows.map((one) => one[4]));
  const body = make("tbody", {}, ...rows.map((one) => row(one, most)));
  if (left) body.append(make("tr", {}, make("td", { colspan: COLUMNS.length, class: "left", text: `and ${left} classes without a change` })));
  if (total) {
    const foot = row(total, 0);
    foot.className = "total";
    body.append(foot);
  }
  const heads = COLUMNS.map((text) => make("th", { scope: "col", text }));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  root.replaceChildren(head, make("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Changed answers by class" }, table));
}

watch("value", draw);
draw();
