// An event source as browsers have it, of the package `eventsource`: sse_client.mjs URL
// It comes back by itself with the id of the last event that it heard, until it is told not to.

import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.NODE_CLIENTS, "package.json"));
const { EventSource } = require("eventsource");

const heard = [];
let opened = 0;
const source = new EventSource(process.argv[2]);
source.onopen = () => (opened += 1);
source.onmessage = (event) => heard.push([event.lastEventId, event.data]);
source.onerror = (error) => {
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify({ heard, opened, code: error.code ?? null, message: error.message ?? null }));
};
