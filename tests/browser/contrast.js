// Measures the contrast of all text and field borders on a page with the formula of WCAG 2.2.
// `picture` is a screenshot of the full page without text, as a data: URL. It supplies the background
// colors, which can combine gradients and layers. Returns [{what, kind, ratio}].
async (picture) => {
  const image = new Image();
  image.src = picture;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);

  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((channel) => {
      const value = channel / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parse = (colour) => {
    const numbers = colour.match(/^rgba?\(([\d., ]+)\)$/)?.[1].split(",").map(Number);
    if (!numbers) throw new Error(`unknown color format: ${colour}`);
    return { rgb: numbers.slice(0, 3), alpha: numbers[3] ?? 1 };
  };
  // The lowest contrast between a color and any pixel of a rectangle.
  const lowest = (colour, { left, top, right, bottom }) => {
    const { rgb, alpha } = parse(colour);
    const [x, y] = [Math.ceil(left + scrollX), Math.ceil(top + scrollY)];
    const [width, height] = [Math.floor(right + scrollX) - x, Math.floor(bottom + scrollY) - y];
    const pixels = context.getImageData(x, y, Math.max(width, 1), Math.max(height, 1)).data;
    let ratio = Infinity;
    for (let i = 0; i < pixels.length; i += 4) {
      const ground = [...pixels.subarray(i, i + 3)];
      const mixed = rgb.map((channel, j) => alpha * channel + (1 - alpha) * ground[j]);
      const [dark, light] = [luminance(mixed), luminance(ground)].sort((a, b) => a - b);
      ratio = Math.min(ratio, (light + 0.05) / (dark + 0.05));
    }
    return ratio;
  };
  // The part of a rectangle that is not clipped by ancestors, or scrolled out of them.
  const clipped = (box, element) => {
    let { left, top, right, bottom } = box;
    for (; element; element = element.parentElement) {
      if (getComputedStyle(element).overflow === "visible") continue;
      const frame = element.getBoundingClientRect();
      [left, top] = [Math.max(left, frame.left), Math.max(top, frame.top)];
      [right, bottom] = [Math.min(right, frame.right), Math.min(bottom, frame.bottom)];
    }
    return { left, top, right, bottom };
  };
  const visible = (element) =>
    element.checkVisibility({ visibilityProperty: true }) && element.offsetWidth > 1;

  const results = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (!text.data.trim() || !visible(text.parentElement)) continue;
    const range = new Range();
    range.selectNodeContents(text);
    const { color } = getComputedStyle(text.parentElement);
    const boxes = [...range.getClientRects()]
      .map((box) => clipped(box, text.parentElement))
      .filter(({ left, top, right, bottom }) => right > left && bottom > top);
    if (boxes.length === 0) continue; // completely clipped
    const ratio = Math.min(...boxes.map((box) => lowest(color, box)));
    results.push({ what: text.data.trim(), kind: "text", ratio });
  }
  for (const field of document.querySelectorAll("input")) {
    if (!visible(field)) continue;
    const box = field.getBoundingClientRect();
    const style = getComputedStyle(field);
    const inside = {
      left: box.left + parseFloat(style.borderLeftWidth) + parseFloat(style.paddingLeft),
      top: box.top + parseFloat(style.borderTopWidth) + parseFloat(style.paddingTop),
      right: box.right - parseFloat(style.borderRightWidth) - parseFloat(style.paddingRight),
      bottom: box.bottom - parseFloat(style.borderBottomWidth) - parseFloat(style.paddingBottom),
    };
    const placeholder = getComputedStyle(field, "::placeholder").color;
    const above = { left: box.left, right: box.right, top: box.top - 2, bottom: box.top - 1 };
    if (field.type !== "checkbox") {
      results.push(
        { what: `value of ${field.name}`, kind: "text", ratio: lowest(style.color, inside) },
        { what: `placeholder of ${field.name}`, kind: "text", ratio: lowest(placeholder, inside) },
      );
    }
    const edge = lowest(style.borderTopColor, above);
    results.push({ what: `edge of ${field.name}`, kind: "edge", ratio: edge });
  }
  return results;
}
