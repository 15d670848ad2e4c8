// Alerts: what fires now, and what changed.

import { api, el, moment, table } from "./dom.js";
import { text } from "./strings.js";

const t = text.alerts;

export const load = () => api("alerts");

export function show({ firing, events, left_out: leftOut }) {
  const pill = (severity) => el("span", { class: severity === "info" ? "pill" : "pill bad" }, severity);
  const now = firing.map((it) => [
    pill(it.severity), it.summary, it.value ?? "–", it.topic, link(it.function), it.key, moment(it.since_ms), it.count,
  ]);
  const changes = events.map((it) => [moment(it.at_ms), it.status, pill(it.severity), it.summary, link(it.function), it.key]);
  return [
    now.length === 0 ? el("section", { class: "card" }, el("h2", {}, t.firing), el("p", {}, t.none))
      : table(t.firing, [t.severity, t.summary, t.value, t.topic, t.function, t.key, t.from, t.count], now),
    leftOut > 0 && el("p", {}, t.leftOut(leftOut)),
    table(t.events, [t.at, t.status, t.severity, t.summary, t.function, t.key], changes),
    el("p", { class: "quiet" }, t.since),
  ];
}

const link = (name) => el("a", { href: `#/functions/${encodeURIComponent(name)}` }, name);
