// Overview: is it well?

import { api, chart, el, facts, moment, number, size, table } from "./dom.js";
import { text } from "./strings.js";

const t = text.board;

export const load = () => api("board");

export function show(board) {
  const { figures } = board;
  const { messages } = figures;
  const up = (link) => (link ? (link.connected ? text.connected : text.notConnected) : text.notConfigured);
  const charts = (title, of) => el("section", { class: "card" }, el("h2", {}, title),
    Object.entries(t.series).map(([key, name]) => chart(name, of[key])), el("p", { class: "quiet" }, t.since));
  return [
    board.problems.length > 0 && el("section", { class: "card bad" }, el("h2", {}, t.problems),
      el("ul", {}, board.problems.map(({ what, fix }) => el("li", {}, el("strong", {}, what), ` – ${fix}`)))),
    el("div", { class: "cards" },
      facts(t.connections, [
        [t.broker, up(board.broker)],
        ...(board.sinks.length === 0 ? [[t.sinks, t.notConfigured]] : board.sinks.map((sink) => [
          t.sink(sink.name), `${up(sink)}, ${t.records(number(sink.records), size(sink.bytes))}`,
        ])),
        [t.clock, board.clock_synced ? text.synced : text.notSynced],
        [t.uptime, moment(board.started_ms)],
        [t.version, figures.version],
        [t.groups, board.groups.join(", ") || "–"],
      ]),
      facts(t.work, [
        [t.received, number(messages.received)],
        [t.recorded, number(messages.recorded)],
        [t.inFlight, number(messages.in_flight)],
        [t.parked, number(messages.parked)],
        [t.deadLettered, number(messages.dead_lettered)],
        [t.kept, number(board.dead_letters)],
      ]),
      facts(t.disk, [
        [t.outbox, t.records(number(board.outbox.records), size(board.outbox.bytes))],
        [t.dropped, number(figures.dropped)],
        [t.commits, number(figures.store.commits)],
        [t.written, size(figures.store.written_bytes)],
        [t.perDay, size(board.wear.written_bytes_per_day)],
        [t.wear, board.wear.endurance_bytes == null ? t.noEndurance : board.wear.years == null ? "–" : t.years(board.wear.years)],
      ])),
    table(t.checks, [t.check, t.verdict, t.what, t.fix], board.checks.map((it) => [
      it.check, el("span", { class: it.verdict === "warning" ? "pill bad" : "pill" }, it.verdict), it.what, it.fix ?? ""])),
    el("div", { class: "cards" }, charts(t.hour, board.charts.minutes), charts(t.week, board.charts.hours)),
  ];
}
