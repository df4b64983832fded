// WCAG contrast of every visible text, field border and curve: [ratio, required, what].
const parse = (colour) => {
  const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
  return { rgb: [r, g, b], a };
};
const over = (top, ground) => top.rgb.map((value, i) => top.a * value + (1 - top.a) * ground[i]);
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const ground = (element) => {
  if (!element) return [255, 255, 255];
  const style = getComputedStyle(element);
  const chip = element.tagName === "text" && element.previousElementSibling?.tagName === "rect";
  if (chip) return parse(getComputedStyle(element.previousElementSibling).fill).rgb;
  const own = parse(style.backgroundColor);
  return own.a === 1 ? own.rgb : over(own, ground(element.parentElement));
};
const faint = (element) => (element ? getComputedStyle(element).opacity * faint(element.parentElement) : 1);
const measure = (element, colour, required, what, on = element) => {
  const top = parse(colour);
  top.a *= faint(element);
  const back = ground(on);
  return [ratio(over(top, back), back), required, what];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest(".unseen, script, noscript")) continue;
  const style = getComputedStyle(element);
  found.push(measure(element, element.tagName === "text" ? style.fill : style.color, 4.5, text));
}
for (const field of document.querySelectorAll("input")) {
  if (!field.checkVisibility()) continue;
  found.push(measure(field, getComputedStyle(field).color, 4.5, `text of ${field.id}`));
  if (field.placeholder) found.push(measure(field, getComputedStyle(field, "::placeholder").color, 4.5, field.placeholder));
  if (field.type !== "checkbox") found.push(measure(field, getComputedStyle(field).borderColor, 3, `border of ${field.id}`, field.parentElement));
}
for (const line of document.querySelectorAll(".line:not(.raw), .axis, .mark line")) {
  if (line.checkVisibility()) found.push(measure(line, getComputedStyle(line).stroke, 3, line.getAttribute("class")));
}
return found;
