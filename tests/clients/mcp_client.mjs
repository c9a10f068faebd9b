// An MCP client on the official TypeScript SDK.
//
//     mcp_client.mjs URL [--mode auto|legacy|2026-07-28] [--tool NAME --args JSON] [--stream NAME]
//
// As mcp_client.py. NODE_CLIENTS is the directory that holds node_modules.

import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";

const require = createRequire(join(process.env.NODE_CLIENTS, "package.json"));
const { Client, StreamableHTTPClientTransport } = require("@modelcontextprotocol/client");

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mode: { type: "string", default: "auto" },
    tool: { type: "string", default: "add" },
    args: { type: "string", default: '{"a": 2, "b": 3}' },
    stream: { type: "string" },
  },
});

const heard = (step) => {
  if (options.stream && process.env.STEPS) writeFileSync(join(process.env.STEPS, `${options.stream}.${step}`), "");
};

const mode = ["auto", "legacy"].includes(options.mode) ? options.mode : { pin: options.mode };
const client = new Client({ name: "aip-tests", version: "1.0.0" }, { versionNegotiation: { mode } });

async function call() {
  const progress = [];
  const onprogress = (p) => {
    progress.push(p.progress);
    heard(p.progress);
  };
  try {
    const request = { name: options.tool, arguments: JSON.parse(options.args) };
    const result = await client.callTool(request, { onprogress, timeout: 30_000 });
    const text = result.content.filter((c) => c.type === "text").map((c) => c.text);
    return { text, is_error: result.isError ?? false, progress };
  } catch (e) {
    return { error: e.message, error_code: e.code ?? null, error_data: e.data ?? null };
  }
}

await client.connect(new StreamableHTTPClientTransport(new URL(positionals[0])));
const tools = (await client.listTools()).tools.map((t) => t.name);
const observed = await call();
const version = client.getNegotiatedProtocolVersion?.() ?? null;
console.log(JSON.stringify({ version, tools, ...observed }));
await client.close();
