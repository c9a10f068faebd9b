// Node's own WebSocket, as in browsers: ws_client.mjs URL

const socket = new WebSocket(process.argv[2], "echo.v1");
const heard = [];
socket.onopen = () => socket.send("hello");
socket.onmessage = ({ data }) => {
  heard.push(data);
  socket.send("bye");
};
const said = (fields) => console.log(JSON.stringify({ heard, protocol: socket.protocol, ...fields }));
socket.onerror = (event) => {
  said({ error: String(event.message || event.error || "error") });
  process.exit(0);
};
socket.onclose = ({ code, reason, wasClean }) => said({ code, reason, clean: wasClean });
