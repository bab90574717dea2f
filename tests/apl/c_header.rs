//! The prototypes of `include/apl_ffi.h`, read from its text with no help from what the build reads them with, and the
//! `⎕NA` types that are right for each parameter.

use crate::declaration::{Declaration, Direction, Extent, Kind, Type};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prototype {
    pub name: String,
    /// Words between single blanks: what the comment above a declaration must say.
    pub text: String,
    pub result: CType,
    pub parameters: Vec<(CType, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CType {
    pub constant: bool,
    pub base: String,
    pub pointer: bool,
}

/// Every function of a header.
pub fn prototypes(header: &str) -> Vec<Prototype> {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, comment)) = rest.split_once("/*") {
        code += before;
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    code += rest;
    code.lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
        .split(';')
        .filter_map(|declaration| {
            // What stands before the first function, `extern "C" {`, ends with a brace.
            let declaration = declaration.rsplit('{').next()?;
            let text = declaration.split_whitespace().collect::<Vec<_>>().join(" ");
            let (head, parameters) = text.strip_suffix(')')?.split_once('(')?;
            let (result, name) = declared(head);
            let parameters = match parameters {
                "void" => Vec::new(),
                list => list.split(", ").map(declared).collect(),
            };
            Some(Prototype {
                name,
                text: format!("{text};"),
                result,
                parameters,
            })
        })
        .collect()
}

fn declared(text: &str) -> (CType, String) {
    let (kind, name) = text.rsplit_once([' ', '*']).expect("a type and a name");
    let constant = kind.starts_with("const ");
    let pointer = text.contains('*');
    let base = kind
        .trim_start_matches("const ")
        .trim_end_matches('*')
        .trim();
    (
        CType {
            constant,
            base: base.to_owned(),
            pointer,
        },
        name.to_owned(),
    )
}

/// What is wrong with a declaration, seen from the prototype: nothing, or a sentence each.
pub fn disagreements(d: &Declaration, c: &Prototype) -> Vec<String> {
    let mut found = Vec::new();
    if d.function != c.name {
        found.push(format!("it names {}, not {}", d.function, c.name));
    }
    match (d.result, c.result.pointer) {
        (Some(r), true) if r.kind == Kind::Pointer => {}
        (Some(r), false) if number_fits(&r, &c.result.base, false) && r.extent == Extent::One => {}
        (r, _) => found.push(format!("the result {r:?} is no {:?}", c.result)),
    }
    if d.arguments.len() != c.parameters.len() {
        found.push(format!(
            "{} arguments, the function has {}",
            d.arguments.len(),
            c.parameters.len()
        ));
        return found;
    }
    for (i, (given, (asked, name))) in d.arguments.iter().zip(&c.parameters).enumerate() {
        let next = c.parameters.get(i + 1);
        if let Some(what) = disagreement(given, asked, name, next) {
            found.push(format!("argument {} ({name}): {what}", i + 1));
        }
    }
    found
}

fn disagreement(
    given: &Type,
    asked: &CType,
    name: &str,
    next: Option<&(CType, String)>,
) -> Option<String> {
    if !asked.pointer {
        let fits = given.direction == Direction::Value && number_fits(given, &asked.base, false);
        return (!fits).then(|| format!("{given:?} for {}", asked.base));
    }
    let direction = if asked.constant {
        Direction::In
    } else {
        Direction::Out
    };
    if given.direction != direction {
        return Some(format!(
            "{:?}, but const is {}",
            given.direction, asked.constant
        ));
    }
    // An array is followed by its length; a text, and an array that is cut, by its capacity. Nothing else is.
    let is_array = next.is_some_and(|(_, n)| *n == format!("{name}_len") || n == "capacity");
    if asked.base == "char" {
        let fits = given.kind == Kind::Utf8 && given.extent == Extent::Open;
        return (!fits || is_array == asked.constant)
            .then(|| format!("{given:?} for a text, with a length after it: {is_array}"));
    }
    if is_array != (given.extent == Extent::Open) {
        return Some(format!(
            "{:?}, with a length after it: {is_array}",
            given.extent
        ));
    }
    // Bytes are bytes: as signed ones Booleans cross as they lie in memory.
    (!number_fits(given, &asked.base, asked.base == "uint8_t"))
        .then(|| format!("{given:?} for {}", asked.base))
}

fn number_fits(given: &Type, base: &str, either_sign: bool) -> bool {
    let (kind, width) = match base {
        "uint8_t" => (Kind::Unsigned, 1),
        "int32_t" => (Kind::Signed, 4),
        "int64_t" => (Kind::Signed, 8),
        "float" => (Kind::Float, 4),
        "double" => (Kind::Float, 8),
        _ => return false,
    };
    given.width == width && (given.kind == kind || either_sign && given.kind == Kind::Signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "/* int32_t no(void); */\n#define A 1\nextern \"C\" {\n/** doc */\n\
        int32_t f(const uint8_t *codes, int64_t codes_len,\n   float *y, int64_t y_len, int32_t *id);\n\
        const char *text(int32_t status);\nint32_t n(void);\n} /* end */";

    #[test]
    fn reads_prototypes() {
        let all = prototypes(HEADER);
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["f", "text", "n"]);
        assert_eq!(all[0].parameters.len(), 5);
        assert!(all[1].result.pointer && all[2].parameters.is_empty());
        assert!(all[0].parameters[0].0.constant && !all[0].parameters[2].0.constant);
    }

    /// Each is wrong in one place only.
    #[test]
    fn every_disagreement_is_seen() {
        let f = &prototypes(HEADER)[0];
        let found = |text: &str| disagreements(&Declaration::parse(text).unwrap(), f);
        for right in [
            "I4 L|f <U1[] I8 >F4[] I8 >I4",
            "I4 L|f <I1[] I8 >F4[] I8 >I4",
        ] {
            assert_eq!(found(right), [""; 0], "{right}");
        }
        for wrong in [
            "I4 L|g <U1[] I8 >F4[] I8 >I4",
            "I8 L|f <U1[] I8 >F4[] I8 >I4",
            "L|f <U1[] I8 >F4[] I8 >I4",
            "U4 L|f <U1[] I8 >F4[] I8 >I4",
            "I4 L|f <U1[] I8 >F4[] I8",
            "I4 L|f <U2[] I8 >F4[] I8 >I4",
            "I4 L|f <U1 I8 >F4[] I8 >I4",
            "I4 L|f >U1[] I8 >F4[] I8 >I4",
            "I4 L|f <U1[] I4 >F4[] I8 >I4",
            "I4 L|f <U1[] U8 >F4[] I8 >I4",
            "I4 L|f <U1[] I8 >F8[] I8 >I4",
            "I4 L|f <U1[] I8 =F4[] I8 >I4",
            "I4 L|f <U1[] I8 >I4[] I8 >I4",
            "I4 L|f <U1[] I8 >F4[] I8 >I4[]",
            "I4 L|f <U1[] I8 >F4[] I8 >U4",
            "I4 L|f <U1[] I8 >F4[] I8 I4",
        ] {
            assert_eq!(found(wrong).len(), 1, "{wrong}: {:?}", found(wrong));
        }
    }
}
