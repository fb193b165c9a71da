"""The look of the report: one style sheet, no font or picture from elsewhere."""

from __future__ import annotations

STYLE = """
:root { --ink:#1f2933; --soft:#5b6875; --line:#e2e8ee; --paper:#ffffff; --wash:#f6f8fa; --accent:#0072B2;
  --good:#00765a; --bad:#b3400a; --open:#6b5300; --code:#eef2f6; }
* { box-sizing:border-box; }
html { scroll-behavior:smooth; scroll-padding-top:1.5rem; -webkit-text-size-adjust:100%; }
body { margin:0; color:var(--ink); background:var(--paper); font:16px/1.6 "Inter","Segoe UI",system-ui,-apple-system,Roboto,
  "Helvetica Neue","DejaVu Sans",sans-serif; font-variant-numeric:tabular-nums; }
.banner { background:#fff4d6; color:#5c4300; border-bottom:1px solid #f0d794; padding:.55rem 1.5rem; font-size:.92rem;
  text-align:center; }
.page { display:grid; grid-template-columns:15rem minmax(0,60rem); gap:3rem; max-width:80rem; margin:0 auto;
  padding:2.5rem 1.5rem 5rem; }
nav { position:sticky; top:1.5rem; align-self:start; font-size:.88rem; max-height:calc(100vh - 3rem); overflow:auto; }
nav p { margin:0 0 .5rem; color:var(--soft); font-size:.72rem; letter-spacing:.08em; text-transform:uppercase; }
nav a { display:block; padding:.22rem 0 .22rem .8rem; color:var(--soft); text-decoration:none;
  border-left:2px solid var(--line); }
nav a:hover { color:var(--accent); border-color:var(--accent); }
main { min-width:0; }
h1 { font-size:2.1rem; line-height:1.2; letter-spacing:-.02em; margin:0 0 .4rem; }
h2 { font-size:1.4rem; letter-spacing:-.01em; margin:3.2rem 0 .8rem; padding-top:1.2rem; border-top:1px solid var(--line); }
p { margin:0 0 .9rem; max-width:46rem; }
.lead { color:var(--soft); font-size:1.08rem; max-width:46rem; }
code { background:var(--code); border-radius:4px; padding:.1em .35em;
  font:.88em/1.4 ui-monospace,"SF Mono","DejaVu Sans Mono",monospace; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(11rem,1fr)); gap:.9rem; margin:1.6rem 0; }
.tile { background:var(--wash); border:1px solid var(--line); border-radius:10px; padding:.9rem 1.1rem; }
.tile b { display:block; font-size:1.75rem; line-height:1.25; letter-spacing:-.02em; }
.tile span { display:block; color:var(--soft); font-size:.84rem; line-height:1.4; }
.tile.teacher b { color:#0072B2; } .tile.student b { color:#A66A00; } .tile.truth b { color:#00765a; }
.verdicts { list-style:none; margin:1.4rem 0; padding:0; border:1px solid var(--line); border-radius:10px; overflow:hidden; }
.verdicts li { display:grid; grid-template-columns:6.2rem 1fr; gap:.9rem; padding:.75rem 1.1rem;
  border-top:1px solid var(--line); }
.verdicts li:first-child { border-top:0; }
.verdicts .mark { font-weight:700; font-size:.86rem; padding-top:.1rem; }
.met .mark { color:var(--good); } .unmet .mark { color:var(--bad); } .open .mark { color:var(--open); }
.met { background:#f2faf7; } .unmet { background:#fdf5f0; } .open { background:#fdf9ec; }
.verdicts small { display:block; color:var(--soft); font-size:.9rem; }
figure { margin:1.4rem 0; }
figure img { display:block; max-width:100%; height:auto; border:1px solid var(--line); border-radius:8px; }
figcaption { color:var(--soft); font-size:.88rem; margin-top:.5rem; max-width:46rem; }
.scene { border-radius:8px; overflow:hidden; background:#0d1117; }
.scroll { overflow-x:auto; margin:1.2rem 0; }
table { border-collapse:collapse; font-size:.92rem; min-width:50%; }
caption { text-align:left; color:var(--soft); font-size:.88rem; padding-bottom:.5rem; }
th { text-align:left; font-weight:600; border-bottom:2px solid var(--ink); padding:.4rem 1rem .4rem 0; white-space:nowrap;
  vertical-align:bottom; }
td { border-bottom:1px solid var(--line); padding:.4rem 1rem .4rem 0; vertical-align:top; }
th.number, td.number { text-align:right; white-space:nowrap; }
tr.strong td { font-weight:650; background:var(--wash); }
.note { color:var(--soft); font-size:.88rem; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.3rem 1.6rem; font-size:.9rem; margin:1.2rem 0; }
dt { color:var(--soft); } dd { margin:0; overflow-wrap:anywhere; }
footer { color:var(--soft); font-size:.84rem; margin-top:4rem; border-top:1px solid var(--line); padding-top:1rem; }
@media (max-width:60rem) { .page { grid-template-columns:minmax(0,1fr); gap:0; padding-top:1.5rem; } nav { display:none; } }
@media print { nav, .scene { display:none; } .page { display:block; } h2 { break-after:avoid;
  } figure, table { break-inside:avoid; } }
"""
