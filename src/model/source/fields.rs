//! Typed fields of a JSON object, with errors that name the field, its value and what was expected.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::members::abridged;

/// The fields of an object. Null counts as absent, as for most fields in `transformers`.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Prepended to the names of fields in messages, for example `rope_scaling.`
    prefix: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Fields<'a> {
        Fields {
            object,
            prefix: String::new(),
        }
    }

    /// The name of a field in messages.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Whether there are no fields.
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Whether a field is present and null, for the few fields where that differs from absence.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.object.get(key).unwrap_or(&Value::Null).to_string();
        let found = abridged(&found);
        Error::format(format!(
            "{}{key} is {found}, expected {expected}",
            self.prefix
        ))
    }

    fn missing(&self, key: &str) -> Error {
        Error::format(format!("{}{key} is missing", self.prefix))
    }

    /// A count of 1 to [`MOST`].
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=MOST).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(key, &format!("an integer from 1 to {MOST}"))),
        }
    }

    /// A count of 0 to [`MOST`].
    pub(super) fn natural(&self, key: &str) -> Result<Option<usize>> {
        let zero = self.get(key).is_some_and(|v| v.as_u64() == Some(0));
        if zero { Ok(Some(0)) } else { self.count(key) }
    }

    /// A required count.
    pub(super) fn need_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A positive finite number.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(key, "a number above 0")),
        }
    }

    /// A finite number that is not negative.
    pub(super) fn not_negative(&self, key: &str) -> Result<Option<f64>> {
        let zero = self.get(key).is_some_and(|v| v.as_f64() == Some(0.0));
        if zero {
            Ok(Some(0.0))
        } else {
            self.positive(key)
        }
    }

    /// A required positive finite number.
    pub(super) fn need_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| self.wrong(key, "text"))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_array()
            .and_then(|a| a.iter().map(Value::as_str).collect())
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a list of texts"))
    }

    /// The elements of a list.
    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_array()
            .map(|a| Some(&a[..]))
            .ok_or_else(|| self.wrong(key, "a list"))
    }

    /// A nested object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let object = value
            .as_object()
            .ok_or_else(|| self.wrong(key, "an object"))?;
        Ok(Some(Fields {
            object,
            prefix: format!("{}{key}.", self.prefix),
        }))
    }

    /// A required nested object.
    pub(super) fn need_object(&self, key: &str) -> Result<Fields<'a>> {
        self.object(key)?.ok_or_else(|| self.missing(key))
    }
}

/// The largest accepted dimension of a model. The largest vocabularies have some 300,000 tokens,
/// the longest contexts ten million positions. A larger number is a mistake, and with this limit
/// products of dimensions stay far from overflow.
pub(super) const MOST: usize = 1 << 24;
