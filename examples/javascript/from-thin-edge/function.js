// A step of a flow, moved over. It was:
//
//     export function onMessage(message, context) {
//       const { temperature } = JSON.parse(new TextDecoder().decode(message.payload));
//       if (typeof temperature !== "number") return [];
//       const device = message.topic.split("/").slice(0, 5).join("/");
//       const { sum = 0, count = 0, high = false } = context.script.get(device) ?? {};
//       const { threshold, hysteresis } = context.config;
//       const isHigh = high ? temperature >= threshold - hysteresis : temperature >= threshold;
//       context.script.set(device, { sum: sum + temperature, count: count + 1, high: isHigh });
//       if (isHigh === high) return [];
//       const payload = isHigh ? JSON.stringify({ severity: "major", text: `${temperature} °C` }) : "";
//       return [{ topic: `${device}/a/temperature_high`, payload, mqtt: { retain: true, qos: 1 } }];
//     }
//
//     export function onInterval(time, context) {
//       return context.script.keys().flatMap((device) => {
//         const { sum, count, high } = context.script.get(device);
//         if (count === 0) return [];
//         context.script.set(device, { sum: 0, count: 0, high });
//         return [{ topic: `${device}/m/environment_mean`, payload: JSON.stringify({ temperature: sum / count, time }) }];
//       });
//     }
import { publish, settings, state } from "sedge";

export function handle(message) {
  return message.topic.startsWith("$timer/") ? onInterval(new Date()) : onMessage(message);
}

function onMessage(message) {
  const { temperature } = message.json;
  if (typeof temperature !== "number") return;
  const device = message.topic.split("/").slice(0, 5).join("/");
  const { sum = 0, count = 0, high = false } = state.get(device) ?? {};
  const { threshold, hysteresis } = settings;
  const isHigh = high ? temperature >= threshold - hysteresis : temperature >= threshold;
  state.set(device, { sum: sum + temperature, count: count + 1, high: isHigh });
  if (isHigh === high) return;
  const payload = isHigh ? { severity: "major", text: `${temperature} °C` } : "";
  return publish(`${device}/a/temperature_high`, payload, { retain: true });
}

function onInterval(time) {
  return state.keys().map((device) => {
    const { sum, count, high } = state.get(device);
    if (count === 0) return;
    state.set(device, { sum: 0, count: 0, high });
    return publish(`${device}/m/environment_mean`, { temperature: sum / count, time });
  });
}
