"""The page's look: readable on light and dark screens, and on paper."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ground:#f6f6f3;--card:#fff;--ink:#1d2329;--soft:#5d6872;--faint:#a3adb5;--line:#e2e4e2;
--accent:#1f6f8b;--bad:#c02b2b}
@media(prefers-color-scheme:dark){:root{--ground:#14181c;--card:#1c2228;--ink:#e6eaed;--soft:#9eaab4;--faint:#6d7983;
--line:#303840;--accent:#6cc0db;--bad:#ff8080}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.25;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:19px;margin:0 0 6px}
h3{font-size:15px;margin:22px 0 6px;color:var(--soft);font-weight:600}
p{margin:6px 0;max-width:86ch}
.lead,.note,figcaption,.small{color:var(--soft)}
.note,figcaption{font-size:13px}
.note{max-width:125ch}
.nowrap,td.number{white-space:nowrap}
figcaption{margin-top:7px;line-height:1.45}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:22px;white-space:nowrap;font-weight:650;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile span{display:block;font-size:12.5px;color:var(--soft);line-height:1.4}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;border-bottom:1.5px solid var(--faint);vertical-align:bottom}
th.number,td.number{text-align:right}
.compact table{font-size:12.5px}.compact th,.compact td{padding:6px 7px}
tbody tr:last-child td{border-bottom:0}
.small{display:block;font-size:11.5px;line-height:1.4;font-weight:400;white-space:nowrap}
.small.inline{display:inline;white-space:normal}
abbr{text-decoration:underline dotted var(--faint);text-underline-offset:3px;cursor:help}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;vertical-align:-1px}
svg{display:block;width:100%;height:auto;margin:10px 0 2px}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif!important}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:18px;margin:14px 0}
figure{margin:0}
.cases .frame{background:#000;border-radius:8px;overflow:hidden;display:flex;justify-content:center;align-items:center;
height:250px}
.cases img{max-width:100%;max-height:250px;display:block}
.cases figcaption b{color:var(--ink);font-weight:600}
.bad{color:var(--bad);font-weight:600}
dl{margin:10px 0;font-size:13.5px}
dt{font-weight:600;margin-top:10px}
dd{margin:1px 0 0;color:var(--soft);max-width:100ch}
code{font-size:12.5px;word-break:break-all}
summary{cursor:pointer;color:var(--accent);font-weight:600}
@media print{:root{color-scheme:light;--ground:#fff;--card:#fff;--ink:#000;--soft:#444;--faint:#888;--line:#ccc}
main{max-width:none;padding:0}section{border:0;padding:0;margin:18px 0}table{font-size:10px}th,td{padding:4px 5px}
.small{font-size:8.5px}tr,figure,.tile,svg,h2,h3{break-inside:avoid}h2,h3{break-after:avoid}.scroll{overflow:visible}
details>*{display:block}}
"""
