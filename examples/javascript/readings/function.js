// Takes readings over HTTP, forwards them, and answers with the last one. The path is part of the topic, so that each sensor has its
// own state.
import { forward, reject, reply, state } from "sedge";

export function handle(message) {
  const { "sedge-method": method, "sedge-path-sensor": sensor } = message.properties;
  const last = state.get("last");
  if (method === "GET") return last ? reply(200, last) : reply(404, `no reading of ${sensor} yet`);

  const temperature = message.number("temperature");
  if (temperature === undefined) reject("the body has no temperature");
  const reading = { sensor, temperature, atMs: message.receivedAtMs };
  state.set("last", reading);
  // The answer is sent when both are on disk.
  return [forward(`readings/${sensor}`, reading), reply(last ? 200 : 201, reading)];
}
