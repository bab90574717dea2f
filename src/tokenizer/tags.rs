//! What stands in the tags of a chat template.

use std::borrow::Cow;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    /// The beginning of a statement, `{%`.
    Start,
    /// The beginning of an expression that is written, `{{`.
    Print,
    /// The end of either.
    End,
    Word(&'a str),
    /// A string.
    Text,
    /// The digits of a number.
    Digits,
    Sign(u8),
}

use Token::{Digits, End, Print, Sign, Start, Text, Word};

/// A template without the tags of `transformers` that Jinja does not have. `{% generation %}` and
/// `{% endgeneration %}` mark, for training, what the assistant wrote; as there, they are a scope of
/// their own and change nothing else.
pub(super) fn without_marks(template: &str) -> Cow<'_, str> {
    let tokens = tokens(template);
    let mut text = String::new();
    let mut from = 0;
    for tag in tokens.windows(3) {
        let (marked, scope) = match tag {
            [Start, Word(name @ "generation"), End] => (name, "with"),
            [Start, Word(name @ "endgeneration"), End] => (name, "endwith"),
            _ => continue,
        };
        let at = marked.as_ptr().addr() - template.as_ptr().addr();
        text.push_str(&template[from..at]);
        text.push_str(scope);
        from = at + marked.len();
    }
    if from == 0 {
        return Cow::Borrowed(template);
    }
    text.push_str(&template[from..]);
    Cow::Owned(text)
}

/// The tokens of all tags, cut as the engine cuts them: a tag ends where all brackets are closed.
pub(super) fn tokens(template: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let mut rest = template;
    while let Some((kind, inside)) = next_tag(rest) {
        if kind == b'#' {
            rest = inside.split_once("#}").map_or("", |(_, rest)| rest);
            continue;
        }
        let (start, end) = match kind {
            b'%' => (Start, "%}"),
            _ => (Print, "}}"),
        };
        all.push(start);
        rest = inside.strip_prefix(['-', '+']).unwrap_or(inside);
        let mut open = 0;
        while !rest.is_empty() {
            rest = rest.trim_ascii_start();
            let at_end = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if let (0, Some(after)) = (open, at_end.strip_prefix(end).or(rest.strip_prefix(end))) {
                rest = after;
                break;
            }
            let (token, after) = first_token(rest);
            open += token.map_or(0, balance);
            all.extend(token);
            rest = after;
        }
        all.push(End);
    }
    all
}

/// The number of brackets that a token opens.
pub(super) fn balance(token: Token<'_>) -> i32 {
    match token {
        Sign(b'(' | b'[' | b'{') => 1,
        Sign(b')' | b']' | b'}') => -1,
        _ => 0,
    }
}

/// The second character of the next tag's beginning, and what follows it.
fn next_tag(text: &str) -> Option<(u8, &str)> {
    let pairs = text.as_bytes().windows(2);
    let at = pairs
        .into_iter()
        .position(|pair| pair[0] == b'{' && b"{%#".contains(&pair[1]))?;
    Some((text.as_bytes()[at + 1], &text[at + 2..]))
}

/// The token with which `text` begins, and what follows it.
fn first_token(text: &str) -> (Option<Token<'_>>, &str) {
    let bytes = text.as_bytes();
    let of = |len: usize| (&text[..len], &text[len..]);
    match bytes {
        [] => (None, ""),
        [quote @ (b'\'' | b'"'), inside @ ..] => {
            let mut escaped = false;
            let len = inside.iter().position(|&c| {
                let ends = !escaped && c == *quote;
                escaped = !escaped && c == b'\\';
                ends
            });
            // A string without an end is malformed.
            (Some(Text), len.map_or("", |len| &text[len + 2..]))
        }
        [b'=', b'=', ..] => (Some(Sign(b'~')), &text[2..]),
        // A number ends before a letter, which begins a word of its own.
        [b'0'..=b'9', ..] => {
            let digits = |c: &u8| c.is_ascii_digit();
            let len = bytes.iter().take_while(|c| digits(c)).count();
            (Some(Digits), of(len).1)
        }
        [b'a'..=b'z' | b'A'..=b'Z' | b'_', ..] => {
            let letters = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
            let len = bytes.iter().take_while(|c| letters(c)).count();
            let (word, rest) = of(len);
            (Some(Word(word)), rest)
        }
        [sign, ..] => {
            let len = text.chars().next().map_or(1, char::len_utf8);
            (Some(Sign(*sign)), of(len).1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_what_an_assistant_wrote() {
        let marked = "{%generation%}a{%- endgeneration -%}{% generation +%}{{ generation }}{% endgeneration %}";
        assert_eq!(
            without_marks(marked),
            "{%with%}a{%- endwith -%}{% with +%}{{ generation }}{% endwith %}"
        );
        for unmarked in [
            "",
            "{% set generation = 1 %}{{ '{% generation %}' }}",
            "{# {% generation %} #}{% if generation %}{% endif %}",
        ] {
            assert!(matches!(without_marks(unmarked), Cow::Borrowed(text) if text == unmarked));
        }
    }
}
