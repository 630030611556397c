// One round trip of core NATS, request/reply, a JetStream pull consumer and a KV bucket; prints one line per step.
import { connect, headers } from "@nats-io/transport-node";
import { jetstream, jetstreamManager, AckPolicy } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";

const expect = (name, got, wanted) => {
  const [a, b] = [JSON.stringify(got), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${name}: got ${a}, wanted ${b}`);
  console.log(`ok ${name}`);
};

const nc = await connect({ servers: process.argv[2], timeout: 5000 });

const sub = nc.subscribe("core.*", { max: 2 });
const h = headers();
h.set("Colour", "green");
nc.publish("core.one", "first");
nc.publish("core.two", "second", { headers: h });
const core = [];
for await (const m of sub) core.push([m.subject, m.string(), m.headers?.get("Colour") ?? ""]);
expect("core", core, [["core.one", "first", ""], ["core.two", "second", "green"]]);

nc.subscribe("svc.echo", { queue: "workers", callback: (_err, m) => m.respond(`echo ${m.string()}`) });
expect("request/reply", (await nc.request("svc.echo", "hello", { timeout: 2000 })).string(), "echo hello");
let error = "";
try {
  await nc.request("svc.nobody", "", { timeout: 2000 });
} catch (e) {
  error = e.isNoResponders?.() ? "no responders" : e.name;
}
expect("no responders", error, "no responders");

const jsm = await jetstreamManager(nc);
await jsm.streams.add({ name: "EVENTS", subjects: ["events.>"] });
const js = jetstream(nc);
const acks = [];
for (let i = 1; i <= 5; i++) acks.push((await js.publish(`events.${i}`, `event ${i}`, { msgID: `id-${i}` })).seq);
expect("publish", acks, [1, 2, 3, 4, 5]);
expect("duplicate", (await js.publish("events.5", "again", { msgID: "id-5" })).duplicate, true);
await jsm.consumers.add("EVENTS", { durable_name: "puller", ack_policy: AckPolicy.Explicit });
const consumer = await js.consumers.get("EVENTS", "puller");
const pulled = [];
for await (const m of await consumer.fetch({ max_messages: 5, expires: 2000 })) {
  pulled.push([m.seq, m.string()]);
  if (!(await m.ackAck())) throw new Error("ack was not confirmed");
}
expect("pull", pulled, [1, 2, 3, 4, 5].map((i) => [i, `event ${i}`]));
expect("settled", (await consumer.info()).num_ack_pending, 0);

const kv = await new Kvm(nc).create("settings", { history: 3 });
await kv.put("colour", "red");
const revision = await kv.update("colour", "blue", (await kv.get("colour")).revision);
expect("kv get", (await kv.get("colour")).string(), "blue");
let conflict = 0;
try {
  await kv.update("colour", "black", revision - 1);
} catch (e) {
  conflict = e.code ?? e.api_error?.err_code ?? e.apiError?.()?.err_code ?? 1;
}
expect("kv conflict", conflict !== 0, true);
const keys = [];
for await (const key of await kv.keys()) keys.push(key);
expect("kv keys", keys, ["colour"]);
const watched = [];
const watch = await kv.watch({ key: "colour" });
await kv.delete("colour");
for await (const entry of watch) {
  watched.push(entry.operation);
  if (watched.length === 2) break;
}
expect("kv watch", watched, ["PUT", "DEL"]);
expect("kv deleted", (await kv.get("colour"))?.operation, "DEL");

await nc.drain();
console.log("all done");
