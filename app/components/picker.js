/* The picker: a little dialog over a cell of the map that sets the bits of one layer or of many.

   makePicker({ id, home, bitsOfKey, closed }) makes one inside `home`; bitsOfKey(key) tells the bits a key
   stands for, closed() is called after it has closed. It has
     box, isOpen(), close();
     open(anchor, about)   over a cell; `about` says of the layers meant
       title, levels       words, and the widths on offer;
       widths()            those the layers have now;
       lock()              "true", "false" or "mixed": whether they are locked; left out where nothing locks;
       why()               lines of words, see why.js;
       choose(bits), step(by), toggleLock()   what its buttons do.
   This file goes after dom.js, why.js and locks.js, and before equalizer.js. */

function makePicker({ id, home, bitsOfKey, closed }) {
  const title = make("div", { class: "title", id });
  const buttons = make("div", { class: "levels" });
  const because = make("div", { class: "because" });
  const box = make("div", { class: "picker", role: "dialog", "aria-labelledby": id, hidden: "" },
    title, buttons, because);
  let about = null, cell = null, lock = null;

  box.addEventListener("keydown", onKey);
  box.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !box.contains(event.relatedTarget)) close();
  });

  function button(text, label, act) {
    const made = make("button", { type: "button", text, "aria-label": label });
    made.addEventListener("click", act);
    return made;
  }

  function open(anchor, meant) {
    about = meant;
    cell = anchor;
    title.textContent = about.title;
    lock = lockButton({ "aria-label": "locked" });
    lock.addEventListener("click", () => { about.toggleLock(); draw(); });
    lock.hidden = !about.lock;
    const step = (by) => () => { about.step(by); draw(); };
    buttons.replaceChildren(
      button("−", "one step fewer bits each", step(-1)),
      ...about.levels.map((bits) => {
        const made = button(bits, bitsWords(bits), () => { close(); about.choose(bits); });
        made.dataset.bits = bits;
        return made;
      }),
      button("+", "one step more bits each", step(1)),
      lock,
    );
    box.hidden = false;
    draw();
    placeOver(box, cell, home);
    document.addEventListener("pointerdown", closeOutside, true);
    const chosen = buttons.querySelector('[aria-pressed="true"]:enabled');
    (chosen ?? buttons.querySelector("[data-bits]:enabled, .lock")).focus({ preventScroll: true });
  }

  function draw() {
    const widths = new Set(about.widths()), state = about.lock?.() ?? "false", locked = state === "true";
    for (const made of buttons.querySelectorAll("[data-bits]")) {
      made.setAttribute("aria-pressed", String(widths.size === 1 && widths.has(Number(made.dataset.bits))));
    }
    for (const made of buttons.querySelectorAll("button:not(.lock)")) made.disabled = locked;
    lock.setAttribute("aria-pressed", state);
    lock.title = locked ? "Unlock these layers (L)" : "Lock these layers at their bits (L)";
    because.replaceChildren(...about.why().map((text) => make("div", { text })));
  }

  function onKey(event) {
    const all = [...buttons.children];
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (by) {
      event.preventDefault();
      const free = all.filter((made) => !made.disabled && !made.hidden), at = free.indexOf(document.activeElement);
      free[(at + by + free.length) % free.length].focus();
    } else if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    } else if (event.key.toLowerCase() === "l" && about.lock) lock.click();
    else all.find((made) => made.dataset.bits && Number(made.dataset.bits) === bitsOfKey(event.key))?.click();
  }

  function closeOutside(event) {
    if (!box.contains(event.target)) close();
  }

  function close() {
    document.removeEventListener("pointerdown", closeOutside, true);
    if (box.hidden) return;
    const hadFocus = box.contains(document.activeElement);
    box.hidden = true;
    closed();
    if (hadFocus) cell.focus({ preventScroll: true });
  }

  return { box, open, close, isOpen: () => !box.hidden };
}
