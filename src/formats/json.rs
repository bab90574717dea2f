//! JSON texts of files, read straight into the structs that are wanted, so that a text cannot grow
//! into a tree many times its size.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::limits;
use crate::error::{Error, Result};

/// Reads a whole text; `what` names it in the message.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    cap(bytes, what)?;
    serde_json::from_slice(bytes).map_err(|e| malformed(what, &e))
}

/// Reads an object whose members are the entries, but for those whose key is `skipped`.
pub(super) fn parse_entries<T: DeserializeOwned>(
    bytes: &[u8],
    skipped: &'static str,
    what: &str,
) -> Result<Entries<T>> {
    cap(bytes, what)?;
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let seed = EntriesVisitor {
        skipped: Some(skipped),
        entry: PhantomData,
    };
    let entries = seed.deserialize(&mut text);
    entries
        .and_then(|e| text.end().map(|()| e))
        .map_err(|e| malformed(what, &e))
}

/// Whether the text is an object that has this key.
pub(super) fn has_key(bytes: &[u8], key: &'static str) -> bool {
    parse::<Entries<IgnoredAny>>(bytes, "").is_ok_and(|e| e.0.iter().any(|(k, _)| k == key))
}

fn cap(bytes: &[u8], what: &str) -> Result<()> {
    if bytes.len() as u64 > limits::JSON_BYTES {
        return Err(Error::format(format!(
            "{what} has {} bytes, at most {} are accepted",
            bytes.len(),
            limits::JSON_BYTES
        )));
    }
    Ok(())
}

fn malformed(what: &str, e: &serde_json::Error) -> Error {
    Error::format(format!("{what} is malformed: {e}"))
}

/// The members of an object in their order. A key that comes twice is an error: readers that
/// disagree on which one counts would disagree on the contents.
#[derive(Debug)]
pub(super) struct Entries<T>(pub Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Entries<T>, D::Error> {
        let seed = EntriesVisitor {
            skipped: None,
            entry: PhantomData,
        };
        seed.deserialize(d)
    }
}

struct EntriesVisitor<T> {
    skipped: Option<&'static str>,
    entry: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Entries<T>, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries<T>, A::Error> {
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if Some(key.as_str()) == self.skipped {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!(
                    "the key {key:?} comes twice"
                )));
            }
            if entries.len() as u64 == limits::TENSORS {
                return Err(A::Error::custom("too many keys"));
            }
            entries.push((key, map.next_value()?));
        }
        Ok(Entries(entries))
    }
}
