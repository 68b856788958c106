// The points of the map, drawn as a density: 100,000 points take a few milliseconds without a graphics card.

const MOST_AT_A_PIXEL = 24; // points; beyond that the density does not increase
const LARGEST = 7; // largest diameter of a point in pixels, when few are in view

/** The opacity of a pixel by the number of points that cover it. */
const strengths = (least) => Uint8Array.from({ length: MOST_AT_A_PIXEL + 1 }, (_, count) => (count ? least + (255 - least) * (1 - Math.exp((1 - count) / 5)) : 0));
const OF_MANY = strengths(90);
const OF_FEW = strengths(150); // separate points need a higher opacity to be visible
const FEW = 2; // diameter in pixels from which on OF_FEW applies

export class Points {
  /** `content`: two little-endian float32 per point, as GET /map returns them. */
  constructor(content) {
    this.places = new Float32Array(content);
    this.count = this.places.length / 2;
    this.covered = new Uint8Array(0);
  }

  /** Draw the points in view; the colour is [red, green, blue]. */
  draw(context, view, [red, green, blue]) {
    const { width, height } = view;
    const inView = this.positions(view);
    if (this.covered.length !== width * height) {
      this.covered = new Uint8Array(width * height);
      this.image = context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const size = sizeOf(inView.length / 2, view);
    this.cover(inView, width, height, size);
    const shades = Uint32Array.from(size < FEW ? OF_MANY : OF_FEW, (strength) => ((strength << 24) | (blue << 16) | (green << 8) | red) >>> 0);
    const { covered, pixels } = this;
    for (let at = 0; at < covered.length; at++) pixels[at] = shades[covered[at]];
    context.putImageData(this.image, 0, 0);
  }

  /** Pixels of the points in view, x and y alternating. */
  positions({ x, y, scale, width, height }) {
    const { places, count } = this;
    this.found ??= new Float32Array(places.length);
    const { found } = this;
    const left = width / 2 - x * scale;
    const top = height / 2 + y * scale;
    let next = 0;
    for (let at = 0; at < 2 * count; at += 2) {
      const across = places[at] * scale + left;
      const down = top - places[at + 1] * scale;
      if (across < -LARGEST || down < -LARGEST || across > width + LARGEST || down > height + LARGEST) continue;
      found[next++] = across;
      found[next++] = down;
    }
    return found.subarray(0, next);
  }

  cover(inView, width, height, size) {
    const { covered } = this;
    covered.fill(0);
    const half = (size - 1) / 2;
    const spans = spansOf(size);
    for (let at = 0; at < inView.length; at += 2) {
      const left = Math.round(inView[at] - half);
      const top = Math.round(inView[at + 1] - half);
      for (let line = 0; line < size; line++) {
        const row = top + line;
        if (row < 0 || row >= height) continue;
        const first = Math.max(0, left + spans[line]);
        const last = Math.min(width, left + size - spans[line]);
        for (let pixel = row * width + first, end = row * width + last; pixel < end; pixel++) {
          if (covered[pixel] < MOST_AT_A_PIXEL) covered[pixel]++;
        }
      }
    }
  }

  /** The point nearest to a pixel within `radius` pixels: its position in the map's order, or -1. */
  nearest({ x, y, scale, width, height }, across, down, radius) {
    const atX = x + (across - width / 2) / scale;
    const atY = y - (down - height / 2) / scale;
    let least = (radius / scale) ** 2;
    let found = -1;
    for (let at = 0; at < this.count; at++) {
      const distance = (this.places[2 * at] - atX) ** 2 + (this.places[2 * at + 1] - atY) ** 2;
      if (distance < least) [least, found] = [distance, at];
    }
    return found;
  }

  placeOf(position) {
    return [this.places[2 * position], this.places[2 * position + 1]];
  }
}

/** The diameter of a point in pixels: larger when fewer points are in view. */
function sizeOf(count, { width, height, ratio }) {
  const room = Math.sqrt((width * height) / Math.max(1, count));
  return Math.max(ratio > 1 ? 2 : 1, Math.min(LARGEST, Math.round(room / 4)));
}

/** The number of empty pixels on either side of each row of a disc. */
function spansOf(size) {
  const radius = size / 2;
  return Array.from({ length: size }, (_, line) => {
    const across = line + 0.5 - radius;
    return Math.max(0, Math.round(radius - Math.sqrt(radius * radius - across * across) - 0.2));
  });
}
