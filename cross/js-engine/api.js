// The interface that scripts see, over the functions of engine.c. Evaluated once, before any script; its value is called with
// those functions and returns the names that become globals and exports of the module "sedge".
(function (native) {
  "use strict";
  const { fail, log, stateGet, stateSet, stateDelete, stateIncrement, stateKeys, settings, random } = native;
  const { parse, stringify } = JSON;
  const { isArray } = Array;
  const { freeze, keys: namesOf, hasOwn } = Object;
  const own = (object, name) => (hasOwn(object, name) ? object[name] : undefined);

  // Names, as properties of an object without others: `in` is the quickest way to look one up.
  const set = (...names) => {
    const all = { __proto__: null };
    for (const name of names) all[name] = true;
    return freeze(all);
  };

  const SEVERITIES = set("info", "warning", "critical");

  function reject(reason) {
    fail(String(reason), -1);
  }

  const UNITS = freeze({ ms: 1, s: 1000, m: 60_000, h: 3_600_000 });

  // A number of milliseconds, or a period as in function.toml.
  function milliseconds(value, what) {
    const period = typeof value === "string" ? /^([0-9]+)(ms|s|m|h)$/.exec(value) : null;
    const ms = period === null ? Number(value) : period[1] * UNITS[period[2]];
    if (!(ms >= 0)) throw new RangeError(`${what}: ${show(value)} is not a time: use milliseconds, or "500ms", "10s", "5m" or "1h"`);
    return Math.min(Math.round(ms), Number.MAX_SAFE_INTEGER);
  }

  function retry(after, reason = "") {
    fail(String(reason), milliseconds(after, "retry"));
  }

  function show(value) {
    if (typeof value === "string") return stringify(value.length > 60 ? value.slice(0, 60) + "…" : value);
    if (typeof value === "object" && value !== null) return isArray(value) ? "an array" : "an object";
    return String(value);
  }

  function text(value, what, part) {
    if (typeof value !== "string") throw new TypeError(`${what}: the ${part} must be a string, and is ${show(value)}`);
    return value;
  }

  const NONE = freeze({});
  const ALERT_OPTIONS = set("severity", "summary", "value", "labels", "sink");
  const PUBLICATION_OPTIONS = set("contentType", "retain", "sink");
  const REPLY_OPTIONS = set("contentType");

  function options(value, known, what) {
    if (value === undefined) return NONE;
    if (typeof value !== "object" || value === null) throw new TypeError(`${what}: the options must be an object, and are ${show(value)}`);
    const names = namesOf(value);
    for (let n = 0; n < names.length; n++) {
      if (names[n] in known) continue;
      throw new TypeError(`${what}: unknown option ${stringify(names[n])}; use ${namesOf(known).join(", ")}`);
    }
    return value;
  }

  function alertOf(status, what, key, given) {
    if (text(key, what, "key") === "") throw new TypeError(`${what}: the key must not be empty`);
    if (typeof given === "string") given = { summary: given };
    const { severity = "warning", summary = key, value, labels = NONE, sink } = options(given, ALERT_OPTIONS, what);
    if (typeof severity !== "string" || !(severity in SEVERITIES)) {
      throw new TypeError(`${what}: the severity must be one of ${namesOf(SEVERITIES).join(", ")}, and is ${show(severity)}`);
    }
    if (value !== undefined && value !== null && typeof value !== "number") {
      throw new TypeError(`${what}: the value must be a number, and is ${show(value)}`);
    }
    if (typeof labels !== "object" || labels === null) {
      throw new TypeError(`${what}: the labels must be an object, and are ${show(labels)}`);
    }
    return { kind: "alert", key, severity, status, summary: String(summary), value, labels, sink };
  }

  // Text and bytes are sent as they are, everything else as JSON.
  function content(value, what) {
    if (typeof value === "string" || value instanceof Uint8Array) return value;
    if (value instanceof ArrayBuffer) return new Uint8Array(value);
    const json = stringify(value);
    if (json === undefined) throw new TypeError(`${what}: ${show(value)} cannot be sent: use text, bytes or a value that JSON has`);
    return json;
  }

  function publicationOf(kind, topic, value, given) {
    text(topic, kind, "topic");
    const { contentType, retain = false, sink } = options(given, PUBLICATION_OPTIONS, kind);
    const payload = content(value, kind);
    const isJson = payload !== value && typeof payload === "string";
    return { kind, topic, payload, contentType: contentType ?? (isJson ? "application/json" : undefined), retain: !!retain, sink };
  }

  const alert = freeze({
    firing: (key, given) => alertOf("firing", "alert.firing", key, given),
    resolved: (key, given) => alertOf("resolved", "alert.resolved", key, given),
  });
  const forward = (topic, value, given) => publicationOf("forward", topic, value, given);
  const publish = (topic, value, given) => publicationOf("publish", topic, value, given);

  function wake(name, after) {
    text(name, "wake", "name");
    const cancels = after === null || after === undefined;
    return { kind: "wake", name, afterMs: cancels ? undefined : milliseconds(after, "wake") };
  }

  function reply(status, value = "", given) {
    if (!Number.isInteger(status) || status < 100 || status > 999) {
      throw new RangeError(`reply: ${show(status)} is not a status of HTTP`);
    }
    const { contentType } = options(given, REPLY_OPTIONS, "reply");
    const body = content(value, "reply");
    const isJson = body !== value && typeof body === "string";
    return { kind: "reply", status, body, contentType: contentType ?? (isJson ? "application/json" : undefined) };
  }

  const state = freeze({
    get(key) {
      const stored = stateGet(text(key, "state.get", "key"));
      if (stored === undefined) return undefined;
      try {
        return parse(stored);
      } catch {
        throw new TypeError(`state.get: the value of ${show(key)} is not JSON: ${show(stored)}`);
      }
    },
    set(key, value) {
      text(key, "state.set", "key");
      const json = stringify(value);
      if (json === undefined) {
        throw new TypeError(`state.set: ${show(value)} cannot be stored under ${show(key)}; state.delete removes a key`);
      }
      stateSet(key, json);
    },
    delete(key) {
      stateDelete(text(key, "state.delete", "key"));
    },
    increment(key, by = 1) {
      text(key, "state.increment", "key");
      if (!Number.isSafeInteger(by)) throw new RangeError(`state.increment: ${show(by)} is not a whole number`);
      return stateIncrement(key, by);
    },
    keys: () => stateKeys(),
  });

  function line(values) {
    return values.map((value) => {
      if (typeof value === "string") return value;
      if (value instanceof Error) return `${value.name}: ${value.message}`;
      if (typeof value !== "object" || value === null) return String(value);
      try {
        return stringify(value) ?? String(value);
      } catch {
        return Object.prototype.toString.call(value);
      }
    }).join(" ");
  }
  const console = {
    debug: (...values) => log(1, line(values)),
    log: (...values) => log(2, line(values)),
    info: (...values) => log(2, line(values)),
    warn: (...values) => log(3, line(values)),
    error: (...values) => log(4, line(values)),
  };

  Math.random = random;

  // Words that devices send instead of a number.
  const ABSENT = ["nan", "infinity", "-infinity", "none", "null", "unknown", "unavailable"];

  function lookUp(value, path) {
    const hasIndex = path.includes("[");
    // Most paths are one name.
    if (!hasIndex && !path.includes(".")) return own(value, path);
    const parts = (hasIndex ? path.replace(/\[(\d+)\]/g, ".$1") : path).split(".");
    for (let n = 0; n < parts.length; n++) {
      if (typeof value !== "object" || value === null) return undefined;
      value = own(value, parts[n]);
    }
    return value;
  }

  // The number at a path, as in the Rust SDK: undefined where there is none, and a rejection where there is something unreadable.
  function number(path = "") {
    text(path, "message.number", "path");
    let value = this.json;
    const isPlain = typeof value !== "object" || value === null;
    if (path !== "" && !isPlain) value = lookUp(value, path);
    else if (path !== "" && !this.topic.toLowerCase().split("/").includes(path.toLowerCase())) return undefined;
    if (typeof value === "number") return value;
    if (value === undefined || value === null) return undefined;
    if (typeof value === "string") {
      const trimmed = value.trim();
      if (ABSENT.includes(trimmed.toLowerCase())) return undefined;
      const parsed = trimmed === "" ? NaN : Number(trimmed);
      if (Number.isFinite(parsed)) return parsed;
    }
    reject(`${path === "" ? "the payload" : stringify(path)} is not a number: ${show(value)}`);
  }

  function toJSON() {
    const { topic, contentType, properties, receivedAtMs, clockSynced, attempt, retained, responseTopic } = this;
    return { topic, text: this.text, contentType, properties, receivedAtMs, clockSynced, attempt, retained, responseTopic };
  }

  // Uses what most scripts use, so that what is made at the first use is a part of the frozen memory.
  function warmUp() {
    const outputs = [
      alert.firing("a", { severity: "critical", summary: "b", value: 1, labels: { c: "d" } }),
      alert.resolved("a", "b"),
      forward("a", { b: [1.5, "c", true, null] }, { retain: true }),
      publish("a", "b"),
    ];
    number.call({ json: { a: [1, "2"] }, topic: "b" }, "a[1]");
    number.call({ json: { a: 1 }, topic: "b" }, "a");
    return parse(stringify(outputs)).length;
  }

  const names = { alert, forward, publish, wake, reply, reject, retry, state, settings, console };
  return { names, methods: { number, toJSON }, warmUp };
})
