// A function node with two outputs, moved over. It was:
//
//     const history = context.get("history") || [];
//     history.push(msg.payload.temperature);
//     if (history.length > 5) history.shift();
//     context.set("history", history);
//     const mean = history.reduce((sum, value) => sum + value, 0) / history.length;
//     node.status({ text: `mean ${mean}` });
//     const warm = mean > Number(env.get("max"));
//     if (warm) node.warn(`${msg.topic} is warm`);
//     return [{ topic: `mean/${msg.topic}`, payload: mean }, warm ? { payload: `mean ${mean}` } : null];
//
// The first output was wired to an `mqtt out` node, the second to one that sends a mail.
import { alert, publish, settings, state } from "sedge";

export function handle(message) {
  const value = message.number("temperature");
  if (value === undefined) return;
  const history = state.get("history") ?? [];
  history.push(value);
  if (history.length > 5) history.shift();
  state.set("history", history);

  const mean = history.reduce((sum, value) => sum + value, 0) / history.length;
  const warm = mean > settings.max;
  const outputs = [publish(`mean/${message.topic}`, mean)];
  // An alert when it begins and one when it is over, where the node sent a mail for each message.
  if (warm !== (state.get("warm") ?? false)) {
    state.set("warm", warm);
    if (warm) console.warn(`${message.topic} is warm`);
    outputs.push(warm ? alert.firing(message.topic, { summary: `mean ${mean}`, value: mean }) : alert.resolved(message.topic));
  }
  return outputs;
}
