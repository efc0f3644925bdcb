// The page: what is chosen, what is asked, and in which order.

import { clear, element, showAnswer, showFinish, showRanked, showText } from "./answer.js";
import { listen } from "./picture.js";
import { curl, python } from "./programs.js";
import { ask, listTasks, preview, rank, readKey, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);
let tasks = [];
let picture = null; // the chosen file
let asking = null; // stops the question that is being answered
let previewing = null; // stops the preview that is on its way
let hasKey = Boolean(readKey());
let clock = 0; // shows the seconds of a question

// What is said

function say(text) {
  $("status").textContent = text; // read aloud
}

function fail(error) {
  $("error").textContent = error.message ?? error;
  $("error").hidden = false;
  if (error.status === 401) askForKey();
}

function calm() {
  $("error").hidden = true;
  $("error").textContent = "";
}

// The key

function askForKey() {
  $("key-form").hidden = false;
  $("change-key").hidden = true;
  $("key").focus();
}

$("change-key").addEventListener("click", askForKey);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  hasKey = Boolean($("key").value.trim());
  loadTasks();
});

// Tasks

async function loadTasks() {
  const before = $("task").value;
  try {
    tasks = await listTasks();
  } catch (error) {
    if (error.status === 401 && !hasKey) askForKey(); // nothing was wrong yet
    else fail(error);
    return;
  }
  calm();
  $("key").value = "";
  $("key-form").hidden = true;
  $("change-key").hidden = !hasKey;
  $("task").replaceChildren(...tasks.map((task) => element("option", { value: task.name }, task.name)));
  if (tasks.some((task) => task.name === before)) $("task").value = before;
  if (!tasks.length) fail("This service has no task now. Load one, then load this page again.");
  else showTask();
}

const current = () => tasks.find((task) => task.name === $("task").value);

function showTask() {
  const task = current();
  const facts = [task.kind, task.model, task.precision, task.prompt.join(" and ") || "no prompt"];
  $("task-about").textContent = facts.filter(Boolean).join(" · ");
  $("question").value = task.question ?? "";
  $("labels").value = task.labels.join("\n");
  $("length").value = "";
  $("length").placeholder = task.max_new_tokens;
  $("more").open = task.kind === "contrastive" && !task.labels.length; // which can choose among labels alone
  begin();
  showPreview();
}

$("task").addEventListener("change", showTask);

// The picture

listen((file) => {
  calm();
  picture = file;
  URL.revokeObjectURL($("original").src);
  $("original").src = URL.createObjectURL(file);
  $("original").hidden = false;
  $("original-note").hidden = true;
  $("original-about").textContent = size(file.size);
  $("empty").hidden = true;
  $("pictures").hidden = false;
  say("The picture is here.");
  begin();
  showPreview();
}, fail);

for (const [image, about] of [["original", "original-about"], ["shown", "shown-about"]]) {
  $(image).addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = $(image);
    $(image).classList.toggle("pixels", Math.max(width, height) < 200);
    const more = image === "original" ? size(picture.size) : through(current().prompt);
    $(about).textContent = `${width} × ${height}${more && `, ${more}`}`;
  });
}
$("original").addEventListener("error", () => {
  $("original").hidden = true;
  $("original-note").textContent = "This browser cannot show it. The service may know its format.";
  $("original-note").hidden = false;
});

function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function through(prompt) {
  const parts = { lens: "through the lens", frame: "in the frame" };
  return prompt.map((part) => parts[part] ?? part).join(", ") || "without a prompt";
}

async function showPreview() {
  previewing?.abort();
  if (!picture || !current()) return;
  const mine = (previewing = new AbortController());
  const note = (text) => {
    $("shown-note").textContent = text;
    $("shown-note").hidden = !text;
    $("shown").hidden = Boolean(text);
    $("shown-about").textContent = "";
  };
  note("");
  $("shown").hidden = true;
  $("shown-frame").classList.add("busy");
  try {
    const shown = await preview(current().name, picture, mine.signal);
    URL.revokeObjectURL($("shown").src);
    $("shown").src = URL.createObjectURL(shown);
    $("shown").hidden = false;
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error.status === 401) fail(error);
    note(error.message);
  } finally {
    if (!mine.signal.aborted) $("shown-frame").classList.remove("busy");
  }
}

// The question

/** Whatever was asked is asked no longer, and its answer goes. */
function begin() {
  asking?.abort();
  asking = null;
  running(false);
  clear();
  showPrograms();
}

/** The fields of the request, but for the picture; what is left to the task is left out. */
function fields() {
  const wanted = { task: current()?.name, question: $("question").value.trim(), max_new_tokens: $("length").valueAsNumber };
  return Object.fromEntries(Object.entries(wanted).filter(([, value]) => value));
}

/** The labels that were typed; undefined for the task's own. */
function typedLabels() {
  if ($("labels").value === current().labels.join("\n")) return undefined;
  return $("labels").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

async function run() {
  calm();
  begin();
  if (!current()) return fail("There is no task yet. Load this page again.");
  if (!picture) {
    $("choose").focus();
    return fail("Choose a picture first.");
  }
  const mine = (asking = new AbortController());
  const typed = typedLabels();
  const { max_new_tokens: _, ...ranking } = fields();
  let text = "";
  running(true);
  showText("", true);
  say("Asking.");
  try {
    // A contrastive task answers with a label of its own; among others it can only rank.
    if (current().kind !== "contrastive" || !typed) {
      const began = performance.now();
      const answer = await ask({ ...fields(), image: picture }, (piece) => showText((text += piece), true), mine.signal);
      showAnswer(answer, (performance.now() - began) / 1e3);
      text = answer.text;
    }
    if ((typed ?? current().labels).length) {
      const rows = await rank({ ...ranking, labels: typed, image: picture }, mine.signal);
      showRanked(rows);
      if (current().kind === "contrastive") showText((text = rows[0].label), false);
    }
    say(`The answer is: ${text || "nothing"}`);
  } catch (error) {
    if (asking !== mine) return; // another question has its place
    showText(text, false);
    $("result").hidden = !text && $("ranked").hidden;
    if (mine.signal.aborted) {
      $("result").hidden = false;
      showFinish("You stopped it.");
      say("Stopped.");
    } else {
      fail(error);
      if (error.code === "model_not_found") loadTasks().then(() => fail(error)); // it has been dropped
    }
  } finally {
    if (asking === mine) running(false);
  }
}



function running(on) {
  clearInterval(clock);
  $("progress").textContent = "";
  if (!on && document.activeElement === $("stop")) $("ask").focus();
  $("stop").hidden = !on;
  if (!on) return;
  const began = performance.now();
  clock = setInterval(() => {
    $("progress").textContent = `${((performance.now() - began) / 1e3).toFixed(1)} s`;
  }, 100);
}

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => asking?.abort());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("viewfinder").open && !$("stop").hidden) asking?.abort();
});

// The same request from a program

function showPrograms() {
  const url = new URL("v1/ask", document.baseURI).href;
  const name = picture?.name || "picture.png";
  $("curl").textContent = curl(url, name, fields(), hasKey);
  $("python").textContent = python(url, name, fields(), hasKey);
}

for (const id of ["question", "length", "labels"]) $(id).addEventListener("input", showPrograms);
for (const what of ["curl", "python"]) {
  $(`copy-${what}`).addEventListener("click", async (event) => {
    const button = event.currentTarget;
    const named = button.textContent;
    const done = (await copy($(what))) ? "Copied" : "Copy it by hand";
    say(done);
    button.textContent = done;
    setTimeout(() => (button.textContent = named), 1500);
  });
}

async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node); // without https, a page has the old way alone
    return document.execCommand("copy");
  }
}

loadTasks();
