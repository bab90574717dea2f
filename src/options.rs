//! The option JSON of weights, parsed once.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::matmul::Activations;
use crate::members::{abridged, members};
use crate::quant::{Bits, Method};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Quantised to this number of bits.
    Codes(Bits),
    /// Rounded to float16.
    F16,
    /// As float32.
    F32,
}

impl Width {
    fn new(bits: i64) -> Option<Width> {
        match bits {
            16 => Some(Width::F16),
            32 => Some(Width::F32),
            _ => Bits::new(bits).map(Width::Codes),
        }
    }
}

/// Where weights come from, which decides the keys that apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Codes from memory: only `activations` applies.
    Codes,
    /// Floats from memory: every key except `mmap`.
    Floats,
    /// A file: every key.
    File,
    /// A model: every key, and keys of its own, which are removed first.
    Model,
}

/// The options of a weight matrix; absent keys have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightOptions {
    /// `bits`: 1, 2, 4, 8, 16 or 32. `None`: as stored if already quantised, else
    /// [`WeightOptions::DEFAULT_WIDTH`].
    pub width: Option<Width>,
    /// `group`: columns per group, 0 for the whole row. Default 32.
    pub group: usize,
    /// `symmetric`: no zero points. Default true; 1-bit codes never have zero points.
    pub symmetric: bool,
    /// `method`: `"nearest"` (default) or `"search"`.
    pub method: Method,
    /// `activations`: `"f32"` (default), `"int8"` or `"sign"`. Float weights always use `"f32"`.
    pub activations: Activations,
    /// `mmap`: whether a file is mapped (default) or read.
    pub mmap: bool,
    /// Whether the floats of a file stay float32 if no width is given. Default false. Not a key: it
    /// serves commands that measure a file as stored.
    pub keep_floats: bool,
}

impl Default for WeightOptions {
    fn default() -> Self {
        WeightOptions {
            width: None,
            group: 32,
            symmetric: true,
            method: Method::Nearest,
            activations: Activations::F32,
            mmap: true,
            keep_floats: false,
        }
    }
}

impl WeightOptions {
    /// What floats are quantised to if `bits` is absent.
    pub const DEFAULT_WIDTH: Width = Width::Codes(Bits::Four);

    /// From a JSON object; empty text is the defaults.
    ///
    /// # Errors
    /// `ERR_CONFIG` for malformed JSON, an unknown key, a key that does not apply to `source`, or a
    /// value outside its domain; the message names the key, what was found and what was expected.
    pub fn from_json(text: &str, source: Source) -> Result<WeightOptions> {
        let mut options = WeightOptions::default();
        options.set_all(&members("options", text)?, source)?;
        Ok(options)
    }

    /// Sets the options that the members of an object give.
    ///
    /// # Errors
    /// Those of [`WeightOptions::from_json`].
    pub fn set_all(&mut self, object: &Map<String, Value>, source: Source) -> Result<()> {
        object
            .iter()
            .try_for_each(|(key, value)| self.set(key, value, source))
    }

    fn set(&mut self, key: &str, value: &Value, source: Source) -> Result<()> {
        let wrong = |expected: &str| wrong_value(key, value, expected);
        let applies = match key {
            "bits" | "group" | "symmetric" | "method" => source != Source::Codes,
            "mmap" => matches!(source, Source::File | Source::Model),
            _ => true,
        };
        if !applies {
            return Err(Error::config(format!(
                "options has \"{key}\", which does not apply to {}",
                match source {
                    Source::Codes => "weights that are codes already",
                    Source::Floats | Source::File | Source::Model => "weights in memory",
                }
            )));
        }
        match key {
            "bits" => {
                let width = value.as_i64().and_then(Width::new);
                self.width = Some(width.ok_or_else(|| wrong("1, 2, 4, 8, 16 or 32"))?);
            }
            "group" => {
                let group = value.as_i64().and_then(|g| i32::try_from(g).ok());
                self.group = group
                    .and_then(|g| usize::try_from(g).ok())
                    .ok_or_else(|| wrong("0 (the whole row) to 2147483647"))?;
            }
            "symmetric" => {
                self.symmetric = value.as_bool().ok_or_else(|| wrong("true or false"))?;
            }
            "method" => {
                self.method = match value.as_str() {
                    Some("nearest") => Method::Nearest,
                    Some("search") => Method::Search,
                    _ => return Err(wrong("\"nearest\" or \"search\"")),
                }
            }
            "activations" => {
                self.activations = match value.as_str() {
                    Some("f32") => Activations::F32,
                    Some("int8") => Activations::Int8,
                    Some("sign") => Activations::Sign,
                    _ => return Err(wrong("\"f32\", \"int8\" or \"sign\"")),
                }
            }
            "mmap" => self.mmap = value.as_bool().ok_or_else(|| wrong("true or false"))?,
            _ => {
                return Err(Error::config(format!(
                    "options has the unknown key \"{}\", expected {}",
                    abridged(key),
                    match source {
                        Source::Codes => "activations",
                        Source::Floats => "bits, group, symmetric, method or activations",
                        Source::File => "bits, group, symmetric, method, activations or mmap",
                        Source::Model =>
                            "bits, group, symmetric, method, activations, mmap or context",
                    }
                )));
            }
        }
        Ok(())
    }

    /// The activations of products with weights of this width.
    ///
    /// # Errors
    /// `ERR_CONFIG` for `"sign"` with any width other than 1 bit.
    pub fn activations_for(&self, width: Width) -> Result<Activations> {
        match (self.activations, width) {
            (Activations::Sign, Width::Codes(Bits::One)) => Ok(Activations::Sign),
            (Activations::Sign, _) => Err(Error::config(
                "options has \"activations\": \"sign\", expected weights of 1 bit with it",
            )),
            (_, Width::F16 | Width::F32) => Ok(Activations::F32),
            (activations, Width::Codes(_)) => Ok(activations),
        }
    }
}

/// `ERR_CONFIG` for an option whose value is outside its domain.
pub(crate) fn wrong_value(key: &str, found: &Value, expected: &str) -> Error {
    Error::config(format!(
        "options has \"{key}\": {}, expected {expected}",
        abridged(&found.to_string())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn parse(text: &str) -> WeightOptions {
        WeightOptions::from_json(text, Source::File).unwrap()
    }

    fn refuse(text: &str, source: Source) -> String {
        let e = WeightOptions::from_json(text, source).unwrap_err();
        assert_eq!(e.status(), Status::Config, "{text}");
        e.message().to_owned()
    }

    #[test]
    fn nothing_is_the_defaults() {
        for text in ["", "  \n", "{}"] {
            assert_eq!(parse(text), WeightOptions::default());
        }
    }

    #[test]
    fn every_key() {
        let all = r#"{"bits":2,"group":0,"symmetric":false,"method":"search","activations":"int8","mmap":false}"#;
        let expected = WeightOptions {
            width: Some(Width::Codes(Bits::Two)),
            group: 0,
            symmetric: false,
            method: Method::Search,
            activations: Activations::Int8,
            mmap: false,
            keep_floats: false,
        };
        assert_eq!(parse(all), expected);
        assert_eq!(parse(r#"{"bits":16}"#).width, Some(Width::F16));
        assert_eq!(parse(r#"{"bits":32}"#).width, Some(Width::F32));
    }

    #[test]
    fn values_outside_their_domain() {
        for (text, key) in [
            (r#"{"bits":3}"#, "bits"),
            (r#"{"bits":4.5}"#, "bits"),
            (r#"{"bits":"4"}"#, "bits"),
            (r#"{"group":-1}"#, "group"),
            (r#"{"group":2147483648}"#, "group"),
            (r#"{"symmetric":1}"#, "symmetric"),
            (r#"{"method":"best"}"#, "method"),
            (r#"{"activations":"f16"}"#, "activations"),
            (r#"{"mmap":null}"#, "mmap"),
            (r#"{"Bits":4}"#, "Bits"),
        ] {
            let message = refuse(text, Source::File);
            assert!(
                message.contains(&format!("\"{key}\"")) && message.contains("expected"),
                "{message}"
            );
        }
        assert_eq!(
            refuse(r#"{"bits":3}"#, Source::File),
            "options has \"bits\": 3, expected 1, 2, 4, 8, 16 or 32"
        );
        for text in ["[]", "4", "{", "{\"bits\":4} x", "null"] {
            assert!(refuse(text, Source::File).contains("not a JSON object"));
        }
    }

    #[test]
    fn keys_that_do_not_apply() {
        for text in [
            r#"{"bits":4}"#,
            r#"{"group":32}"#,
            r#"{"symmetric":true}"#,
            r#"{"method":"nearest"}"#,
            r#"{"mmap":true}"#,
        ] {
            assert!(refuse(text, Source::Codes).contains("does not apply"));
        }
        assert!(refuse(r#"{"mmap":true}"#, Source::Floats).contains("does not apply"));
    }

    #[test]
    fn activations_follow_the_width() {
        let with = |activations| WeightOptions {
            activations,
            ..WeightOptions::default()
        };
        let (one, four) = (Width::Codes(Bits::One), Width::Codes(Bits::Four));
        let sign = with(Activations::Sign);
        assert_eq!(sign.activations_for(one), Ok(Activations::Sign));
        assert!(sign.activations_for(four).is_err() && sign.activations_for(Width::F32).is_err());
        let int8 = with(Activations::Int8);
        assert_eq!(int8.activations_for(four), Ok(Activations::Int8));
        assert_eq!(int8.activations_for(Width::F16), Ok(Activations::F32));
    }
}
