// The page: a prompt of texts and items in order, and the answer as it is written. No framework, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const prompt = $("prompt"), answer = $("answer");
let running = null; // AbortController of the request that is there

// The prompt is a list of elements: a <textarea> for a text, a <figure> for an item; a text stands before and after each.

function textBox(value = "") {
  const box = document.createElement("textarea");
  box.value = value;
  box.rows = 1;
  box.setAttribute("aria-label", "Text");
  const grow = () => { box.style.height = "auto"; box.style.height = `${box.scrollHeight}px`; };
  box.addEventListener("input", grow);
  requestAnimationFrame(grow);
  return box;
}

function figure(file, url) {
  const kind = file.type.startsWith("audio") ? "audio" : "image";
  const holder = document.createElement("figure");
  holder.item = { kind, url };
  const shown = document.createElement(kind === "audio" ? "audio" : "img");
  shown.src = url;
  if (kind === "audio") shown.controls = true; else shown.alt = file.name || "image";
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove ${file.name || kind}`);
  remove.addEventListener("click", () => { holder.remove(); tidy(); });
  holder.append(shown, remove);
  return holder;
}

// Neighbouring texts become one.
function tidy() {
  for (const box of [...prompt.querySelectorAll("textarea")]) {
    const next = box.nextElementSibling;
    if (next && next.tagName === "TEXTAREA") {
      next.value = box.value + next.value;
      box.remove();
    }
  }
  if (!prompt.children.length) prompt.append(textBox());
}

function clear() { prompt.replaceChildren(textBox()); answer.replaceChildren(); }

// Puts an item where the cursor is, or at the end.
function insert(holder) {
  const at = prompt.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA"
    ? document.activeElement : prompt.lastElementChild;
  if (at && at.tagName === "TEXTAREA") {
    const place = at.selectionStart ?? at.value.length;
    const after = textBox(at.value.slice(place));
    at.value = at.value.slice(0, place);
    at.after(holder, after);
    after.focus();
  } else prompt.append(holder, textBox());
}

const asUrl = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(file);
});

async function add(files) {
  for (const file of files) {
    if (/^(image|audio)\//.test(file.type)) insert(figure(file, await asUrl(file)));
  }
}

function content() {
  const parts = [];
  for (const element of prompt.children) {
    if (element.item?.kind === "image") parts.push({ type: "image_url", image_url: { url: element.item.url } });
    else if (element.item) {
      const [head, data] = element.item.url.split(",");
      parts.push({ type: "input_audio", input_audio: { data, format: /mpeg|mp3/.test(head) ? "mp3" : "wav" } });
    } else if (element.value) parts.push({ type: "text", text: element.value });
  }
  return parts;
}

// The answer

function body() {
  const number = (id) => Number($(id).value);
  const asked = { messages: [{ role: "user", content: content() }], max_tokens: number("max_tokens"), stream: true };
  const choices = $("choices").value.split("\n").filter(Boolean);
  const stop = $("stop_text").value.replaceAll("\\n", "\n");
  if (stop) asked.stop = stop;
  if (choices.length) asked.structured_outputs = { choice: choices };
  if (number("beams") > 1) return { ...asked, use_beam_search: true, n: number("beams") };
  Object.assign(asked, { temperature: number("temperature"), top_p: number("top_p"), seed: number("seed") });
  return choices.length ? asked : { ...asked, logprobs: true, top_logprobs: 5 };
}

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)}%`;

function show(line, choice) {
  const told = choice.logprobs?.content ?? [];
  if (!choice.delta.content && !told.length) return;
  const span = document.createElement("span");
  span.textContent = choice.delta.content ?? "";
  span.title = told.map((t) => [`${t.token} ${percent(t.logprob)}`,
    ...t.top_logprobs.map((o) => `    ${o.token} ${percent(o.logprob)}`)].join("\n")).join("\n");
  line.append(span);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const pieces = left.split("\n\n");
    left = pieces.pop();
    for (const piece of pieces) if (piece !== "data: [DONE]") yield JSON.parse(piece.slice("data: ".length));
  }
}

function failed(message) {
  const line = document.createElement("p");
  line.className = "error";
  line.textContent = message;
  answer.append(line);
}

async function run() {
  if (running || !content().length) return;
  running = new AbortController();
  $("run").hidden = true; $("stop").hidden = false;
  answer.replaceChildren();
  const lines = [], begin = performance.now();
  try {
    const headers = { "Content-Type": "application/json" };
    if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
    const options = { method: "POST", headers, body: JSON.stringify(body()), signal: running.signal };
    const response = await fetch("v1/chat/completions", options);
    if (!response.ok) return failed((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) return failed(event.error.message);
      for (const choice of event.choices) {
        lines[choice.index] ??= answer.appendChild(document.createElement("p"));
        show(lines[choice.index], choice);
      }
    }
    $("status").textContent = `${((performance.now() - begin) / 1000).toFixed(2)} s`;
  } catch (error) {
    if (error.name !== "AbortError") failed(`the server cannot be reached: ${error.message}`);
  } finally {
    running = null;
    $("run").hidden = false; $("stop").hidden = true;
  }
}

// Sound from the microphone, as 16-bit WAV: what the server reads everywhere.

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      $("record").textContent = "Record";
      const context = new AudioContext();
      const sound = await context.decodeAudioData(await new Blob(pieces).arrayBuffer());
      add([wav(sound.getChannelData(0), sound.sampleRate)]);
      context.close();
    };
    recorder.start();
    $("record").textContent = "Stop recording";
  } catch (error) { failed(`no sound can be recorded: ${error.message}`); }
}

// Examples: digits as the demo knows them, drawn here.

function digit(character) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, 64, 64);
  context.fillStyle = "white";
  context.font = "bold 56px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(character, 32, 36);
  return figure({ type: "image/png", name: `digit ${character}` }, canvas.toDataURL());
}

const EXAMPLES = {
  "Which digit?": () => [digit("3"), " The digit is"],
  "A sum": () => [digit("2"), " plus ", digit("5"), " equals"],
};
for (const name of Object.keys(EXAMPLES)) $("examples").append(new Option(name, name));

$("examples").addEventListener("change", () => {
  const make = EXAMPLES[$("examples").value];
  if (!make) return;
  answer.replaceChildren();
  prompt.replaceChildren(textBox(), ...make().map((part) => (typeof part === "string" ? textBox(part) : part)));
  $("examples").value = "";
});
$("run").addEventListener("click", run);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", clear);
$("record").addEventListener("click", record);
$("files").addEventListener("change", async () => { await add($("files").files); $("files").value = ""; });
document.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  prompt.addEventListener(name, (event) => {
    event.preventDefault();
    prompt.classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
fetch("v1/models").then((r) => r.json()).then((m) => { if (m.data) $("model").textContent = m.data[0].id; }).catch(() => {});
clear();
