for (const slide of document.querySelectorAll("[data-slide]")) {
  const range = slide.querySelector("input");
  const shown = slide.querySelector("[data-t]");
  const times = range.dataset.times.split(" ");
  const show = () => {
    const place = Number(range.value);
    for (const frame of slide.querySelectorAll("[data-frame]")) {
      frame.hidden = Number(frame.dataset.frame) !== place;
    }
    shown.textContent = times[place];
    range.setAttribute("aria-valuetext", `t = ${times[place]}`);
  };
  slide.querySelector(".slider").hidden = false;
  range.addEventListener("input", show);
  show();
}
