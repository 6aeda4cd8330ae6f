// Trying an image on a network: a box to drop, paste, choose or photograph one, and the bars of the answer.
// `cnnlab ui` and the page of `cnnlab export --to web` use it.

import { el } from "./dom.js";
import { texts } from "./text.js";

Object.assign(texts, {
  try_drop: ["Drop an image here, paste one, or choose a file.", "把图像拖到这里，或粘贴，或选择文件。"],
  try_file: ["Choose a file", "选择文件"],
  try_camera: ["Camera", "摄像头"],
  try_shoot: ["Take the picture", "拍照"],
  try_no_camera: ["The camera cannot be used: {why}", "无法使用摄像头：{why}"],
  try_probabilities: ["Probabilities", "概率"],
  try_none_of_these: ["None of these: the most probable class is below the run’s threshold of {p}.", "都不是：最可能的类别低于该训练的阈值 {p}。"],
  try_seen: ["What the network sees", "网络看到的图像"],
  try_map: ["Evidence for {name}", "支持“{name}”的区域"],
});

// Calls use(file) with an image, and fail(error). Returns { node, end }; end() stops the camera.
export function imageInput(page, use, fail) {
  const { t } = page;
  const picker = el("input", { type: "file", accept: "image/*", class: "offstage", id: "try-file", tabindex: "-1", "aria-label": t("try_file"), onchange: () => { if (picker.files[0]) use(picker.files[0]); picker.value = ""; } });
  const video = el("video", { playsinline: true, muted: true, hidden: true });
  const shoot = el("button", { type: "button", class: "more", hidden: true, onclick: take }, t("try_shoot"));
  const node = el("div", { class: "drop" },
    el("p", {}, t("try_drop")),
    el("div", { class: "tabs" },
      el("button", { type: "button", class: "more", onclick: () => picker.click() }, t("try_file")),
      el("button", { type: "button", class: "more", onclick: film }, t("try_camera")), shoot),
    picker, video);
  let stream = null;

  for (const kind of ["dragenter", "dragover"]) node.addEventListener(kind, (event) => { event.preventDefault(); node.classList.add("over"); });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    node.classList.remove("over");
    if (event.dataTransfer.files[0]) use(event.dataTransfer.files[0]);
  });
  const paste = (event) => { const file = [...(event.clipboardData?.files ?? [])][0]; if (file) use(file); };
  document.addEventListener("paste", paste);

  async function film() {
    try {
      if (!navigator.mediaDevices) throw new Error("https or localhost");
      const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      stop(); // the stream of an earlier click
      stream = opened;
      video.srcObject = stream;
      video.hidden = shoot.hidden = false;
      await video.play();
    } catch (error) {
      fail(new Error(t("try_no_camera", { why: error.message })));
    }
  }

  function take() {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => use(blob), "image/png");
    stop();
  }

  function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.hidden = shoot.hidden = true;
  }

  return { node, end: () => { document.removeEventListener("paste", paste); stop(); } };
}

// top: [name, probability] of the best classes. threshold: the one that makes the answer "none of these", else null.
export function answerBars(page, top, threshold) {
  const { t } = page;
  const bars = top.map(([name, p]) =>
    el("div", { class: "chance" }, el("bdi", { class: "label" }, page.short(name, 40)),
      el("span", { class: "chance-track" }, el("span", { class: "chance-fill", style: { width: `${(100 * p).toFixed(2)}%` } })), el("span", { class: "number" }, p.toFixed(4))));
  return el("div", { class: "bars" }, el("h2", {}, t("try_probabilities")), bars,
    threshold === null ? null : el("p", { class: "none" }, t("try_none_of_these", { p: threshold.toFixed(3) })));
}
