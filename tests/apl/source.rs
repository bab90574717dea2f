//! Reads APL source text as far as checking it needs: words, functions with their headers and locals, declarations.

/// A word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Comment(String),
    Text(String),
    Number(String),
    Name(String),
    /// A name after a dot: of something in another namespace.
    Member(String),
    /// `⎕NA`.
    System(String),
    /// `:If`.
    Control(String),
    Glyph(char),
}

/// The words of a line.
///
/// # Errors
/// A quote without its end.
pub fn words(line: &str) -> Result<Vec<Word>, String> {
    let c: Vec<char> = line.chars().collect();
    let mut found: Vec<Word> = Vec::new();
    let mut i = 0;
    let take = |from: usize, of: &dyn Fn(char) -> bool| -> usize {
        c[from..]
            .iter()
            .position(|&c| !of(c))
            .map_or(c.len(), |n| from + n)
    };
    while i < c.len() {
        let start = i;
        let text = |end: usize| c[start..end].iter().collect::<String>();
        match c[i] {
            ' ' => i += 1,
            '⍝' => {
                found.push(Word::Comment(text(c.len())));
                i = c.len();
            }
            '\'' => {
                // A quote within is doubled.
                i += 1;
                loop {
                    match c.get(i) {
                        None => return Err(format!("a quote has no end: {line}")),
                        Some('\'') if c.get(i + 1) == Some(&'\'') => i += 2,
                        Some('\'') => break,
                        Some(_) => i += 1,
                    }
                }
                i += 1;
                found.push(Word::Text(
                    text(i)[1..].trim_end_matches('\'').replace("''", "'"),
                ));
            }
            '⎕' => {
                i = take(i + 1, &|c| c.is_ascii_alphanumeric());
                found.push(Word::System(text(i)));
            }
            ':' if c.get(i + 1).is_some_and(char::is_ascii_alphabetic) => {
                // A guard in a dfn is a colon too; what follows it is told apart by the keywords.
                let end = take(i + 1, &|c| c.is_ascii_alphabetic());
                if KEYWORDS.contains(&text(end).as_str()) {
                    found.push(Word::Control(text(end)));
                    i = end;
                } else {
                    found.push(Word::Glyph(':'));
                    i += 1;
                }
            }
            ch if is_name_start(ch) => {
                i = take(i, &|c| is_name_start(c) || c.is_ascii_digit());
                found.push(match found.as_slice() {
                    [.., before, Word::Glyph('.')] if has_members(before) => Word::Member(text(i)),
                    _ => Word::Name(text(i)),
                });
            }
            ch if ch.is_ascii_digit() || ch == '¯' => {
                i = take(i, &|c| c.is_ascii_digit() || "¯.E".contains(c));
                found.push(Word::Number(text(i)));
            }
            ch => {
                found.push(Word::Glyph(ch));
                i += 1;
            }
        }
    }
    Ok(found)
}

pub const KEYWORDS: [&str; 21] = [
    ":If",
    ":ElseIf",
    ":Else",
    ":EndIf",
    ":For",
    ":In",
    ":EndFor",
    ":While",
    ":EndWhile",
    ":Repeat",
    ":EndRepeat",
    ":Until",
    ":Select",
    ":Case",
    ":EndSelect",
    ":Trap",
    ":EndTrap",
    ":Leave",
    ":Continue",
    ":Namespace",
    ":EndNamespace",
];

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == '∆' || c == '⍙'
}

fn has_members(word: &Word) -> bool {
    match word {
        Word::Name(_) | Word::Member(_) | Word::System(_) => true,
        Word::Glyph(c) => ['⍵', '⍺', ')', '#'].contains(c),
        _ => false,
    }
}

/// A line of a function.
#[derive(Clone, Debug)]
pub struct Line {
    pub words: Vec<Word>,
}

/// A function or an operator of a namespace.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// Of the `∇` form: result, arguments and locals.
    pub locals: Vec<String>,
    pub is_dfn: bool,
    /// With the first line, which has the header, and without the closing `∇`.
    pub lines: Vec<Line>,
}

impl Function {
    pub fn words(&self) -> impl Iterator<Item = &Word> {
        self.lines.iter().flat_map(|line| &line.words)
    }

    pub fn uses_system(&self, name: &str) -> bool {
        self.words()
            .any(|w| matches!(w, Word::System(s) if s == name))
    }

    /// The comments that follow the header.
    pub fn documentation(&self) -> Vec<&str> {
        self.lines
            .iter()
            .skip(1)
            .map_while(|line| match &line.words[..] {
                [Word::Comment(text)] => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// A scripted namespace, cut in its functions and its variables.
#[derive(Debug)]
pub struct Namespace {
    pub functions: Vec<Function>,
    /// Names that a line outside every function assigns.
    pub variables: Vec<String>,
}

impl Namespace {
    /// # Errors
    /// What is not understood, with the number of its line.
    pub fn parse(text: &str) -> Result<Namespace, String> {
        let mut found = Namespace {
            functions: Vec::new(),
            variables: Vec::new(),
        };
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        while let Some((number, line)) = lines.next() {
            let at = |e: String| format!("line {number}: {e}");
            let first = words(line).map_err(at)?;
            match &first[..] {
                [Word::Glyph('∇'), header @ ..] if !header.is_empty() => {
                    let (name, locals) = header_names(header).map_err(at)?;
                    let mut body = vec![Line {
                        words: first.clone(),
                    }];
                    loop {
                        let (number, line) = lines
                            .next()
                            .ok_or_else(|| at(format!("{name} has no end")))?;
                        let words = words(line).map_err(|e| format!("line {number}: {e}"))?;
                        if words == [Word::Glyph('∇')] {
                            break;
                        }
                        body.push(Line { words });
                    }
                    found.functions.push(Function {
                        name,
                        locals,
                        is_dfn: false,
                        lines: body,
                    });
                }
                [Word::Name(name), Word::Glyph('←'), Word::Glyph('{'), ..] => {
                    let mut body = vec![Line {
                        words: first.clone(),
                    }];
                    while depth(&body) > 0 {
                        let (number, line) = lines
                            .next()
                            .ok_or_else(|| at(format!("{name} has no end")))?;
                        let words = words(line).map_err(|e| format!("line {number}: {e}"))?;
                        body.push(Line { words });
                    }
                    found.functions.push(Function {
                        name: name.clone(),
                        locals: Vec::new(),
                        is_dfn: true,
                        lines: body,
                    });
                }
                words => found.variables.extend(assigned(words)),
            }
        }
        Ok(found)
    }

    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }

    /// What the function `Declarations` lists: name, declaration, and the comment above it.
    pub fn declarations(&self) -> Vec<(String, String, String)> {
        let table = self
            .function("Declarations")
            .expect("the table of declarations");
        let mut comment = String::new();
        let mut fresh = false;
        let mut found = Vec::new();
        for line in &table.lines {
            match &line.words[..] {
                [Word::Comment(text)] => {
                    if !fresh {
                        comment.clear();
                    }
                    fresh = true;
                    comment.push_str(text.trim_start_matches('⍝').trim());
                    comment.push(' ');
                }
                [.., Word::Text(name), Word::Text(declaration)] => {
                    fresh = false;
                    found.push((name.clone(), declaration.clone(), comment.trim().to_owned()));
                }
                _ => fresh = false,
            }
        }
        found
    }
}

fn depth(lines: &[Line]) -> i32 {
    lines
        .iter()
        .flat_map(|l| &l.words)
        .map(|w| match w {
            Word::Glyph('{') => 1,
            Word::Glyph('}') => -1,
            _ => 0,
        })
        .sum()
}

/// The name of a `∇` header, and every other name in it.
fn header_names(header: &[Word]) -> Result<(String, Vec<String>), String> {
    let header: Vec<&Word> = header
        .iter()
        .filter(|w| !matches!(w, Word::Comment(_)))
        .collect();
    let cut = header
        .iter()
        .position(|w| **w == Word::Glyph(';'))
        .unwrap_or(header.len());
    let names = |words: &[&Word]| -> Vec<String> {
        words
            .iter()
            .filter_map(|w| match w {
                Word::Name(n) => Some(n.clone()),
                _ => None,
            })
            .collect()
    };
    let (form, locals) = header.split_at(cut);
    let arrow = form.iter().position(|w| **w == Word::Glyph('←'));
    let (result, call) = match arrow {
        Some(i) => (names(&form[..i]), names(&form[i + 1..])),
        None => (Vec::new(), names(form)),
    };
    // NAME, NAME right, left NAME right.
    let at = usize::from(call.len() == 3);
    let name = call.get(at).ok_or("a header without a name")?.clone();
    let mut all = names(locals);
    all.extend(result);
    all.extend(
        call.into_iter()
            .enumerate()
            .filter(|(i, _)| *i != at)
            .map(|(_, n)| n),
    );
    Ok((name, all))
}

/// Names that a line assigns: `a←`, `a[i]←`, `(a b)←`, `a,←`, and those of `:For`.
pub fn assigned(words: &[Word]) -> Vec<String> {
    let mut found = Vec::new();
    for (i, word) in words.iter().enumerate() {
        match word {
            Word::Glyph('←') => {
                let mut at = i;
                // Modified assignment has a function before the arrow.
                if matches!(words.get(at.wrapping_sub(1)), Some(Word::Glyph(c)) if ",+-×".contains(*c))
                {
                    at -= 1;
                }
                match words[..at].last() {
                    Some(Word::Name(name)) => found.push(name.clone()),
                    Some(Word::Glyph(')')) => {
                        let open = words[..at].iter().rposition(|w| *w == Word::Glyph('('));
                        let inner = &words[open.map_or(0, |o| o + 1)..at - 1];
                        // n.(a b)← assigns elsewhere.
                        let elsewhere =
                            open.is_some_and(|o| o > 0 && words[o - 1] == Word::Glyph('.'));
                        if !elsewhere {
                            found.extend(inner.iter().filter_map(|w| match w {
                                Word::Name(n) => Some(n.clone()),
                                _ => None,
                            }));
                        }
                    }
                    _ => {}
                }
            }
            Word::Control(k) if k == ":For" => {
                found.extend(words[i + 1..].iter().map_while(|w| match w {
                    Word::Name(n) => Some(n.clone()),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    found
}
