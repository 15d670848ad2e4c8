// Alerts: what fires now, what changed, and what a person does about it.

import { api, el, moment, table, token } from "./dom.js";
import { runsOf } from "./live.js";
import { text } from "./strings.js";

const t = text.alerts;
let seconds = t.times[0][1];

export const load = () => api("alerts");

export function show({ firing, events, mutes, left_out: leftOut }, rest, refresh) {
  if (rest[0] === "message") return [message(rest.slice(1))];
  const act = async (action, it, more) => {
    try {
      await api(`alerts/${action}`, { function: it.function, key: it.key, ...more });
      refresh(null, t.done[action]);
    } catch (error) { refresh(error); }
  };
  const button = (action, it, more) => el("button", {
    type: "button", "aria-label": t.named(t[action], it.summary ?? it.key), onclick: () => act(action, it, more?.()),
  }, t[action]);
  const actions = (it) => token.get() ? el("span", { class: "actions" }, !it.acknowledged && button("acknowledge", it),
    it.muted_until_ms ? button("unmute", it) : button("mute", it, () => ({ seconds }))) : "";
  const pill = (severity) => el("span", { class: severity === "info" ? "pill" : "pill bad" }, severity || "–");
  const now = firing.map((it) => [
    pill(it.severity), it.muted_until_ms ? el("span", {}, it.summary, el("br"), el("em", {}, t.mutedUntil(moment(it.muted_until_ms)))) : it.summary,
    it.value ?? "–", cause(it), link(it.function), it.key, moment(it.since_ms), it.count, it.acknowledged?.by ?? "–", actions(it),
  ]);
  const changes = events.map((it) => [moment(it.at_ms), it.status, it.by ?? "–", pill(it.severity), it.summary, cause(it), link(it.function), it.key]);
  const muted = mutes.map((it) => [link(it.function), it.key, moment(it.until_ms), it.by, token.get() ? button("unmute", it) : ""]);
  return [
    now.length === 0 ? el("section", { class: "card" }, el("h2", {}, t.firing), el("p", {}, t.none))
      : table(t.firing, [t.severity, t.summary, t.value, t.topic, t.function, t.key, t.from, t.count, t.seen, t.act], now),
    token.get() ? times() : el("p", { class: "quiet" }, text.tokenHelp),
    leftOut > 0 && el("p", {}, t.leftOut(leftOut)),
    muted.length > 0 && table(t.muted, [t.function, t.key, t.until, t.by, t.act], muted),
    table(t.events, [t.at, t.status, t.by, t.severity, t.summary, t.topic, t.function, t.key], changes),
    el("p", { class: "quiet" }, t.since),
  ];
}

function times() {
  const choose = el("select", { id: "mute-for", onchange: (event) => { seconds = Number(event.target.value); } },
    t.times.map(([name, value]) => el("option", { value, selected: value === seconds }, name)));
  return el("p", { class: "filter", "data-keep": "mute-for" }, el("label", { for: "mute-for" }, t.muteFor), choose);
}

// The topic leads to the message that caused an alert. What a person did has none, and neither have those of earlier versions.
function cause(it) {
  if (!it.received_ms) return it.topic ?? "–";
  const place = [it.topic, it.received_ms, it.message_id ?? ""].map(encodeURIComponent).join("/");
  return el("a", { href: `#/alerts/message/${place}`, title: t.message }, it.topic);
}

// A message: who gave it which id, what became of it, and what comes next on its topic.
function message([topic, received, id]) {
  const letters = el("div", {}, el("p", { class: "quiet" }, token.get() ? "" : text.tokenHelp));
  if (token.get()) {
    api(`dead-letters?${new URLSearchParams({ topic, received_ms: received })}`).then(({ dead_letters: found }) => {
      letters.replaceChildren(found.length === 0 ? el("p", {}, t.noLetters) : el("ul", {}, found.map((it) => el("li", {},
        el("a", { href: `#/dead-letters/${it.id}` }, t.letter(it.id, it.function)), ` ${it.reason}`))));
    }, (error) => letters.replaceChildren(el("p", {}, error.message)));
  }
  const runs = runsOf(topic, Number(received));
  return el("section", { class: "card", "data-keep": `message-${topic}-${received}` }, el("h2", {}, t.message), el("p", {}, topic),
    el("p", { class: "quiet" }, text.live.message(moment(Number(received)), id || null)), el("h3", {}, text.views["dead-letters"]), letters,
    el("h3", {}, text.views.live), runs.length === 0 ? el("p", {}, t.noRuns) : runs,
    el("p", {}, el("a", { href: `#/live/${encodeURIComponent(topic)}` }, t.follow)), el("p", {}, el("a", { href: "#/alerts" }, text.close)));
}

const link = (name) => el("a", { href: `#/functions/${encodeURIComponent(name)}` }, name);
