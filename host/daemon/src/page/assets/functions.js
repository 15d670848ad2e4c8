// Functions: what runs, how it does, and what it stores.

import { api, el, facts, micros, number, Refused, size, table, toHex, token } from "./dom.js";
import { text } from "./strings.js";

const t = text.functions;

export const load = () => api("functions");

export function show({ functions }, [name], refresh) {
  if (!name) return [all(functions)];
  const found = functions.find((it) => it.name === name);
  const back = el("p", {}, el("a", { href: "#/functions" }, t.back));
  return found ? [back, ...one(found, refresh)] : [back, el("p", {}, t.unknown(name))];
}

function all(functions) {
  const heads = [t.name, t.version, t.state, t.runs, t.deadLetters, t.time, t.fuel, t.share, t.stored];
  const rows = functions.map(({ name, figures, report }) => {
    const link = el("a", { href: `#/functions/${encodeURIComponent(name)}` }, name);
    const version = report?.active?.version ?? "–";
    if (!figures) return [link, version, state(report), "–", "–", "–", "–", "–", "–"];
    return [
      link, version, el("span", { class: isBad(figures, report) ? "pill bad" : "pill" }, state(report, figures)),
      number(figures.invocations), number(figures.dead_letters),
      `${micros(figures.duration_us.p50)} / ${micros(figures.duration_us.p99)}`,
      `${number(figures.fuel.p50)} / ${number(figures.fuel.p99)}`,
      `${Math.round(figures.share_used * 100)} %`, size(figures.state_bytes),
    ];
  });
  return table(text.views.functions, heads, rows);
}

const isBad = (figures, report) =>
  figures.quarantined || figures.paused_topics > 0 || ["rejected", "rolled-back", "quarantined"].includes(report?.state);

function state(report, figures) {
  if (figures?.quarantined) return t.paused;
  if (figures?.paused_topics > 0) return t.pausedTopics(figures.paused_topics);
  const progress = report?.progress;
  if (progress?.messages != null) return t.trial(progress);
  if (progress?.chunks != null) return t.receiving(progress);
  return report?.state ?? "–";
}

function one({ name, figures, report, pauses }, refresh) {
  const manifest = report?.active?.manifest ?? {};
  const limits = Object.entries(manifest.limits ?? {}).map(([key, value]) => [key, number(value)]);
  const settings = (report?.settings ?? []).map((it) => [it.name, it.topic ?? "–", it.value ?? t.secret, it.from]);
  return [
    el("h2", {}, `${name} ${report?.active?.version ?? ""}`),
    report?.error && el("section", { class: "card bad" }, el("h2", {}, t.error), el("p", {}, `${report.reason ?? ""} ${report.error}`)),
    el("div", { class: "cards" },
      facts(t.details, [
        [t.state, state(report, figures)],
        [t.hears, (manifest.subscribe ?? []).join(", ") || "–"],
        [t.previous, report?.previous?.version ?? "–"],
        [t.runs, number(figures?.invocations)],
        [t.deadLetters, number(figures?.dead_letters)],
        [t.stored, size(figures?.state_bytes)],
      ]),
      limits.length > 0 && facts(t.limits, limits)),
    pauses.length > 0 && table(t.pauses, [t.topic, t.reason, t.left], pauses.map((it) => [it.topic, it.reason, t.seconds(it.seconds_left)])),
    settings.length > 0 && table(t.settings, [t.setting, t.topic, t.value, t.from], settings),
    (report?.differences ?? []).length > 0 && el("section", {}, el("h2", {}, t.differences),
      el("pre", {}, JSON.stringify(report.differences, null, 2))),
    token.get() ? scopes(name, refresh) : el("p", { class: "quiet" }, text.tokenHelp),
  ];
}

function scopes(name, refresh) {
  const list = el("div", {});
  const search = el("input", { type: "search", id: "search" });
  const path = `functions/${encodeURIComponent(name)}/state`;
  const find = async (after) => {
    try {
      const query = new URLSearchParams({ search: search.value, ...(after != null && { after }) });
      const { scopes: found, more } = await api(`${path}?${query}`);
      const rows = found.map(({ topic, keys, bytes }) => [
        el("button", { type: "button", class: "link", onclick: () => open(topic) }, topic ?? t.all), number(keys), size(bytes),
      ]);
      const again = more && el("button", { type: "button", onclick: () => find(found.at(-1).topic) }, text.more);
      list.replaceChildren(table(t.scopes, [t.topic, t.keys, t.bytes], rows), again || "");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      refresh(error);
    }
  };
  const open = async (topic) => {
    const query = topic == null ? "" : `?${new URLSearchParams({ topic })}`;
    const { entries, more } = await api(`${path}/entries${query}`);
    const rows = entries.map((it) => [it.key, el("code", {}, it.text ?? "–"), el("code", {}, it.hex ?? toHex(it.text)), size(it.bytes)]);
    const title = topic ?? t.all;
    list.replaceChildren(
      el("button", { type: "button", onclick: () => find() }, t.scopes),
      table(title, [t.key, t.value, t.hex, t.bytes], rows), more ? el("p", { class: "quiet" }, "…") : "");
  };
  find();
  const form = el("form", { class: "filter", onsubmit: (event) => { event.preventDefault(); find(); } },
    el("label", { for: "search" }, t.search), search, el("button", {}, text.letters.find));
  return el("section", { "data-keep": "scopes" }, form, list);
}
