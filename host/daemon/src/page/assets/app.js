// Shows one view at a time, by the part of the address after #, and asks the board anew every few seconds.

import * as alerts from "./alerts.js";
import * as board from "./board.js";
import * as letters from "./dead-letters.js";
import { api, el, Refused, token } from "./dom.js";
import * as functions from "./functions.js";
import * as live from "./live.js";
import { text } from "./strings.js";
import * as traces from "./traces.js";

const views = { board, functions, live, traces, alerts, "dead-letters": letters };
const EVERY_MS = 3000;
const main = document.getElementById("main");
const state = document.getElementById("state");
const dialog = document.getElementById("token");
const signIn = document.getElementById("sign-in");
let turn = 0;
let timer;

function place() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return views[name] ? [name, rest] : ["board", []];
}

// What a person fills in stays over a refresh.
function replace(nodes, isNew) {
  if (!isNew) {
    for (const kept of main.querySelectorAll("[data-keep]")) {
      const key = kept.dataset.keep;
      const at = nodes.findIndex((node) => node.dataset?.keep === key);
      if (at >= 0) nodes[at] = kept;
    }
  }
  const focused = document.activeElement?.id;
  main.replaceChildren(...nodes);
  if (focused && !main.contains(document.activeElement)) document.getElementById(focused)?.focus();
}

async function refresh(isNew = false, said = null, given = null) {
  clearTimeout(timer);
  const mine = (turn += 1);
  const [name, rest] = place();
  let nodes;
  try {
    const [answer, now] = await Promise.all([given ?? views[name].load(rest), api("board")]);
    if (mine !== turn) return;
    document.getElementById("node").textContent = now.node;
    document.title = `${now.node} – Sedge`;
    const bad = now.problems.length;
    state.textContent = said ?? (bad === 0 ? text.well : text.problems(bad));
    state.className = bad === 0 ? "pill" : "pill bad";
    const again = (error, words, more) => (error ? fail(error) : refresh(false, words, more));
    nodes = views[name].show(answer, rest, again).filter(Boolean);
  } catch (error) {
    if (mine !== turn) return;
    return fail(error, isNew);
  }
  replace(nodes, isNew);
  if (isNew === true) main.focus({ preventScroll: true });
  later();
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? later() : refresh()), EVERY_MS);
}

function fail(error, isNew) {
  if (error instanceof Refused && error.status === 401) {
    token.clear();
    navigation();
    main.replaceChildren(el("p", {}, text.needsToken), el("p", { class: "quiet" }, text.tokenHelp),
      el("button", { type: "button", onclick: ask }, text.signIn));
    return;
  }
  state.textContent = error instanceof Refused ? error.message : text.away;
  state.className = "pill bad";
  if (isNew === true) main.replaceChildren();
  later();
}

function navigation() {
  const [current] = place();
  document.getElementById("views").replaceChildren(
    ...Object.keys(views).map((name) => el("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, text.views[name])));
  signIn.textContent = token.get() ? text.signOut : text.signIn;
}

function ask() {
  const input = el("input", { type: "password", id: "token-value", autocomplete: "off", required: true });
  const wrong = el("p", { role: "alert" });
  const use = async (event) => {
    event.preventDefault();
    token.set(input.value.trim());
    try {
      await api("dead-letters?limit=1");
      dialog.close();
      navigation();
      refresh(true);
    } catch (error) {
      token.clear();
      wrong.textContent = error.status === 401 ? text.tokenWrong : error.message;
    }
  };
  dialog.replaceChildren(el("form", { onsubmit: use }, el("h2", { id: "token-title" }, text.tokenTitle), el("p", {}, text.tokenHelp),
    el("label", { for: "token-value" }, text.tokenLabel), input, wrong,
    el("div", { class: "actions" }, el("button", {}, text.save),
      el("button", { type: "button", onclick: () => dialog.close() }, text.cancel))));
  dialog.showModal();
}

signIn.addEventListener("click", () => {
  if (!token.get()) return ask();
  token.clear();
  navigation();
  refresh(true);
});
window.addEventListener("hashchange", () => { navigation(); refresh(true); });
navigation();
refresh();
