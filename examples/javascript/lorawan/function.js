import { publish, reject, settings } from "sedge";
// The decoder as its author published it. Its functions become globals.
import "./sensor.js" with { type: "script" };

export function handle(message) {
  const uplink = read(message);
  const variables = uplink.variables ?? {};
  let decoded;
  if (typeof decodeUplink === "function") {
    const input = { bytes: uplink.bytes, fPort: uplink.port, recvTime: new Date(message.receivedAtMs), variables };
    const { data, errors = [], warnings = [] } = decodeUplink(input) ?? {};
    if (errors.length > 0) reject(`the decoder reports: ${errors.join(", ")}`);
    for (const warning of warnings) console.warn(warning);
    decoded = data;
  } else if (typeof Decoder === "function") {
    decoded = Decoder(uplink.bytes, uplink.port);
  } else if (typeof Decode === "function") {
    decoded = Decode(uplink.port, uplink.bytes, variables);
  } else {
    throw new Error("sensor.js has none of decodeUplink(input), Decoder(bytes, port) and Decode(fPort, bytes, variables)");
  }
  if (decoded === undefined || decoded === null) return;
  return publish(`${settings.topic}/${uplink.device}`, decoded);
}

// What The Things Stack or ChirpStack sent, or else the payload itself.
function read(message) {
  const levels = message.topic.split("/");
  const raw = { bytes: Array.from(message.bytes), port: settings.port, device: levels.at(-1) };
  if (raw.bytes[0] !== 0x7b) return raw;
  let json;
  try {
    json = JSON.parse(message.text);
  } catch {
    return raw;
  }
  const up = json.uplink_message;
  if (up !== undefined) {
    return { bytes: bytesOf(up.frm_payload), port: up.f_port, device: json.end_device_ids?.device_id ?? levels.at(-2) };
  }
  if (json.data !== undefined) {
    const device = json.deviceInfo?.deviceName ?? json.deviceName ?? levels.at(-3);
    return { bytes: bytesOf(json.data), port: json.fPort, device, variables: json.variables };
  }
  return raw;
}

function bytesOf(base64) {
  return Array.from(atob(base64 ?? ""), (character) => character.charCodeAt(0));
}
