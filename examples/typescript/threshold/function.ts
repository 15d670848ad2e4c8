// An alert when a value goes above a limit, and another when it is well back: examples/javascript/threshold, with types.
import { alert, settings, state, type AlertOptions, type Message, type Outputs } from "sedge";
import { type Limits, limitsOf } from "./limits.ts";

export function handle(message: Message): Outputs {
  const limits: Limits = limitsOf(settings);
  // Devices also send updates without it, a battery level alone for example.
  const value = message.number(limits.field);
  if (value === undefined) return;

  const key = `${message.topic}/${limits.field}`;
  const options = (summary: string): AlertOptions =>
    ({ severity: "critical", summary: `${limits.field} is ${summary}`, value, labels: { topic: message.topic } });
  const firing = (state.get("firing") ?? false) as boolean;
  if (!firing && value > limits.max) {
    state.set("firing", true);
    return alert.firing(key, options(`${value}, above ${limits.max}`));
  }
  if (firing && value <= limits.max - limits.hysteresis) {
    state.delete("firing");
    return alert.resolved(key, options(`back to ${value}`));
  }
}
