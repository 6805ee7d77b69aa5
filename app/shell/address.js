/* The browser's history: a tab that is chosen makes an entry, and Back shows the tab of the entry before. The
   plan in the address is kept by equalizer.js. A model that is chosen makes an entry too, see menuSeen. */

(() => {
  const tabOf = (href) => new URL(href).searchParams.get("p") ?? "";
  let first = ""; // the tab that the app began with
  let back = false; // whether Back is being followed

  /* A tab has come into sight. */
  window.queptSeen = (id) => {
    const url = new URL(location.href), before = tabOf(url.href) || first;
    first ||= id;
    if (back || before === id) return void (back = false);
    if (!before) return; // the tab that the app begins with
    url.searchParams.set("p", id);
    history.pushState(history.state, "", url.href);
  };

  addEventListener("popstate", () => {
    const id = tabOf(location.href) || first;
    const tab = document.querySelector(`#tabs button[role="tab"]#${CSS.escape(id)}-button`);
    document.dispatchEvent(new CustomEvent("quept:back"));
    if (!tab || tab.getAttribute("aria-selected") === "true") return;
    back = true;
    tab.click();
  });
})();
