// The module "sedge/helpers": what functions often keep, each under a key of the state that the function names. The same as in
// `sedge_function::state` of the Rust SDK, whose documentation has the rules. Compiled only for scripts that import it.
//
// A stored value that is not of the form that a helper writes counts as nothing: the helper begins anew.
import { state } from "sedge";

const { isArray } = Array;
const { isFinite, isInteger } = Number;
const isNumber = (value) => typeof value === "number" && isFinite(value);

const STEP_BACK_MS = 60_000;
const MAX_VALUES = 1000;

function finite(value, what) {
  if (isNumber(value)) return value;
  throw new TypeError(`${what} must be a finite number, and is ${typeof value === "string" ? JSON.stringify(value) : String(value)}`);
}

const between = (value, low, high) => Math.min(Math.max(Math.trunc(value), low), high);

function read(key) {
  try {
    return state.get(key);
  } catch (error) {
    // What is no JSON was not written by a script. Other errors are those of the function.
    if (state.keys().includes(key)) return undefined;
    throw error;
  }
}

// Moments are [Unix time in milliseconds, whether the clock was synchronised].

function momentOf(at) {
  if (typeof at === "object" && at !== null) return [finite(at.receivedAtMs, "the time"), at.clockSynced === true];
  return [finite(at, "the time"), true];
}

const isMoment = (value) => isArray(value) && value.length === 2 && isNumber(value[0]) && typeof value[1] === "boolean";

// The time between two moments; undefined if the clock was set.
function since([now, nowSynced], [earlier, earlierSynced]) {
  if (nowSynced !== earlierSynced || earlier - now > STEP_BACK_MS) return undefined;
  return Math.max(now - earlier, 0);
}

const later = (a, b) => (b[0] > a[0] ? b : a);

// What is on or off: no key, `true`, or [on, what speaks for a change].

function load(key) {
  const stored = read(key);
  if (stored === true) return { on: true, pending: undefined, isStored: true };
  const isSwitch = isArray(stored) && stored.length === 2 && typeof stored[0] === "boolean";
  return { on: isSwitch && stored[0], pending: isSwitch ? stored[1] : undefined, isStored: stored !== undefined };
}

function store(key, on, pending, isStored) {
  if (pending !== undefined) state.set(key, [on, pending]);
  else if (on) state.set(key, true);
  else if (isStored) state.delete(key);
}

function turn(key, { on, isStored }) {
  store(key, !on, undefined, isStored);
  return on ? "falling" : "rising";
}

export class Hysteresis {
  #limit; #back; #above;

  constructor(limit, distance, above) {
    this.#limit = finite(limit, "the limit");
    const way = Math.max(finite(distance, "the distance"), 0);
    this.#back = above ? limit - way : limit + way;
    this.#above = above;
  }

  static above(limit, distance = 0) { return new Hysteresis(limit, distance, true); }
  static below(limit, distance = 0) { return new Hysteresis(limit, distance, false); }

  update(key, value) {
    finite(value, "the value");
    const now = load(key);
    const turns = this.#above === now.on ? value <= this.#back : value >= this.#back;
    const starts = this.#above ? value > this.#limit : value < this.#limit;
    return (now.on ? turns : starts) ? turn(key, now) : undefined;
  }
}

export class Streak {
  #on; #off;

  constructor(on, off = 1) {
    this.#on = Math.max(finite(on, "the number of messages"), 1);
    this.#off = Math.max(finite(off, "the number of messages"), 1);
  }

  update(key, condition) {
    const now = load(key);
    if (!!condition === now.on) {
      if (now.pending !== undefined) store(key, now.on, undefined, true);
      return undefined;
    }
    const count = (isInteger(now.pending) && now.pending > 0 ? now.pending : 0) + 1;
    if (count >= (condition ? this.#on : this.#off)) return turn(key, now);
    store(key, now.on, count, true);
    return undefined;
  }
}

export class Debounce {
  #on; #off;

  constructor(onMs, offMs = 0) {
    this.#on = finite(onMs, "the time");
    this.#off = finite(offMs, "the time");
  }

  update(key, at, condition) {
    const now = load(key);
    if (!!condition === now.on) {
      if (now.pending !== undefined) store(key, now.on, undefined, true);
      return undefined;
    }
    const [from, waited] = waitedFor(now.pending, momentOf(at));
    if (waited >= (condition ? this.#on : this.#off)) return turn(key, now);
    store(key, now.on, from, true);
    return undefined;
  }

  remainingMs(key, at) {
    const { on, pending } = load(key);
    if (pending === undefined) return undefined;
    return Math.max((on ? this.#off : this.#on) - waitedFor(pending, momentOf(at))[1], 0);
  }
}

function waitedFor(pending, at) {
  const waited = isMoment(pending) ? since(at, pending) : undefined;
  return waited === undefined ? [at, 0] : [pending, waited];
}

export class Meter {
  #width; #jitter;

  constructor(width, jitter = 0) {
    this.#width = width;
    this.#jitter = jitter;
  }

  static restarting() { return new Meter(undefined); }
  static wrapping(width) { return new Meter(finite(width, "the width")); }
  jitter(jitter) { return new Meter(this.#width, finite(jitter, "the jitter")); }

  update(key, reading) {
    const stored = read(key);
    const isKnown = isArray(stored) && stored.length === 2 && stored.every((value) => isNumber(value) && value >= 0);
    const [last, before] = isKnown ? stored : [reading, 0];
    if (!isNumber(reading) || reading < 0) return { sinceLast: 0, total: before, restarted: false };
    const wavers = reading < last && last - reading <= this.#jitter;
    const restarted = reading < last && !wavers;
    const around = reading + this.#width - last;
    let sinceLast = wavers ? 0 : reading - last;
    if (restarted) sinceLast = last < this.#width && around <= this.#width / 2 ? around : reading;
    const total = before + sinceLast;
    state.set(key, [wavers ? last : reading, total]);
    return { sinceLast, total, restarted };
  }
}

class Summary {
  #samples;

  constructor([count, sum, min, max, first, last], toMs, spanMs, samples) {
    Object.assign(this, { count, sum, min, max, first, last, toMs, spanMs });
    this.#samples = samples;
  }

  mean() { return this.sum / this.count; }
  rate() { return this.spanMs > 0 ? (this.last - this.first) / this.spanMs * 1000 : undefined; }
  frequency() { return this.spanMs > 0 ? (this.count - 1) / this.spanMs * 1000 : undefined; }

  percentile(percent) {
    if (this.#samples.length === 0 || !(percent >= 0 && percent <= 100)) return undefined;
    const sorted = [...this.#samples].sort((a, b) => a - b);
    const place = percent / 100 * (sorted.length - 1);
    const below = Math.floor(place), part = place - below;
    return part === 0 ? sorted[below] : sorted[below] * (1 - part) + sorted[below + 1] * part;
  }
}

const figuresOf = (value) => [1, value, value, value, value, value];

function push(figures, value) {
  figures[0]++;
  figures[1] += value;
  if (value < figures[2]) figures[2] = value;
  if (value > figures[3]) figures[3] = value;
  figures[5] = value;
}

// Stored as [newest moment, age, value, age, value..], oldest first; an age is null if the clock was set since.
export class Sliding {
  #length; #capacity;

  constructor(length, capacity) {
    this.#length = length;
    this.#capacity = between(finite(capacity, "the number of values"), 1, MAX_VALUES);
  }

  static ofCount(count) { return new Sliding(undefined, count); }
  static ofMs(ms, capacity) { return new Sliding(finite(ms, "the time"), capacity); }

  add(key, at, value) {
    finite(value, `a value of the window ${JSON.stringify(key)}`);
    const window = this.#load(key, momentOf(at), this.#capacity - 1);
    const { newest, ages, values } = window;
    ages.push(0);
    values.push(value);
    const stored = [newest];
    for (let n = 0; n < values.length; n++) stored.push(ages[n], values[n]);
    state.set(key, stored);
    return summaryOf(window);
  }

  summary(key, at) {
    return summaryOf(this.#load(key, momentOf(at), this.#capacity));
  }

  // Loops over indices: an iterator or a function for each value would double the fuel of a large window.
  #load(key, at, capacity) {
    const stored = read(key), length = this.#length ?? Infinity;
    const empty = { newest: at, ages: [], values: [] };
    if (!isArray(stored) || !isMoment(stored[0]) || stored.length % 2 === 0) return empty;
    const passed = since(at, stored[0]);
    const ages = [], values = [];
    for (let n = 1; n < stored.length; n += 2) {
      const age = stored[n], value = stored[n + 1];
      if (!isFinite(value) || !(age === null || (isFinite(age) && age >= 0))) return empty;
      const older = age === null || passed === undefined ? null : age + passed;
      if (older === null ? length < Infinity : older > length) continue;
      ages.push(older);
      values.push(value);
    }
    const excess = Math.max(values.length - capacity, 0);
    return {
      newest: passed === undefined ? at : later(stored[0], at),
      ages: excess > 0 ? ages.slice(excess) : ages,
      values: excess > 0 ? values.slice(excess) : values,
    };
  }
}

function summaryOf({ newest, ages, values }) {
  if (values.length === 0) return undefined;
  const figures = figuresOf(values[0]);
  for (let n = 1; n < values.length; n++) push(figures, values[n]);
  const newestAge = ages[ages.length - 1];
  const spanMs = ages[0] === null ? undefined : ages[0] - newestAge;
  return new Summary(figures, newest[0] - newestAge, spanMs, values);
}

// Stored as [last moment, span or null, stride, figures, values that are kept].
export class Tumbling {
  #ms; #count; #keep;

  constructor(ms, count, keep = 0) {
    this.#ms = ms;
    this.#count = count;
    this.#keep = keep;
  }

  static ofCount(count) { return new Tumbling(undefined, Math.max(finite(count, "the number of values"), 1)); }
  static ofMs(ms) { return new Tumbling(Math.max(finite(ms, "the time"), 1), undefined); }
  keep(values) { return new Tumbling(this.#ms, this.#count, between(finite(values, "the number of values"), 2, MAX_VALUES)); }

  add(key, at, value) {
    finite(value, `a value of the window ${JSON.stringify(key)}`);
    const now = momentOf(at);
    let open = openOf(key), ended;
    if (open && this.#isOver(open, now)) {
      ended = ending(open);
      open = undefined;
    }
    if (open) this.#push(open, now, value);
    else open = { last: now, span: 0, stride: 1, figures: figuresOf(value), samples: this.#keep > 0 ? [value] : [] };
    if (open.figures[0] >= this.#count) {
      state.delete(key);
      return ending(open);
    }
    state.set(key, [open.last, open.span, open.stride, open.figures, open.samples]);
    return ended;
  }

  poll(key, at) {
    const open = openOf(key);
    if (!open || !this.#isOver(open, momentOf(at))) return undefined;
    state.delete(key);
    return ending(open);
  }

  #isOver(open, at) {
    if (this.#ms === undefined) return false;
    if (since(at, open.last) === undefined || open.span === null) return true;
    const number = (ms) => Math.floor(ms / this.#ms);
    return number(open.last[0] - open.span) !== number(later(open.last, at)[0]);
  }

  #push(open, at, value) {
    const passed = since(at, open.last);
    open.span = passed === undefined || open.span === null ? null : open.span + passed;
    open.last = passed === undefined ? at : later(open.last, at);
    const before = open.figures[0];
    push(open.figures, value);
    if (this.#keep === 0) return;
    while (open.samples.length >= this.#keep) {
      open.samples = open.samples.filter((_, n) => n % 2 === 0);
      open.stride *= 2;
    }
    if (before % open.stride === 0) open.samples.push(value);
  }
}

function openOf(key) {
  const stored = read(key);
  if (!isArray(stored)) return undefined;
  const [last, span, stride, figures, samples] = stored;
  const isOpen = isMoment(last) && (span === null || isNumber(span)) && stride >= 1 && isInteger(stride)
    && isArray(figures) && figures.length === 6 && figures.every(isNumber) && figures[0] >= 1
    && isArray(samples) && samples.every(isNumber);
  return isOpen ? { last, span, stride, figures, samples } : undefined;
}

const ending = ({ last, span, figures, samples }) => new Summary(figures, last[0], span === null ? undefined : span, samples);
