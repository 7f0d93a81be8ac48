// Names beside the points of the map, as many as find room.

const MAX_LABELS = 40;
const MAX_LETTERS = 24;

/**
 * Write names beside points, the weightiest first, where they cover neither each other nor, on a map of few points, these.
 * @param context of the canvas
 * @param points of the map, each as [point, x, y] in pixels of the canvas
 * @param weigh returns how much a point matters; those of weight 0 are paler
 * @param ink the colour of the letters
 * @param halo the colour around them
 */
export function drawLabels(context, points, weigh, ink, halo) {
  const { width, height } = context.canvas;
  const line = 13 * devicePixelRatio;
  context.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineWidth = 3 * devicePixelRatio;
  const seen = points.filter(([, x, y]) => x >= 0 && y >= 0 && x <= width && y <= height);
  const taken = seen.length > MAX_LABELS ? [] : seen.map(([, x, y]) => [x - line / 2, y - line / 2, x + line / 2, y + line / 2]);
  for (const [point, x, y] of seen.sort((a, b) => weigh(b[0]) - weigh(a[0])).slice(0, MAX_LABELS)) {
    const text = shorten(point.title || point.track_id);
    const length = context.measureText(text).width;
    for (const start of [x + line, x - line - length]) {
      const box = [start, y - line / 2, start + length, y + line / 2];
      const isFree = start >= 0 && start + length <= width && !taken.some((other) => overlap(box, other));
      if (!isFree) continue;
      taken.push(box);
      context.strokeStyle = halo;
      context.fillStyle = ink;
      context.globalAlpha = weigh(point) ? 1 : 0.75;
      context.strokeText(text, start, y);
      context.fillText(text, start, y);
      break;
    }
  }
  context.globalAlpha = 1;
}

function shorten(name) {
  return name.length > MAX_LETTERS ? `${name.slice(0, MAX_LETTERS - 1)}…` : name;
}

function overlap([left, top, right, bottom], [otherLeft, otherTop, otherRight, otherBottom]) {
  return left < otherRight && otherLeft < right && top < otherBottom && otherTop < bottom;
}
