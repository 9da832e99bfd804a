"""`templates/micro.json`: small Jinja templates and what jinja2 renders from them.

The environment is transformers' own (`_compile_jinja_template`), with a stopped clock. A case has either `expected`, the
text, or `error`, the name of the exception that jinja2 raises. Nothing here is random.

    venv/bin/python -m reference_fixtures.templates ../fixtures/templates      (in scripts/)
"""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

from . import template_cases as cases
from . import template_cases_tags as tags

# 2025-03-07 00:00:00 UTC, a Friday
CLOCK = datetime.fromtimestamp(1_741_305_600, timezone.utc)


def render(source: str) -> dict[str, str]:
    try:
        template = _compile_jinja_template(source)
        template.globals["strftime_now"] = lambda format: CLOCK.strftime(format)
        text = template.render(
            messages=cases.MESSAGES,
            tools=cases.TOOLS,
            documents=None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
        text.encode()
    except Exception as error:  # whatever Python raises is the expected failure
        return {"template": source, "error": type(error).__name__}
    if " at 0x" in text:
        return {"template": source, "error": "address"}  # the text differs from run to run
    return {"template": source, "expected": text}


def write_all(folder: Path) -> None:
    groups = {
        "printing": cases.PRINTING,
        "strings": cases.STRINGS,
        "methods": cases.METHODS,
        "numbers": cases.NUMBERS,
        "filters": cases.FILTERS,
        "loops": tags.LOOPS,
        "scopes": tags.SCOPES,
        "macros": tags.MACROS,
        "whitespace": tags.WHITESPACE,
        "families": tags.FAMILIES,
    }
    rendered = {name: [render(source) for source in sources] for name, sources in groups.items()}
    content = {"messages": cases.MESSAGES, "tools": cases.TOOLS, "groups": rendered}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "micro.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    count = sum(len(group) for group in rendered.values())
    print(f"{count} micro-templates, {sum('error' in c for g in rendered.values() for c in g)} of them errors")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
