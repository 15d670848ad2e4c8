// An alert for each sensor that says nothing for ten minutes, and another when it speaks again. The board counts the time: it
// calls the function about a silent topic (section silence of function.toml), with the state of that topic.
import { alert, state } from "sedge";

export function handle(message) {
  if (message.topic !== "$silence" && message.topic !== "$silence/back") {
    state.set("last", message.number());
    return;
  }
  const sensor = message.properties["sedge-topic"].split("/")[1];
  const minutes = Math.round(message.properties["sedge-silent-ms"] / 60_000);
  if (message.topic === "$silence/back") {
    return alert.resolved(sensor, { summary: `${sensor} speaks again after ${minutes} minutes` });
  }
  const last = state.get("last") ?? "none";
  return alert.firing(sensor, { summary: `${sensor} has said nothing for ${minutes} minutes, last value ${last}` });
}
