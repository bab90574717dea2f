//! JSON objects supplied by callers, options and configuration; and float32 numbers in the JSON that callers get.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The most bytes of a text. Real ones fit a line, and parsing takes many times their memory.
const MOST: usize = 1 << 16;

/// The members of a JSON object; empty text has none. `what` names the text in messages.
///
/// # Errors
/// `ERR_CONFIG` if it is not a JSON object, has a key twice, or is too long.
pub(crate) fn members(what: &str, text: &str) -> Result<Map<String, Value>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Map::new());
    }
    if text.len() > MOST {
        return Err(Error::config(format!(
            "{what} has {} bytes, expected at most {MOST}",
            text.len()
        )));
    }
    let object: Object = serde_json::from_str(text)
        .map_err(|e| Error::config(format!("{what} is not a JSON object: {e}")))?;
    Ok(object.0)
}

/// A caller's text, shortened to fit a message, on one line.
pub(crate) fn abridged(text: &str) -> String {
    const CHARS: usize = 60;
    let (start, more) = match text.char_indices().nth(CHARS) {
        None => (text, ""),
        Some((end, _)) => (&text[..end], "…"),
    };
    let shown = start.chars().map(|c| match c {
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    });
    shown.chain(more.chars()).collect()
}

/// A float32 number as JSON text should have it: the shortest decimal that is this number, so `0.95` and not `0.949999988079071`.
pub(crate) fn shortest(value: f32) -> f64 {
    let decimal = value.to_string().parse::<f64>();
    // Whoever reads it as float64 and rounds gets the number back.
    decimal
        .ok()
        .filter(|&d| d as f32 == value)
        .unwrap_or(f64::from(value))
}

/// An object that refuses a key that comes twice, because it is unclear which of them counts.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Object, D::Error> {
        d.deserialize_map(Object(Map::new()))
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<Object, A::Error> {
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if self.0.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "the key \"{}\" comes twice",
                    abridged(&key)
                )));
            }
            self.0.insert(key, value);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn objects_and_what_is_none() {
        for nothing in ["", " \n", "{}"] {
            assert!(members("options", nothing).unwrap().is_empty());
        }
        assert_eq!(members("options", r#"{"a": 1}"#).unwrap()["a"], 1);
        let long = format!("{{\"{}\": 1}}", "a".repeat(MOST));
        for (text, expected) in [
            ("[]", "options is not a JSON object: "),
            (r#"{"a": 1} x"#, "options is not a JSON object: "),
            (
                r#"{"a": 1, "a": 2}"#,
                "options is not a JSON object: the key \"a\" comes twice",
            ),
            (&long, "options has 65543 bytes, expected at most 65536"),
        ] {
            let e = members("options", text).unwrap_err();
            assert_eq!(e.status(), Status::Config);
            assert!(e.message().starts_with(expected), "{e}");
        }
    }

    #[test]
    fn float32_numbers_in_json() {
        for (value, text) in [
            (0.95, "0.95"),
            (1e-5, "0.00001"),
            (0.1, "0.1"),
            (1.0, "1.0"),
            (-3.25, "-3.25"),
            (f32::MAX, "3.4028235e+38"),
            (f32::from_bits(1), "1e-45"),
        ] {
            assert_eq!(Value::from(shortest(value)).to_string(), text);
            assert_eq!(shortest(value) as f32, value);
        }
    }

    #[test]
    fn callers_text_in_messages() {
        assert_eq!(abridged("Ŵ a"), "Ŵ a");
        assert_eq!(abridged("a\0b\nc"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(abridged(&"é".repeat(61)), "é".repeat(60) + "…");
    }
}
