//! The option JSON of models and sessions, parsed once.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::members::{abridged, members};
use crate::options::{Source, WeightOptions, wrong_value};

/// The options of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// The options of weights.
    pub weights: WeightOptions,
    /// `context`: the longest context of a session, at most that of the model, which is the
    /// default.
    pub context: Option<usize>,
}

impl ModelOptions {
    /// Parses a JSON object; empty text gives the defaults.
    ///
    /// # Errors
    /// `ERR_CONFIG`, naming the key, what was found and what was expected.
    pub fn from_json(text: &str) -> Result<ModelOptions> {
        let mut object = members("options", text)?;
        let context = object.remove("context");
        let mut options = ModelOptions {
            context: context.map(|v| count("context", &v)).transpose()?,
            ..ModelOptions::default()
        };
        options.weights.set_all(&object, Source::Model)?;
        Ok(options)
    }
}

/// The precision of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Float16.
    F16,
    /// Float32.
    F32,
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// `temperature`, 0.8: the divisor of the logits; 0 chooses the most likely token.
    pub temperature: f32,
    /// `top_k`, 40: only this number of most likely tokens; 0: all.
    pub top_k: usize,
    /// `top_p`, 0.95: only the smallest set of tokens whose probabilities sum to this.
    pub top_p: f32,
    /// `min_p`, 0.05: only tokens with at least this probability relative to the most likely one.
    pub min_p: f32,
    /// `repeat_penalty`, 1.0: the divisor of the logits of the last 64 tokens (a factor for
    /// negative logits).
    pub repeat_penalty: f32,
    /// `seed`, 0.
    pub seed: u64,
}

impl Sampling {
    /// The sampling options that a model's authors advise in `generation_config.json`, with the
    /// defaults for keys that are absent; other keys are ignored. `"do_sample": false` means
    /// greedy.
    ///
    /// # Errors
    /// `ERR_FORMAT` for a value outside its domain.
    pub fn advised(advice: &Map<String, Value>) -> Result<Sampling> {
        let mut options = SessionOptions::default();
        for (theirs, ours) in [
            ("temperature", "temperature"),
            ("top_k", "top_k"),
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("repetition_penalty", "repeat_penalty"),
        ] {
            if let Some(value) = advice.get(theirs) {
                options.set(ours, value).map_err(|_| {
                    Error::format(format!(
                        "generation_config.json has \"{theirs}\": {value}, which no sampler takes"
                    ))
                })?;
            }
        }
        if advice.get("do_sample") == Some(&Value::Bool(false)) {
            options.sampling.temperature = 0.0;
        }
        Ok(options.sampling)
    }
}

/// The sampler's floating-point options, each with its smallest and largest value.
const DOMAINS: [(&str, f64, f64); 4] = [
    ("temperature", 0.0, f32::MAX as f64),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repeat_penalty", 0.1, 10.0),
];

impl Sampling {
    /// Checks that every number is in its domain, as for option texts.
    ///
    /// # Errors
    /// `ERR_RANGE`, naming the number, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        let values = [
            self.temperature,
            self.top_p,
            self.min_p,
            self.repeat_penalty,
        ];
        for ((name, least, most), value) in DOMAINS.into_iter().zip(values) {
            if !(least..=most).contains(&f64::from(value)) {
                return Err(Error::range(format!(
                    "{name} is {value}, expected {}",
                    expected(least, most)
                )));
            }
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            seed: 0,
        }
    }
}

/// The options of a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// `context`, in positions; `None`: that of the model.
    pub context: Option<usize>,
    /// `kv`: `"f16"` or `"f32"`; `None`: float32 if the model's weights are, else float16.
    pub kv: Option<Precision>,
    /// The options of the sampler.
    pub sampling: Sampling,
}

impl SessionOptions {
    /// Parses a JSON object; empty text gives the defaults.
    ///
    /// # Errors
    /// `ERR_CONFIG`, naming the key, what was found and what was expected.
    pub fn from_json(text: &str) -> Result<SessionOptions> {
        let mut options = SessionOptions::default();
        for (key, value) in &members("options", text)? {
            options.set(key, value)?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let s = &mut self.sampling;
        match key {
            "context" => self.context = Some(count(key, value)?),
            "temperature" => s.temperature = number(key, value)?,
            "top_k" => s.top_k = natural(key, value)?,
            "top_p" => s.top_p = number(key, value)?,
            "min_p" => s.min_p = number(key, value)?,
            "repeat_penalty" => s.repeat_penalty = number(key, value)?,
            "seed" => {
                let seed = value.as_u64();
                s.seed = seed.ok_or_else(|| {
                    wrong_value(key, value, "an integer from 0 to 18446744073709551615")
                })?;
            }
            "kv" => {
                self.kv = Some(match value.as_str() {
                    Some("f16") => Precision::F16,
                    Some("f32") => Precision::F32,
                    _ => return Err(wrong_value(key, value, "\"f16\" or \"f32\"")),
                });
            }
            _ => {
                return Err(Error::config(format!(
                    "options has the unknown key \"{}\", expected context, temperature, top_k, top_p, min_p, \
                     repeat_penalty, seed or kv",
                    abridged(key)
                )));
            }
        }
        Ok(())
    }
}

fn count(key: &str, value: &Value) -> Result<usize> {
    let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
    match count {
        Some(n) if n > 0 => Ok(n as usize),
        _ => Err(wrong_value(key, value, "an integer from 1 to 4294967295")),
    }
}

fn natural(key: &str, value: &Value) -> Result<usize> {
    let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
    let n = n.ok_or_else(|| wrong_value(key, value, "an integer from 0 to 4294967295"))?;
    Ok(n as usize)
}

/// A floating-point option of the sampler, checked.
fn number(key: &str, value: &Value) -> Result<f32> {
    let domain = DOMAINS.into_iter().find(|(name, ..)| *name == key);
    let (_, least, most) = domain.expect("the key of such a number");
    match value.as_f64() {
        Some(x) if (least..=most).contains(&x) => Ok(x as f32),
        _ => Err(wrong_value(key, value, &expected(least, most))),
    }
}

fn expected(least: f64, most: f64) -> String {
    match most {
        _ if most > 1e30 => format!("a number from {least}"),
        _ => format!("a number from {least} to {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key() {
        let all = r#"{"context":7,"temperature":0,"top_k":0,"top_p":1,"min_p":0.5,"repeat_penalty":1.5,"seed":9,"kv":"f32"}"#;
        let o = SessionOptions::from_json(all).unwrap();
        assert_eq!((o.context, o.kv), (Some(7), Some(Precision::F32)));
        assert_eq!((o.sampling.top_k, o.sampling.seed), (0, 9));
        assert_eq!((o.sampling.temperature, o.sampling.min_p), (0.0, 0.5));
        let m = ModelOptions::from_json(r#"{"context":64,"bits":32,"mmap":false}"#).unwrap();
        assert_eq!((m.context, m.weights.mmap), (Some(64), false));
    }

    #[test]
    fn what_authors_advise() {
        let advised = |text: &str| {
            let Ok(Value::Object(advice)) = serde_json::from_str(text) else {
                panic!("{text}");
            };
            Sampling::advised(&advice)
        };
        assert_eq!(advised("{}").unwrap(), Sampling::default());
        let s = advised(r#"{"do_sample":true,"temperature":0.6,"repetition_penalty":1.05}"#);
        assert_eq!(
            s.unwrap(),
            Sampling {
                temperature: 0.6,
                repeat_penalty: 1.05,
                ..Sampling::default()
            }
        );
        let greedy = advised(r#"{"do_sample":false,"temperature":0.6,"repetition_penalty":1.1}"#);
        let greedy = greedy.unwrap();
        assert_eq!((greedy.temperature, greedy.repeat_penalty), (0.0, 1.1));
        let e = advised(r#"{"top_p":2}"#).unwrap_err();
        assert_eq!(e.status(), crate::error::Status::Format);
        assert_eq!(
            e.message(),
            "generation_config.json has \"top_p\": 2, which no sampler takes"
        );
    }

    #[test]
    fn numbers_are_checked_as_texts_are() {
        let plain = Sampling::default();
        plain.check().unwrap();
        for (sampling, message) in [
            (
                Sampling {
                    temperature: f32::NAN,
                    ..plain.clone()
                },
                "temperature is NaN, expected a number from 0",
            ),
            (
                Sampling {
                    temperature: f32::INFINITY,
                    ..plain.clone()
                },
                "temperature is inf, expected a number from 0",
            ),
            (
                Sampling {
                    min_p: 2.0,
                    ..plain.clone()
                },
                "min_p is 2, expected a number from 0 to 1",
            ),
            (
                Sampling {
                    repeat_penalty: 0.0,
                    ..plain.clone()
                },
                "repeat_penalty is 0, expected a number from 0.1 to 10",
            ),
        ] {
            assert_eq!(sampling.check().unwrap_err().message(), message);
        }
    }

    #[test]
    fn values_outside_their_domain() {
        for (text, message) in [
            (
                r#"{"temperature":-1}"#,
                "options has \"temperature\": -1, expected a number from 0",
            ),
            (
                r#"{"top_p":1.5}"#,
                "options has \"top_p\": 1.5, expected a number from 0 to 1",
            ),
            (
                r#"{"top_k":-1}"#,
                "options has \"top_k\": -1, expected an integer from 0 to 4294967295",
            ),
            (
                r#"{"context":0}"#,
                "options has \"context\": 0, expected an integer from 1 to 4294967295",
            ),
            (
                r#"{"seed":1.5}"#,
                "options has \"seed\": 1.5, expected an integer from 0 to 18446744073709551615",
            ),
            (
                r#"{"kv":"f8"}"#,
                "options has \"kv\": \"f8\", expected \"f16\" or \"f32\"",
            ),
            (
                r#"{"bits":4}"#,
                "options has the unknown key \"bits\", expected context, temperature, top_k, top_p, min_p, \
                     repeat_penalty, seed or kv",
            ),
        ] {
            assert_eq!(
                SessionOptions::from_json(text).unwrap_err().message(),
                message
            );
        }
        let e = ModelOptions::from_json(r#"{"temperature":1}"#).unwrap_err();
        assert!(
            e.message()
                .ends_with("expected bits, group, symmetric, method, activations, mmap or context"),
            "{e}"
        );
    }
}
