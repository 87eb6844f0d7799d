// Search as one types, and a player that keeps to its clip. Every page works without this file.
"use strict";

const WAIT_MS = 150;

function searchAsTyped(form, results) {
  const asked = () => new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  let timer, request, shown = asked().toString();
  async function search() {
    const query = asked();
    if (query.toString() === shown) return; // results stay, and the focus within them
    shown = query.toString();
    request?.abort();
    request = new AbortController();
    const address = query.size ? `/?${query}` : "/";
    query.set("part", "1");
    results.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(`/?${query}`, { signal: request.signal });
      if (response.status === 401) return location.reload();
      // Rendered and escaped by the server, as the whole page is.
      results.innerHTML = await response.text();
      history.replaceState(null, "", address);
      results.removeAttribute("aria-busy");
    } catch (error) {
      if (error.name !== "AbortError") form.submit();
    }
  }
  for (const event of ["input", "change"]) {
    form.addEventListener(event, () => {
      clearTimeout(timer);
      timer = setTimeout(search, WAIT_MS);
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    search();
  });
}

function keepToClip(video, replay, status) {
  const start = Number(video.dataset.start);
  const end = video.dataset.end === undefined ? Infinity : Number(video.dataset.end);
  const enter = () => {
    if (video.currentTime < start) video.currentTime = start;
  };
  const tellError = () => {
    status.textContent = "This browser cannot play the video, or it is gone.";
  };
  // Both may have come before this script ran; their events do not come again.
  if (video.readyState > 0) enter();
  if (video.error) tellError();
  video.addEventListener("loadedmetadata", enter);
  video.addEventListener("timeupdate", () => {
    if (video.currentTime >= end && !video.paused && video.dataset.past !== "1") {
      video.pause();
      video.dataset.past = "1"; // who plays on from here wants the rest of the video
      status.textContent = "The clip ends here; play on for the rest of the video.";
    }
  });
  video.addEventListener("error", tellError);
  replay.addEventListener("click", () => {
    delete video.dataset.past;
    status.textContent = "";
    video.currentTime = start;
    video.play().catch(() => {}); // the error event says it
  });
  replay.parentElement.hidden = false;
}

const form = document.getElementById("search");
if (form) searchAsTyped(form, document.getElementById("results"));
const video = document.querySelector("video.player");
const replay = document.getElementById("replay");
if (video && replay) keepToClip(video, replay, document.getElementById("playing"));
