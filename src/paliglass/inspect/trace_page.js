const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const maps = bytes(DATA.maps), shares = bytes(DATA.shares);
const cards = [...document.querySelectorAll(".word")];
const layer = document.getElementById("layer"), head = document.getElementById("head");
const perWord = (DATA.layers + 1) * (DATA.heads + 1);
const cells = maps.length / (cards.length * perWord);  // all patches of all pictures

function paint() {
  cards.forEach((card, word) => {
    const index = word * perWord + Number(layer.value) * (DATA.heads + 1) + Number(head.value);
    const canvas = card.querySelector("canvas"), side = DATA.side;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {  // over a paler picture, which stays visible
      image.data.set([208, 0, 80, 0.65 * maps[index * cells + i]], 4 * i);
    }
    context.putImageData(image, 0, 0);
    const parts = [...shares.slice(3 * index, 3 * index + 3)];
    card.querySelectorAll(".shares span").forEach((part, i) => { part.style.flex = parts[i]; });
    card.querySelector(".shares").title =
      ["picture", "prompt", "answer"].map((n, i) => `${n} ${Math.round(parts[i] / 2.55)} %`).join(", ");
  });
}

for (const look of document.querySelectorAll(".look")) {
  const pale = "rgb(255 255 255 / .4)";
  look.style.backgroundImage = `linear-gradient(${pale}, ${pale}), url(${PICTURE})`;
}
layer.onchange = head.onchange = paint;
paint();
