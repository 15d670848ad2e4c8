// Opens the page in a real browser with real traffic, and checks what a person meets: every view, a reload, a board that goes away and
// comes back, thousands of dead letters, and topics and payloads that try to be scripts. Started by scripts/page.sh.

import { spawn, execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";

const [sedge, functions, modules, pictures] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const LETTERS = 10_000;
const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const folder = mkdtempSync(join(tmpdir(), "sedge-page-"));
const started = [];
const port = () => new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => { const { port } = server.address(); server.close(() => resolve(port)); });
});
const start = (program, args) => {
  const log = openSync(join(folder, "log"), "a");
  const child = spawn(program, args, { stdio: ["ignore", log, log] });
  started.push(child);
  return child;
};
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function until(what, condition, seconds = 30) {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; await pause(100)) {
    try { if (await condition()) return; } catch { /* not yet */ }
  }
  throw new Error(`${what}: not within ${seconds} s; log:\n${readFileSync(join(folder, "log"), "utf8").slice(-3000)}`);
}

const [mqtt, http] = [await port(), await port()];
const base = `http://127.0.0.1:${http}`;
const publish = (topic, lines) => execFileSync("mosquitto_pub", ["-p", mqtt, "-q", "1", "-t", topic, "-l"], { input: lines.join("\n") });
const run = () => start(sedge, ["run", "--config", join(folder, "sedge.toml")]);
const ready = () => until("the board is ready", async () => (await fetch(`${base}/readyz`)).ok);

async function main() {
  mkdirSync(join(folder, "data"), { mode: 0o750 });
  writeFileSync(join(folder, "mosquitto.conf"), `listener ${mqtt} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n`);
  writeFileSync(join(folder, "sedge.toml"), `[node]\nname = "greenhouse-3"\ndata_dir = "${folder}/data"\n[mqtt]\nurl = "mqtt://127.0.0.1:${mqtt}"\n\
[functions]\npaths = ["${functions}/count", "${functions}/misbehave"]\n[http]\nlisten = "127.0.0.1:${http}"\n`);
  start("mosquitto", ["-c", join(folder, "mosquitto.conf")]);
  await pause(500);
  let board = run();
  await ready();
  await until("the board is connected", async () => (await (await fetch(`${base}/api/v1/board`)).json()).broker.connected);
  const token = execFileSync(sedge, ["token", "--data-dir", join(folder, "data")], { stdio: ["ignore", "pipe", "ignore"] }).toString().trim();
  publish("count/<script>alert(1)</script>", Array.from({ length: 25 }, (_, n) => `reading ${n}`));
  publish("misbehave/<img src=x onerror=alert(2)>", Array.from({ length: LETTERS }, (_, n) => `reject <b onmouseover=alert(3)>\u202e ${n}`));
  await until("the dead letters", async () => (await (await fetch(`${base}/api/v1/board`)).json()).dead_letters >= LETTERS, 120);

  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ARGS });
  const wrong = [];
  for (const [colorScheme, viewport] of [["light", { width: 1200, height: 800 }], ["dark", { width: 390, height: 800 }]]) {
    // axe is put into the page, which its policy forbids.
    const context = await browser.newContext({ colorScheme, viewport, bypassCSP: true });
    const page = await context.newPage();
    page.on("pageerror", (error) => wrong.push(`error: ${error.message}`));
    page.on("dialog", (dialog) => { wrong.push(`a script ran: ${dialog.message()}`); dialog.dismiss(); });
    await page.goto(base);
    await page.waitForSelector(".cards");
    assert.equal(await page.textContent("h1"), "greenhouse-3");
    await page.goto(`${base}/#/dead-letters`);
    await page.waitForSelector("text=This needs a token.");
    await page.click("#sign-in");
    await page.fill("#token-value", "not a token");
    await page.click("dialog button >> nth=0");
    await page.waitForSelector("text=The board does not know this token.");
    await page.fill("#token-value", token);
    await page.click("dialog button >> nth=0");
    await page.waitForSelector("table");
    assert.match(await page.textContent("tbody"), /misbehave\/<img src=x onerror=alert\(2\)>/);
    const views = { board: ".cards", functions: "text=misbehave", "functions/count": "text=<script>alert(1)</script>", alerts: "text=reading 19 20",
      "dead-letters": "tbody tr >> nth=99", "dead-letters/1": "text=rejected", traces: "tbody tr >> nth=50" };
    for (const [view, shows] of Object.entries(views)) {
      await page.goto(`${base}/#/${view}`);
      await page.reload();
      await page.waitForSelector(shows);
      await page.evaluate(axe);
      for (const it of (await page.evaluate(() => axe.run())).violations) wrong.push(`axe ${colorScheme} ${view}: ${it.id}: ${it.nodes[0].html}`);
      if (pictures && colorScheme === "light") await page.screenshot({ path: join(pictures, `${view.replace("/", "-")}.png`) });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
      if (wide) wrong.push(`${view} is wider than a window of ${viewport.width}`);
    }
    // A trace, step by step.
    await page.goto(`${base}/#/traces`);
    await page.click("tbody a >> nth=0");
    await page.waitForSelector("text=committed");
    await page.evaluate(axe);
    for (const it of (await page.evaluate(() => axe.run())).violations) wrong.push(`axe ${colorScheme} trace: ${it.id}: ${it.nodes[0].html}`);
    // Acknowledge and mute what fires, and send it again.
    await page.goto(`${base}/#/alerts`);
    await page.click("text=Acknowledge >> nth=0");
    await page.waitForSelector("text=Acknowledged.");
    await page.waitForSelector("td:has-text('admin')");
    await page.selectOption("#mute-for", "28800");
    await page.click("button:has-text('Mute') >> nth=0");
    await page.waitForSelector("text=Muted: recorded");
    await page.evaluate(axe);
    for (const it of (await page.evaluate(() => axe.run())).violations) wrong.push(`axe ${colorScheme} muted: ${it.id}: ${it.nodes[0].html}`);
    await page.click("button:has-text('Send again') >> nth=0");
    await page.waitForSelector("text=It is sent again.");
    // From an alert to its message, and from there to what comes next on its topic.
    await page.click("a[title='Message that caused it'] >> nth=0");
    await page.waitForSelector("text=It became no dead letter.");
    await page.waitForSelector("text=/^received /");
    await page.evaluate(axe);
    for (const it of (await page.evaluate(() => axe.run())).violations) wrong.push(`axe ${colorScheme} message: ${it.id}: ${it.nodes[0].html}`);
    await page.click("text=Follow this topic");
    await page.waitForFunction(() => document.getElementById("live-topic")?.value === "count/<script>alert(1)</script>");
    // Live: hostile topics and payloads are text, one of a megabyte is cut, and what is written is found again.
    await page.goto(`${base}/#/live`);
    await page.fill("#live-topic", "");
    await page.fill("#live-function", "count");
    await page.click("text=Follow");
    await page.waitForSelector("text=0 kept here");
    publish("count/<img src=x onerror=alert(4)>", ["<script>alert(5)</script>", "<b>plain".repeat(30_000)]);
    await page.waitForSelector(".runs details >> nth=1");
    await page.click(".runs summary >> nth=0");
    await page.waitForSelector("text=cut: 240,000 bytes in all");
    await page.evaluate(axe);
    for (const it of (await page.evaluate(() => axe.run())).violations) wrong.push(`axe ${colorScheme} live: ${it.id}: ${it.nodes[0].html}`);
    if (pictures && colorScheme === "light") await page.screenshot({ path: join(pictures, "live.png") });
    await page.fill("#live-search", "alert(5)");
    await page.waitForFunction(() => document.querySelectorAll(".runs details").length === 1);
    await page.fill("#live-search", "");
    await page.click("text=Pause");
    publish("count/paused", ["quiet"]);
    await page.waitForSelector("text=3 kept here");
    assert.equal(await page.locator(".runs details").count(), 2);
    await page.click("text=Go on");
    await page.waitForFunction(() => document.querySelectorAll(".runs details").length === 3);
    // Replay one after a look, by keyboard only.
    await page.goto(`${base}/#/dead-letters`);
    await page.waitForSelector("tbody tr");
    await page.focus("tbody input >> nth=0");
    await page.keyboard.press("Space");
    await page.waitForSelector("text=1 selected");
    await page.click("text=Replay selected");
    await page.waitForSelector("text=1 replayed");
    await context.close();
  }
  // The board goes away and comes back under an open page.
  const open = await (await browser.newContext()).newPage();
  await open.goto(base);
  await open.waitForSelector(".cards");
  board.kill("SIGKILL");
  await open.waitForSelector("text=The board does not answer", { timeout: 15_000 });
  board = run();
  await ready();
  await open.waitForFunction(() => !document.getElementById("state").textContent.includes("does not answer"), { timeout: 15_000 });
  // The policy itself: a script that is put into the page does not run.
  const page = await (await browser.newContext()).newPage();
  await page.goto(base);
  const ran = await page.evaluate(() => { const it = document.createElement("script"); it.textContent = "window.ran = true"; document.body.append(it); return window.ran === true; });
  if (ran) wrong.push("the policy lets a script in line run");
  await browser.close();
  assert.deepEqual(wrong, []);
}

try {
  await main();
  console.log("the page shows what it should, in both colours and sizes, and no script ran");
} finally {
  for (const child of started) child.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
}
