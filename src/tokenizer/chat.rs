//! The chat template of a model: Jinja as `transformers` runs it.

use std::io;

use minijinja::{Environment, Error as JinjaError, ErrorKind, context, value::Kwargs};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::{Error, Result};

/// A chat template and the names of the tokens that it may write.
pub(super) struct Template {
    text: String,
    bos: String,
    eos: String,
}

/// Steps that a template may take; those of real models take some thousands for a long conversation.
const FUEL: u64 = 10_000_000;

impl Template {
    pub(super) fn new(text: String, bos: String, eos: String) -> Template {
        Template { text, bos, eos }
    }

    pub(super) fn render(&self, messages: &str) -> Result<String> {
        let messages: Value = serde_json::from_str(messages)
            .map_err(|e| Error::config(format!("messages is not JSON: {e}")))?;
        check(&messages)?;
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
        environment
            .add_template("chat", &self.text)
            .map_err(|e| Error::format(format!("the chat template is malformed: {e}")))?;
        let template = environment.get_template("chat");
        let rendered = template.and_then(|t| {
            t.render(context! {
                messages => minijinja::Value::from_serialize(&messages),
                bos_token => self.bos,
                eos_token => self.eos,
                add_generation_prompt => true,
            })
        });
        rendered.map_err(|e| Error::config(format!("the chat template refuses the messages: {e}")))
    }
}

/// `tojson`: what Python's `json.dumps` writes, blanks and all, with no characters escaped that JSON does not want escaped.
fn to_json(value: minijinja::Value, options: Kwargs) -> std::result::Result<String, JinjaError> {
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    let blanks = vec![b' '; indent.unwrap_or(0).min(64)];
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Python)),
        Some(_) => {
            let pretty = PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut Serializer::with_formatter(&mut text, pretty))
        }
    };
    let failed = |e: String| JinjaError::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(text).map_err(|e| failed(e.to_string()))
}

/// Blanks behind commas and colons.
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

/// The date of today, for templates that tell it to the model; the fields that they use.
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
