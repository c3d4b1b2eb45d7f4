// Keeps the part of a page that changes by itself up to date. Without it, one loads the page again.
(() => {
  "use strict";
  const part = (page) => page.querySelector("[data-live]");
  const shown = part(document);
  if (!shown) return;
  // What anybody may see is asked for without a name: looking on keeps no lock.
  const credentials = shown.dataset.live === "own" ? "same-origin" : "omit";
  let pause = 3000;
  const look = async () => {
    if (!document.hidden) {
      try {
        const reply = await fetch(location.href, { credentials, headers: { accept: "text/html" } });
        if (!reply.ok) return;
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        const next = part(page);
        if (!next) {
          document.getElementById("main").replaceWith(page.getElementById("main"));
          const state = document.querySelector(".state");
          document.getElementById("said").textContent = `This page has changed${state ? `: ${state.textContent}` : ""}`;
          return;
        }
        if (next.innerHTML !== shown.innerHTML && !shown.contains(document.activeElement)) {
          shown.replaceChildren(...next.childNodes);
        }
        pause = 3000;
      } catch {
        pause = Math.min(60000, 2 * pause);
      }
    }
    setTimeout(look, pause);
  };
  setTimeout(look, pause);
})();
