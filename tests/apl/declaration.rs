//! `⎕NA` declarations: `[result] library|function[&] argument …`, by the rules of Dyalog's language reference.
//!
//! A type is `[direction][special]kind[width][array]`: direction `<`, `>`, `=` or none (by value); special `0` for
//! text that ends with NUL; array `[n]` or `[]`. Case does not matter. Structures, byte-counted text and complex or
//! decimal floats are types that the library has no use for: they are errors here.

/// Which way an argument goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Value,
    In,
    Out,
    InOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Signed,
    Unsigned,
    Float,
    Utf8,
    Pointer,
}

/// How many elements a pointer points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// No brackets: one value.
    One,
    /// `[n]`.
    Fixed(usize),
    /// `[]`: as many as the call says.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    pub direction: Direction,
    pub nul_terminated: bool,
    pub kind: Kind,
    /// Bytes of an element.
    pub width: usize,
    pub extent: Extent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    pub result: Option<Type>,
    pub library: String,
    pub function: String,
    /// `&`: runs in the system thread of the calling APL thread.
    pub threaded: bool,
    pub arguments: Vec<Type>,
}

impl Declaration {
    /// # Errors
    /// A sentence that quotes what is not understood.
    pub fn parse(text: &str) -> Result<Declaration, String> {
        let bar = text
            .find('|')
            .ok_or_else(|| format!("no | in \"{text}\""))?;
        // The library may be quoted and then have blanks; without a result it comes first.
        let head = text[..bar].trim();
        let (result, library) = match head.strip_suffix('"') {
            Some(quoted) => quoted
                .split_once('"')
                .ok_or_else(|| format!("one quote in \"{head}\""))?,
            None => head.rsplit_once(' ').unwrap_or(("", head)),
        };
        let mut words = text[bar + 1..].split_whitespace();
        let function = words
            .next()
            .ok_or_else(|| format!("no function in \"{text}\""))?;
        let (function, threaded) = match function.strip_suffix('&') {
            Some(name) => (name, true),
            None => (function, false),
        };
        Ok(Declaration {
            result: match result.trim() {
                "" => None,
                code => Some(Type::parse(code)?),
            },
            library: library.to_owned(),
            function: function.to_owned(),
            threaded,
            arguments: words.map(Type::parse).collect::<Result<_, _>>()?,
        })
    }
}

impl Type {
    /// # Errors
    /// A sentence that quotes the code.
    pub fn parse(code: &str) -> Result<Type, String> {
        let wrong = |what: &str| format!("{what} in type \"{code}\"");
        let upper = code.to_ascii_uppercase();
        let mut rest = upper.as_str();
        let direction = match rest.chars().next() {
            Some('<') => Direction::In,
            Some('>') => Direction::Out,
            Some('=') => Direction::InOut,
            _ => Direction::Value,
        };
        if direction != Direction::Value {
            rest = &rest[1..];
        }
        let nul_terminated = rest.starts_with('0');
        if nul_terminated {
            rest = &rest[1..];
        }
        let (rest, extent) = match rest.split_once('[') {
            None => (rest, Extent::One),
            Some((rest, "]")) => (rest, Extent::Open),
            Some((rest, count)) => {
                let count = count.strip_suffix(']').and_then(|n| n.parse().ok());
                (rest, Extent::Fixed(count.ok_or_else(|| wrong("a count"))?))
            }
        };
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (letters, digits) = rest.split_at(letters);
        let width: Option<usize> = match digits {
            "" => None,
            digits => Some(digits.parse().map_err(|_| wrong("a width"))?),
        };
        let (kind, default, allowed): (Kind, usize, &[usize]) = match letters {
            "I" => (Kind::Signed, 4, &[1, 2, 4, 8]),
            "U" => (Kind::Unsigned, 4, &[1, 2, 4, 8]),
            "F" => (Kind::Float, 8, &[4, 8]),
            "P" => (Kind::Pointer, 8, &[8]),
            "UTF" => (Kind::Utf8, 8, &[8]),
            _ => return Err(wrong("an unknown letter")),
        };
        let width = width.unwrap_or(default);
        if !allowed.contains(&width) {
            return Err(wrong("a width"));
        }
        let is_text = kind == Kind::Utf8;
        if nul_terminated != is_text {
            return Err(wrong("0 goes with text, and text with 0,"));
        }
        if direction == Direction::Value && (is_text || extent != Extent::One) {
            return Err(wrong("an array by value"));
        }
        Ok(Type {
            direction,
            nul_terminated,
            kind,
            width: if is_text { 1 } else { width },
            extent,
        })
    }

    /// Whether it is a part of the result.
    pub fn comes_out(&self) -> bool {
        matches!(self.direction, Direction::Out | Direction::InOut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_the_reference() {
        let d = Declaration::parse("I4 %P|apl_matmul_f64& I4 <F8[] I8 >f8[] i8 >0UTF8[]").unwrap();
        assert_eq!(
            (d.library.as_str(), d.function.as_str()),
            ("%P", "apl_matmul_f64")
        );
        assert!(d.threaded);
        assert_eq!(d.result, Some(Type::parse("I").unwrap()));
        assert_eq!(d.arguments[3], Type::parse(">F[]").unwrap());
        assert_eq!(d.arguments[5].width, 1);
        let d = Declaration::parse("user32|MessageBeep I").unwrap();
        assert_eq!((d.result, d.threaded), (None, false));
        let d = Declaration::parse("I4 \"/a b/c.so\"|f").unwrap();
        assert_eq!((d.library.as_str(), d.arguments.len()), ("/a b/c.so", 0));
        assert_eq!(Type::parse("<I2[3]").unwrap().extent, Extent::Fixed(3));
        assert_eq!(Type::parse(">I4").unwrap().extent, Extent::One);
    }

    #[test]
    fn what_is_no_type() {
        for code in [
            "", "I3", "F2", "Q4", "<0I4[]", "<UTF8[]", "F4[]", "0UTF8[]", "<I4[x]", "<I4[", "I4x",
        ] {
            assert!(Type::parse(code).is_err(), "{code}");
        }
        assert!(Declaration::parse("I4 lib f").is_err());
        assert!(Declaration::parse("I4 lib|").is_err());
    }
}
