"""The viewer of two linked 3D views: its style sheet and its script, drawn on plain canvases by the reader's browser."""

from __future__ import annotations

from kdlib.viz.palette import FAINT, NIGHT, NIGHT_FAINT, NIGHT_INK

STYLE = f"""
.kdlib-linked {{ background:{NIGHT}; color:{NIGHT_INK};
  font:13px/1.4 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif; }}
.kdlib-linked .bar {{ display:flex; flex-wrap:wrap; gap:.3rem .9rem; align-items:center; padding:.45rem .7rem; }}
.kdlib-linked .bar button {{ font:inherit; color:inherit; background:none; border:1px solid {NIGHT_FAINT}; border-radius:5px;
  padding:.1rem .6rem; cursor:pointer; }}
.kdlib-linked .bar button:hover, .kdlib-linked .bar button:focus-visible {{ border-color:{NIGHT_INK}; }}
.kdlib-linked .bar button.key {{ border-color:transparent; padding:.1rem .2rem; }}
.kdlib-linked .bar button.off {{ opacity:.4; text-decoration:line-through; }}
.kdlib-linked .bar .views {{ margin-left:auto; display:flex; gap:.4rem; }}
.kdlib-linked .bar svg {{ vertical-align:middle; margin-right:.35rem; }}
.kdlib-linked .halves {{ display:flex; gap:2px; align-items:flex-end; }}
.kdlib-linked figure {{ flex:1 1 0; margin:0; min-width:0; }}
.kdlib-linked figcaption {{ margin:0; padding:.1rem .7rem .4rem; max-width:none; font-size:13px; font-weight:600;
  color:{NIGHT_INK}; }}
.kdlib-linked canvas {{ display:block; width:100%; height:380px; cursor:grab; touch-action:none; outline-offset:-2px; }}
.kdlib-linked .hint {{ color:{FAINT}; padding:.25rem .7rem .5rem; font-size:12px; }}
"""

SCRIPT = r"""
function kdlibLinked(root, first, channel) {
  "use strict";
  const camera = {yaw: Math.PI, pitch: 0.45, far: 40, x: 0, y: 0, z: 0};
  const hidden = new Set();
  let scene = null, points = null, views = [], waiting = false, version = null, placed = false;

  function unpack(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const view = new DataView(bytes.buffer), out = new Float32Array(bytes.length / 2);
    for (let i = 0; i < out.length; i++) out[i] = view.getInt16(2 * i, true) / 100;
    return out;
  }
  function make(tag, parent, properties) {
    return parent.appendChild(Object.assign(document.createElement(tag), properties || {}));
  }
  function look(name) {
    const half = Math.PI, reach = scene.reach;
    const eye = {behind: [half, 0.42, 1.7], above: [half, 1.55, 2.6], left: [half / 2, 0.4, 1.6]}[name];
    Object.assign(camera, {yaw: eye[0], pitch: eye[1], far: eye[2] * reach, x: 0, y: 0, z: 0});
    redraw();
  }
  function build() {
    root.textContent = "";
    const bar = make("div", root, {className: "bar"}), known = new Set();
    for (const layer of scene.panels.flatMap(panel => panel.layers)) {
      if (known.has(layer.name)) continue;
      known.add(layer.name);
      const key = make("button", bar, {className: "key", type: "button", title: "show or hide"});
      const dash = layer.dash.length ? ' stroke-dasharray="' + layer.dash.map(Number).join(" ") + '"' : "";
      key.innerHTML = '<svg width="28" height="8" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4"' + dash + "/></svg>";
      key.querySelector("line").style.cssText = "stroke:" + layer.color + ";stroke-width:" + Number(layer.width);
      key.append(layer.name);
      key.classList.toggle("off", hidden.has(layer.name));
      key.onclick = () => {
        if (!hidden.delete(layer.name)) hidden.add(layer.name);
        key.classList.toggle("off", hidden.has(layer.name));
        redraw();
      };
    }
    const buttons = make("div", bar, {className: "views"});
    for (const name of ["behind", "above", "left"]) {
      make("button", buttons, {type: "button", textContent: name, onclick: () => look(name)});
    }
    const halves = make("div", root, {className: "halves"});
    views = scene.panels.map(panel => {
      const half = make("figure", halves);
      make("figcaption", half, {textContent: panel.title});
      const canvas = make("canvas", half, {tabIndex: 0});
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", panel.title + ", 3D view; arrow keys turn it");
      listen(canvas);
      const lines = panel.layers.map(layer => ({...layer, lines: unpack(layer.lines)}));
      return {canvas, lines};
    });
    const hint = "Drag to turn, shift and drag to move, scroll to zoom: both views follow. Click a name above to hide it.";
    make("div", root, {className: "hint", textContent: hint});
  }
  function listen(canvas) {
    let held = null;
    canvas.onpointerdown = event => {
      held = event;
      canvas.setPointerCapture(event.pointerId);
      canvas.style.cursor = "grabbing";
    };
    canvas.onpointerup = canvas.onpointercancel = () => { held = null; canvas.style.cursor = ""; };
    canvas.onpointermove = event => {
      if (!held) return;
      const dx = event.clientX - held.clientX, dy = event.clientY - held.clientY;
      held = event;
      if (event.shiftKey) {
        const step = camera.far / 500, c = Math.cos(camera.yaw), s = Math.sin(camera.yaw);
        camera.x += step * (s * dx - c * dy); camera.y += step * (-c * dx - s * dy);
      } else turn(-dx * 0.006, dy * 0.006);
      redraw();
    };
    canvas.onwheel = event => {
      event.preventDefault();
      camera.far = Math.min(Math.max(camera.far * Math.exp(event.deltaY * 0.001), 3), 12 * scene.reach);
      redraw();
    };
    canvas.onkeydown = event => {
      const step = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08]}[event.key];
      if (!step) return;
      event.preventDefault(); event.stopPropagation();
      turn(...step); redraw();
    };
  }
  function turn(yaw, pitch) {
    camera.yaw += yaw;
    camera.pitch = Math.min(Math.max(camera.pitch + pitch, 0.03), 1.56);
  }
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }
  // Right, up and forward of the camera in metres; it stands at ``far`` from the point it turns about.
  function axes() {
    const cy = Math.cos(camera.yaw), sy = Math.sin(camera.yaw), cp = Math.cos(camera.pitch), sp = Math.sin(camera.pitch);
    return {right: [-sy, cy, 0], up: [-sp * cy, -sp * sy, cp], ahead: [-cp * cy, -cp * sy, -sp],
      eye: [camera.x + camera.far * cp * cy, camera.y + camera.far * cp * sy, camera.z + camera.far * sp]};
  }
  function draw() {
    if (!scene || !views.length) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2), box = views[0].canvas;
    const wide = Math.round(box.clientWidth * ratio), high = Math.round(box.clientHeight * ratio);
    if (!wide || !high) return;
    const a = axes(), focus = 1.1 * high, cloud = paint(a, focus, wide, high, ratio);
    for (const view of views) {
      if (view.canvas.width !== wide || view.canvas.height !== high) { view.canvas.width = wide; view.canvas.height = high; }
      const context = view.canvas.getContext("2d");
      context.putImageData(cloud, 0, 0);
      for (const layer of view.lines) if (!hidden.has(layer.name)) stroke(context, layer, a, focus, wide, high, ratio);
    }
  }
  function paint(a, focus, wide, high, ratio) {
    const image = new ImageData(wide, high), words = new Uint32Array(image.data.buffer);
    words.fill(0xff17110d);  // NIGHT as the canvas stores it: alpha, blue, green, red
    const depth = new Float32Array(wide * high).fill(1e9), [low, top] = scene.heights, last = scene.ramp.length - 1;
    const [rx, ry] = a.right, [ux, uy, uz] = a.up, [ax, ay, az] = a.ahead, [ex, ey, ez] = a.eye;
    for (let i = 0; i < points.length; i += 3) {
      const x = points[i] - ex, y = points[i + 1] - ey, z = points[i + 2] - ez, away = x * ax + y * ay + z * az;
      if (away < 0.3) continue;
      const column = (wide / 2 + focus * (x * rx + y * ry) / away) | 0;
      const row = (high / 2 - focus * (x * ux + y * uy + z * uz) / away) | 0;
      const size = Math.max(1, Math.round(ratio * Math.min(2.2, 26 / away)));
      if (column < 0 || row < 0 || column + size >= wide || row + size >= high) continue;
      const share = Math.min(Math.max((points[i + 2] - low) / (top - low), 0), 0.999) * last, k = share | 0, t = share - k;
      const from = scene.ramp[k], to = scene.ramp[k + 1];
      const color = (255 << 24) | ((from[2] + t * (to[2] - from[2])) << 16) | ((from[1] + t * (to[1] - from[1])) << 8) |
        (from[0] + t * (to[0] - from[0]));
      for (let v = 0; v < size; v++) for (let u = 0; u < size; u++) {
        const place = (row + v) * wide + column + u;
        if (away < depth[place]) { depth[place] = away; words[place] = color; }
      }
    }
    return image;
  }
  function stroke(context, layer, a, focus, wide, high, ratio) {
    const along = (axis, x, y, z) => x * axis[0] + y * axis[1] + z * axis[2];
    const seen = (xyz, i) => {
      const x = xyz[i] - a.eye[0], y = xyz[i + 1] - a.eye[1], z = xyz[i + 2] - a.eye[2];
      return [along(a.right, x, y, z), along(a.up, x, y, z), along(a.ahead, x, y, z)];
    };
    context.beginPath();
    for (let i = 0; i < layer.lines.length; i += 6) {
      let p = seen(layer.lines, i), q = seen(layer.lines, i + 3);
      if (p[2] < 0.3 && q[2] < 0.3) continue;
      if (p[2] < 0.3 || q[2] < 0.3) {  // cut at the camera's plane
        const t = (0.3 - p[2]) / (q[2] - p[2]), cut = [p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]), 0.3];
        if (p[2] < 0.3) p = cut; else q = cut;
      }
      context.moveTo(wide / 2 + focus * p[0] / p[2], high / 2 - focus * p[1] / p[2]);
      context.lineTo(wide / 2 + focus * q[0] / q[2], high / 2 - focus * q[1] / q[2]);
    }
    Object.assign(context, {strokeStyle: layer.color, lineWidth: layer.width * ratio, lineJoin: "round", lineCap: "butt"});
    context.setLineDash(layer.dash.map(part => part * ratio));
    context.stroke();
    context.setLineDash([]);
  }
  function show(next) {
    scene = next;
    points = unpack(scene.points);
    build();
    if (!placed) { placed = true; look("behind"); } else redraw();
    root.dataset.shown = version === null ? "0" : version;
  }
  window.addEventListener("resize", redraw);
  if (first) return show(first);
  // State, not messages: whatever was sent before this script was ready is still there to be read.
  const look_up = () => {
    let element = null;
    try { element = window.parent.document.getElementsByClassName(channel)[0]; } catch (error) { clearInterval(timer); }
    if (!element || element.dataset.version === version) return;
    version = element.dataset.version;
    show(JSON.parse(element.textContent));
  };
  const timer = setInterval(look_up, 150);
}
"""
