// Plain HTTP with Node's own clients, as their users call them: http_client.mjs URL fetch|http

import http from "node:http";

const [url, client] = process.argv.slice(2);

const viaHttp = () =>
  new Promise((resolve, reject) => {
    http
      .get(url, (res) => {
        let body = "";
        res.on("data", (d) => (body += d));
        res.on("end", () => resolve({ status: res.statusCode, body }));
      })
      .on("error", reject);
  });

const viaFetch = async () => {
  const res = await fetch(url);
  return { status: res.status, body: await res.text() };
};

try {
  console.log(JSON.stringify({ client, ...(await (client === "http" ? viaHttp() : viaFetch())) }));
} catch (e) {
  console.log(JSON.stringify({ client, error: String(e.cause ?? e) }));
}
