//! JSON texts in files. A value may take a few bytes of text and some seventy in a tree, so nothing
//! that is read may grow without being counted.
//!
//! - Texts of known form are read straight into structs ([`parse`]). Each entry is a struct of
//!   fixed size; there are at most [`limits::TENSORS`] entries, with shapes of at most
//!   [`limits::DIMENSIONS`] numbers ([`Dimensions`]).
//! - Texts of free form, such as the configuration of a model, become a tree of values that stops
//!   growing at [`limits::TREE_BYTES`] ([`object`]), or that is dropped if it exceeds the few
//!   expected values ([`small`], [`number`]).
//!
//! Everything else is skipped.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::bytes::FileBytes;
use super::limits;
use crate::error::{Error, Result};

/// Parses a whole text; `what` names it in the message.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    cap(bytes.len() as u64, what)?;
    serde_json::from_slice(bytes).map_err(|e| malformed(what, &e))
}

/// Parses an object whose members are the entries, except those with the key `skipped`.
pub(super) fn parse_entries<T: DeserializeOwned>(
    bytes: &[u8],
    skipped: &'static str,
    what: &str,
) -> Result<Entries<T>> {
    cap(bytes.len() as u64, what)?;
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

/// Whether the text is an object with this key.
pub(super) fn has_key(bytes: &[u8], key: &'static str) -> bool {
    parse::<Entries<IgnoredAny>>(bytes, "").is_ok_and(|e| e.0.iter().any(|(k, _)| k == key))
}

fn cap(bytes: u64, what: &str) -> Result<()> {
    if bytes > limits::JSON_BYTES {
        return Err(Error::format(format!(
            "{what} has {bytes} bytes, at most {} are accepted",
            limits::JSON_BYTES
        )));
    }
    Ok(())
}

fn malformed(what: &str, e: &serde_json::Error) -> Error {
    Error::format(format!("{what} is malformed: {e}"))
}

/// The members of an object, in order. A repeated key is an error, because readers may differ on
/// which one counts.
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

/// The sides of a tensor; an error if there are more than [`limits::DIMENSIONS`].
#[derive(Debug)]
pub(super) struct Dimensions(pub Vec<usize>);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Dimensions, D::Error> {
        d.deserialize_seq(DimensionsVisitor)
    }
}

struct DimensionsVisitor;

impl<'de> Visitor<'de> for DimensionsVisitor {
    type Value = Dimensions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut list: A,
    ) -> std::result::Result<Dimensions, A::Error> {
        let mut shape = Vec::new();
        while let Some(side) = list.next_element()? {
            if shape.len() == limits::DIMENSIONS {
                return Err(A::Error::custom(format_args!(
                    "more than {} dimensions",
                    limits::DIMENSIONS
                )));
            }
            shape.push(side);
        }
        Ok(Dimensions(shape))
    }
}

/// The text of a JSON file, or `None` if the file does not exist.
///
/// # Errors
/// `ERR_FORMAT` if it is too long; `ERR_IO` if it is not a file or cannot be read; `ERR_MEMORY`.
pub(crate) fn read(path: &Path) -> Result<Option<FileBytes>> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(m) if m.is_file() => cap(m.len(), &path.display().to_string())?,
        // Any other problem is reported when it is opened.
        _ => {}
    }
    FileBytes::open(path, false).map(Some)
}

/// The members of an object whose keys are `wanted`, as a tree; of repeated keys the last one
/// counts. `what` names the text in messages.
///
/// # Errors
/// `ERR_FORMAT` if it is not an object, and for members that take more memory than
/// [`limits::TREE_BYTES`].
pub(crate) fn object(
    bytes: &[u8],
    what: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Map<String, Value>> {
    cap(bytes.len() as u64, what)?;
    let mut room = Room(Some(limits::TREE_BYTES));
    let members = Members {
        room: &mut room,
        wanted,
    };
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let object = text
        .deserialize_map(members)
        .and_then(|object| text.end().map(|()| object))
        .map_err(|e| Error::format(format!("{what} is not a JSON object: {e}")))?;
    match room.0 {
        Some(_) => Ok(object),
        None => Err(Error::format(format!(
            "{what} holds more than {} MiB of values, or nests them more than {} deep",
            limits::TREE_BYTES >> 20,
            limits::TREE_DEPTH
        ))),
    }
}

/// For `#[serde(deserialize_with)]`: any value, or null if it is large; for descriptive fields that
/// no model depends on.
pub(super) fn small<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Value, D::Error> {
    let mut room = Room(Some(limits::SMALL_TREE_BYTES));
    let value = Tree::new(&mut room).deserialize(d)?;
    Ok(room.0.map_or(Value::Null, |_| value))
}

/// For `#[serde(deserialize_with)]`: a number; `None` for any other value.
pub(super) fn number<'de, D: Deserializer<'de>>(
    d: D,
) -> std::result::Result<Option<f64>, D::Error> {
    let mut room = Room(Some(size_of::<Value>()));
    Ok(Tree::new(&mut room).deserialize(d)?.as_f64())
}

/// The bytes that a tree may still take; `None` once it would have exceeded them.
struct Room(Option<usize>);

impl Room {
    fn take(&mut self, bytes: usize) -> bool {
        self.0 = self.0.and_then(|left| left.checked_sub(bytes));
        self.0.is_some()
    }
}

/// Reads a value into a tree while there is room. When it runs out, the rest of the text is skipped
/// without recursion and the tree is incomplete, which the owner of the room has to check.
struct Tree<'a> {
    room: &'a mut Room,
    /// The nesting levels that it may still have.
    depth: usize,
}

impl<'a> Tree<'a> {
    fn new(room: &'a mut Room) -> Tree<'a> {
        Tree {
            room,
            depth: limits::TREE_DEPTH,
        }
    }

    fn inner(&mut self) -> Tree<'_> {
        Tree {
            room: self.room,
            depth: self.depth - 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Value, D::Error> {
        if self.depth == 0 {
            self.room.0 = None;
        }
        if !self.room.take(size_of::<Value>()) {
            return IgnoredAny::deserialize(d).map(|_| Value::Null);
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(match self.room.take(text.len()) {
            true => text.into(),
            false => Value::Null,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            if self.room.0.is_some() {
                list.push(value);
            }
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Value, A::Error> {
        let Tree { room, depth } = self;
        members(map, room, depth - 1, |_| true).map(Value::Object)
    }
}

/// Reads the wanted members of an object and skips all others.
fn members<'de, A: MapAccess<'de>>(
    mut map: A,
    room: &mut Room,
    depth: usize,
    wanted: impl Fn(&str) -> bool,
) -> std::result::Result<Map<String, Value>, A::Error> {
    let mut object = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        // A key takes an entry in the table besides its text.
        if !wanted(&key) || !room.take(key.len() + 2 * size_of::<String>()) {
            map.next_value::<IgnoredAny>()?;
            continue;
        }
        let value = map.next_value_seed(Tree { room, depth })?;
        if room.0.is_some() {
            object.insert(key, value);
        }
    }
    Ok(object)
}

struct Members<'a, F> {
    room: &'a mut Room,
    wanted: F,
}

impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Members<'_, F> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        map: A,
    ) -> std::result::Result<Map<String, Value>, A::Error> {
        members(map, self.room, limits::TREE_DEPTH, self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn all(text: &str) -> Result<Map<String, Value>> {
        object(text.as_bytes(), "the text", |_| true)
    }

    #[test]
    fn trees_are_those_of_the_text() {
        let text = r#"{"a": [1, -2, 2.5, null, true, "é\n", {"b": {}, "b": []}], "c": 18446744073709551615, "": ""}"#;
        let expected: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert_eq!(all(text).unwrap(), expected);
        let some = object(text.as_bytes(), "the text", |key| key == "c").unwrap();
        assert_eq!(Value::Object(some), serde_json::json!({"c": u64::MAX}));
        for (text, expected) in [
            (
                "[]",
                "the text is not a JSON object: invalid type: sequence",
            ),
            ("{} x", "the text is not a JSON object: trailing characters"),
            (
                r#"{"a": }"#,
                "the text is not a JSON object: expected value",
            ),
        ] {
            let e = all(text).unwrap_err();
            assert_eq!(e.status(), Status::Format);
            assert!(e.message().starts_with(expected), "{e}");
        }
    }

    /// Each of these would become a tree many times the size of its text, or a recursion as deep as
    /// the text is long.
    #[test]
    fn trees_that_do_not_grow() {
        let zeros = format!("[0{}]", ",0".repeat(1 << 20));
        let members = format!("{{\"x\":0{}}}", ",\"x\":0".repeat(1 << 20));
        let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        let text = format!("{:?}", "x".repeat(limits::TREE_BYTES));
        for large in [zeros, members, deep, text] {
            let text = format!("{{\"large\": {large}, \"wanted\": 1}}");
            let e = all(&text).unwrap_err();
            assert_eq!(
                e.message(),
                "the text holds more than 8 MiB of values, or nests them more than 64 deep"
            );
            let found = object(text.as_bytes(), "the text", |key| key == "wanted").unwrap();
            assert_eq!(found["wanted"], 1);

            #[derive(Deserialize)]
            struct Lenient {
                #[serde(default, deserialize_with = "small")]
                large: Value,
                #[serde(default, deserialize_with = "number")]
                wanted: Option<f64>,
                #[serde(default, deserialize_with = "number")]
                absent: Option<f64>,
            }
            let found: Lenient = parse(text.as_bytes(), "the text").unwrap();
            assert_eq!((found.large, found.wanted), (Value::Null, Some(1.0)));
            assert_eq!(found.absent, None);
            let text = text
                .replacen("wanted", "absent", 1)
                .replacen("large", "wanted", 1);
            let found: Lenient = parse(text.as_bytes(), "the text").unwrap();
            assert_eq!((found.wanted, found.absent), (None, Some(1.0)));
        }
    }
}
