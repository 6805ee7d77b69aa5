/* The tab in the address is opened, and the browser's history goes through tabs: a tab that is chosen makes an
   entry, and Back shows the tab of the entry before. The plan in the address is kept by equalizer.js; a model that
   is chosen makes an entry too, see there. */

(() => {
  const tabOf = (href) => new URL(href).searchParams.get("p") ?? "";
  const buttonOf = (id) => document.querySelector(`#tabs [role="tab"][data-tab-id="${CSS.escape(id)}"]`);
  let first = ""; // the tab that the app began with
  let back = false; // whether Back is being followed

  /* A tab has come into sight. */
  window.queptSeen = (id) => {
    const url = new URL(location.href), before = tabOf(url.href) || first;
    if (!first) { // the tab that the app begins with; the address may say another one
      first = id;
      if (before && before !== id) buttonOf(before)?.click();
      return;
    }
    if (back || before === id) return void (back = false);
    url.searchParams.set("p", id);
    history.pushState(history.state, "", url.href);
  };

  addEventListener("popstate", () => {
    const tab = buttonOf(tabOf(location.href) || first);
    if (!tab || tab.getAttribute("aria-selected") === "true") return;
    back = true;
    tab.click();
  });
})();
