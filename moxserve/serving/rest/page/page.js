// Keeps the status page up to date, and sends the sample requests. The page is complete without it.
"use strict";

const PERIOD_MS = 2000;
const LIMIT_MS = 10000;
const POINTS = 60;
const SHOWN_CHARS = 20000;

const live = document.getElementById("refresh");
const link = document.getElementById("link");
const models = document.getElementById("models");
const counted = new Map(); // what a rate is of -> { count, at, points }

// Rates

function noteCounts(root, at) {
  for (const element of root.querySelectorAll("[data-rate]")) {
    const key = element.dataset.rate + (element.closest("[data-model]") ? "/model" : "");
    const count = Number(element.dataset.count);
    const before = counted.get(key);
    const known = { count, at, points: before ? before.points : [] };
    if (before && count >= before.count) {
      const rate = (count - before.count) / ((at - before.at) / 1000);
      known.points = [...before.points, rate].slice(-POINTS);
      element.textContent = rate >= 100 ? rate.toFixed(0) : rate.toFixed(1);
    }
    counted.set(key, known);
    if (element.closest("[data-model]")) {
      drawSpark(element.closest("[data-model]").querySelector("[data-spark]"), known.points);
    }
  }
  const label = document.querySelector("[data-rate-label]");
  if (label && counted.size && [...counted.values()].some((known) => known.points.length)) {
    label.textContent = "Requests a second";
  }
}

function drawSpark(place, points) {
  if (!place || points.length < 2 || Math.max(...points) === 0) {
    return;
  }
  const highest = Math.max(...points);
  const step = 120 / (POINTS - 1);
  const first = POINTS - points.length;
  const path = points
    .map((rate, i) => `${i ? "L" : "M"}${((first + i) * step).toFixed(1)} ${(23 - (22 * rate) / highest).toFixed(1)}`)
    .join("");
  const svg = place.querySelector("svg");
  let line = svg.firstElementChild;
  if (!line) {
    line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.append(line);
  }
  line.setAttribute("d", path);
  place.hidden = false;
}

// Refresh

async function refresh() {
  const response = await fetch("./", { cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) });
  if (!response.ok) {
    throw new Error(`HTTP ${response.status}`);
  }
  const at = performance.now();
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  document.title = fresh.title;
  takeModels(fresh);
  for (const element of fresh.querySelectorAll("[data-live]")) {
    const old = document.querySelector(`[data-live="${CSS.escape(element.dataset.live)}"]`);
    if (old && !old.isEqualNode(element)) {
      old.replaceWith(document.importNode(element, true));
    }
  }
  noteCounts(document, at);
}

// A model that is new, gone, or serves another version than its form was made for.
function takeModels(fresh) {
  const named = (root) => new Map([...root.querySelectorAll("[data-model]")].map((card) => [card.dataset.model, card]));
  const before = named(document);
  const after = named(fresh);
  const cards = [...fresh.getElementById("models").children].map((element) => {
    const old = before.get(element.dataset.model);
    if (!old) {
      return prepared(document.importNode(element, true));
    }
    if (old.dataset.version !== element.dataset.version) {
      old.dataset.version = element.dataset.version;
      const right = document.importNode(element.querySelector(".right"), true);
      old.querySelector(".right").replaceWith(right);
      prepared(right);
    }
    return old;
  });
  if (cards.length !== models.children.length || cards.some((card, i) => card !== models.children[i])) {
    models.replaceChildren(...cards);
  }
  for (const name of before.keys()) {
    if (!after.has(name)) {
      counted.delete(`${name}/model`);
    }
  }
}

async function tick() {
  if (live.checked && !document.hidden) {
    try {
      await refresh();
      link.textContent = "";
    } catch (error) {
      link.textContent = "The server does not answer.";
    }
  }
  setTimeout(tick, PERIOD_MS);
}

// The sample request

// {"$fill": 0.5, "shape": [2, 3]} -> [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
function expanded(value) {
  if (Array.isArray(value)) {
    return value.map(expanded);
  }
  if (value === null || typeof value !== "object") {
    return value;
  }
  if ("$fill" in value && Array.isArray(value.shape)) {
    return [...value.shape].reverse().reduce((inner, size) => Array(size).fill(inner), value.$fill);
  }
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, expanded(inner)]));
}

// Only a text with $fill in it is rewritten: JSON.parse would change 1.0 to 1, and refuse NaN.
function bodyOf(text) {
  return text.includes('"$fill"') ? JSON.stringify(expanded(JSON.parse(text))) : text;
}

async function send(form) {
  const took = form.querySelector(".took");
  const answer = form.querySelector(".answer");
  const button = form.querySelector("button");
  button.disabled = true;
  took.classList.remove("bad");
  took.textContent = "Waiting for the answer";
  try {
    const body = bodyOf(form.elements.body.value);
    const began = performance.now();
    const response = await fetch(form.dataset.path, { method: "POST", body });
    const text = await response.text();
    const ms = performance.now() - began;
    took.textContent = `HTTP ${response.status} in ${ms.toFixed(1)} ms, ${text.length.toLocaleString("en")} characters`;
    took.classList.toggle("bad", !response.ok);
    answer.textContent = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}\n… cut off here` : text;
    answer.hidden = false;
  } catch (error) {
    took.textContent = error instanceof SyntaxError ? `No JSON: ${error.message}` : "The server does not answer.";
    took.classList.add("bad");
    answer.hidden = true;
  }
  button.disabled = false;
}

function prepared(root) {
  for (const form of root.querySelectorAll("form")) {
    const { signature, body } = form.elements;
    form.querySelector("button").disabled = false;
    signature.addEventListener("change", () => {
      const option = signature.selectedOptions[0];
      body.value = option.dataset.sample;
      form.querySelector(".note").textContent = option.dataset.note;
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(form);
    });
  }
  return root;
}

prepared(document);
noteCounts(document, performance.now());
document.querySelector(".refresh").hidden = false;
setTimeout(tick, PERIOD_MS);
