// Looks at a status page in headless Chromium and writes what it finds, a line of JSON for each step.
// Arguments: the page's URL, the path of the browser, a folder with playwright-core and axe-core.
// At the step "kill" it waits for a line on its standard input.
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
for (let n = 0; n < 15; n++) {
  await page.keyboard.press("Tab");
  order.push(await page.evaluate(focused));
}
await page.locator("#pause").focus();
await page.keyboard.press("Enter");
const paused = await page.locator("#live").textContent();
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.getElementById("live").dataset.s === "ok");
tell("keyboard", { order, paused });

const light = { background: await page.evaluate(background), violations: await violations(page) };
await page.emulateMedia({ colorScheme: "dark" });
const dark = { background: await page.evaluate(background), violations: await violations(page) };
tell("schemes", { light, dark });

await page.setViewportSize({ width: 390, height: 844 });
const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
tell("phone", { wide, violations: await violations(page) });

tell("kill", {});
await once(process.stdin, "data");
await page.waitForFunction(() => document.querySelector('ul.nodes [data-key="n3"] .badge').textContent === "away");
const others = await page.locator('ul.nodes > li:not([data-key="n3"]) .head .badge').allTextContents();
const headline = await page.locator('[data-f="headline"]').textContent();
tell("away", { others, headline, streams: await page.locator("[data-list=streams] th").allTextContents() });

const plain = await browser.newContext({ javaScriptEnabled: false });
const still = await plain.newPage();
await still.goto(url);
tell("plain", { words: await still.locator("main").innerText() });

await browser.close();
tell("end", { errors });
process.exit(0);
