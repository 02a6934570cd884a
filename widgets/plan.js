// A plan on the page. Drawn with picture.js, which stands before this; the kernel plans.

const PAUSE = 120; // milliseconds without another step before the kernel is asked
const PATIENCE = 3000; // milliseconds
const CONTROLS = `
.macluster-bars .choice { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px;
  margin: 0 8px 8px; font-size: 12px; }
.macluster-bars .choice label { color: var(--faint); }
.macluster-bars .choice input { width: 240px; accent-color: var(--weights); }
.macluster-bars .choice .chosen { min-width: 96px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.macluster-bars .choice .status { color: var(--faint); white-space: pre-wrap; }
.macluster-bars .old { opacity: .45; }
.macluster-bars .heard { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
`;

const words = (context) => `${context.toLocaleString("en-US")} tokens`;

function render({ model, el }) {
  const root = frame(model, el);
  html("style", "", root).textContent = CONTROLS;
  const contexts = model.get("contexts");
  const choice = html("div", "choice", root);
  const label = html("label", "", choice);
  label.textContent = "Context";
  const slider = html("input", "", choice);
  const shown = html("span", "chosen", choice);
  const status = html("span", "status", choice);
  status.setAttribute("role", "status");
  slider.type = "range";
  slider.min = 0;
  slider.max = contexts.length - 1;
  slider.step = 1;
  slider.id = label.htmlFor = unique("plan");
  slider.disabled = contexts.length < 2;
  const picture = html("div", "", root);
  const notes = html("div", "", root);
  const heard = html("div", "heard", root);
  heard.setAttribute("aria-live", "polite");

  let wanted = model.get("answer").context;
  let chosen = false; // here, and not answered yet
  let pause = 0;
  let patience = 0;
  const show = () => {
    slider.value = contexts.indexOf(wanted);
    slider.setAttribute("aria-valuetext", words(wanted));
    shown.textContent = words(wanted);
    picture.classList.toggle("old", chosen);
    picture.setAttribute("aria-busy", chosen);
    status.textContent = model.get("status") || (chosen ? "computing" : "");
  };
  const answered = () => {
    const answer = model.get("answer");
    draw(answer.scene, picture);
    paragraphs(answer.notes, notes);
    // Another page of this plan, or a program, may have chosen; a choice made here goes first.
    if (!chosen || answer.context === wanted) {
      wanted = answer.context;
      chosen = false;
      clearTimeout(patience);
    }
    show();
  };
  const ask = () => {
    model.send({ do: "plan", context: wanted });
    patience = setTimeout(() => {
      status.textContent =
        "No answer from the notebook's kernel yet: it answers when it runs no cell.";
    }, PATIENCE);
  };
  slider.addEventListener("input", () => {
    wanted = contexts[Number(slider.value)];
    chosen = true;
    clearTimeout(pause);
    clearTimeout(patience);
    pause = setTimeout(ask, PAUSE);
    show();
  });
  slider.addEventListener("keydown", (event) => {
    // JupyterLab would take the key as a step to another cell of the notebook.
    event.stopPropagation();
  });
  const changed = () => {
    answered();
    heard.textContent = model.get("answer").summary;
  };
  const told = () => {
    // The kernel has begun: it is not too busy.
    clearTimeout(patience);
    show();
  };
  answered();
  model.on("change:answer", changed);
  model.on("change:status", told);
  return () => {
    clearTimeout(pause);
    clearTimeout(patience);
    model.off("change:answer", changed);
    model.off("change:status", told);
  };
}

export default { render };
