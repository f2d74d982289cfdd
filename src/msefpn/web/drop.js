const zone = element.querySelector(".zone");
const input = element.querySelector("input");
const state = element.querySelector(".state");
const video = element.querySelector("video");
const button = element.querySelector(".camera-button");

const tell = (text, wrong) => {
  state.textContent = text;
  state.classList.toggle("wrong", Boolean(wrong));
};

const take = (file) => {
  if (!file) return;
  if (file.size > props.most) {
    tell(`${file.name} is too large: ${(file.size / 1e6).toFixed(1)} MB, the page accepts ${props.most / 1e6} MB`, true);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => {
    tell(file.name);
    trigger("upload", { name: file.name, data: reader.result.slice(reader.result.indexOf(",") + 1) });
  };
  reader.onerror = () => tell(`${file.name} cannot be read`, true);
  reader.readAsDataURL(file);
};

input.addEventListener("change", () => {
  take(input.files[0]);
  input.value = ""; // so that the same file can be chosen again
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
zone.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

// A browser gives the camera to a page of this machine, or one with https, alone.
button.hidden = !navigator.mediaDevices;
const stop = () => {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  button.textContent = "Use the camera";
};
button.addEventListener("click", async () => {
  if (video.srcObject) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(new File([blob], "camera.jpg")), "image/jpeg", 0.95);
    stop();
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.hidden = false;
    button.textContent = "Take the picture";
  } catch {
    tell("The browser gives no camera to this page", true);
  }
});
