// As web_client.py, with what Node programs use: web_client.mjs URL fetch|undici|axios
// undici is the package, with the dispatcher that its documentation names for proxy variables.

import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Readable } from "node:stream";

const require = createRequire(join(process.env.NODE_CLIENTS, "package.json"));
const [base, name] = process.argv.slice(2);
const FILE = Buffer.alloc(1 << 20, Buffer.from(Array.from({ length: 256 }, (_, i) => i)));

const cookies = new Map();
function keep(list) {
  for (const cookie of list ?? []) {
    const [pair] = cookie.split(";");
    cookies.set(pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1));
  }
}
const cookie = () => [...cookies].map(([k, v]) => `${k}=${v}`).join("; ");

// The platform's fetch, or undici's: `types` are the classes that go with it.
function viaFetch(fetch, types, more = {}) {
  const start = (method, path, { body, headers = {}, follow = false, signal } = {}) =>
    fetch(base + path, { method, body, headers, redirect: follow ? "follow" : "manual", signal, ...more });
  return {
    types,
    async call(method, path, options) {
      const got = await start(method, path, options);
      keep(got.headers.getSetCookie());
      const body = Buffer.from(await got.arrayBuffer());
      return { status: got.status, header: (h) => got.headers.get(h), body, url: got.url };
    },
    async stream(path) {
      const abort = new AbortController();
      const got = await start("GET", path, { signal: abort.signal });
      return { body: Readable.fromWeb(got.body), end: () => abort.abort() };
    },
  };
}

function viaAxios() {
  const axios = require("axios");
  const http = axios.create({ baseURL: base, validateStatus: () => true, responseType: "arraybuffer" });
  return {
    types: { FormData, Blob },
    async call(method, path, { body, headers = {}, follow = false } = {}) {
      const got = await http.request({ method, url: path, data: body, headers, maxRedirects: follow ? 5 : 0 });
      keep(got.headers["set-cookie"]);
      const url = got.request.res.responseUrl;
      return { status: got.status, header: (h) => got.headers[h], body: Buffer.from(got.data), url };
    },
    async stream(path) {
      const got = await http.get(path, { responseType: "stream" });
      return { body: got.data, end: () => got.data.destroy() };
    },
  };
}

function viaUndici() {
  const undici = require("undici");
  return viaFetch(undici.fetch, undici, { dispatcher: new undici.EnvHttpProxyAgent() });
}

const clients = { fetch: () => viaFetch(fetch, { FormData, Blob }), undici: viaUndici, axios: viaAxios };
const http = clients[name]();
const json = (got) => JSON.parse(got.body.toString());

async function bodies() {
  const plain = { "content-type": "text/plain" };
  const echo = await http.call("POST", "/echo?q=a%20b", { body: Buffer.from("hello ✓"), headers: plain });
  const head = await http.call("HEAD", "/page");
  const options = await http.call("OPTIONS", "/page");
  const del = await http.call("DELETE", "/page");
  const same = await http.call("GET", "/page", { headers: { "if-none-match": '"v1"' } });
  const part = await http.call("GET", "/range", { headers: { range: "bytes=10-19" } });
  const zipped = await http.call("GET", "/gzip");
  return {
    echo: json(echo),
    head: [head.status, head.header("content-length"), head.body.length],
    options: [options.status, options.header("allow"), options.body.length],
    delete: [del.status, del.body.length],
    not_modified: [same.status, same.header("etag"), same.body.length],
    range: [part.status, part.header("content-range"), part.body.toString()],
    // axios takes the header away with the coding.
    gzip: [zipped.status, zipped.header("content-encoding") ?? "gzip", zipped.body.length],
  };
}

async function state() {
  await http.call("GET", "/login");
  const known = json(await http.call("GET", "/whoami", { headers: { cookie: cookie() } }));
  const moved = await http.call("GET", "/old", { follow: true });
  const posted = await http.call("POST", "/moved", { body: "kept", follow: true });
  const form = new http.types.FormData();
  form.set("note", "hi");
  form.set("file", new Blob([FILE], { type: "application/x-test" }), "a.bin");
  const upload = json(await http.call("POST", "/upload", { body: form }));
  upload.sha256 = upload.sha256 === createHash("sha256").update(FILE).digest("hex");
  return {
    cookies: known,
    moved: [moved.status, moved.url.split("?")[0].replace(base, ""), json(moved).query],
    posted: [posted.status, json(posted).method, json(posted).body],
    upload,
  };
}

async function streams() {
  const stream = `${new URL(base).hostname.split(".")[0]}-${name}`;
  const lines = [];
  let rest = "";
  for await (const part of (await http.stream(`/stream?stream=${stream}&steps=3`)).body) {
    const whole = (rest + part).split("\n");
    rest = whole.pop();
    for (const line of whole) {
      lines.push(line);
      if (process.env.STEPS) writeFileSync(join(process.env.STEPS, `${stream}.${lines.length}`), "");
    }
  }
  const open = await http.stream("/bytes?n=300000000");
  const [first] = await open.body.take(1).toArray();
  open.end();
  const after = await http.call("GET", "/page");
  return { stream: lines, unread: Math.min(first.length, 1000), after: [after.status, after.body.length] };
}

async function denied() {
  const got = await http.call("GET", "/forbidden");
  const problem = json(got);
  return { denied: [got.status, got.header("content-type"), problem.reason, problem.rule] };
}

console.log(JSON.stringify({ ...(await bodies()), ...(await state()), ...(await streams()), ...(await denied()) }));
process.exit(0);
