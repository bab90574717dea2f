//! Refuses chat templates that could make a namespace contain itself, or repeat a list.
//!
//! A namespace is the only value whose contents a template can change and then use.
//! `{% set ns.a = [ns] %}` makes a cycle, on which the engine recurses until the stack ends: when it
//! prints, compares or serialises it. Templates in use read and set attributes of a namespace, and
//! do nothing else with it; so nothing else is accepted. A namespace then never becomes part of any
//! value.
//!
//! `[] * 1000000000000000` is a list that the engine makes as it goes through it, which is one of the
//! steps that it counts. So `*` only repeats literal strings, whose length the engine limits.

use crate::error::{Error, Result};

#[derive(Clone, Copy, PartialEq)]
enum Token<'a> {
    /// The beginning of a tag.
    Start,
    /// Its end.
    End,
    Word(&'a str),
    /// A string.
    Text,
    /// The digits of a number.
    Digits,
    Sign(u8),
}

use Token::{Digits, End, Sign, Start, Text, Word};

/// # Errors
/// `ERR_UNSUPPORTED` for a template that uses a namespace other than to read and set attributes, or
/// multiplies anything but a literal string.
pub(super) fn check(template: &str) -> Result<()> {
    let tokens = tokens(template);
    // After `raw` the engine does not cut tags, so that `tokens` may not see what it sees.
    let raw = tokens.windows(2).any(|pair| pair == [Start, Word("raw")]);
    if raw && template.contains("namespace") {
        return refused("namespace");
    }
    if raw && template.contains('*') || (0..tokens.len()).any(|i| may_repeat_list(&tokens, i)) {
        return Err(Error::unsupported(
            "a chat template that multiplies (*) anything but a literal string",
        ));
    }
    let mut names = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        if *token != Word("namespace") || is_attribute(&tokens, i) {
            continue;
        }
        let name = match tokens[..i] {
            [.., Start, Word("set"), Word(name), Sign(b'=')] => name,
            _ => return refused("namespace"),
        };
        if tokens.get(i + 1) != Some(&Sign(b'(')) || after_brackets(&tokens[i + 1..]) != Some(&End)
        {
            return refused("namespace");
        }
        names.push(name);
    }
    if names.is_empty() {
        return Ok(());
    }
    for (i, token) in tokens.iter().enumerate() {
        match (token, tokens.get(i + 1)) {
            // In these, variables are attributes of other values.
            (Start, Some(Word("import" | "from" | "include" | "extends"))) => {
                return refused(names[0]);
            }
            (Word(name), next) if names.contains(name) && !is_attribute(&tokens, i) => {
                let next = next.copied().unwrap_or(End);
                if !matches!(next, Sign(b'.' | b'[' | b'=') | Word("is")) {
                    return refused(name);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn refused(name: &str) -> Result<()> {
    Err(Error::unsupported(format!(
        "a chat template that uses {name}, a namespace, other than to read and set its attributes"
    )))
}

/// Whether token `i` multiplies, and neither factor is a literal string.
fn may_repeat_list(tokens: &[Token<'_>], i: usize) -> bool {
    if tokens[i] != Sign(b'*') {
        return false;
    }
    // Filters, attributes and calls come before products.
    let right = match tokens[i + 1..] {
        [Text, Sign(b'|' | b'.' | b'[' | b'('), ..] => false,
        [Text, ..] => true,
        _ => false,
    };
    !right && !matches!(tokens[..i], [.., Text])
}

fn is_attribute(tokens: &[Token<'_>], i: usize) -> bool {
    matches!(tokens[..i], [.., Sign(b'.')])
}

/// The token after the bracket that closes the first one.
fn after_brackets<'t, 'a>(tokens: &'t [Token<'a>]) -> Option<&'t Token<'a>> {
    let mut open = 0;
    for (i, token) in tokens.iter().enumerate() {
        open += balance(*token);
        if open <= 0 {
            return tokens.get(i + 1);
        }
    }
    None
}

fn balance(token: Token<'_>) -> i32 {
    match token {
        Sign(b'(' | b'[' | b'{') => 1,
        Sign(b')' | b']' | b'}') => -1,
        _ => 0,
    }
}

/// The tokens of all tags, cut as the engine cuts them: a tag ends where all brackets are closed.
fn tokens(template: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let mut rest = template;
    while let Some((kind, inside)) = next_tag(rest) {
        if kind == b'#' {
            rest = inside.split_once("#}").map_or("", |(_, rest)| rest);
            continue;
        }
        let end = if kind == b'%' { "%}" } else { "}}" };
        all.push(Start);
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
    fn what_templates_do_with_a_namespace() {
        for accepted in [
            "no tag, a namespace",
            "{# {% set x = [namespace()] %} #}{{ 'namespace(' }}",
            "{%- set ns = namespace(a=1, b='', c=[x]) -%}{{ ns.a }}{% set ns.a = ns.b ~ 'ns' %}",
            "{% set ns = namespace() %}{{ ns['a'] }}{% if ns is defined and ns.a == 1 %}ns{% endif %}",
            "{% set ns = namespace(a={'b': {'c': 1}}) %}{{ {'d': {'e': message.ns}}  }} ns }}",
            "{% set ns = namespace(a='%}\\'') %}{{ message.namespace }}{{ f(ns=1) }}",
            "{% raw %}{{ ' }}{% endraw %}{{ x }}",
        ] {
            assert_eq!(check(accepted), Ok(()), "{accepted}");
        }
        let ns = "{% set ns = namespace() %}";
        for refused in [
            "{% set ns.a = ns %}",
            "{% set ns.a = [ns] %}",
            "{% set ns.a = {'b': {'c': ns}} %}",
            "{%set other=ns%}",
            "{{ ns == ns }}",
            "{{ f(ns) }}",
            "{{ f(ns=ns) }}",
            "{{ ns|tojson }}",
            "{{ 'a' ~ ns }}",
            "{{ '\\'' ~ ns }}",
            "{{ 1~ns}}",
            "{{ [1ns] }}",
            "{% for x in ns %}{% endfor %}",
            "{% for x in [ns] %}{% endfor %}",
            "{% macro f(a=ns) %}{% endmacro %}",
            "{% import 'chat' as m %}{% set ns.a = m.ns %}",
            "{%- from 'chat' import ns as other %}",
            "{% raw %}{{ ' }}{% endraw %}{% set ns.a = ns %}",
            "{# ' #}{{ ns }}",
            "{{ {'a': 1}}} }}{{ ns }}",
        ] {
            let template = format!("{ns}{refused}");
            assert!(check(&template).is_err(), "{template}");
        }
        for refused in [
            "{% set f = namespace %}",
            "{% set x = [namespace()] %}",
            "{% set x = namespace() or namespace() %}",
            "{% set x, y = namespace(), 1 %}",
            "{% with x = namespace() %}{% endwith %}",
            "{{ namespace() }}",
            "{% set x.a = namespace() %}",
            "{% raw %}{{ ' {% endraw %}{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
            "{%- raw %}{#{% endraw %}{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
        ] {
            assert!(check(refused).is_err(), "{refused}");
        }
    }
}
