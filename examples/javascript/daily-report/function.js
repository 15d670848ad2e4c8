// Sends upstream, once a day, the lowest and the highest temperature since the last report.
import { forward, state } from "sedge";

export function handle(message) {
  if (message.topic === "$schedule/daily-report") {
    const day = state.get("day");
    state.delete("day");
    const due = message.properties["sedge-due"];
    return forward("reports/temperature", { due, count: 0, ...day });
  }
  const value = message.number("value");
  if (value === undefined) return;
  const { count, min, max } = state.get("day") ?? { count: 0, min: value, max: value };
  state.set("day", { count: count + 1, min: Math.min(min, value), max: Math.max(max, value) });
}
