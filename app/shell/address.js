/* The browser's history: a tab that is chosen makes an entry, and Back shows the tab of the entry before. The
   plan in the address is kept by equalizer.js. A model that is chosen makes an entry too: see there. */

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
    const tab = document.querySelector(`#tabs [role="tab"][data-tab-id="${CSS.escape(id)}"]`);
    if (!tab || tab.getAttribute("aria-selected") === "true") return;
    back = true;
    tab.click();
  });
})();
