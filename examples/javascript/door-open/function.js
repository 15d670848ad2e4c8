// An alert for each door that stays open too long, and another when it is closed.
import { alert, settings, state } from "sedge";

export function handle(message) {
  if (message.topic.startsWith("$timer/")) return lookAtDoors(message.receivedAtMs);

  const { contact } = message.json;
  if (typeof contact !== "boolean") return;
  const door = message.topic.split("/")[1];
  const known = state.get(door);
  if (!contact) {
    // A sensor repeats its state. The time of the first message counts.
    if (known === undefined) state.set(door, { since: message.receivedAtMs, told: false });
    return;
  }
  if (known === undefined) return;
  state.delete(door);
  if (known.told) return alert.resolved(door, { summary: `${door} is closed` });
}

function lookAtDoors(now) {
  return state.keys().map((door) => {
    const { since, told } = state.get(door);
    const minutes = Math.floor((now - since) / 60_000);
    if (told || minutes < settings.minutes) return;
    state.set(door, { since, told: true });
    return alert.firing(door, { summary: `${door} has been open for ${minutes} minutes`, value: minutes });
  });
}
