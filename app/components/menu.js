/* A menu: the browser's own select, with a label. This file, after dom.js, is the body of a function that
   gr.HTML calls once, with element, props, trigger and watch as in equalizer.js; see menu.py. */

const root = element.querySelector(".menu");
const select = make("select", { id: `${element.id}-select` });
const label = make("label", { for: select.id });

function draw() {
  label.textContent = props.name ?? "";
  label.className = props.named === false ? "unseen" : "";
  const choices = props.choices ?? [];
  if (JSON.stringify(choices) !== select.dataset.drawn) {
    select.dataset.drawn = JSON.stringify(choices);
    select.replaceChildren(...choices.map(([text, value]) => make("option", { value, text })));
  }
  select.value = props.value ?? "";
}

select.addEventListener("change", () => {
  props.value = select.value;
  trigger("input");
});
root.replaceChildren(label, select);
watch(["value", "choices"], draw);
draw();
