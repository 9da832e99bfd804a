"""The micro-templates of `fixtures/templates`: one construct of Jinja2 or of Python each.

Every string here is rendered by the real jinja2 in transformers' environment (see `templates.py`).
"""

MESSAGES = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": " Hello, World! "},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "arguments": {
                        "city": "Zürich",
                        "days": 3,
                        "big": 123456789012345678901234567890,
                        "ratio": 1e-7,
                        "flag": True,
                        "none": None,
                        "list": [1, 2.5, "x", [], {}],
                    },
                },
            }
        ],
    },
    {"role": "tool", "name": "get_weather", "content": "22.0"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}], "weight": 0},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Get the "weather" of a city\nnow',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "City <name> & 'more'"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "Add", "parameters": {"type": "object", "properties": {}}}},
]


def expressions(*sources: str) -> list[str]:
    return ["{{ " + source + " }}" for source in sources]


PRINTING = expressions(
    "none", "true", "False", "None", "1", "-1", "1.0", "1e-7", "1e-5", "0.0001", "1e15", "1e16", "123456789.123456789",
    "1.5e300", "1e400", "-1e400", "1e22", "100000000000000000000.0", "0.1 + 0.2", "1/3", "2/1", "-0.0", "5e-324",
    "123456789012345678901234567890", "1_000", "0x1F", "0b101", "0o17", "1_0.5_0e1", "00", "'a' 'b'", '"it\'s"',
    "[]", "{}", "()", "(1,)", "(1, 2)", "1, 2", "[1, 'a', none, true, 1.0]", "{'a': 1, 'b': [none]}", "{1: 2, none: 3}",
    "['it\\'s', 'say \"x\"', 'both\\'\"']", "['\\n\\t\\r\\\\', 'é', '\\x00\\x7f', '\\u200b', '🦀', '\\xad', '\\u00a0']",
    "{'a': ('b', {'c': []})}", "[[[1]]]", "range(3)", "range(1, 10, 2)", "range(3) | list", "{'a': 1}.items()",
    "{'a': 1}.keys()", "{'a': 1}.values()", "namespace(a=1, b='x')", "messages[1]", "messages[2].tool_calls",
    "tools[0].function.parameters", "undefined_name", "[undefined_name]", "bos_token", "eos_token", "tools is none",
    "messages[2].content", "messages[0].missing", "messages[3].content | float", "true ~ none ~ 1.0 ~ [1]",
    "1e3", "1E3", "1e+3", "1.e", "3.14159", "12345678901234567.0", "[1e16, 1e-5, 1.0]", "(true, none)",
)
STRINGS = expressions(
    r"'a\nb'", r"'\x41\u00e9\U0001F980'", r"'\101\60'", r"'\d\w'", r"'\é'", r"'a\
b'", "'tab\\tend'", r"'\\n'", r"'\''", r'"\""', r"'\a' == '\x07'", r"'\N{BULLET}'", r"'\xZZ'", r"'\u12'", "'é' | length",
    "'🦀x'[1]", "'abc'[-1]", "'abc'[1:]", "'abc'[:-1]", "'abc'[::-1]", "'abcdef'[1:5:2]", "'abcdef'[5:1:-2]",
    "'abc'[10:]", "'abc'[-10:2]", "'abc'[5]", "'abc'[::0]", "'abc'['upper']()", "'abc'.foo", "'a' in 'abc'", "1 in 'abc'",
    "'abc' * 2", "2 * 'abc'", "'abc' * -1", "'a' * true", "'a' + 'b'", "'a' + 1", "1 + 'a'", "'a' ~ 1 ~ none", "'b' > 'a'",
    "'a' < 1", "'Z' < 'a'", "'é' > 'z'", "'abc' == \"abc\"", "'a' == 1", "'' or 'x'", "'x' and 'y'", "not ''", "'abc' is sequence",
    "'abc' is iterable", "'abc' is string", "'abc' is mapping", "'%s' % 'x'", "'%s' % 1.0", "'%s and %s' % (1, 'b')",
    "'%d' % 3.9", "'%05d|%-5d|%+d|% d' % (42, 42, 42, 42)", "'%.2f' % 3.14159", "'%5.1f|%-7.2f|%07.2f' % (1.25, 2.5, -3.125)",
    "'%e %E %g %G' % (12345.678, 0.00012, 1e-5, 1e20)", "'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)", "'%c%c' % (65, 'z')",
    "'%r %a' % ('é', 'é')", "'%%' % ()", "'%(a)s-%(b)03d' % {'a': 'x', 'b': 7}", "'%s' % [1, 2]", "'%s' % {'a': 1}",
    "'%s' % none", "'%s' % undefined_name", "'%s %s' % ('a',)", "'%s' % ('a', 'b')", "'%d' % 'x'", "'%y' % 1", "'%' % 1",
    "'abc' % 1", "'abc' % []", "'%*d' % (5, 3)", "'%.*f' % (2, 1.005)", "'%5s|%-5s|' % ('ab', 'cd')", "'%.2s' % 'abcdef'",
    "'%i' % true", "'%s' | format(3)", "'%(x)s' | format(x=3)", "'%s %s' | format('a', 'b')", "'%g' % 100000.0", "'%g' % 1000000.0",
    "'%g' % 1.5", "'%#g' % 1.5", "'%.3g' % 1234.5", "'%.0f' % 2.5", "'%.0f' % 3.5", "'%.1f' % 0.25",
)
METHODS = expressions(
    "'hello world'.title()", "\"they're bill's\".title()", "'HELLO'.title()", "'a1b2'.title()", "'ß ﬁ ǆ'.title()",
    "'hello World'.capitalize()", "'éCOLE'.capitalize()", "'ABC'.lower()", "'abc ß'.upper()", "'ΑΣ'.lower()", "'aBc'.swapcase()",
    "'Straße'.casefold()", "'abc'.center(9)", "'abc'.center(8, '*')", "'ab'.center(5, '-')", "'abc'.ljust(6) ~ '|'",
    "'abc'.rjust(6, '.')", "'abc'.center(2)", "'abc'.ljust(5, 'xy')", "'42'.zfill(5)", "'-42'.zfill(5)", "'+4'.zfill(4)", "'abc'.zfill(2)",
    "'banana'.count('an')", "'banana'.count('a', 2)", "'banana'.count('a', 1, 4)", "'aaa'.count('')", "'banana'.find('n')",
    "'banana'.find('n', 3)", "'banana'.find('x')", "'banana'.rfind('n')", "'banana'.index('n')", "'banana'.index('x')",
    "'banana'.rindex('a', 0, 4)", "'héllo'.find('l')", "'abc'.startswith('a')", "'abc'.startswith('b', 1)", "'abc'.startswith(('x', 'a'))",
    "'abc'.startswith('')", "'abc'.startswith(1)", "'abc'.endswith('c')", "'abc'.endswith('b', 0, 2)", "'abc'.endswith(('b', 'c'))",
    "'abc'.startswith(['a'])", "'abc'.startswith('', 4)", "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)", "'a,b,c'.split(sep=',', maxsplit=1)",
    "' a  b\\tc\\n'.split()", "' a  b c '.split(none, 1)", "''.split()", "''.split(',')", "'a'.split('')", "'a,b,c'.rsplit(',', 1)",
    "' a b c '.rsplit(none, 1)", "'a--b--c'.rsplit('--')", "'aXbXc'.split('X')[-1]", "'a.b.c'.partition('.')", "'abc'.partition('.')",
    "'a.b.c'.rpartition('.')", "'abc'.rpartition('.')", "'abc'.partition('')", "'prefix_x'.removeprefix('prefix_')",
    "'prefix_x'.removeprefix('no')", "'x.py'.removesuffix('.py')", "'x.py'.removesuffix('')", "'a\\nb\\r\\nc'.splitlines()",
    "'a\\nb\\n'.splitlines(true)", "'a\\x0bb\\x1cc\\u2028d'.splitlines()", "''.splitlines()", "'  x '.strip() ~ '|'", "'xxaxx'.strip('x')",
    "'abcba'.lstrip('ab')", "'abcba'.rstrip('ab')", "'\\u00a0\\x1fx\\u3000'.strip()", "'x'.strip(none)", "'a-b-c'.replace('-', '+')",
    "'a-b-c'.replace('-', '+', 1)", "'abc'.replace('', '.')", "'abc'.replace('b', '')", "'aaa'.replace('a', 'b', -1)", "'a'.replace(old='a', new='b')",
    "'-'.join(['a', 'b'])", "'-'.join('abc')", "'-'.join([1])", "', '.join({'a': 1, 'b': 2})", "''.join([])", "'a\\tb'.expandtabs()",
    "'a\\tb'.expandtabs(4)", "'abc1'.isalnum()", "'abc'.isalpha()", "'é'.isascii()", "'12'.isdecimal()", "'²'.isdigit()", "'½'.isnumeric()",
    "'x_1'.isidentifier()", "'1x'.isidentifier()", "'abc'.islower()", "'a1'.islower()", "'1'.islower()", "'a b'.isprintable()",
    "' \\t'.isspace()", "''.isspace()", "'Ab Cd'.istitle()", "'AB'.isupper()", "'abc'.encode()", "'ab'.translate({97: 'x', 98: none})",
    "'{} {}'.format(1, 'a')", "'{1} {0}'.format('a', 'b')", "'{x} {y}'.format(x=1, y='z')", "'{0[0]} {0[1]}'.format([1, 2])",
    "'{a.role}'.format(a=messages[0])", "'{a[role]}'.format(a=messages[0])", "'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd')",
    "'{:05d} {:+d} {:,} {:_}'.format(42, 42, 1234567, 1234567)", "'{:.2f} {:8.3f} {:e} {:g}'.format(3.14159, 2.5, 12345.6789, 0.00001)",
    "'{:x} {:X} {:o} {:b} {:#x} {:#b} {:c}'.format(255, 255, 8, 5, 255, 5, 65)", "'{:%} {:.1%}'.format(0.25, 0.123)",
    "'{!r} {!s} {!a}'.format('é', 'é', 'é')", "'{{}} {}'.format(1)", "'{:{}}|'.format('a', 5)", "'{:.{p}f}'.format(3.14159, p=1)",
    "'{}'.format()", "'{'.format()", "'}'.format()", "'{} {0}'.format(1)", "'{x}'.format()", "'{:d}'.format('a')", "'{:s}'.format(1)",
    "'{:.3}'.format('abcdef')", "'{:.3}'.format(3.14159)", "'{:.3}'.format(1234.5)", "'{}'.format(none)", "'{:5}'.format(none)", "'{}'.format([1])",
    "'{:>5}'.format(true)", "'{:5}|{:5}|'.format(1, 'a')", "'{:.2}'.format(1.0)", "'{:n}'.format(5)", "'{:010.3f}'.format(-3.14159)", "'{0.__class__}'.format(1)",
    "'{x}'.format_map({'x': 1})", "messages[0].get('role')", "messages[0].get('x')", "messages[0].get('x', 'd')", "messages[0].keys() | list",
    "messages[0].values() | list", "messages[0].items() | list", "'role' in messages[0].keys()", "messages[0].copy()", "messages[0].update({'a': 1})",
    "messages[0].pop('role')", "[1].append(2)", "[1].append", "{'a': 1}.setdefault('b', 2)", "{'update': 1}.update", "{'update': 1}['update']",
    "{'items': 1}['items']", "{'foo': 1}.foo", "{'a b': 1}['a b']", "[1, 2, 1].count(1)", "[1, 2, 1].index(2)", "[1].index(3)", "(1, 2).index(2)",
    "[1, 2].copy()", "[3, 1].sort()", "dict(a=1, b=2)", "dict([('a', 1)], c=3)", "dict({'a': 1}, a=2)", "dict.fromkeys(['a', 'b'], 0)", "(5).bit_length()",
    "5 .real", "1.5.is_integer()", "(2.0).is_integer()", "'a'.__class__", "''.__class__.__mro__", "messages.__len__", "messages[0]._private", "{'_x': 1}._x",
    "'abc'.upper", "'abc'|attr('upper')", "messages[0]|attr('role')", "(messages[0]|attr('get'))('role')", "'a'.nope()", "none.x", "none.x.y", "1 .foo", "[].foo", "[1]['a']", "{}[[]]",
)
NUMBERS = expressions(
    "7 // 2", "-7 // 2", "7 // -2", "7 % 3", "-7 % 3", "7 % -3", "7.5 % 2", "-7.5 % 2", "7.5 // 2", "-7.5 // 2", "1 / 2", "4 / 2", "2 ** 3", "2 ** -1",
    "2 ** 3 ** 2", "-2 ** 2", "2 ** 0.5", "2 ** 100", "0 ** 0", "1 / 0", "1 // 0", "1 % 0", "1.0 / 0", "0 ** -1", "+1", "+ -1", "- -1", "-+1", "+'a'", "-none",
    "1 + true", "true + true", "1 + none", "1 - 'a'", "3 - 1.5", "1 == 1.0", "1 == true", "0 == false", "none == false", "1 < 2 < 3", "1 < 3 < 2", "1 < 2 == 2",
    "1 != 2 != 1", "3 > 2 >= 2", "1 < none", "none < none", "[1, 2] < [1, 3]", "[1] < [1, 0]", "(1, 2) == [1, 2]", "[1, 'a'] < [1, 2]", "{'a': 1} == {'a': 1.0}",
    "{} < {}", "1 in [1.0]", "true in [1]", "none in [none]", "'a' in {'a': 1}", "2 in {'a': 1}", "1 not in [1]", "not 1 in [1]", "1 in 5", "1 in none",
    "1 in undefined_name", "2 in range(3)", "5 in range(3)", "10 | round", "2.5 | round", "3.5 | round", "2.675 | round(2)", "1234 | round(-2)", "1250 | round(-2)",
    "1234.5 | round(-2)", "1250.5 | round(-2)", "1250.0 | round(-2)", "1350.0 | round(-2)", "-1250.5 | round(-2)", "-1250 | round(-2)", "-1350 | round(-2)", "5.5 | round(-1)", "4.9 | round(-1)", "1e300 | round(-2)", "2.1 | round(0, 'ceil')", "2.9 | round(method='floor')", "2.123 | round(2, 'ceil')", "5 | round(1, 'floor')", "'a' | round", "-5 | abs", "-5.5 | abs",
    "'a' | abs", "'42' | int", "'42.7' | int", "'x' | int", "'x' | int(7)", "'0x1F' | int(base=16)", "'ff' | int(0, 16)", "'1_000' | int", "' 12 ' | int", "'-0b11' | int(0, 2)",
    "42.9 | int", "-42.9 | int", "none | int", "true | int", "[] | int(3)", "'1e3' | int", "'3.5' | float", "'x' | float", "'x' | float(1.5)", "none | float", "'inf' | float",
    "' 1e3 ' | float", "'1_0.5' | float", "3 | float", "undefined_name | int", "170141183460469231731687303715884105727", "99999999999999999999 + 1",
    "messages[2].tool_calls[0].function.arguments.big", "messages[2].tool_calls[0].function.arguments.big + 1", "7.0 // 0.5", "1e308 * 10", "(0.1).real", "3 | string + 'x'",
    "1 if true", "(1 if false) is defined", "1 if false", "1 if false else 2", "1 if 0 else 2 if 0 else 3", "true and 1 or 2", "0 or none", "none or 0", "1 and none", "not none", "not not 1",
    "1 is odd", "2 is even", "-1 is odd", "10 is divisibleby 5", "10 is divisibleby(3)", "'a' is odd", "5 is number", "true is number", "'5' is number", "5 is integer", "true is integer",
    "5.0 is float", "5 is float", "true is boolean", "1 is boolean", "true is true", "1 is true", "false is false", "none is none", "undefined_name is none", "none is iterable", "5 is iterable",
    "[1] is iterable", "{} is iterable", "undefined_name is iterable", "undefined_name is sequence", "none is sequence", "{} is sequence", "{} is mapping", "[] is mapping", "'a' is lower",
    "'A' is upper", "1 is lower", "none is string", "undefined_name is defined", "messages is defined", "messages[0].x is undefined", "range is callable", "'a' is callable", "none is sameas none",
    "true is sameas true", "1 is sameas true", "1 is eq 1", "1 is equalto 2", "1 is ne 2", "1 is lt 2", "2 is gt(1)", "2 is ge 2", "2 is le 1", "1 is in [1, 2]", "1 is not in [1, 2]",
    "'a' is in 'abc'", "1 is not none", "1 is not odd", "5 is not divisibleby 2", "'trim' is filter", "'nope' is filter", "'odd' is test", "'nope' is test", "1 is nope", "[1,2] is sequence",
    "(1,) is sequence", "range(2) is sequence", "'x' is escaped", "1 is greaterthan 0", "1 is lessthan 0", "loop is defined", "messages[0] is mapping", "messages[0].items() is iterable", "messages[0].items() is sequence",
)
FILTERS = expressions(
    "[3, 1, 2] | sort", "[3, 1, 2] | sort(reverse=true)", "['b', 'A', 'c'] | sort", "['b', 'A', 'c'] | sort(case_sensitive=true)", "[1, 'a'] | sort", "[none, none] | sort",
    "[{'a': 2}, {'a': 1}] | sort(attribute='a')", "[{'a': 1, 'b': 2}, {'a': 1, 'b': 1}] | sort(attribute='a,b')", "['b', 'B', 'a'] | sort(reverse=true)", "{'b': 1, 'a': 2} | dictsort",
    "{'b': 1, 'a': 2} | dictsort(by='value')", "{'b': 1, 'A': 2} | dictsort(true)", "{'b': 1, 'a': 2} | dictsort(reverse=true)", "[1] | dictsort", "[1, 2, 1, 'A', 'a'] | unique | list",
    "['A', 'a'] | unique(true) | list", "[{'x': 1}, {'x': 1}] | unique(attribute='x') | list", "[[1], [1]] | unique | list", "[1, 2, 3] | sum", "[[1], [2]] | sum(start=[])",
    "[{'a': 1}, {'a': 2}] | sum('a')", "['a'] | sum", "[0.1, 0.2] | sum", "[1, 3, 2] | max", "[1, 3, 2] | min", "[] | max", "['b', 'A'] | min", "['b', 'A'] | max(case_sensitive=true)",
    "[{'a': 1}, {'a': 3}] | max(attribute='a')", "[1, 2, 3] | first", "[] | first", "[1, 2, 3] | last", "'abc' | last", "{'a': 1} | first", "[1, 2] | map('string') | first", "([1] | map('string')) | last",
    "[1, 2] | length", "'abc' | count", "5 | length", "none | length", "undefined_name | length", "([1] | map('int')) | length", "{'a': 1} | length", "[1, 2, 3] | reverse | list", "'abc' | reverse",
    "{'a': 1, 'b': 2} | reverse | list", "5 | reverse", "[1, 2, 3, 4, 5] | batch(2) | list", "[1, 2, 3] | batch(2, 0) | list", "[1, 2, 3, 4, 5] | slice(2) | list", "[1, 2, 3] | slice(2, 0) | list",
    "[1, 2] | join", "[1, none, 'a', 2.0] | join(', ')", "[{'a': 1}, {'a': 2}] | join('-', attribute='a')", "'abc' | join('.')", "undefined_name | join", "none | join", "[1, 2] | join(d='|')",
    "[[1, 2], [3]] | map('join', '+') | join(' ')", "['a', 'b'] | map('upper') | list", "[1, 2] | map('string') | join", "[{'a': 1}, {}] | map(attribute='a') | list", "[{'a': 1}, {}] | map(attribute='a', default=0) | list",
    "[{'a': {'b': 1}}] | map(attribute='a.b') | list", "[[1, 2]] | map(attribute=1) | list", "[[5, 6]] | map(attribute='0') | list", "['a'] | map('replace', 'a', 'b') | list", "[1] | map | list", "[1] | map('nope') | list",
    "[0, 1, 2] | select | list", "[0, 1, 2] | select('odd') | list", "[0, 1, 2] | reject('odd') | list", "[0, 1, 2] | select('gt', 0) | list", "[0, 1] | reject | list", "messages | selectattr('role', 'equalto', 'user') | list | length",
    "messages | selectattr('role', '==', 'user') | map(attribute='content') | first", "messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join(',')", "messages | selectattr('tool_calls') | list | length",
    "messages | selectattr('tool_calls', 'defined') | map(attribute='role') | list", "messages | rejectattr('name', 'defined') | list | length", "messages | selectattr('role', 'in', ['tool', 'system']) | map(attribute='role') | join(' ')",
    "tools | map(attribute='function.name') | list", "tools | map(attribute='function') | map(attribute='name') | join(', ')", "[1, 2, 3] | select('in', [1, 3]) | list", "[1] | selectattr | list", "['x'] | select('nope') | list",
    "'abc' | replace('b', 'X')", "'aaa' | replace('a', 'b', 2)", "123 | replace(2, 'x')", "'a' | upper", "'A' | lower", "1 | upper", "'hello wORLD foo-bar (baz)' | title", "\"it's\" | title", "'hELLO' | capitalize", "'  x ' | trim ~ '|'",
    "'xxaxx' | trim('x')", "'abc' | center(9)", "'a' | center", "'a b c' | wordcount", "'x' | string", "1.0 | string", "[1] | string", "none | string", "'a<b>&\"\\'' | e", "'<' | escape", "'<a>' | safe", "'<' | forceescape", "('<' | e) ~ '<'", "('<' | e) + '<'", "'<' + ('>' | safe)",
    "[('<' | e)]", "'abc' | length", "undefined_name | default('x')", "none | default('x')", "none | default('x', true)", "'' | d('x', true)", "'' | d('x')", "undefined_name | default", "messages[0].x | default(5)", "undefined_name.x | default(1)",
    "'a\\nb' | indent", "'a\\nb\\n\\nc' | indent(2)", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent(2, first=true, blank=true)", "'a\\nb' | indent('> ')", "5 | indent", "'a\\r\\nb' | indent(1)", "'' | indent", "'foo bar baz qux' | truncate(9)", "'foo bar baz' | truncate(6, true)",
    "'foo bar baz qux quux' | truncate(11, leeway=0)", "'foo bar baz' | truncate(9, end='..', leeway=0)", "'abc' | list", "{'a': 1} | list", "5 | list", "none | list", "undefined_name | list", "(1, 2) | list", "{'a': 1, 'b': 2} | items | list", "undefined_name | items | list", "[1] | items | list",
    "[{'k': 'a', 'v': 1}, {'k': 'b', 'v': 2}, {'k': 'a', 'v': 3}] | groupby('k')", "[{'k': 'a'}, {'k': 'B'}, {'k': 'A'}] | groupby('k') | map('first') | list", "[{'k': 1}, {}] | groupby('k', default=0) | list", "1000000 | filesizeformat", "1 | filesizeformat", "500 | filesizeformat",
    "1024 | filesizeformat(true)", "1500000000 | filesizeformat", "'a b/c?é' | urlencode", "{'a': 1, 'b': 'x y'} | urlencode", "'x' | nope", "5 | attr('real')", "'%s' | format", "1 | pprint", "['a'] | tojson", "messages[2] | tojson", "tools | tojson", "tools[0] | tojson(indent=2)",
    "tools[0] | tojson(indent=4, ensure_ascii=true)", "{'é': '\\u2028<&>\\''} | tojson", "'é🦀\\x7f' | tojson(ensure_ascii=true)", "{'b': 1, 'a': 2} | tojson(sort_keys=true)", "{'a': [1, 2]} | tojson(separators=(',', ':'))", "[1, [], {}] | tojson(indent=1)", "{'a': 1} | tojson(indent='\\t')",
    "{1: 2, none: 3, true: 4, 1.5: 5} | tojson", "(1, 2) | tojson", "1e-7 | tojson", "1e16 | tojson", "(1e400, -1e400) | tojson", "none | tojson", "undefined_name | tojson", "range(2) | tojson", "[1] | map('string') | tojson", "'\\x00\\x1f\\n\\t\\b\\f\"\\\\/' | tojson", "[1] | tojson(indent=0)", "1.0 | tojson",
    "messages[2].tool_calls[0].function.arguments | tojson", "messages[2].tool_calls[0].function.arguments", "messages[2].tool_calls[0].function.arguments | items | map('last') | list", "'a' | tojson | length", "'<' | tojson | e", "'x' | tojson(1, 2, 3, 4, 5)", "-1 | abs | string + 'x'", "'a,b' | replace(',', ' ') | upper",
    "[1, 2] | list | tojson | length", "'abc' | first | upper", "[[1, 2], [3, 4]] | map('sum') | list", "'Hello' | list | reverse | join", "['a', 'b'] | map('length') | sum",
)
