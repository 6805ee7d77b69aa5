/* Locks: layers that no edit and no budget moves until they are unlocked. Plans loaded from elsewhere move
   them all the same, and the locks stay on.

   makeLocks({ blocks, layersOf, changed }) makes
     row       a row of buttons, one per block and one for all, for the sheet under the faders;
     has(i)    whether a layer is locked (EMBEDDINGS: the embeddings);
     some(of), every(of)   of a list of layers;
     toggle(of)            locks all of them, or, where all are locked, unlocks them; then calls changed();
     draw()    writes the state on the buttons: pressed, not pressed, or mixed;
     list()    the locked layers' numbers, ascending.
   layersOf(block) are the layers that a block's button means; ALL means every block. This file goes before
   equalizer.js, whose make, icon and ALL it uses. */

const EMBEDDINGS = -1; // the number of the embeddings among the layers, as in a budget's path
const LOCKED = "M4 7.5h8v6H4zM5.8 7.5V5.2a2.2 2.2 0 0 1 4.4 0v2.3";
const UNLOCKED = "M4 7.5h8v6H4zM5.8 7.5V4.7a2.2 2.2 0 0 1 4.3-.7";

const lockButton = (attributes) =>
  make("button", { type: "button", class: "lock", ...attributes }, icon(LOCKED), icon(UNLOCKED));

function makeLocks({ blocks, layersOf, changed }) {
  const locked = new Set();
  const has = (i) => locked.has(i);
  const some = (of) => of.some(has), every = (of) => of.length > 0 && of.every(has);

  function toggle(of) {
    const off = every(of);
    for (const i of of) off ? locked.delete(i) : locked.add(i);
    draw();
    changed(of, !off);
  }

  const buttonFor = (block, name) => {
    const button = lockButton({ "data-lock": block, tabindex: -1 });
    button.dataset.name = name;
    button.addEventListener("click", () => { focusOn(button); toggle(layersOf(block)); });
    return button;
  };
  const each = blocks.map((name, block) => buttonFor(block, `block ${name}`));
  const buttons = [buttonFor(ALL, "all blocks"), ...each];
  const row = make("div", { class: "locks", role: "group", "aria-label": "Locks" }, ...buttons);
  buttons[0].tabIndex = 0;
  row.addEventListener("keydown", onArrow);

  function focusOn(button) {
    for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function onArrow(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    focusOn(buttons[clamp(buttons.indexOf(event.target) + by, 0, buttons.length - 1)]);
  }

  function draw() {
    for (const button of buttons) {
      const of = layersOf(Number(button.dataset.lock));
      const state = every(of) ? "true" : some(of) ? "mixed" : "false";
      button.setAttribute("aria-pressed", state);
      button.setAttribute("aria-label", `Lock ${button.dataset.name}`);
      button.title = `${state === "true" ? "Unlock" : "Lock"} ${button.dataset.name}`
        + (state === "mixed" ? " (some layers are locked)" : "");
    }
  }

  return { row, has, some, every, toggle, draw, list: () => [...locked].sort((a, b) => a - b) };
}
