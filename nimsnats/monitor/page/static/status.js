// Keeps the status page moving: fills the server's texts into the places that the HTML has for them.
"use strict";

(() => {
  const SILENCE = 5000;
  const AGAIN = 5000;
  const POINTS = 60;

  const live = document.getElementById("live");
  const pause = document.getElementById("pause");
  const map = document.querySelector('[data-drawn="map"]');
  const history = { in: [], out: [] };
  let source = null;
  let paused = false;
  let heard = 0;

  // Texts are only written when they change: a reader's selection and a screen reader's attention stay where they are.
  function write(element, [text, state]) {
    if (element.textContent !== text) element.textContent = text;
    if (element.dataset.s !== state) element.dataset.s = state;
  }

  function fill(item, [key, state, cells]) {
    item.dataset.key = key;
    if (item.dataset.id) item.id = item.dataset.id + key;
    if (item.dataset.s !== state) item.dataset.s = state;
    const places = item.querySelectorAll("[data-c]");
    cells.forEach((cell, n) => write(places[n], cell));
  }

  function list(name, rows) {
    const holder = document.querySelector(`[data-list="${name}"]`);
    const blank = document.getElementById(`t-${name}`);
    const known = new Map();
    for (const item of [...holder.children]) known.set(item.dataset.key, item);
    rows.forEach((row, n) => {
      let item = known.get(row[0]);
      known.delete(row[0]);
      item ??= blank.content.firstElementChild.cloneNode(true);
      fill(item, row);
      if (holder.children[n] !== item) holder.insertBefore(item, holder.children[n] ?? null);
    });
    for (const item of known.values()) item.remove();
    document.querySelector(`[data-table="${name}"]`).hidden = rows.length === 0;
    const empty = document.querySelector(`[data-empty="${name}"]`);
    if (empty) empty.hidden = rows.length > 0;
  }

  // Drawings come as markup. As long as their parts are the same, only what differs is written: focus stays.
  function draw(place, markup) {
    if (place.dataset.was === markup) return;
    const blank = document.createElement("template");
    blank.innerHTML = `<div>${markup}</div>`;
    if (!alike(place, blank.content.firstChild)) place.innerHTML = markup;
    place.dataset.was = markup;
    light();
  }

  function alike(old, fresh) {
    if (old.childNodes.length !== fresh.childNodes.length) return false;
    return [...fresh.childNodes].every((child, n) => adopt(old.childNodes[n], child));
  }

  function adopt(old, fresh) {
    if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) return false;
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return true;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    return alike(old, fresh);
  }

  // The links of the node that the pointer or the focus is on stand out, with their round trips.
  function light() {
    const node = map.querySelector(".node:hover") ?? map.querySelector(".node:focus-visible");
    const name = node?.dataset.key;
    map.querySelector("svg").classList.toggle("lit", Boolean(node));
    for (const link of map.querySelectorAll("[data-a]")) {
      link.classList.toggle("on", Boolean(node) && (link.dataset.a === name || link.dataset.b === name));
    }
  }

  function spark(name, value) {
    const values = history[name];
    values.push(value ?? 0);
    if (values.length > POINTS) values.shift();
    const top = Math.max(1, ...values);
    const points = values.map((v, n) => `${POINTS - values.length + n},${(23 - (v / top) * 22).toFixed(1)}`);
    const svg = document.getElementById(`spark-${name}`);
    if (!svg.firstChild) {
      svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 24`);
      svg.setAttribute("preserveAspectRatio", "none");
      for (const kind of ["polygon", "polyline"]) {
        svg.append(document.createElementNS("http://www.w3.org/2000/svg", kind));
      }
    }
    const first = POINTS - values.length;
    svg.firstChild.setAttribute("points", `${first},24 ${points.join(" ")} ${POINTS - 1},24`);
    svg.lastChild.setAttribute("points", points.join(" "));
  }

  function show(page) {
    for (const [name, cell] of Object.entries(page.facts)) {
      for (const place of document.querySelectorAll(`[data-f="${name}"]`)) write(place, cell);
    }
    if (document.title !== page.facts.title[0]) document.title = page.facts.title[0];
    for (const [name, rows] of Object.entries(page.lists)) list(name, rows);
    for (const [name, markup] of Object.entries(page.drawn)) {
      draw(document.querySelector(`[data-drawn="${name}"]`), markup);
    }
    for (const name of ["in", "out"]) spark(name, page.raw[name]);
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  function open() {
    close();
    if (paused || document.hidden) return;
    source = new EventSource("./-/events");
    source.onmessage = (event) => {
      heard = performance.now();
      write(live, ["live", "ok"]);
      show(JSON.parse(event.data));
    };
    source.onerror = () => {
      write(live, ["not connected, as of", "bad"]);
      if (source && source.readyState === EventSource.CLOSED) {
        close();
        setTimeout(() => source === null && open(), AGAIN);
      }
    };
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) {
      close();
      write(live, ["paused, as of", "off"]);
    } else {
      open();
    }
  });
  for (const kind of ["pointerover", "pointerout", "focusin", "focusout"]) {
    map.addEventListener(kind, () => requestAnimationFrame(light));
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  setInterval(() => {
    if (source && heard && performance.now() - heard > SILENCE) write(live, ["no news, as of", "warn"]);
  }, 1000);
  open();
})();
