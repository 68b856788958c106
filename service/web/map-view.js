// The visible part of the map, and how mouse, touch and keyboard move it. Pixels are canvas pixels.

const WHOLE = 1.08; // the map's width with a margin, relative to the map
const WHOLE_VIEW = { x: 0, y: 0, zoom: 1 };
const CLOSEST = 400; // largest zoom
const STEP = 0.15; // share of the canvas that an arrow key moves

export class View {
  constructor(canvas, onChange, { onPoint, onChoose, onLeave }) {
    Object.assign(this, { canvas, onChange, onPoint, onChoose, onLeave, x: 0, y: 0, zoom: 1, follows: true, width: 1, height: 1, ratio: 1 });
    this.fingers = new Map();
    new ResizeObserver(() => this.measure()).observe(canvas);
    this.listen();
  }

  get scale() { return (this.zoom * Math.min(this.width, this.height)) / 2 / WHOLE; }

  pixelOf = ([x, y]) => [(x - this.x) * this.scale + this.width / 2, this.height / 2 - (y - this.y) * this.scale];

  measure() {
    const { canvas } = this;
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    this.width = Math.max(1, Math.round(canvas.clientWidth * this.ratio));
    this.height = Math.max(1, Math.round(canvas.clientHeight * this.ratio));
    if (canvas.width !== this.width) canvas.width = this.width;
    if (canvas.height !== this.height) canvas.height = this.height;
    this.onChange();
  }

  whole() {
    Object.assign(this, { ...WHOLE_VIEW, follows: false });
    this.onChange();
  }

  /** Show these positions and follow the session until the listener moves the map. */
  fit(places) {
    Object.assign(this, { ...this.viewOf(places, CLOSEST), follows: true });
    this.onChange();
  }

  /** The view that shows these positions with a margin; its zoom is at most `closest`. */
  viewOf(places, closest) {
    if (!places.length) return WHOLE_VIEW;
    const ends = [0, 1].map((axis) => [Math.min(...places.map((one) => one[axis])), Math.max(...places.map((one) => one[axis]))]);
    const [x, y] = ends.map(([low, high]) => (low + high) / 2);
    const [wide, high] = ends.map(([least, most]) => Math.max(0.02, most - least));
    const unit = Math.min(this.width, this.height) / 2 / WHOLE;
    const zoom = Math.max(1, Math.min(closest, (0.75 * Math.min(this.width / wide, this.height / high)) / unit));
    return zoom === 1 ? WHOLE_VIEW : { x, y, zoom };
  }

  move(across, down) {
    this.follows = false;
    this.x = Math.max(-1, Math.min(1, this.x - across / this.scale));
    this.y = Math.max(-1, Math.min(1, this.y + down / this.scale));
    this.onChange();
  }

  /** Zoom around a pixel; the centre by default. */
  zoomBy(factor, across = this.width / 2, down = this.height / 2) {
    this.follows = false;
    const before = this.scale;
    this.zoom = Math.max(1, Math.min(CLOSEST, this.zoom * factor));
    const gained = 1 / before - 1 / this.scale;
    this.x += (across - this.width / 2) * gained;
    this.y -= (down - this.height / 2) * gained;
    if (this.zoom === 1) Object.assign(this, { x: 0, y: 0 });
    this.onChange();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      this.fingers.set(event.pointerId, this.at(event));
      this.travelled = this.fingers.size > 1 ? Infinity : 0;
      if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => this.pointed(event));
    canvas.addEventListener("pointerup", (event) => {
      if (this.fingers.delete(event.pointerId) && this.travelled < 5 * this.ratio) this.onChoose(...this.at(event));
    });
    canvas.addEventListener("pointercancel", (event) => this.fingers.delete(event.pointerId)); // the browser has started to scroll the page
    canvas.addEventListener("pointerleave", () => this.onLeave());
    canvas.addEventListener("dblclick", (event) => this.zoomBy(2.5, ...this.at(event)));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // scrolling the page must not zoom the map
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...this.at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** A mouse and two fingers move the map; one finger scrolls the page. */
  pointed(event) {
    const before = this.fingers.get(event.pointerId);
    const now = this.at(event);
    if (!before) {
      if (event.pointerType === "mouse") this.onPoint(...now);
      return;
    }
    const [across, down] = [now[0] - before[0], now[1] - before[1]];
    this.travelled += Math.hypot(across, down);
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.fingers.set(event.pointerId, now);
    if (other) {
      const apart = (one) => Math.max(1, Math.hypot(one[0] - other[0], one[1] - other[1]));
      this.zoomBy(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      this.move(across / 2, down / 2);
    } else if (event.pointerType === "mouse") {
      this.move(across, down);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [across, down] = [STEP * this.width, STEP * this.height];
    const does = {
      ArrowLeft: () => this.move(across, 0),
      ArrowRight: () => this.move(-across, 0),
      ArrowUp: () => this.move(0, down),
      ArrowDown: () => this.move(0, -down),
      "+": () => this.zoomBy(1.6),
      "-": () => this.zoomBy(1 / 1.6),
      Home: () => this.whole(),
      Enter: () => this.onChoose(this.width / 2, this.height / 2),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
    if (event.key !== "Enter") this.onPoint(this.width / 2, this.height / 2, { aloud: true });
  }
}
