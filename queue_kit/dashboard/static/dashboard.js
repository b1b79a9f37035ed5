// Keeps a page as it is on the server, and sends its forms. Every page works without this script as well.
"use strict";

const PERIOD = 3000; // milliseconds between two looks
const SLOWEST = 30000;

const liveButton = document.getElementById("live");
const connection = document.getElementById("connection");
let timer = 0;
let delay = PERIOD;
let sending = false;
let shown = "";

// --- one document into another, so that focus, selection and what is open or ticked stays ---

function keyOf(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return "";
  return node.getAttribute("id") || node.getAttribute("data-key") || ""; // `form.id` would be its field of that name
}

function alike(old, fresh) {
  return old.nodeName === fresh.nodeName && keyOf(old) === keyOf(fresh);
}

function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.hasAttribute("data-keep")) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    let match = at;
    if (key) {
      while (match && keyOf(match) !== key) match = match.nextSibling;
    }
    if (match && alike(match, child)) {
      if (match === at) at = at.nextSibling;
      else old.insertBefore(match, at);
      morph(match, child);
    } else {
      old.insertBefore(document.importNode(child, true), at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// --- live ---

function isLive() {
  return liveButton !== null && liveButton.getAttribute("aria-pressed") === "true";
}

function isBusy() {
  const selection = document.getSelection();
  return sending || (selection !== null && !selection.isCollapsed);
}

function plan() {
  clearTimeout(timer);
  if (isLive() && !document.hidden) timer = setTimeout(look, delay);
}

function say(text) {
  if (connection !== null && connection.textContent !== text) connection.textContent = text;
  document.body.classList.toggle("broken", text !== "");
}

async function look() {
  if (!isBusy()) {
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = fresh.getElementById("content");
      if (answer.status === 401 || answer.status === 403 || answer.type === "opaqueredirect") {
        say("You are signed out. Reload the page.");
        return;
      }
      if (main === null || answer.status >= 500) throw new Error(String(answer.status));
      if (isLive() && !isBusy()) {
        morph(document.getElementById("content"), main);
        document.title = fresh.title;
      }
      delay = PERIOD;
      say("");
    } catch {
      delay = Math.min(delay * 2, SLOWEST);
      say("No answer. Trying again.");
    }
  }
  plan();
}

if (liveButton !== null) {
  liveButton.hidden = false;
  liveButton.addEventListener("click", () => {
    const live = !isLive();
    liveButton.setAttribute("aria-pressed", String(live));
    delay = PERIOD;
    if (live) look();
    else clearTimeout(timer);
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && isLive()) look();
  });
  plan();
}

// --- picking ---

document.addEventListener("change", ({ target }) => {
  const all = document.getElementById("pick-all");
  if (target === all) {
    for (const box of document.querySelectorAll("tbody .pick input")) box.checked = all.checked;
  } else if (target.closest(".pick")) {
    all.checked = false; // else it would say so of rows that are not
  }
});

// --- changes ---

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.getAttribute("method") !== "post") return;
  event.preventDefault();
  if (sending) return;
  sending = true;
  const button = event.submitter;
  if (button !== null) button.setAttribute("aria-busy", "true");
  try {
    const fields = new URLSearchParams(new FormData(form, button));
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body: fields });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.ok && new URL(answer.url).pathname !== location.pathname) {
      location.assign(answer.url); // links are relative: a page of another address is another document
    } else if (answer.ok) {
      history.replaceState(null, "", answer.url);
      show(fresh);
    } else {
      refuse(fresh);
    }
  } catch {
    say("No answer: look whether it was done.");
  } finally {
    sending = false;
    if (button !== null) button.removeAttribute("aria-busy");
    plan();
  }
});

function show(fresh) {
  document.getElementById("content").replaceWith(document.adoptNode(fresh.getElementById("content")));
  document.title = fresh.title;
  window.scrollTo(0, 0);
  document.getElementById("content").focus({ preventScroll: true });
  forgetNotice();
}

function refuse(fresh) {
  const notice = document.createElement("p");
  notice.className = "notice grave";
  notice.tabIndex = -1;
  notice.textContent = fresh.querySelector("[role=alert]").textContent;
  document.getElementById("notice").replaceChildren(notice);
  notice.focus();
}

// A notice belongs to one change: a reload, or a later look, does not repeat it.
function forgetNotice() {
  const here = new URL(location.href);
  for (const each of ["notice", "count", "skipped", "more", "proof"]) here.searchParams.delete(each);
  history.replaceState(null, "", here);
  shown = here.pathname + here.search;
}

forgetNotice();
window.addEventListener("popstate", () => {
  if (location.pathname + location.search !== shown) location.reload(); // else it was a link within the page
});
