// Review by keyboard: a key presses the button, or follows the link, that names it. The page works
// without this file.
"use strict";

const typing = (target) => target.matches("input, textarea, select, [contenteditable]");

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (typing(target)) {
    if (event.key === "Escape") target.blur();
    if (event.key === "Enter" && event.ctrlKey && target.matches("textarea")) target.form.requestSubmit();
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const quoted = CSS.escape(event.key);
  const pressed = document.querySelector(`[data-key="${quoted}"]`);
  const opened = document.querySelector(`[data-open="${quoted}"]`);
  const focused = document.querySelector(`[data-focus="${quoted}"]`);
  if (!pressed && !opened && !focused) return;
  event.preventDefault();
  if (pressed && !pressed.disabled) pressed.click();
  if (focused) focused.focus();
  if (opened) {
    const details = opened.parentElement;
    details.open = !details.open;
    const box = details.open && details.querySelector("textarea");
    if (box) {
      box.focus();
      box.setSelectionRange(box.value.length, box.value.length);
    } else opened.focus();
  }
});

// A clip that is a part of a video plays over and over within it.
const looped = document.querySelector("video[data-loop]");
if (looped) {
  const start = Number(looped.dataset.start);
  const end = looped.dataset.end === undefined ? Infinity : Number(looped.dataset.end);
  looped.addEventListener("timeupdate", () => {
    if (looped.currentTime >= end || looped.currentTime < start - 0.5) looped.currentTime = start;
  });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) looped.pause();
}
