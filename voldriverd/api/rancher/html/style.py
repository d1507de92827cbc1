"""How pages look; the Content-Security-Policy names its hash."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 1rem auto; padding: 0 1rem; }
nav a:last-child { float: right; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note { padding: .5rem 1rem; border-left: .3rem solid #c60; background: #c602; overflow-wrap: anywhere; }
details { display: inline-block; vertical-align: top; margin: 0 .5rem .5rem 0; }
summary { cursor: pointer; padding: .2rem .7rem; border: 1px solid #888; border-radius: .3rem; list-style: none; }
details[open] { display: block; padding: 0 0 1rem; border-bottom: 1px solid #8884; }
details[open] > summary { display: inline-block; font-weight: bold; }
label { display: grid; grid-template-columns: 12rem minmax(0, 30rem) 1fr; gap: 1rem; margin: .4rem 0; }
fieldset { border: 0; margin: 0; padding: 0; }
input, select, textarea, button { font: inherit; }
small { opacity: .7; }
pre { font: 14px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { font-weight: normal; opacity: .7; }
"""
