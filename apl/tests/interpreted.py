"""Runs the functions of AplFfi.apln in an APL interpreter that is not Dyalog, with the real library behind them.

The interpreter is libjay (`pip install libjay==0.4.99`), which has APL's primitives in Dyalog's reading, dfns, dops,
`∇` functions and control structures, but no ⎕NA, ⎕SIGNAL, ⎕DR, ⎕TID, namespaces or ambivalent ∇ functions. So the text of
the namespace is taken as it is, apart from these changes, which is what this does not prove:

  - comments go, and `{left}` in a header becomes `left`: the left argument is always given;
  - `⎕SIGNAL e` becomes: keep e in EVENT and, unless it is empty, leave the function;
  - ⎕DR is a stand-in that looks at values (11 for Booleans, 83 for small integers, 645, 326, 80) and packs bits most
    significant first; ⎕TID is 0; no argument is a namespace;
  - `apl_…` functions are calls of the shared library by ctypes, marshalled by the declarations in the text;
  - `(⎕JSON text).name` and the like are read by Python; Close does not erase functions;
  - what needs ⎕NA, namespaces or the system is left out: SKIPPED, below.

usage: interpreted.py LIBRARY [FOLDER_OF_A_MODEL ...]
"""

import array
import ctypes
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jay
from jay.lang import APL

HERE = Path(__file__).resolve().parent
NAMESPACE = HERE.parent / "AplFfi.apln"
SKIPPED = {
    "Init", "Info", "Candidates", "InFolder", "LibraryName", "Assets", "SourceFolder", "Associate", "Dissociate", "About",
    "State", "Chat", "Plain", "Literals", "Summary", "Declarations",
}

PRELUDE = """
DRBITS←{(((≢⍵),8÷⍨⊃⌽⍴⍵)⍴(128>k)×k)+((≢⍵),8÷⍨⊃⌽⍴⍵)⍴(128≤k)×(k←{2⊥⍵}⍤1⊢((8÷⍨×/⍴⍵),8)⍴⍵)-256}
DRTYPE←{1<|≡⍵:326 ⋄ (0∊⍴⍵)∧' '≡⊃0⍴,⍵:80 ⋄ (~0∊⍴⍵)∧∧/c←{' '≡⊃0⍴⍵}¨,⍵:80 ⋄ ∨/c:326 ⋄ ∧/(,⍵)∊0 1:11 ⋄ ~∧/(,⍵)=⌊,⍵:645 ⋄ 83}
DR←{⍺←¯1 ⋄ ⍺=83:DRBITS ⍵ ⋄ DRTYPE ⍵}
SENDITEM←{' '≡⊃0⍴,⍵:{k←⎕←'T',(⍕≢⍵),' ',⍕⎕UCS ⍵ ⋄ 0},⍵ ⋄ k←⎕←'N',(⍕≢⍴⍵),' ',¯17⍕,⍵ ⋄ 0}
CALL←{k←⎕←'C',⍺ ⋄ k←SENDITEM¨⍵ ⋄ k←⎕←'E' ⋄ r←⎕ ⋄ r}
GET←{'GET'CALL ⍺ ⍵}
"""


def strip_comment(line):
    """The line without its comment: a ⍝ outside quotes."""
    quoted = False
    for i, c in enumerate(line):
        if c == "'":
            quoted = not quoted
        elif c == "⍝" and not quoted:
            return line[:i].rstrip()
    return line.rstrip()


def outside_quotes(line, change):
    """`change` applied to what is not a text."""
    parts = line.split("'")
    return "'".join(change(p) if i % 2 == 0 else p for i, p in enumerate(parts))


def stand_ins(line):
    line = line.replace("{0::11 Event'the options cannot be written as JSON' ⋄ ⍬⊣1 ⎕JSON ⍵}⍵", "⍬")
    line = line.replace("9=⎕NC'⍵'", "0").replace("Literals 1 ⎕JSON ⍵", "''").replace("3=⎕NC'apl_ffi_ready'", "1")
    line = re.sub(r"^(\s*):If 0=⎕NC'\w+' ⋄ .* ⋄ :EndIf$", "", line)
    line = line.replace("3=⎕NC'apl_ffi_cleanup'", "1").replace("apl_ffi_cleanup", "apl_ffi_cleanup ⍬")
    line = re.sub(r"\(⎕JSON (.*)\)\.(\w+)", r"((\1)GET'\2')", line).replace("⎕JSON ", "")
    line = re.sub(r"^(\s*)\{\}", r"\1SUNK←", line)
    line = re.sub(r"\binfo\.(\w+)", r"(info GET'\1')", line).replace("Dissociate", "")
    return outside_quotes(line, lambda p: p.replace("⎕DR", "DR").replace("⎕TID", "0"))


def statements(line):
    """Control words stand on lines of their own."""
    return line.split("⋄") if re.match(r"\s*:", line) else [line]


def functions(text):
    """name -> source in libjay's form, of every function of the namespace that is not skipped."""
    found = {}
    lines = iter(strip_comment(l) for l in text.splitlines())
    for line in lines:
        header = re.match(r"\s*∇ (.+)", line)
        dfn = re.match(r"\s*(\w+)←\{", line)
        if header:
            form, *localised = header[1].split(";")
            form = re.sub(r"\{(\w+)\}(?!←)", r"\1 ", form)
            form = re.sub(r"\{(\w+)\}←", r"\1←", form)
            result, call = form.split("←") if "←" in form else (None, form)
            words = call.split()
            name = words[1] if len(words) == 3 else words[0]
            body = ["∇ " + ";".join([form, *localised])]
            if result:
                body.append(f"{result}←0")
            for line in lines:
                if line.strip() == "∇":
                    break
                signal = re.match(r"(\s*)⎕SIGNAL\s*(.*)", line)
                if signal:
                    line = f"{signal[1]}EVENT←{signal[2]}\n{signal[1]}→(0<≢EVENT)/0"
                for part in line.split("\n"):
                    body += [stand_ins(s) for s in statements(part)]
            body.append("∇")
        elif dfn:
            name, body = dfn[1], [stand_ins(line)]
            while sum(l.count("{") - l.count("}") for l in body) > 0:
                body.append(stand_ins(next(lines)))
        else:
            continue
        if name not in SKIPPED:
            found[name] = "\n".join(l for l in body if l.strip())
    return found


def in_order(sources):
    """Sources so that what a function uses comes before it: libjay binds functions where they are defined."""
    ordered = {}

    def add(name, above=()):
        if name in ordered or name in above:
            return
        for used in re.findall(r"\w+", re.sub("'[^'\n]*'", "", sources[name])):
            if used in sources and used != name:
                add(used, (*above, name))
        ordered[name] = sources[name]

    for name in sources:
        add(name)
    return ordered.values()


class Library:
    """The functions of the shared library, by the declarations in the text."""

    NUMBERS = {"I1": ctypes.c_int8, "U1": ctypes.c_uint8, "I4": ctypes.c_int32, "I8": ctypes.c_int64,
               "F4": ctypes.c_float, "F8": ctypes.c_double}

    def __init__(self, path, text):
        self.library = ctypes.CDLL(path)
        self.declared = {}
        for name, declaration in re.findall(r"d,←⊂'(\w+)' 'I4 %P\|([^']*)'", text):
            function, *types = declaration.split()
            self.declared[name] = (function.rstrip("&"), types)

    def has(self, name):
        return hasattr(self.library, self.declared[name][0])

    def call(self, name, items):
        """The result vector, by ⎕NA's rules."""
        function, types = self.declared[name]
        if len(items) != len(types):
            raise ValueError(f"{name}: {len(items)} items, expected {len(types)}")
        arguments, outputs = [], []
        for item, t in zip(items, types):
            if t in self.NUMBERS:
                arguments.append(self.NUMBERS[t](int(item)))
            elif t == "<0UTF8[]":
                arguments.append((item if isinstance(item, str) else "").encode() + b"\0")
            elif t == ">0UTF8[]":
                buffer = ctypes.create_string_buffer(max(1, int(item)))
                arguments.append(buffer)
                outputs.append(lambda b=buffer: b.value.decode())
            elif t.startswith("<"):
                kind = self.NUMBERS[t[1:-2]]
                whole = float if kind in (ctypes.c_float, ctypes.c_double) else int
                arguments.append((kind * len(item))(*map(whole, item)))
            else:
                kind, n = self.NUMBERS[t[1:].rstrip("[]")], int(item) if t.endswith("[]") else 1
                buffer = (kind * n)()
                arguments.append(buffer)
                outputs.append(lambda b=buffer, one=not t.endswith("[]"): b[0] if one else list(b))
        result = getattr(self.library, function)(*arguments)
        return [result, *(o() for o in outputs)]


def literal(value):
    """An APL expression for an item of a result."""
    if isinstance(value, str):
        return "''" if not value else "(⎕UCS ," + " ".join(str(ord(c)) for c in value) + ")"
    if isinstance(value, list):
        return "⍬" if not value else "(," + " ".join(map(literal, value)) + ")"
    return repr(value).replace("-", "¯").replace("e", "E").replace("E+", "E")


class Session:
    """Runs programs in libjay, with the namespace before them and the library behind them."""

    def __init__(self, library_path):
        self.text = NAMESPACE.read_text()
        self.library = Library(library_path, self.text)
        self.lines = []
        dialect = replace(APL.Dialect.dyalog, index_base=0)
        self.compiler = APL.create_compiler(dialect)
        constants = [l for l in map(strip_comment, self.text.splitlines()) if re.match(r"    [A-Z]+←(\d+|⍬)$", l)]
        # A CALL is one for a niladic function too: its argument is then an item that nobody reads.
        calls = [f"{name}←{{'{name}' CALL ⍵}}" for name in self.library.declared]
        self.functions = functions(self.text)
        self.program = "\n".join([PRELUDE, *constants, *calls, *in_order(self.functions)])
        jay._write_stdout = self.written

    def written(self, text):
        self.lines += [line for line in text.splitlines() if line.strip()]

    def answer(self):
        """What APL reads: the result of the call that it has just written."""
        start = max(i for i, l in enumerate(self.lines) if l.startswith("C"))
        name, items = self.lines[start][1:], []
        for line in self.lines[start + 1:]:
            if line[:1] in "TN" and line:
                items.append([line])
            elif line != "E":
                items[-1].append(line)
        self.lines = self.lines[:start]
        items = [self.item(i) for i in items]
        if name == "GET":
            return literal(json.loads(items[0])[items[1]])
        return " ".join(map(literal, self.library.call(name, items)))

    @staticmethod
    def item(lines):
        kind, (size, *words) = lines[0][0], " ".join(lines)[1:].split()
        if kind == "T":
            return "".join(chr(int(w)) for w in words)
        numbers = [float(w.replace("¯", "-")) for w in words]
        return numbers[0] if size == "0" else numbers

    def run(self, source):
        self.lines = []
        return self.compiler(f"{self.program}\nEVENT←⍬\n{source}", input=self.answer)


def cases(path):
    """(number, lines before, kind, expression): see the head of the file."""
    before = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("⍝"):
            continue
        kind, expression = line.split(" ", 1)
        if kind == "let":
            before.append(expression)
        else:
            yield number, list(before), kind, expression


def conversation(library, folder, context):
    """A greedy conversation with a model in float32, as Open and Session give it."""
    status, model = library.call("apl_model_open", [str(folder), '{"bits":32}', 0])
    options = json.dumps({"temperature": 0, "context": context})
    failed, number = library.call("apl_session_open", [model, options, 0])
    if status or failed:
        raise OSError(f"{folder}: {status}, {failed}")
    info = json.loads(library.call("apl_model_info", [model, 4096, 4096])[1])
    return [model, number, info["vocabulary"], 0]


def load(library, file, name):
    """AplFfi.Load, with 32 bits: (handle, rows, cols)."""
    status, handle = library.call("apl_weights_open", [str(file), name + ".weight", '{"bits":32}', 0])
    if status != 0:
        raise OSError(f"{file}: {name}: {status}")
    info = json.loads(library.call("apl_weights_info", [handle, 4096, 4096])[1])
    return [handle, info["rows"], info["cols"]]


def transformer(session, folder, positions):
    """What the logits of examples/Transformer.apln differ by at most from the library's own, and from a reference where
    there is one; the largest logit; the number of tokens."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    matrix = lambda name: load(session.library, file, name)

    def values(name):
        handle, rows, cols = matrix(name)
        numbers = session.library.call("apl_weights_dequantize", [handle, rows * cols, rows * cols])[1]
        return f"{rows} {cols}⍴{literal(numbers)}" if rows > 1 else literal(numbers)

    strand = lambda items: " ".join(f"({i})" for i in items)
    handles = lambda names: strand(literal(matrix(n)) for n in names)

    def layer(i):
        at = f"model.layers.{i}."
        attention = handles(f"{at}self_attn.{n}_proj" for n in "qkvo")
        mlp = handles(f"{at}mlp.{n}_proj" for n in ("gate", "up", "down"))
        return strand([values(at + "input_layernorm"), attention, values(at + "post_attention_layernorm"), mlp])

    q = config["num_attention_heads"]
    c = config.get("head_dim", config["hidden_size"] // q)
    theta = {**config, **config.get("rope_parameters", {})}.get("rope_theta", 10000.0)
    sizes = [q, config["num_key_value_heads"], c, theta, config["rms_norm_eps"]]
    # A file with tied embeddings has them by either name.
    size = int.from_bytes(file.read_bytes()[:8], "little")
    names = json.loads(file.read_bytes()[8:8 + size])
    embedding = "model.embed_tokens" if "model.embed_tokens.weight" in names else "lm_head"
    head = embedding if config["tie_word_embeddings"] else "lm_head"
    model = strand([" ".join(map(literal, sizes)), values(embedding),
                    strand(layer(i) for i in range(config["num_hidden_layers"])), values("model.norm"),
                    literal(matrix(head))])
    talk = conversation(session.library, folder, 64)
    if (folder / "reference.json").exists():
        ids = json.loads((folder / "reference.json").read_text())["ids"]
    elif (folder / "reference_logits.txt").exists():
        ids = list(map(int, re.search(r"ids:([\d ]+)", (folder / "reference_logits.txt").read_text())[1].split()))
    else:
        n, ids = session.library.call("apl_model_tokenize", [talk[0], "Once upon a time there was a", 1, 64, 64])
        ids = ids[:n]
    ids = ids[:positions]
    source = (HERE.parent / "examples" / "Transformer.apln").read_text().replace("##.AplFfi.", "")
    forward = functions(source)["Forward"]
    found = session.run(f"{forward}\n,({model})Forward {literal(ids)}")
    found = found.tolist()
    n = len(ids) * talk[2]
    own = session.library.call("apl_session_eval", [talk[1], ids, len(ids), n, n])[1]
    apart = lambda other: max(abs(a - b) for a, b in zip(found, other, strict=True))
    errors = {"the library's own": apart(own)}
    if (folder / "reference_logits.f32").exists():
        reference = array.array("f", (folder / "reference_logits.f32").read_bytes())
        errors["the reference"] = apart(reference[:len(found)])
    return errors, max(map(abs, own)), len(ids)


def main():
    session = Session(sys.argv[1])
    root = HERE.parent.parent
    m = "m←" + literal(conversation(session.library, root / "tests/data/models/llama3", 64))
    failed = passed = 0
    for number, before, kind, expression in cases(HERE / "cases.txt"):
        lets = "\n".join([f"ROOT←'{root}/'", m, *before])
        try:
            if kind == "true":
                source = f"{lets}\nRESULT←{expression}\n(0=≢EVENT)∧RESULT≡1"
                found = session.run(source)
                good = bool(found)
            else:
                source = f"{lets}\nRESULT←{expression}\n{{0=≢⍵:0 ⋄ 1⊃⊃⊃⍵}}EVENT"
                found = session.run(source)
                good = found == int(kind)
        except jay.JayError as e:
            good, found = False, e
        if good:
            passed += 1
        else:
            failed += 1
            print(f"cases.txt, line {number}: {kind} {expression}\n  gave {found}")
    for folder, positions in [(root / "tests/data/models/mistral", 7), (root / "models/stories", None),
                              *((Path(more), None) for more in sys.argv[2:]),
                              (root.parent / "shared/models/tinystories-656k", None)]:
        if not folder.exists():
            print(f"SKIPPED: {folder.name} is not here")
            continue
        errors, size, n = transformer(session, folder, positions)
        good = max(errors.values()) <= 1e-4 * size
        said = ", ".join(f"{e:.1e} from {of}" for of, e in errors.items())
        print(f"examples/Transformer.apln, {folder.name}, {n} tokens, logits up to {size:.1f}: {said}"
              + ("" if good else ": FAILED"))
        passed, failed = passed + good, failed + (not good)
    # Small ones: every number of a matrix crosses as text here.
    for name, sizes, least in [("Dense", "64 32 10 60", [0.8, 0.5, 0.0, 0.0]), ("Nearest", "100 64", [0.9])]:
        text = (HERE.parent / "examples" / f"{name}.apln").read_text().replace("##.AplFfi.", "")
        found = session.run("\n".join(in_order(functions(text))) + f"\n,Demo {sizes}").tolist()
        good = all(f >= l for f, l in zip(found, least, strict=True))
        print(f"examples/{name}.apln, Demo {sizes}: {found}" + ("" if good else f": FAILED, expected at least {least}"))
        passed, failed = passed + good, failed + (not good)
    lines = (HERE.parent / "examples/FirstFiveMinutes.apls").read_text().replace("AplFfi.", "")
    lines = lines.replace("1000 4096", "20 64").replace("4096", "64").splitlines()
    lines = [l for l in map(strip_comment, lines) if l and not re.match(r"2 ⎕FIX|⎕←Init|Close", l)]
    session.run("\n".join(lines))
    print("examples/FirstFiveMinutes.apls:", "; ".join(l for l in session.lines if l))
    good = "exact: 1" in session.lines
    passed, failed = passed + good, failed + (not good)
    print(f"not run here: {', '.join(sorted(SKIPPED))}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
