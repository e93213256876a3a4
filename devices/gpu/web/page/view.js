// SPDX-License-Identifier: Apache-2.0
// Draws what comes over the web socket, and sends what is typed and pointed at.
"use strict";

const RAW = 1, DEFLATED = 2, CURSOR = 3, HEADER = 12;
const canvas = document.getElementById("screen");
const state = document.getElementById("state");
const chooser = document.getElementById("scanout");
const ctx = canvas.getContext("2d", { alpha: false });
const socket = new WebSocket(new URL("socket", location.href.replace(/^http/, "ws")));
let work = Promise.resolve();
let cursor = "default";
let buttons = 0;
let at = [0, 0];

socket.binaryType = "arraybuffer";

function send(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

async function inflate(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// blue, green, red to red, green, blue; alpha as it is, or none
function image(data, width, height, opaque) {
  const from = new Uint32Array(data), to = new ImageData(width, height);
  const out = new Uint32Array(to.data.buffer);
  for (let i = 0; i < out.length; i++) {
    const p = from[i];
    out[i] = ((p & 0xff) << 16) | (p & 0xff00) | ((p >>> 16) & 0xff) | (opaque ? 0xff000000 : p & 0xff000000);
  }
  return to;
}

async function draw(message) {
  const view = new DataView(message), kind = view.getUint8(0);
  const [x, y, width, height] = [4, 6, 8, 10].map((offset) => view.getUint16(offset, true));
  let data = message.slice(HEADER);
  if (kind === CURSOR) {
    const shape = document.createElement("canvas");
    shape.width = shape.height = 64;
    shape.getContext("2d").putImageData(image(data, width, height, false), 0, 0);
    cursor = `url(${shape.toDataURL()}) ${x} ${y}, default`;
    canvas.style.cursor = cursor;
    return;
  }
  if (kind === DEFLATED) data = await inflate(data);
  ctx.putImageData(image(data, width, height, true), x, y);
  send({ t: "drawn" });
}

function told(message) {
  if (message.t === "cursor") {
    canvas.style.cursor = message.shown ? cursor : "default";
    return;
  }
  const { scanout, scanouts, width, height } = message;
  if (width && (canvas.width !== width || canvas.height !== height)) {
    canvas.width = width;
    canvas.height = height;
  } else if (!width) {
    ctx.fillRect(0, 0, canvas.width, canvas.height);
  }
  state.textContent = width ? `${width}×${height}` : "the guest shows nothing";
  chooser.hidden = scanouts < 2;
  while (chooser.length < scanouts) chooser.add(new Option(`monitor ${chooser.length}`, chooser.length));
  chooser.value = scanout;
}

socket.onmessage = ({ data }) => {
  work = work.then(() => (typeof data === "string" ? told(JSON.parse(data)) : draw(data)));
};
socket.onclose = () => { state.textContent = "the display has gone; reload this page when it is back"; };
socket.onopen = () => { state.textContent = "connected"; canvas.focus(); };

// keyboard: places of keys; the guest's layout says what they write, and the guest repeats
for (const kind of ["keydown", "keyup"]) {
  canvas.addEventListener(kind, (event) => {
    event.preventDefault();
    if (!event.repeat && event.code) send({ t: "key", key: event.code, down: kind === "keydown" });
  });
}
window.addEventListener("blur", () => send({ t: "release" }));

// pointer: a browser's bits are left, right, middle, side, extra
function pressed(event) {
  const bits = [[1, 1], [4, 2], [2, 4], [8, 128], [16, 256]];
  return bits.reduce((sum, [theirs, ours]) => sum | (event.buttons & theirs ? ours : 0), 0);
}
function point(wheel = 0) {
  send({ t: "point", x: at[0], y: at[1], buttons: buttons | wheel });
}
for (const kind of ["pointermove", "pointerdown", "pointerup"]) {
  canvas.addEventListener(kind, (event) => {
    const box = canvas.getBoundingClientRect();
    at = [event.clientX - box.left, event.clientY - box.top].map((place) => Math.max(0, Math.round(place)));
    buttons = pressed(event);
    if (kind === "pointerdown") {
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
    }
    event.preventDefault();
    point();
  });
}
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const bits = (event.deltaY < 0 ? 8 : event.deltaY > 0 ? 16 : 0) | (event.deltaX < 0 ? 32 : event.deltaX > 0 ? 64 : 0);
  point(bits);
  point();
}, { passive: false });

chooser.onchange = () => { send({ t: "scanout", number: Number(chooser.value) }); canvas.focus(); };
document.getElementById("fit").onclick = () => {
  const { clientWidth, clientHeight } = canvas.parentElement;
  send({ t: "size", width: clientWidth & ~7, height: clientHeight });
  canvas.focus();
};
document.getElementById("keys").onclick = () => {
  const keys = ["ControlLeft", "AltLeft", "Delete"];
  for (const key of keys) send({ t: "key", key, down: true });
  for (const key of keys.reverse()) send({ t: "key", key, down: false });
  canvas.focus();
};
document.getElementById("shot").onclick = () => canvas.toBlob((blob) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "screen.png";
  link.click();
  URL.revokeObjectURL(link.href);
  canvas.focus();
});
