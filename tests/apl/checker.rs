//! What can be said of APL source without an interpreter. Each check gives sentences, none where all is well.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Function, Namespace, Word, assigned, words};

/// Characters of the language beside letters, digits and ASCII.
const GLYPHS: &str = "⋄⍝∇⍺⍵←→⎕⍬¯×÷∧∨≤≥≠≡≢∊⍷⍳⍴↑↓⊃⊂⊆⌽⍉⊖⍋⍒⌊⌈⍕⍎⍨¨⍣⍤⍥∘⊢⊣⊥⊤⍞○⍟*⌶⌿⍀∆⍙∪∩~";

/// Encoding and layout: one line each thing that is wrong.
pub fn text_faults(text: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(text) else {
        return vec!["it is not UTF-8".to_owned()];
    };
    let mut found = Vec::new();
    if text.starts_with('\u{feff}') {
        found.push("it begins with a byte order mark".to_owned());
    }
    if !text.ends_with('\n') {
        found.push("its last line has no end".to_owned());
    }
    for (i, line) in text.split('\n').enumerate() {
        let mut fault = |what: &str| found.push(format!("line {}: {what}", i + 1));
        if line.contains(['\t', '\r']) {
            fault("a tab or a carriage return");
        }
        if line.ends_with(' ') {
            fault("blanks at its end");
        }
        if line.chars().count() > 125 {
            fault("longer than 125");
        }
        // Comments and texts may say anything.
        for word in words(line).unwrap_or_default() {
            if let Word::Glyph(c) = word
                && !c.is_ascii()
                && !GLYPHS.contains(c)
            {
                fault(&format!("{c:?} is no APL"));
            }
        }
    }
    found
}

/// What is open at a place of a source, with the number of the line that opened it.
#[derive(Default)]
struct Nesting {
    open: Vec<(String, usize)>,
    found: Vec<String>,
}

impl Nesting {
    fn open(&mut self, what: &str, line: usize) {
        self.open.push((what.to_owned(), line));
    }

    fn close(&mut self, what: &str, line: usize) {
        if self.innermost_is(&[what]) {
            self.open.pop();
        } else {
            let open = self.open.last();
            let fault = format!("line {line}: the end of {what}, but {open:?} is open");
            self.found.push(fault);
        }
    }

    fn innermost_is(&self, what: &[&str]) -> bool {
        self.open
            .last()
            .is_some_and(|(o, _)| what.contains(&o.as_str()))
    }

    fn inside(&self, what: &[&str]) -> bool {
        self.open.iter().any(|(o, _)| what.contains(&o.as_str()))
    }

    fn ask(&mut self, holds: bool, line: usize, what: &str) {
        if !holds {
            self.found.push(format!("line {line}: {what}"));
        }
    }

    fn keyword(&mut self, keyword: &str, before: &[Word], line: usize) {
        match keyword {
            ":Namespace" | ":If" | ":For" | ":While" | ":Repeat" | ":Select" | ":Trap" => {
                self.open(keyword, line)
            }
            ":Until" => self.close(":Repeat", line),
            ":ElseIf" => self.ask(self.innermost_is(&[":If"]), line, ":ElseIf without :If"),
            ":Case" => self.ask(
                self.innermost_is(&[":Select"]),
                line,
                ":Case without :Select",
            ),
            ":Else" => {
                let fits = self.innermost_is(&[":If", ":Trap", ":Select"]);
                self.ask(fits, line, ":Else without :If");
            }
            ":In" => {
                let fits = before.contains(&Word::Control(":For".to_owned()));
                self.ask(fits, line, ":In without :For");
            }
            ":Leave" | ":Continue" => {
                let fits = self.inside(&[":For", ":While", ":Repeat"]);
                self.ask(fits, line, &format!("{keyword} outside a loop"));
            }
            ending => {
                let what = ending.strip_prefix(":End").expect("a keyword of this list");
                self.close(&format!(":{what}"), line);
            }
        }
    }
}

/// Quotes and brackets of every line, and the nesting of `:If` and its like, `∇` and braces over the whole.
pub fn structure_faults(text: &str) -> Vec<String> {
    let mut nesting = Nesting::default();
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        let words = match words(line) {
            Ok(words) => words,
            Err(e) => {
                nesting.ask(false, number, &e);
                continue;
            }
        };
        let mut brackets = Vec::new();
        for (i, word) in words.iter().enumerate() {
            match word {
                Word::Glyph(c @ ('(' | '[')) => brackets.push(*c),
                Word::Glyph(c @ (')' | ']')) => {
                    let opener = if *c == ')' { '(' } else { '[' };
                    let fits = brackets.pop() == Some(opener);
                    nesting.ask(fits, number, &format!("{c} closes nothing"));
                }
                Word::Glyph('{') => nesting.open("{", number),
                Word::Glyph('}') => nesting.close("{", number),
                Word::Glyph('∇') if i == 0 && words.len() == 1 => nesting.close("∇", number),
                Word::Glyph('∇') if i == 0 => nesting.open("∇", number),
                Word::Control(keyword) => nesting.keyword(keyword, &words[..i], number),
                _ => {}
            }
        }
        for bracket in brackets {
            nesting.ask(false, number, &format!("{bracket} has no end"));
        }
    }
    let Nesting { open, mut found } = nesting;
    for (what, number) in open {
        found.push(format!("line {number}: {what} has no end"));
    }
    found
}

/// System names that the source may use: those of the interpreter that are used on purpose.
const SYSTEM: &str = "⎕ ⎕IO ⎕ML ⎕NA ⎕NC ⎕EX ⎕DR ⎕TID ⎕SIGNAL ⎕DMX ⎕JSON ⎕NS ⎕NL ⎕R ⎕NQ ⎕WG ⎕NINFO ⎕NPARTS ⎕THIS ⎕UCS";

/// What Tatin puts beside a package.
const FOREIGN: &str = "TatinVars";

/// What holds for the namespace as a whole; `declared` are the names that its declarations make.
pub fn namespace_faults(space: &Namespace, declared: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut definitions: BTreeMap<&str, usize> = BTreeMap::new();
    let functions = space.functions.iter().map(|f| f.name.as_str());
    for name in functions.chain(space.variables.iter().map(String::as_str)) {
        *definitions.entry(name).or_default() += 1;
    }
    for (name, times) in &definitions {
        if *times > 1 || declared.contains(*name) {
            found.push(format!("{name} is defined more than once"));
        }
    }
    let signallers: BTreeSet<&str> = space
        .functions
        .iter()
        .filter(|f| f.uses_system("⎕SIGNAL"))
        .map(|f| f.name.as_str())
        .collect();
    let mut used = BTreeSet::new();
    for f in space.functions.iter().filter(|f| f.name != "Declarations") {
        let mut fault = |what: String| found.push(format!("{}: {what}", f.name));
        for word in f.words() {
            match word {
                Word::System(s) if !SYSTEM.split(' ').any(|known| known == s) => {
                    fault(format!("{s} is not known"))
                }
                Word::System(s) if s == "⎕NA" && f.name != "Associate" => {
                    fault("⎕NA outside its one place".into())
                }
                // ⎕NC asks by name.
                Word::Text(n) => {
                    used.insert(n.as_str());
                }
                Word::Name(n) => {
                    used.insert(n.as_str());
                    let known = definitions.contains_key(n.as_str())
                        || declared.contains(n)
                        || local(f, n)
                        || n == FOREIGN;
                    if !known {
                        fault(format!("{n} is not defined"));
                    }
                    // What is signalled must reach the line of the user.
                    if signallers.contains(n.as_str()) && *n != f.name && !local(f, n) {
                        fault(format!("calls {n}, which signals"));
                    }
                }
                _ => {}
            }
        }
        let documented = f.documentation();
        if f.uses_system("⎕SIGNAL") {
            if f.is_dfn {
                fault("signals from a dfn".to_owned());
            }
            if documented.is_empty() || !documented.iter().any(|line| line.contains("Events: ")) {
                fault("signals, and has no Events in its comment".to_owned());
            }
        }
        if !f.is_dfn {
            let assigned: BTreeSet<String> = f
                .lines
                .iter()
                .skip(1)
                .flat_map(|l| outside_dfns(&l.words))
                .collect();
            for name in &assigned {
                if !f.locals.contains(name) && !space.variables.contains(name) {
                    fault(format!("{name} is not localised"));
                }
            }
            for name in &f.locals {
                let uses = f.lines.iter().skip(1).flat_map(|l| &l.words);
                if !uses.clone().any(|w| *w == Word::Name(name.clone())) {
                    fault(format!("{name} is in the header alone"));
                }
            }
            let mut seen = BTreeSet::new();
            for name in &f.locals {
                if !seen.insert(name) {
                    fault(format!("{name} is twice in the header"));
                }
            }
        }
    }
    for name in declared {
        if !used.contains(name.as_str()) {
            found.push(format!("{name} is declared and not used"));
        }
    }
    found
}

fn local(f: &Function, name: &str) -> bool {
    f.name == name
        || f.locals.iter().any(|l| l == name)
        || f.lines
            .iter()
            .any(|l| assigned(&l.words).iter().any(|a| a == name))
        || namespace_members(f, name)
}

/// Names in `x.(a b)`: they are in x.
fn namespace_members(f: &Function, name: &str) -> bool {
    f.lines.iter().any(|line| {
        let mut inside = false;
        line.words.windows(2).any(|pair| {
            match &pair {
                [Word::Glyph('.'), Word::Glyph('(')] => inside = true,
                [_, Word::Glyph(')')] => inside = false,
                _ => {}
            }
            inside && pair.contains(&Word::Name(name.to_owned()))
        })
    })
}

/// Names that a line assigns, those within braces left out, which are local there.
fn outside_dfns(words: &[Word]) -> Vec<String> {
    let mut depth = 0;
    let outside: Vec<Word> = words
        .iter()
        .filter(|w| {
            match w {
                Word::Glyph('{') => depth += 1,
                Word::Glyph('}') => {
                    depth -= 1;
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .cloned()
        .collect();
    assigned(&outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = ":Namespace N\n    v←1\n    ∇ r←{a}F x;i\n      ⍝ It does.\n      ⍝ Events: 11.\n      ⎕SIGNAL v x\n\
        \x20     :For i :In x ⋄ r←i,a ⋄ :EndFor\n    ∇\n    G←{\n        0=⍵:'it''s' ⋄ (⍵)[v]\n        b←2 ⋄ b+apl_x ⍵.c\n    }\n\
        :EndNamespace\n";

    fn all(text: &str) -> Vec<String> {
        let declared = BTreeSet::from(["apl_x".to_owned()]);
        let mut found = text_faults(text.as_bytes());
        found.extend(structure_faults(text));
        match Namespace::parse(text) {
            Ok(space) => found.extend(namespace_faults(&space, &declared)),
            Err(e) => found.push(e),
        }
        found
    }

    #[test]
    fn a_right_source_has_no_fault() {
        assert_eq!(all(RIGHT), [""; 0]);
    }

    /// A change that makes it wrong, and what the checker says then.
    #[test]
    fn every_fault_is_found() {
        for (from, to, what) in [
            ("    v←1", "\tv←1", "a tab"),
            ("v←1\n", "v←1 \n", "blanks"),
            ("v←1", "v←↯1", "is no APL"),
            (":EndNamespace\n", ":EndNamespace", "has no end"),
            (":EndNamespace\n", "", ":Namespace has no end"),
            ("'it''s'", "'it's'", "a quote has no end"),
            ("(⍵)", "(⍵", "( has no end"),
            ("(⍵)", "⍵)", ") closes nothing"),
            (" ⋄ :EndFor", "", "is open"),
            (":For i :In x", ":While x", "is open"),
            ("    }\n", "", "G has no end"),
            (
                "      ⎕SIGNAL v x\n",
                "      ⎕SIGNAL v x\n      :Leave\n",
                "outside a loop",
            ),
            ("v←1", "v←1 ⋄ v←2", "defined more than once"),
            ("apl_x", "apl_y", "apl_y is not defined"),
            ("apl_x", "⍵", "apl_x is declared and not used"),
            ("⎕SIGNAL", "⎕SIGNALS", "is not known"),
            ("⎕SIGNAL v x", "⎕SIGNAL v ⎕NA x", "⎕NA outside"),
            ("⍝ Events: 11.", "⍝", "no Events"),
            (";i", "", "i is not localised"),
            (";i", ";i;j", "j is in the header alone"),
            (";i", ";i;i", "i is twice"),
            ("b←2", "b←F 2", "calls F, which signals"),
            ("b←2", "b←2 ⋄ ⎕SIGNAL 3", "signals from a dfn"),
        ] {
            assert!(RIGHT.contains(from), "{from}");
            let found = all(&RIGHT.replacen(from, to, 1));
            assert!(found.iter().any(|f| f.contains(what)), "{to}: {found:?}");
        }
        assert!(!text_faults(b"v\xff\n").is_empty());
        assert!(!text_faults("\u{feff}v\n".as_bytes()).is_empty());
    }
}
