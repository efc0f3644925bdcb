// Shows an answer: its text while it is written, labels as bars, times.

const $ = (id) => document.getElementById(id);
const FEW = 8; // labels that are shown at first
const LONG = 60; // characters, from which on an answer is set as a text
const ENDS = {
  length: "The answer was cut off at its longest length.",
  time: "The answer was cut off: its time was over.",
  cancelled: "The answer was cut off.",
};
const STEPS = { wait: "Waited", see: "Picture", first_token: "First token", total: "In all", trip: "Round trip" };

/** Makes room for a new answer. */
export function clear() {
  for (const id of ["result", "finish", "ranked", "times", "unlike"]) $(id).hidden = true;
  showText("", false);
}

/** Shows the text so far, and whether more is to come. */
export function showText(text, busy) {
  $("answer").textContent = text;
  $("answer").classList.toggle("long", text.length > LONG);
  $("answer").setAttribute("aria-busy", String(busy));
  if ($("result").hidden && (text || busy)) {
    $("result").hidden = false;
    $("result").scrollIntoView({ block: "nearest" }); // on a phone it is below what is seen
  }
}

export function showFinish(text) {
  $("finish").textContent = text;
  $("finish").hidden = !text;
}

/** Shows what the service says of a whole answer; trip: seconds from here to there and back. */
export function showAnswer(answer, trip) {
  showText(answer.text, false);
  showFinish(ENDS[answer.finish] ?? (answer.text.trim() ? "" : "The model answered with nothing."));
  const seconds = { ...answer.timing, trip };
  $("times").replaceChildren(
    ...Object.entries(STEPS)
      .filter(([step]) => seconds[step] !== undefined)
      .map(([step, name]) => element("div", {}, element("dt", {}, name), element("dd", {}, duration(seconds[step])))),
  );
  $("times").hidden = false;
  const unlike = answer.unlikeness;
  $("unlike").hidden = unlike === null || unlike === undefined;
  if (!$("unlike").hidden) {
    $("unlike").textContent = `Unlikeness ${unlike.toFixed(2)}: how far this picture is from those that the task was made for. About 1 is usual.`;
  }
}

/** Shows labels as bars, the best first. */
export function showRanked(rows) {
  const best = Math.max(...rows.map((row) => row.score));
  const weights = rows.map((row) => Math.exp(row.score - best));
  const sum = weights.reduce((a, b) => a + b, 0);
  const items = rows.map((row, i) => bar(row.label, weights[i] / sum, row.score));
  $("bars").replaceChildren(...items.slice(0, FEW));
  const button = $("all-labels");
  button.hidden = items.length <= FEW;
  button.textContent = `Show all ${items.length} labels`;
  button.onclick = () => {
    $("bars").replaceChildren(...items);
    button.hidden = true;
    items[FEW].tabIndex = -1;
    items[FEW].focus(); // the button is gone; reading goes on at the first that is new
  };
  $("ranked").hidden = $("result").hidden = false;
}

function bar(label, share, score) {
  const filled = element("div", { className: "bar" });
  filled.style.width = `${100 * share}%`; // set by a script, so no inline style in the page's text
  const percent = share >= 0.995 ? 100 : share * 100 < 10 ? (share * 100).toFixed(1) : Math.round(share * 100);
  return element(
    "li",
    { title: `score ${score.toFixed(3)}` },
    element("span", { className: "label" }, label),
    element("span", { className: "share" }, `${percent} %`),
    element("div", { className: "track", ariaHidden: "true" }, filled),
  );
}

/** An element. Texts become text, whatever is in them. */
export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`;
}
