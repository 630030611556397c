// Looks at a status page in headless Chromium and writes what it finds, a line of JSON for each step.
// Arguments: the page's URL, the path of the browser, a folder with playwright-core and axe-core.
// At the steps "stop", "silent" and "kill" it waits for a line on its standard input.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { once } from "node:events";

const [, , url, executablePath, folder] = process.argv;
const require = createRequire(`${folder}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core"), "utf8");
const flags = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const tell = (step, found) => console.log(JSON.stringify({ step, ...found }));

async function violations(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.target).join(", ")}`);
}

const messages = () =>
  Number(document.querySelector('[data-key="ORDERS $G"]').children[5].textContent.replaceAll(",", ""));
const background = () => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
const places = () =>
  [...document.querySelectorAll(".map .node")].map((node) => node.getBoundingClientRect()).map((box) => [box.x, box.y]);
const focused = () => {
  const element = document.activeElement;
  const outline = getComputedStyle(element).outlineStyle !== "none";
  return [element.getAttribute("href") ?? element.id ?? "", element.tagName, element.ariaLabel ?? "", outline];
};

const browser = await chromium.launch({ executablePath, args: flags });
const errors = [];
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(error.message));
await page.goto(url);
await page.waitForFunction(() => document.getElementById("live").dataset.s === "ok");
tell("loaded", { title: await page.title(), nodes: await page.locator("ul.nodes h3").allTextContents() });

const before = await page.evaluate(messages);
await page.waitForFunction(
  (before) =>
    Number(document.querySelector('[data-key="ORDERS $G"]').children[5].textContent.replaceAll(",", "")) > before,
  before,
);
tell("moved", { before, after: await page.evaluate(messages) });

const order = [];
for (let n = 0; n < 20; n++) {
  await page.keyboard.press("Tab");
  order.push(await page.evaluate(focused));
}
await page.locator("#pause").focus();
await page.keyboard.press("Enter");
const paused = await page.locator("#live").textContent();
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.getElementById("live").dataset.s === "ok");
tell("keyboard", { order, paused });

const drawn = await page.evaluate(() => ({
  nodes: [...document.querySelectorAll(".map .node")].map((node) => node.ariaLabel),
  links: [...document.querySelectorAll(".map line")].map((line) => [line.dataset.a, line.dataset.b, line.dataset.s]),
  said: document.querySelector(".map figcaption").textContent,
}));
await page.locator('.map .node[data-key="n2"]').focus();
await page.waitForFunction(() => document.querySelectorAll(".map line.on").length === 2);
await page.evaluate(() => (document.activeElement.mine = "yes"));
await page.waitForFunction(
  (time) => document.querySelector('[data-f="time"]').textContent !== time,
  await page.locator('[data-f="time"]').textContent(),
);
const kept = await page.evaluate(() => document.activeElement.mine);
await page.keyboard.press("Enter");
const target = await page.evaluate(() => document.querySelector(":target h3").textContent);
await page.locator(".map summary").click();
const table = await page.locator(".map tbody th").allTextContents();
await page.locator(".map summary").click();
tell("map", { ...drawn, target, kept, table, places: await page.evaluate(places) });

const light = { background: await page.evaluate(background), violations: await violations(page) };
await page.emulateMedia({ colorScheme: "dark" });
const dark = { background: await page.evaluate(background), violations: await violations(page) };
tell("schemes", { light, dark });

await page.setViewportSize({ width: 390, height: 844 });
const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
const letters = await page.evaluate(() =>
  Math.min(...[...document.querySelectorAll(".map text")].map((text) => {
    const scale = text.getScreenCTM().a;
    return scale * Number.parseFloat(getComputedStyle(text).fontSize);
  })),
);
tell("phone", { wide, letters, violations: await violations(page) });

tell("stop", {});
await once(process.stdin, "data");
await page.waitForFunction(() => document.querySelector('.map .node[data-key="n3"] .open'));
tell("silent", {});
await once(process.stdin, "data");
await page.waitForFunction(() => document.querySelector('ul.nodes [data-key="n3"] .badge').textContent === "healthy");
await page.waitForFunction(() => !document.querySelector(".map .open"));
tell("again", {});

tell("kill", {});
await once(process.stdin, "data");
await page.waitForFunction(() => document.querySelector('ul.nodes [data-key="n3"] .badge').textContent === "away");
const others = await page.locator('ul.nodes > li:not([data-key="n3"]) .head .badge').allTextContents();
const headline = await page.locator('[data-f="headline"]').textContent();
const mapped = await page.locator('.map .node[data-key="n3"]').getAttribute("aria-label");
tell("away", { others, headline, mapped, streams: await page.locator("[data-list=streams] th").allTextContents() });

const plain = await browser.newContext({ javaScriptEnabled: false });
const still = await plain.newPage();
await still.goto(url);
const words = await still.locator("main").innerText();
tell("plain", { words, nodes: await still.locator(".map .node").count(), lines: await still.locator(".map line").count() });

await browser.close();
tell("end", { errors });
process.exit(0);
