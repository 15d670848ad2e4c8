// Live: runs as they happen. One stream at a time, which ends when the view is left.

import { el, micros, moment, number, Refused, stream, token } from "./dom.js";
import { text } from "./strings.js";

const t = text.live;
const MOST = 200;
const AGAIN_MS = 3000;
const known = [];
let view;
let following = null;
let wanted = null;
let left = 0;
let isPaused = false;

export async function load() {
  if (token.get()) return;
  stop();
  throw new Refused(401, text.needsToken);
}

export function show(_, [topic]) {
  view ??= build();
  if (topic && topic !== wanted) {
    wanted = topic;
    view.follow(topic);
  } else if (!following) view.start();
  return [view.section];
}

// The runs of a message that are kept here.
export const runsOf = (topic, receivedMs) => known.filter(({ run }) => run.topic === topic && run.received_ms === receivedMs).map(({ run }) => row(run));

function build() {
  const field = (id, name, placeholder) => [el("label", { for: id }, name), el("input", { id, placeholder })];
  const [nameLabel, name] = field("live-function", t.function, text.letters.any);
  const [topicLabel, topic] = field("live-topic", t.topic, "oven/+/temperature");
  const [searchLabel, search] = field("live-search", t.search, "");
  const state = el("p", { class: "quiet" });
  const list = el("div", { class: "runs" });
  const pause = el("button", { type: "button", "aria-pressed": "false", onclick: () => hold(!isPaused) }, t.pause);
  const tell = (words) => { state.textContent = words ?? t.shown(number(known.length), number(left)); };
  const fits = (run) => run.words.includes(search.value.toLowerCase());
  const draw = () => list.replaceChildren(...known.filter(fits).map((run) => run.row));
  const hold = (now) => {
    isPaused = now;
    pause.setAttribute("aria-pressed", String(now));
    pause.textContent = now ? t.resume : t.pause;
    if (!now) draw();
  };
  const events = {
    run: (run) => {
      known.unshift({ run, row: row(run), words: JSON.stringify(run).toLowerCase() });
      const old = known.splice(MOST);
      if (!isPaused) {
        if (fits(known[0])) list.prepend(known[0].row);
        old.forEach((it) => it.row.remove());
      }
    },
    "left-out": ({ left_out: count }) => { left = count; tell(); },
    end: ({ error, fix }) => tell(`${error}: ${fix}`),
  };
  const start = async () => {
    following?.abort();
    const mine = new AbortController();
    following = mine;
    const asked = new URLSearchParams({ function: name.value.trim(), topic: topic.value.trim() });
    try {
      await stream(`live?${asked}`, events, mine.signal);
      if (following === mine) tell(t.ended);
    } catch (error) {
      if (following !== mine) return;
      tell(error instanceof Refused ? error.message : text.away);
      if (error instanceof Refused && error.status !== 503) return;
    }
    setTimeout(() => { if (following === mine) start(); }, AGAIN_MS);
  };
  const anew = () => {
    known.length = 0;
    left = 0;
    draw();
    start();
  };
  const submit = (event) => {
    event.preventDefault();
    anew();
  };
  const follow = (of) => {
    [name.value, topic.value] = ["", of];
    anew();
  };
  search.addEventListener("input", draw);
  const section = el("section", { "data-keep": "live" }, el("h2", {}, text.views.live),
    el("form", { class: "filter", onsubmit: submit }, nameLabel, name, topicLabel, topic, el("button", {}, t.follow)),
    el("div", { class: "filter" }, pause, searchLabel, search), state, list);
  return { section, start, follow };
}

function stop() {
  following?.abort();
  following = null;
}

window.addEventListener("hashchange", () => { if (!location.hash.startsWith("#/live")) stop(); });

function row(run) {
  const bad = run.result !== "done";
  return el("details", { class: "card" },
    el("summary", {}, el("span", { class: bad ? "pill bad" : "pill" }, run.reason ?? t.results[run.result]), ` ${moment(run.at_ms)} `,
      el("strong", {}, run.function), run.shadow_of == null ? " " : el("em", {}, ` ${t.shadow(run.version, run.shadow_of)} `), `${run.topic} `, el("code", {}, words(run.payload).slice(0, 80))),
    el("p", { class: "quiet" }, t.figures(run, number(run.fuel), micros(run.elapsed_us))),
    run.shadow_of != null && el("p", {}, t.noEffect),
    el("p", { class: "quiet" }, t.message(moment(run.received_ms), run.message_id)),
    run.detail && el("p", {}, run.detail), part(t.payload, el("pre", { tabindex: "0" }, words(run.payload)), run.payload),
    ...run.outputs.map((it) => el("div", {}, el("h3", {}, `${it.kind} ${it.to ?? ""}`),
      it.facts.length > 0 && el("p", { class: "quiet" }, it.facts.map((fact) => `${fact.name}: ${fact.value}`).join(", ")),
      it.content && part(null, el("pre", { tabindex: "0" }, words(it.content)), it.content))),
    more(t.outputs, run.outputs_left_out),
    run.state.length > 0 && el("div", {}, el("h3", {}, t.state), el("dl", {}, run.state.map((it) => el("div", {}, el("dt", {}, it.key),
      el("dd", {}, it.value ? words(it.value) : t.removed))))),
    more(t.keys, run.state_left_out),
    run.log.length > 0 && el("div", {}, el("h3", {}, t.log), el("pre", { tabindex: "0" }, run.log.map((it) => `${it.level} ${it.text}`).join("\n"))),
    more(t.lines, run.log_left_out));
}

const words = (cut) => cut.text ?? cut.hex;
const more = (what, count) => count > 0 && el("p", { class: "quiet" }, t.more(number(count), what));
const part = (title, content, cut) => el("div", {}, title && el("h3", {}, title), content,
  cut.is_cut && el("p", { class: "quiet" }, t.cut(number(cut.bytes))));
