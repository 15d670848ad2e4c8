// Dead letters: why, what, and again.

import { api, el, moment, number, table, toHex } from "./dom.js";
import { text } from "./strings.js";

const t = text.letters;
const filter = { function: "", reason: "" };
const chosen = new Set();

export const load = () => api(`dead-letters?${query()}`);

const query = (extra = {}) => new URLSearchParams({ ...filter, limit: 100, ...extra });

export function show({ dead_letters: letters, more }, [id], refresh) {
  const act = async (path, body, said) => {
    try {
      const answer = await api(path, body);
      chosen.clear();
      if (id) location.hash = "#/dead-letters";
      refresh(null, said(Object.values(answer)[0]));
    } catch (error) { refresh(error); }
  };
  if (id) return [el("div", { "data-keep": `letter-${id}` }, one(id, act))];
  const known = new Set(letters.map((it) => it.id));
  for (const old of chosen) if (!known.has(old)) chosen.delete(old);
  const count = el("span", { role: "status" }, t.selected(chosen.size));
  const rows = letters.map((it) => [
    el("input", {
      type: "checkbox", "aria-label": t.select(it.id), checked: chosen.has(it.id),
      onchange: (event) => {
        if (event.target.checked) chosen.add(it.id); else chosen.delete(it.id);
        count.textContent = t.selected(chosen.size);
      },
    }),
    el("a", { href: `#/dead-letters/${it.id}`, "aria-label": t.show(it.id) }, it.id),
    moment(it.at_ms), it.function, el("strong", { title: it.detail }, it.reason), it.topic,
    el("code", {}, it.preview.slice(0, 80)),
  ]);
  const ids = () => ({ ids: [...chosen] });
  const all = { all: true, ...(filter.function && { function: filter.function }), ...(filter.reason && { reason: filter.reason }) };
  const button = (name, onclick) => el("button", { type: "button", onclick }, name);
  return [
    form(refresh),
    el("div", { class: "actions" }, count,
      button(t.replay, () => chosen.size > 0 && act("dead-letters/replay", ids(), t.replayed)),
      button(t.exportSelected, async () => {
        try { save("dead-letters.json", await Promise.all([...chosen].map((it) => api(`dead-letters/${it}`)))); } catch (error) { refresh(error); }
      }),
      button(t.drop, () => chosen.size > 0 && confirm(t.reallyDrop(chosen.size)) && act("dead-letters/drop", ids(), t.dropped)),
      button(t.replayAll, () => confirm(t.reallyAll) && act("dead-letters/replay", all, t.replayed)),
      button(t.dropAll, () => confirm(t.reallyDropAll) && act("dead-letters/drop", all, t.dropped))),
    letters.length === 0 ? el("p", {}, t.none)
      : table(text.views["dead-letters"], [t.choose, t.number, t.at, t.function, t.reason, t.topic, t.payload], rows),
    more && button(text.more, async () => { const next = await api(`dead-letters?${query({ before: letters.at(-1).id })}`);
      refresh(null, null, { dead_letters: [...letters, ...next.dead_letters], more: next.more }); }),
  ];
}

function form(refresh) {
  const field = (name) => el("input", { id: `filter-${name}`, value: filter[name], placeholder: t.any });
  const [name, reason] = [field("function"), field("reason")];
  const find = (event) => {
    event.preventDefault();
    Object.assign(filter, { function: name.value.trim(), reason: reason.value.trim() });
    refresh();
  };
  return el("form", { class: "filter", "data-keep": "filter", onsubmit: find },
    el("label", { for: "filter-function" }, t.function), name,
    el("label", { for: "filter-reason" }, t.reason), reason, el("button", {}, t.find));
}

function save(name, value) {
  const blob = new Blob([JSON.stringify(value, null, 2)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function one(id, act) {
  const place = el("section", { class: "card" });
  api(`dead-letters/${encodeURIComponent(id)}`).then((letter) => {
    const { message } = letter;
    const ways = [[t.text, message.payload ?? ""], [t.json, pretty(message.payload)], [t.hex, message.payload_hex ?? toHex(message.payload)]];
    const payload = el("pre", { tabindex: "0" }, ways[0][1] || ways[2][1]);
    const ids = { ids: [letter.id] };
    place.replaceChildren(
      el("h2", {}, `${text.views["dead-letters"]} ${letter.id}`),
      el("p", {}, `${letter.at} ${letter.function} ${letter.version}`),
      el("p", {}, el("strong", {}, letter.reason), ` ${letter.detail}`),
      el("p", {}, message.topic),
      el("p", { class: "quiet" }, `fuel ${number(letter.usage.fuel)}, ${number(letter.usage.elapsed_us)} µs, ${number(letter.usage.memory_bytes)} bytes`),
      el("div", { class: "actions" }, ways.filter(([, value]) => value != null).map(([name, value]) =>
        el("button", { type: "button", onclick: () => { payload.textContent = value; } }, name)),
      el("button", { type: "button", onclick: () => save(`dead-letter-${letter.id}.json`, letter) }, t.export),
      el("button", { type: "button", onclick: () => act("dead-letters/replay", ids, t.replayed) }, t.replayOne),
      el("button", { type: "button", onclick: () => confirm(t.reallyDrop(1)) && act("dead-letters/drop", ids, t.dropped) }, t.dropOne)),
      payload, el("p", {}, el("a", { href: "#/dead-letters" }, text.close)));
  }, (error) => place.replaceChildren(el("p", {}, error.message)));
  return place;
}

function pretty(payload) {
  try { return JSON.stringify(JSON.parse(payload), null, 2); } catch { return null; }
}
