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

use super::tags::Token::{self, End, Sign, Start, Text, Word};
use super::tags::{balance, tokens};
use crate::error::{Error, Result};

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
