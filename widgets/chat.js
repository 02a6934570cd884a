// A conversation on the page. What a model says is only ever set as text.

const STYLE = `
.macluster-chat { --ink: var(--jp-ui-font-color1, #24292f); --faint: var(--jp-ui-font-color2, #57606a);
  --line: var(--jp-border-color2, #d0d7de); --paper: var(--jp-layout-color1, #fff);
  --ground: var(--jp-layout-color2, #f0f2f5); --accent: var(--jp-brand-color1, #1976d2);
  --bad: var(--jp-error-color1, #c62828);
  box-sizing: border-box; max-width: 820px; margin: 4px 0; border: 1px solid var(--line);
  border-radius: 10px; background: var(--paper); color: var(--ink); overflow: hidden;
  font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif); }
.macluster-chat *, .macluster-chat *::before { box-sizing: border-box; }
.macluster-chat header { display: flex; gap: 8px; align-items: center; padding: 8px 14px;
  border-bottom: 1px solid var(--line); }
.macluster-chat header b { flex: 1; font-weight: 600; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.macluster-chat .log { min-height: 120px; max-height: 420px; overflow-y: auto; padding: 12px 14px;
  display: flex; flex-direction: column; gap: 10px; }
.macluster-chat .turn { max-width: 88%; }
.macluster-chat .turn.user { align-self: flex-end; }
.macluster-chat .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.macluster-chat .user .text { background: var(--ground); border-radius: 12px 12px 3px 12px;
  padding: 6px 12px; }
.macluster-chat .error .text { border-left: 3px solid var(--bad); padding: 2px 0 2px 10px;
  font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.macluster-chat .note { color: var(--faint); font-size: 11px; margin-top: 2px;
  font-variant-numeric: tabular-nums; }
.macluster-chat .open .text::after { content: "▍"; color: var(--accent); }
.macluster-chat .empty { color: var(--faint); margin: auto; text-align: center; }
.macluster-chat form { display: flex; margin: 0; gap: 8px; padding: 10px 14px 6px; align-items: flex-end;
  border-top: 1px solid var(--line); }
.macluster-chat textarea, .macluster-chat input { font: inherit; color: inherit;
  background: var(--jp-layout-color0, #fff); border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 9px; }
.macluster-chat form textarea { flex: 1; resize: none; height: 34px; max-height: 160px; }
.macluster-chat button { font: inherit; height: 34px; padding: 0 14px; border-radius: 6px;
  border: 1px solid var(--line); background: var(--ground); color: var(--ink); cursor: pointer; }
.macluster-chat button.send { background: var(--accent); border-color: transparent; color: #fff; }
.macluster-chat button.stop { background: var(--bad); border-color: transparent; color: #fff; }
.macluster-chat button.quiet { height: 26px; padding: 0 10px; font-size: 12px; }
.macluster-chat button:disabled { opacity: .45; cursor: default; }
.macluster-chat :is(button, textarea, input, summary):focus-visible {
  outline: 2px solid var(--accent); outline-offset: 1px; }
.macluster-chat .status { display: flex; gap: 12px; align-items: center; min-height: 20px;
  padding: 0 14px 8px; color: var(--faint); font-size: 12px; white-space: pre-wrap; }
.macluster-chat .status span:first-child { flex: 1; }
.macluster-chat meter { width: 90px; height: 10px; vertical-align: middle; }
.macluster-chat details { border-top: 1px solid var(--line); padding: 6px 14px; font-size: 12px; }
.macluster-chat summary { cursor: pointer; color: var(--faint); }
.macluster-chat .fields { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px 12px;
  padding: 8px 0 4px; }
.macluster-chat .fields label { display: flex; flex-direction: column; gap: 3px;
  color: var(--faint); }
.macluster-chat .fields label.wide { grid-column: 1 / -1; }
.macluster-chat .fields :is(input, textarea) { color: var(--ink); width: 100%; }
`;
const NUMBERS = [
  ["temperature", "Temperature (0: the likeliest)", 0, 10, 0.1],
  ["top_p", "Top-p", 0.05, 1, 0.05],
  ["max_tokens", "Max tokens", 1, null, 1],
  ["seed", "Seed", 0, null, 1],
];
const NAMES = { user: "You", assistant: "Model", error: "Error" };
const SILENCE = 1000; // milliseconds

// Each widget has this code to itself, so that counting alone would name things twice on a page.
const INSTANCE = `macluster-chat-${Math.random().toString(36).slice(2)}`;
let views = 0;

function add(parent, tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

function button(parent, className, text) {
  const node = add(parent, "button", className, text);
  node.type = "button";
  return node;
}

function render({ model, el }) {
  const name = `${INSTANCE}-${++views}`;
  const root = add(el, "section", "macluster-chat");
  root.setAttribute("aria-label", "Conversation");
  add(root, "style").textContent = STYLE;
  const header = add(root, "header");
  const title = add(header, "b");
  const reset = button(header, "quiet", "New conversation");

  const log = add(root, "div", "log");
  log.tabIndex = 0;
  log.setAttribute("role", "log");
  log.setAttribute("aria-live", "polite");
  log.setAttribute("aria-label", "What was said");

  const form = add(root, "form");
  const input = add(form, "textarea");
  input.rows = 1;
  input.placeholder = "Say something (Enter sends, Shift+Enter begins a new line)";
  input.setAttribute("aria-label", "What you want to say");
  const send = button(form, "send", "Send");
  const stop = button(form, "stop", "Stop");
  const bar = add(root, "div", "status");
  const status = add(bar, "span");
  status.setAttribute("role", "status");
  const figures = add(bar, "span");
  const meter = add(bar, "meter");
  meter.setAttribute("aria-label", "Context used");

  const settings = add(root, "details");
  add(settings, "summary", "", "Settings");
  const fields = add(settings, "div", "fields");
  const inputs = {};
  const field = (key, words, tag, className = "") => {
    const label = add(fields, "label", className, words);
    const node = add(label, tag);
    node.id = `${name}-${key}`;
    label.htmlFor = node.id;
    inputs[key] = node;
    return node;
  };
  field("system", "System prompt (another one begins a new conversation)", "textarea", "wide");
  for (const [key, words, least, most, step] of NUMBERS) {
    const node = field(key, words, "input");
    node.type = "number";
    Object.assign(node, { min: least, max: most ?? "", step });
  }

  // -- from Python to the page ------------------------------------------------------------------

  let open = null; // the answer that is coming
  let silence = null;
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;

  const addTurn = (role, text, note) => {
    const turn = add(log, "div", `turn ${role}`);
    turn.setAttribute("aria-label", NAMES[role] ?? role);
    add(turn, "div", "text").textContent = text;
    if (note) add(turn, "div", "note", note);
    return turn;
  };
  const drawTurns = () => {
    const follow = atEnd();
    log.replaceChildren();
    open = null;
    for (const { role, text, note } of model.get("turns")) addTurn(role, text, note);
    drawAnswer();
    if (!log.childElementCount) add(log, "div", "empty", "Nothing was said yet.");
    if (follow) log.scrollTop = log.scrollHeight;
  };
  const drawAnswer = () => {
    const text = model.get("answer");
    const wanted = text !== "" || model.get("phase") === "answering";
    if (!wanted) {
      open?.remove();
      open = null;
      return;
    }
    const follow = atEnd();
    open ??= addTurn("assistant open", "", "");
    const shown = open.firstChild;
    // Only what is new, so that a screen reader does not begin again.
    if (shown.firstChild && text.startsWith(shown.textContent)) {
      shown.firstChild.appendData(text.slice(shown.textContent.length));
    } else {
      shown.textContent = text;
    }
    if (follow) log.scrollTop = log.scrollHeight;
  };
  const drawPhase = () => {
    clearTimeout(silence);
    const phase = model.get("phase");
    const ready = phase === "ready";
    send.hidden = !ready;
    stop.hidden = ready;
    stop.disabled = phase === "stopping";
    stop.textContent = phase === "stopping" ? "Stopping…" : "Stop";
    reset.disabled = !ready;
    log.setAttribute("aria-busy", String(!ready));
    drawAnswer();
  };
  const drawFigures = () => {
    const told = model.get("figures");
    const known = "tokens_per_second" in told;
    figures.textContent = known
      ? `${told.tokens_per_second.toFixed(1)} tokens/s · first ${told.first.toFixed(2)} s · ` +
        `context ${told.context.toLocaleString("en")}` +
        (told.limit ? ` of ${told.limit.toLocaleString("en")}` : "")
      : "";
    meter.hidden = !known || !told.limit;
    if (!meter.hidden) {
      Object.assign(meter, { min: 0, max: told.limit, high: 0.9 * told.limit });
      meter.value = told.context;
    }
  };
  const drawSettings = () => {
    for (const [key, value] of Object.entries(model.get("settings"))) {
      if (document.activeElement !== inputs[key]) inputs[key].value = value;
    }
  };
  const drawStatus = () => { status.textContent = model.get("status"); };
  const drawTitle = () => { title.textContent = model.get("title"); };

  // -- from the page to Python ------------------------------------------------------------------

  // The kernel reads nothing from here while a cell of the notebook runs.
  const expect = (what) => {
    clearTimeout(silence);
    silence = setTimeout(() => {
      status.textContent =
        `No answer from the notebook's kernel yet: ${what} when the cell that runs there has ` +
        "ended. If none runs, the kernel was restarted: run this cell again.";
    }, SILENCE);
  };
  const say = () => {
    const text = input.value.trim();
    if (!text || model.get("phase") !== "ready") return;
    const chosen = {};
    for (const [key, node] of Object.entries(inputs)) chosen[key] = node.value;
    model.send({ do: "say", text, settings: chosen });
    expect("what you say is sent");
    input.value = "";
    grow();
    log.scrollTop = log.scrollHeight;
  };
  const grow = () => {
    input.style.height = "34px";
    input.style.height = `${Math.min(160, Math.max(34, input.scrollHeight + 2))}px`;
  };
  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => {
    // JupyterLab has a meaning of its own for most keys.
    event.stopPropagation();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      say();
    }
  });
  settings.addEventListener("keydown", (event) => event.stopPropagation());
  form.addEventListener("submit", (event) => event.preventDefault());
  send.addEventListener("click", say);
  stop.addEventListener("click", () => {
    stop.disabled = true;
    stop.textContent = "Stopping…";
    model.send({ do: "stop" });
    expect("the answer is stopped");
  });
  reset.addEventListener("click", () => model.send({ do: "reset" }));

  const watched = { turns: drawTurns, answer: drawAnswer, phase: drawPhase, figures: drawFigures,
    settings: drawSettings, status: drawStatus, title: drawTitle };
  for (const [key, draw] of Object.entries(watched)) {
    draw();
    model.on(`change:${key}`, draw);
  }
  log.scrollTop = log.scrollHeight;
  return () => {
    clearTimeout(silence);
    for (const [key, draw] of Object.entries(watched)) model.off(`change:${key}`, draw);
  };
}

export default { render };
