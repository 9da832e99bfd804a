"""Writes fixtures/data: what Python's json, TRL and transformers make of training rows.

    python -m venv venv && venv/bin/pip install trl transformers jinja2
    venv/bin/python scripts/rows.py --output fixtures/data

`json.json` holds texts and what `json.loads` and `json.dumps` make of them (null where it refuses). `rows.json` holds rows
as they stand in a file and what a template that prints every message and tool sees of them: after TRL's
`maybe_convert_to_chatml` and its `json.loads` of `tools`, through transformers' `render_jinja_template`. Where TRL does
nothing, what other trainers do is written out here: arguments given as a string are parsed (axolotl's chat_template
strategy), parts that are all text are joined. Rows that Python libraries have no common reading of (ShareGPT's human and
gpt, Alpaca) are tested in Rust, after axolotl's roles and LLaMA-Factory's converter.
"""

import argparse
import json
from pathlib import Path

import transformers
import trl
from transformers.utils.chat_template_utils import render_jinja_template
from trl.data_utils import maybe_convert_to_chatml

TEXTS = [
    "null", "true", "false", "0", "-0", "-0.0", "1", "1.0", "1e5", "1E+5", "1e-7", "1e400", "-1e400", "1e-400", "NaN",
    "Infinity", "-Infinity", "-NaN", "+1", "01", "1.", ".5", "1e", "- 1", "0x1", "nan", "inf", "None", "True",
    "9007199254740993", "18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809",
    "123456789012345678901234567890", "-123456789012345678901234567890", "0.1", "123456789.123456789", "1.5e300", "100000000000000000000.0",
    '""', '"a"', '"\\n\\t\\r\\b\\f\\"\\\\\\/"', '"\\u00e9\\u4e2d"', '"\\ud83e\\udd80"', '"\\x41"', '"\\u12g4"', '"\\u12"', '"a', '"a\nb"',
    '"a\tb"', '"\u2028é🦀"', "'a'", "[]", "[1, 2]", "[1,]", "[,1]", "[1 2]", "[1", "]", "{}", '{"a": 1}', '{"a": 1,}', "{a: 1}", '{"a" 1}',
    '{"a": }', '{"a": 1', '{"b": 1, "a": {"c": [null, NaN]}}', "", " ", " 1 ", "1 2", "\t[\r\n1]\n", "[1]]", "{} // c", "/* c */ 1", "\ufeff1",
]

USER = {"role": "user", "content": "Oslo?"}
CALL = {"name": "w", "arguments": {"c": "Oslo", "n": None, "d": 1.0}}


def assistant(**fields):
    return {"role": "assistant", **fields}


def calls(call):
    return [{"type": "function", "function": call}]


TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {"c": {"type": "string"}}}}}
ROWS = {
    "messages": {"messages": [USER, assistant(content="Rain.")]},
    "key order": {"messages": [{"content": "x", "role": "user"}, {"name": "n", **assistant(content="y")}]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER, assistant(content="Rain.")]},
    "turns named user and assistant": {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
    "conversations with roles": {"conversations": [USER, assistant(content="Rain.")]},
    "messages with from": {"messages": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
    "prompt and completion": {"prompt": [USER], "completion": [assistant(content="Rain.")]},
    "tool calls": {"messages": [USER, assistant(content="", tool_calls=calls(CALL)), {"role": "tool", "name": "w", "content": "1"}]},
    "null beside tool calls": {"messages": [USER, assistant(content=None, tool_calls=calls(CALL))]},
    "no content beside tool calls": {"messages": [USER, assistant(tool_calls=calls(CALL))]},
    "bare call": {"messages": [USER, assistant(content="", tool_calls=[CALL])]},
    "tools": {"tools": [TOOL], "messages": [USER, assistant(content="Rain.")]},
    "tools in a string": {"tools": json.dumps([TOOL]), "messages": [USER, assistant(content="Rain.")]},
    "large numbers": {"messages": [USER, assistant(content="", tool_calls=calls({"name": "w", "arguments": {"a": 2**64, "b": -(2**100), "c": 2**63, "d": 2**126 + 1}}))]},
    "numbers that are none": {"score": float("nan"), "messages": [USER, assistant(content="", tool_calls=calls({"name": "w", "arguments": {"a": float("nan"), "b": float("-inf")}}))]},
    "reasoning_content": {"messages": [USER, assistant(content="Rain.", reasoning_content="hm")]},
    "reasoning": {"messages": [USER, assistant(reasoning="hm", content="Rain.")]},
    "thinking": {"messages": [USER, assistant(content="Rain.", thinking="hm")]},
    "two names of reasoning": {"messages": [USER, assistant(content="Rain.", thinking="a", reasoning="b", reasoning_content="c")]},
}
# Formats of other trainers, not of TRL: the row, and the equivalent messages.
OTHERS = {
    "arguments in a string": (
        {"messages": [USER, assistant(content="", tool_calls=calls({"name": "w", "arguments": json.dumps(CALL["arguments"])}))]},
        ROWS["tool calls"]["messages"][:2],
    ),
    "tool calls in a string": (
        {"messages": [USER, assistant(content="", tool_calls=json.dumps(calls(CALL)))]},
        ROWS["tool calls"]["messages"][:2],
    ),
    "function_call": (
        {"messages": [USER, assistant(content=None, function_call={"name": "w", "arguments": "{\"c\": 1}"}), {"role": "function", "name": "w", "content": "1"}]},
        [USER, assistant(content=None, tool_calls=calls({"name": "w", "arguments": {"c": 1}})), {"role": "tool", "name": "w", "content": "1"}],
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name", "image_url": None}, {"type": "text", "text": " a fruit"}, "!"]}, assistant(content=[{"type": "text", "text": "A pear"}])]},
        [{"role": "user", "content": "Name a fruit!"}, assistant(content="A pear")],
    ),
    "columns of an export": (
        {"messages": [{**USER, "tool_calls": None, "name": None, "weight": None}, {**assistant(content="Rain."), "tool_calls": [], "train": float("nan")}], "tools": None, "text": None},
        [USER, assistant(content="Rain.")],
    ),
}
TEMPLATE = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"


def python(text: str):
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return None


def rendered(messages, tools) -> str:
    return render_jinja_template(conversations=[messages], tools=tools, chat_template=TEMPLATE)[0][0]


def seen(row: dict) -> str:
    row = maybe_convert_to_chatml(json.loads(json.dumps(row)))
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    tools = row.get("tools")
    return rendered(messages, json.loads(tools) if isinstance(tools, str) else tools)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write, usually `fixtures/data`")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    made_with = f"transformers {transformers.__version__}, TRL {trl.__version__}"
    texts = [{"text": text, "python": python(text)} for text in TEXTS]
    rows = [{"name": name, "row": json.dumps(row), "seen": seen(row)} for name, row in ROWS.items()]
    rows += [{"name": name, "row": json.dumps(row), "seen": rendered(messages, None)} for name, (row, messages) in OTHERS.items()]
    for name, cases in [("json", texts), ("rows", rows)]:
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        (output / f"{name}.json").write_text(f'{{"made_with": "{made_with}", "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
