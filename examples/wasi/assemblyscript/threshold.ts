// An alert when a temperature goes above a limit, and another when it is well back.

function setting(name: string, otherwise: f64): f64 {
  const text = process.env.has(name) ? process.env.get(name) : "";
  return text == "" ? otherwise : parseFloat(text);
}

const buffer = new ArrayBuffer(256);
const length = process.stdin.read(buffer);
const payload = String.UTF8.decode(buffer.slice(0, length));
const value = parseFloat(payload);
if (isNaN(value)) {
  process.stderr.write("the payload is not a number: " + payload + "\n");
  process.exit(1);
}

const topic = process.argv[1];
const max = setting("max", 80);
const hysteresis = setting("hysteresis", 2);
const state = process.env.has("SEDGE_STATE") ? process.env.get("SEDGE_STATE") : "";
const firing = state.includes('"firing":true');
if (!firing && value > max) {
  process.stdout.write(`{"kind":"alert","key":"${topic}","severity":"critical","summary":"${value} is above ${max}","value":${value}}\n`);
  process.stdout.write('{"kind":"state","key":"firing","value":true}\n');
} else if (firing && value <= max - hysteresis) {
  process.stdout.write(`{"kind":"alert","key":"${topic}","status":"resolved","summary":"back to ${value}","value":${value}}\n`);
  process.stdout.write('{"kind":"state","key":"firing","value":null}\n');
}
