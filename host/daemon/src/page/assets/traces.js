// Traces: the way of messages, step by step.

import { api, el, micros, moment, number, table } from "./dom.js";
import { text } from "./strings.js";

const t = text.traces;
const filter = { id: "" };
const NS = "http://www.w3.org/2000/svg";

export const load = ([id]) => api(id ? `traces/${encodeURIComponent(id)}` : `traces?${new URLSearchParams(filter)}`);

const short = (trace) => trace.trace_id.slice(0, 8);

export function show(answer, [id], refresh) {
  if (id) return answer.spans ? one(answer) : [];
  const rows = (answer.traces ?? []).map((it) => [
    el("a", { href: `#/traces/${it.trace_id}`, "aria-label": t.show(short(it)) }, short(it)),
    moment(it.start_us / 1000), it.topic ?? "", it.functions.join(", "), micros(it.duration_us), number(it.spans),
    el("span", { class: it.error ? "pill bad" : "pill" }, it.error ?? it.result ?? "–"),
  ]);
  return [form(refresh), el("p", { class: "quiet" }, t.help),
    rows.length === 0 ? el("p", {}, t.none) : table(text.views.traces, [t.trace, t.at, t.topic, t.functions, t.took, t.spans, t.result], rows)];
}

function form(refresh) {
  const id = el("input", { id: "trace-id", value: filter.id, placeholder: text.letters.any });
  const find = (event) => {
    event.preventDefault();
    filter.id = id.value.trim();
    refresh();
  };
  return el("form", { class: "filter", "data-keep": "trace-filter", onsubmit: find },
    el("label", { for: "trace-id" }, t.id), id, el("button", {}, t.find));
}

function one({ trace_id: id, spans, spans_left_out: leftOut }) {
  const begin = Math.min(...spans.map((it) => it.start_us));
  const took = Math.max(1, ...spans.map((it) => it.start_us + it.duration_us - begin));
  const known = new Map(spans.map((it) => [it.span_id, it]));
  const depth = (span) => (known.has(span.parent) ? 1 + depth(known.get(span.parent)) : 0);
  const rows = tree(spans, known).map((it) => [
    el("span", {}, "\u00a0".repeat(4 * depth(it)), it.step),
    micros(it.start_us - begin), micros(it.duration_us), bar((it.start_us - begin) / took, it.duration_us / took, it, begin),
    el("span", {}, it.error && el("span", { class: "pill bad" }, it.error), " ",
      it.attributes.map((one) => `${one.name.replace(/^(sedge|messaging)\./, "")}: ${one.value}`).join(", ")),
  ]);
  return [el("p", {}, `${moment(begin / 1000)} ${id}`), table(text.views.traces, [t.step, t.begin, t.took, t.span, t.what], rows),
    leftOut > 0 && el("p", { class: "quiet" }, t.leftOut(number(leftOut))), el("p", {}, el("a", { href: "#/traces" }, t.back))];
}

// Each span before those below it.
function tree(spans, known) {
  const below = (parent) => spans.filter((it) => it.parent === parent.span_id).flatMap((it) => [it, ...below(it)]);
  return spans.filter((it) => !known.has(it.parent)).flatMap((it) => [it, ...below(it)]);
}

function bar(from, length, span, begin) {
  const svg = document.createElementNS(NS, "svg");
  const rect = document.createElementNS(NS, "rect");
  const label = t.bar(micros(span.start_us - begin), micros(span.duration_us));
  for (const [key, value] of Object.entries({ viewBox: "0 0 100 4", preserveAspectRatio: "none", role: "img", "aria-label": label, class: "span" })) svg.setAttribute(key, value);
  for (const [key, value] of Object.entries({ x: from * 100, y: 1, width: Math.max(length * 100, 0.5), height: 2 })) rect.setAttribute(key, value);
  svg.append(rect);
  return svg;
}
