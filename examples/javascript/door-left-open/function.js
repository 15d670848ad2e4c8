// An alert for each door that stays open too long, and another when it is closed. No timer looks at all doors: each one that
// opens sets a wake, and a closed one cancels it.
import { alert, settings, state, wake } from "sedge";

export function handle(message) {
  const door = (message.properties["sedge-topic"] ?? message.topic).split("/")[1];
  if (message.topic === "$wake/left-open") {
    state.set("told", true);
    return alert.firing(door, { summary: `${door} has been open for ${settings.minutes} minutes` });
  }
  const { contact } = message.json;
  if (typeof contact !== "boolean") return;
  if (!contact) {
    // A sensor repeats its state. The time of the first message counts.
    if (state.get("open")) return;
    state.set("open", true);
    return wake("left-open", settings.minutes * 60_000);
  }
  if (!state.get("open")) return;
  const told = state.get("told");
  state.delete("open");
  state.delete("told");
  return told ? alert.resolved(door, { summary: `${door} is closed` }) : wake("left-open");
}
