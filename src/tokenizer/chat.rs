//! The chat template of a model: Jinja as in `transformers`.

use std::{io, thread};

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error as JinjaError, ErrorKind, context, filters};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{namespaces, tags};
use crate::error::{Error, Result};
use crate::runtime::quietly;
use crate::signals::Blocked;

/// A chat template and the texts of the special tokens that it may write.
pub(super) struct Template {
    text: String,
    bos: String,
    eos: String,
}

/// A conversation: a JSON list `[{"role": …, "content": …}, …]`.
pub struct Messages(Value);

impl Messages {
    /// Parses a conversation.
    ///
    /// # Errors
    /// `ERR_CONFIG` if it is not JSON, or not such a list.
    pub fn parse(text: &str) -> Result<Messages> {
        let messages: Value = serde_json::from_str(text)
            .map_err(|e| Error::config(format!("messages is not JSON: {e}")))?;
        check(&messages)?;
        Ok(Messages(messages))
    }
}

/// The number of steps that a template may take. Templates of the supported families take 25 to 63
/// per message. Each step can wrap a value in another list, and comparing, writing or dropping
/// nested lists takes a kilobyte of stack per level in unoptimised builds.
const FUEL: u64 = 400_000;

/// The stack, in bytes, on which a template is parsed and rendered; the caller's may be small.
const STACK: usize = 256 << 20;

/// The largest template, in bytes. Templates in use have some 20 kB.
const MOST_BYTES: usize = 64 << 10;

/// The most minus signs in a row, with or without white space between them. Each is one nesting
/// level of an expression, and the lexer scans each byte of such a run once for every sign before
/// it.
const MOST_SIGNS: usize = 256;

/// The most bytes without an end of a tag among them, for the same reason: chained expressions
/// (`x~x~x`, `x.y.y`) lie within one tag.
const LONGEST_TAG: usize = 16 << 10;

/// The most bytes that a template may write.
const MOST_TEXT: usize = 64 << 20;

/// The most columns that `indent` may add to a line.
const WIDEST: usize = 1024;

impl Template {
    pub(super) fn new(text: String, bos: String, eos: String) -> Template {
        Template { text, bos, eos }
    }

    pub(super) fn render(&self, messages: &Messages) -> Result<String> {
        check_depth(&self.text)?;
        namespaces::check(&self.text)?;
        on_a_deep_stack(|| self.render_here(&messages.0))?
    }

    #[cfg(test)]
    pub(super) fn render_text(&self, messages: &str) -> Result<String> {
        self.render(&Messages::parse(messages)?)
    }

    fn render_here(&self, messages: &Value) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // `transformers` sets both.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, JinjaError> {
                Err(JinjaError::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| today(&format));
        environment.add_filter("tojson", to_json);
        environment.add_filter("indent", indent);
        // They take any amount of memory in one step.
        environment.remove_filter("batch");
        environment.remove_filter("slice");
        // Their output for nested lists grows with the square of the depth.
        environment.remove_filter("pprint");
        environment.remove_global("debug");
        let text = tags::without_marks(&self.text);
        environment
            .add_template("chat", &text)
            .map_err(|e| Error::format(format!("the chat template is malformed: {e}")))?;
        let template = environment.get_template("chat");
        let mut written = Bounded::default();
        let rendered = template.and_then(|t| {
            let context = context! {
                messages => minijinja::Value::from_serialize(messages),
                bos_token => self.bos,
                eos_token => self.eos,
                add_generation_prompt => true,
                // None, as in `transformers`, whose templates may ask `is not none`.
                tools => (),
                documents => (),
            };
            t.render_captured_to(context, &mut written).map(|_| ())
        });
        let full = written.full;
        rendered
            .and_then(|()| written.finish())
            .map_err(|e| match e.kind() {
                ErrorKind::OutOfFuel => {
                    Error::unsupported(format!("a chat template of more than {FUEL} steps"))
                }
                _ if full => Error::unsupported(format!(
                    "a chat template that writes more than {MOST_TEXT} bytes"
                )),
                _ => Error::config(format!("the chat template refuses the messages: {e}")),
            })
    }
}

/// Keeps the parser, which recurses once per nesting level, within its stack, and its time within
/// bounds: it takes a number of steps proportional to the square of the depth.
fn check_depth(template: &str) -> Result<()> {
    let refused = |what: String| Err(Error::unsupported(format!("a chat template {what}")));
    if template.len() > MOST_BYTES {
        let len = template.len();
        return refused(format!("of {len} bytes, at most {MOST_BYTES} are accepted"));
    }
    let (mut signs, mut tag, mut last) = (0, 0, ' ');
    for c in template.chars() {
        signs = match c {
            '-' => signs + 1,
            c if c.is_whitespace() => signs,
            _ => 0,
        };
        let ends = c == '}' && (last == '}' || last == '%' || last == '#');
        tag = if ends { 0 } else { tag + c.len_utf8() };
        if signs > MOST_SIGNS || tag > LONGEST_TAG {
            return refused(format!(
                "with more than {MOST_SIGNS} signs in a row or {LONGEST_TAG} bytes without the end of a tag"
            ));
        }
        last = c;
    }
    Ok(())
}

/// Output of a template, or a part of it.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    /// Whether there was more of it.
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MOST_TEXT - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other(format!(
                "more than {MOST_TEXT} bytes of text"
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Bounded {
    fn finish(self) -> std::result::Result<String, JinjaError> {
        String::from_utf8(self.bytes)
            .map_err(|e| JinjaError::new(ErrorKind::BadSerialization, e.to_string()))
    }
}

/// Jinja's filter, limited to [`WIDEST`] columns.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> std::result::Result<minijinja::Value, JinjaError> {
    let columns = match width {
        Some(columns) => columns,
        None => named.get::<Option<usize>>("width")?.unwrap_or(0),
    };
    if columns > WIDEST {
        return Err(JinjaError::new(
            ErrorKind::InvalidOperation,
            format!("indent by {columns} columns, expected at most {WIDEST}"),
        ));
    }
    filters::indent(text, width, first, blank, named)
}

/// Runs `body` on a thread with a deep stack, and waits for it.
fn on_a_deep_stack<T: Send>(body: impl FnOnce() -> T + Send) -> Result<T> {
    let ended = thread::scope(|scope| {
        let signals = Blocked::all();
        let deep = thread::Builder::new()
            .name("apl_ffi-chat".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || quietly(body));
        drop(signals);
        Ok(deep?.join())
    });
    let started = ended.map_err(|e: io::Error| {
        Error::memory(format!(
            "no thread for the chat template can be started: {e}"
        ))
    })?;
    match started {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(said)) => Err(Error::internal(format!("a panic was caught: {said}"))),
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// `tojson`: the output of Python's `json.dumps`, including its spaces, and only those characters
/// escaped that JSON requires.
fn to_json(value: minijinja::Value, options: Kwargs) -> std::result::Result<String, JinjaError> {
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Bounded::default();
    let blanks = vec![b' '; indent.unwrap_or(0).min(64)];
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Python)),
        Some(_) => {
            let pretty = PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut Serializer::with_formatter(&mut text, pretty))
        }
    };
    written.map_err(|e| JinjaError::new(ErrorKind::BadSerialization, e.to_string()))?;
    text.finish()
}

/// Spaces after commas and colons.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// A list of objects with a role and a content.
fn check(messages: &Value) -> Result<()> {
    let list = messages.as_array().ok_or_else(|| {
        Error::config("messages is not a list, expected [{\"role\": …, \"content\": …}, …]")
    })?;
    for (i, message) in list.iter().enumerate() {
        for key in ["role", "content"] {
            if !message.get(key).is_some_and(Value::is_string) {
                return Err(Error::config(format!(
                    "messages[{i}] has no text \"{key}\", expected {{\"role\": …, \"content\": …}}"
                )));
            }
        }
    }
    Ok(())
}

/// Today's date, for templates that include it, with the format fields that they use.
fn today(format: &str) -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86400);
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let name = MONTHS[month as usize - 1];
    format
        .replace("%d", &format!("{day:02}"))
        .replace("%m", &format!("{month:02}"))
        .replace("%B", name)
        .replace("%b", &name[..3])
        .replace("%Y", &year.to_string())
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_780), (2026, 11, 23));
    }
}
