//! Reads the functions of the C header and derives the `⎕NA` declaration of each.
//!
//! For `build.rs`, which puts them into the library for `apl_ffi_describe`, and for tests. The
//! header is generated, so this parser is small, and anything that it does not know is an error.

/// A function of the header.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its prototype on one line.
    pub c: String,
    /// Its `⎕NA` declaration, with `%P` for the path of the library.
    pub na: String,
    /// The first paragraph of its comment, on one line.
    pub doc: String,
}

/// The version in `#define APL_FFI_ABI_VERSION`.
pub fn abi_version(header: &str) -> Result<u32, String> {
    header
        .lines()
        .find_map(|line| line.strip_prefix("#define APL_FFI_ABI_VERSION "))
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| "the header has no APL_FFI_ABI_VERSION".to_owned())
}

/// Every function of the header, in its order.
pub fn functions(header: &str) -> Result<Vec<Function>, String> {
    let mut found = Vec::new();
    for part in header.split("/**").skip(1) {
        let (comment, after) = part.split_once("*/").ok_or("a comment has no end")?;
        let declaration = after.trim_start();
        // Everything else that has a comment is a macro.
        if declaration.starts_with('#') {
            continue;
        }
        let (prototype, _) = declaration
            .split_once(';')
            .ok_or_else(|| format!("no function after the comment: {comment}"))?;
        found.push(function(comment, prototype)?);
    }
    Ok(found)
}

fn function(comment: &str, prototype: &str) -> Result<Function, String> {
    let c = prototype.split_whitespace().collect::<Vec<_>>().join(" ");
    let unknown = |what: &str| format!("{what} in \"{c}\"");
    let doc: Vec<&str> = comment
        .lines()
        .map(|line| line.trim().trim_start_matches('*').trim())
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.is_empty())
        .collect();
    if doc.is_empty() {
        return Err(unknown("no comment"));
    }
    let (head, parameters) = c
        .strip_suffix(')')
        .and_then(|c| c.split_once('('))
        .ok_or_else(|| unknown("no parameters"))?;
    let result = Declared::parse(head).ok_or_else(|| unknown("no name"))?;
    let parameters: Vec<Declared> = match parameters {
        "void" => Vec::new(),
        list => list
            .split(", ")
            .map(|p| Declared::parse(p).ok_or_else(|| unknown(p)))
            .collect::<Result<_, _>>()?,
    };

    let mut na = format!(
        "{} %P|{}",
        result.result().ok_or_else(|| unknown("result"))?,
        result.name
    );
    for (i, parameter) in parameters.iter().enumerate() {
        let next = parameters.get(i + 1).map_or("", |p| p.name);
        na.push(' ');
        na += &parameter
            .argument(next)
            .ok_or_else(|| unknown(parameter.name))?;
    }
    Ok(Function {
        name: result.name.to_owned(),
        doc: doc.join(" "),
        na,
        c: format!("{c};"),
    })
}

/// A name with its type: `const float *x`.
struct Declared<'a> {
    constant: bool,
    base: &'a str,
    pointer: bool,
    name: &'a str,
}

impl<'a> Declared<'a> {
    fn parse(text: &'a str) -> Option<Declared<'a>> {
        let (constant, rest) = match text.strip_prefix("const ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (base, name) = rest.split_once(' ')?;
        let (pointer, name) = match name.strip_prefix('*') {
            Some(name) => (true, name),
            None => (false, name),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(plain).then_some(Declared {
            constant,
            base,
            pointer,
            name,
        })
    }

    fn number(&self) -> Option<&'static str> {
        Some(match self.base {
            "uint8_t" => "U1",
            "int32_t" => "I4",
            "int64_t" => "I8",
            "float" => "F4",
            "double" => "F8",
            _ => return None,
        })
    }

    fn result(&self) -> Option<&'static str> {
        match (self.pointer, self.base) {
            (true, "char") => Some("P"),
            (false, _) => self.number(),
            _ => None,
        }
    }

    /// The argument in a `⎕NA` declaration. `next` is the name of the next parameter: an array is
    /// followed by its length or its capacity; a pointer followed by neither is to one value.
    fn argument(&self, next: &str) -> Option<String> {
        let direction = if self.constant { '<' } else { '>' };
        let is_array = next.strip_suffix("_len") == Some(self.name) || next == "capacity";
        Some(match (self.pointer, self.base) {
            (true, "char") if self.constant || is_array => format!("{direction}0UTF8[]"),
            (true, _) if is_array => format!("{direction}{}[]", self.number()?),
            (true, _) if !self.constant => format!(">{}", self.number()?),
            (false, _) => self.number()?.to_owned(),
            _ => return None,
        })
    }
}
