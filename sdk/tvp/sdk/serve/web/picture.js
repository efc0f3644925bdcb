// Where a picture comes from: a file, a drop, the clipboard, the camera.

const $ = (id) => document.getElementById(id);

/** Listens to all of them. `found` is given a file; `failed` a reason in plain words. */
export function listen(found, failed) {
  const take = (list, otherwise) => {
    const files = [...list];
    if (files.length) found(files.find((file) => file.type.startsWith("image/")) ?? files[0]);
    else if (otherwise) failed(otherwise);
  };

  for (const [button, input] of [["choose", "file"], ["camera", "capture"]]) {
    $(button).addEventListener("click", () => {
      // Without https a browser has no camera for a page; a phone then opens its camera's app for the field.
      if (button === "camera" && navigator.mediaDevices) openCamera(found, failed);
      else $(input).click();
    });
    $(input).addEventListener("change", () => {
      take($(input).files);
      $(input).value = ""; // so that the same file can be chosen again
    });
  }

  // The whole page takes a drop: beside the card the browser would leave the page and open the file.
  const over = (is) => $("picture").classList.toggle("over", is);
  const carries = (event) => [...event.dataTransfer.types].some((type) => type === "Files" || type === "text/uri-list");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || over(false)); // it left the window
  addEventListener("drop", (event) => {
    if (!carries(event)) return; // text, which a field takes
    event.preventDefault();
    over(false);
    take(event.dataTransfer.files, "That was an address and no file. Save the picture first, then drop it.");
  });

  addEventListener("paste", (event) => {
    const files = event.clipboardData.files;
    if (!files.length) return; // text, which a field takes
    event.preventDefault();
    take(files);
  });
}

const WHY = {
  NotAllowedError: "The camera may not be used. Allow it in the browser's settings for this page, or choose a file.",
  NotFoundError: "This device has no camera. Choose a file.",
  NotReadableError: "The camera is in use by another program. Close that, or choose a file.",
};

async function openCamera(found, failed) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
  } catch (error) {
    failed(WHY[error.name] ?? "The camera does not start. Choose a file.");
    return;
  }
  const dialog = $("viewfinder");
  const video = $("video");
  const close = new AbortController();
  const once = { signal: close.signal };
  video.srcObject = stream;
  dialog.addEventListener("close", () => {
    close.abort();
    video.srcObject = null;
    for (const track of stream.getTracks()) track.stop(); // its light goes out
  }, once);
  $("close-camera").addEventListener("click", () => dialog.close(), once);
  $("take").addEventListener("click", async () => {
    if (!video.videoWidth) return; // it has not begun
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    dialog.close();
    found(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  }, once);
  dialog.showModal();
  $("take").focus();
}
