// An agent on Express; it answers as web_fastapi.py does.

import { createHash } from "node:crypto";
import { appendFileSync, existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { brotliCompressSync, gzipSync } from "node:zlib";

const require = createRequire(join(process.env.NODE_CLIENTS, "package.json"));
const express = require("express");

const PAGE = Buffer.from("0123456789".repeat(1000));
const app = express();
app.set("etag", false);

app.use((req, _res, next) => {
  if (process.env.SEEN) appendFileSync(process.env.SEEN, JSON.stringify({ seen: req.method, path: req.path }) + "\n");
  next();
});

const text = express.text({ type: () => true });
app.all("/echo", text, (req, res) => res.json({ method: req.method, query: req.query, body: req.body ?? "" }));

app.get("/page", (req, res) => {
  res.set("ETag", '"v1"').type("text/plain");
  // Not `req.fresh`: fetch adds `cache-control: no-cache` to such a request.
  if (req.get("if-none-match") === res.get("etag")) return res.status(304).end();
  res.send(PAGE);
});
app.options("/page", (_req, res) => res.set("Allow", "GET, HEAD, OPTIONS, DELETE").status(204).end());
app.delete("/page", (_req, res) => res.status(204).end());

app.get("/range", (req, res) => {
  const [range] = req.range(PAGE.length) ?? [];
  res.set("Content-Range", `bytes ${range.start}-${range.end}/${PAGE.length}`);
  res.status(206).type("text/plain").send(PAGE.subarray(range.start, range.end + 1));
});

for (const [coding, compress] of [["gzip", gzipSync], ["br", brotliCompressSync]]) {
  app.get(`/${coding}`, (_req, res) => {
    const body = compress(PAGE);
    const sha256 = createHash("sha256").update(body).digest("hex");
    res.set({ "Content-Encoding": coding, "X-Sha256": sha256 }).type("text/plain").send(body);
  });
}

app.get("/login", (_req, res) => {
  res.cookie("session", "s1", { httpOnly: true }).cookie("theme", "dark").send("in");
});
app.get("/whoami", (req, res) => {
  const pairs = (req.get("cookie") ?? "").split("; ").filter(Boolean);
  res.json(Object.fromEntries(pairs.map((pair) => pair.split("="))));
});

app.get("/old", (req, res) => res.redirect(`${req.protocol}://${req.get("host")}/echo?moved=yes`));
app.post("/moved", (_req, res) => res.redirect(307, "/echo"));

app.post("/upload", express.raw({ type: () => true, limit: "16mb" }), async (req, res) => {
  const form = await new Response(req.body, { headers: { "content-type": req.get("content-type") } }).formData();
  const file = form.get("file");
  const sha256 = createHash("sha256").update(await file.bytes()).digest("hex");
  res.json({ name: file.name, type: file.type, sha256, note: form.get("note") });
});

// As witness.py: a step before each event, until the client has marked it.
async function untilHeard(stream, step) {
  const mark = process.env.STEPS && join(process.env.STEPS, `${stream}.${step}`);
  const deadline = Date.now() + 20_000;
  while (mark && !existsSync(mark)) {
    if (Date.now() > deadline) throw new Error(`nobody heard event ${step} of ${stream}`);
    await setTimeout(5);
  }
}

app.get("/stream", async (req, res) => {
  res.type("text/plain");
  for (let step = 1; step <= Number(req.query.steps); step++) {
    res.write(`step ${step}\n`);
    await untilHeard(req.query.stream, step);
  }
  res.end();
});

app.get("/bytes", (req, res) => {
  const block = Buffer.alloc(1 << 20, 7);
  let left = Number(req.query.n);
  const more = () => {
    while (left > 0) {
      const part = block.subarray(0, Math.min(left, block.length));
      left -= part.length;
      if (!res.write(part)) return res.once("drain", more);
    }
    res.end();
  };
  more();
});

app.listen(Number(process.env.PORT), "127.0.0.1");
