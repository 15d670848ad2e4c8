// Elements, numbers and requests. All texts from the board become text nodes, never markup.

import { text } from "./strings.js";

export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false).map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

// Shows what would be invisible or reorder the text around it.
export function visible(value) {
  return String(value).replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`,
  );
}

export function table(caption, heads, rows) {
  if (rows.length === 0) return el("section", {}, el("h2", {}, caption), el("p", { class: "quiet" }, text.nothing));
  return el(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((cells) => (cells instanceof Node ? cells : el("tr", {}, cells.map(data)))))),
  );
}

function data(cell) {
  const length = cell instanceof Node ? cell.textContent.length : String(cell ?? "").length;
  return el("td", { class: length > 24 && "long" }, cell);
}

export function facts(title, pairs) {
  return el("section", { class: "card" }, el("h2", {}, title),
    el("dl", {}, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}

export const number = (value) => (value == null ? "–" : new Intl.NumberFormat("en").format(value));

export function size(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit += 1) bytes /= 1024;
  return `${bytes < 10 && unit > 0 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

export function micros(value) {
  if (value == null) return "–";
  return value < 1000 ? `${Math.round(value)} µs` : `${(value / 1000).toFixed(1)} ms`;
}

export const toHex = (words) => [...new TextEncoder().encode(words ?? "")].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

export const moment = (ms) => (ms ? new Date(ms).toLocaleString() : "–");

const KEY = "sedge-token";
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

export class Refused extends Error {
  constructor(status, error, fix) {
    super(fix ? `${error}: ${fix}` : error);
    this.status = status;
  }
}

const authorization = () => (token.get() ? { Authorization: `Bearer ${token.get()}` } : {});

export async function api(path, body) {
  const headers = authorization();
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(`/api/v1/${path}`, { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body) });
  return response.ok ? response.json() : refused(response);
}

async function refused(response) {
  let answer = {};
  try { answer = await response.json(); } catch { /* not from the API */ }
  throw new Refused(response.status, answer.error ?? response.statusText, answer.fix);
}

// Server-sent events. EventSource can send no token.
export async function stream(path, events, signal) {
  const response = await fetch(`/api/v1/${path}`, { headers: authorization(), signal });
  if (!response.ok) await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const fields = Object.fromEntries(event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      events[fields.event]?.(JSON.parse(fields.data));
    }
  }
}

// A bar for each value, oldest at the left.
export function chart(name, values) {
  const most = Math.max(1, ...values);
  const last = values.at(-1) ?? 0;
  const label = text.board.chart(name, number(Math.max(0, ...values)), number(last));
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const width = 100 / Math.max(values.length, 30);
  for (const [key, value] of Object.entries({ viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label })) svg.setAttribute(key, value);
  values.forEach((value, n) => {
    const bar = document.createElementNS(ns, "rect");
    const height = (value / most) * 23;
    for (const [key, it] of Object.entries({ x: n * width, y: 24 - height, width: width * 0.8, height })) bar.setAttribute(key, it);
    svg.append(bar);
  });
  return el("figure", {}, el("figcaption", {}, label), svg);
}
