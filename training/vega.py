"""Vega-Lite charts as SVG, and the JavaScript that makes them interactive.

Charts are specified with Altair and rendered by vl-convert, which contains Vega and needs no network.
"""

import json
import re
from functools import cache
from typing import Any, Final

import vl_convert
from markupsafe import escape

VEGA_LITE: Final = "6.4"
SCHEMA: Final = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.partition('.')[0]}.json"
# Vega writes the description of a mark as a label for screen readers only. A title is also a tooltip.
_DESCRIBED_MARK: Final = re.compile(r'<path aria-label="([^"]*)"([^>]*)/>')


def svg(spec: dict[str, Any], css: str = "") -> str:
    """Render a specification. The description of a mark becomes its tooltip; `css` is a style sheet to include."""
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=VEGA_LITE)
    drawn = _DESCRIBED_MARK.sub(r"<path\2><title>\1</title></path>", drawn)
    label = f'<svg role="img" aria-label="{escape(spec["description"])}" '
    return drawn.replace("<svg ", label, 1).replace(">", f"><style>{css}</style>" if css else ">", 1)


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    # An HTML element that contains the script must not end within it.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
