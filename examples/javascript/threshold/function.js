// An alert when a value goes above a limit, and another when it is well back.
import { alert, settings, state } from "sedge";

export function handle(message) {
  const { field, max, hysteresis } = settings;
  // Devices also send updates without it, a battery level alone for example.
  const value = message.number(field);
  if (value === undefined) return;

  const key = `${message.topic}/${field}`;
  const labels = { topic: message.topic };
  const firing = state.get("firing") ?? false;
  if (!firing && value > max) {
    state.set("firing", true);
    return alert.firing(key, { severity: "critical", summary: `${field} is ${value}, above ${max}`, value, labels });
  }
  if (firing && value <= max - hysteresis) {
    state.delete("firing");
    return alert.resolved(key, { severity: "critical", summary: `${field} is back to ${value}`, value, labels });
  }
}
