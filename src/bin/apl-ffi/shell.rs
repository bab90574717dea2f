//! Commands as a shell takes them, and completions for shells.

use std::borrow::Cow;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::terminal::print;
use crate::{Cli, Outcome};

/// Print a script that completes commands and options in a shell.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                  apl-ffi completions bash > ~/.local/share/bash-completion/completions/apl-ffi\n  \
                  apl-ffi completions fish > ~/.config/fish/completions/apl-ffi.fish")]
pub struct Arguments {
    /// The shell.
    shell: Shell,
}

/// `apl-ffi completions`
pub fn run(a: &Arguments) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "apl-ffi", &mut script);
    print(format_args!("{}", String::from_utf8_lossy(&script)))
}

/// A word as a POSIX shell reads it back.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => Cow::Borrowed(word),
        false => Cow::Owned(format!("'{}'", word.replace('\'', "'\\''"))),
    }
}

/// The same for a path, which no program takes for an option.
pub fn path(path: &str) -> Cow<'_, str> {
    match path.starts_with('-') {
        true => Cow::Owned(quoted(&format!("./{path}")).into_owned()),
        false => quoted(path),
    }
}

/// The words behind `apl-ffi` that give a verb these options, and these arguments whatever they begin with.
pub fn words(verb: &str, options: &[(&str, Option<&str>)], arguments: &[&str]) -> Vec<String> {
    let mut words = vec![verb.to_owned()];
    for (name, value) in options {
        match value {
            Some(value) if value.starts_with('-') => words.push(format!("{name}={value}")),
            Some(value) => words.extend([(*name).to_owned(), (*value).to_owned()]),
            None => words.push((*name).to_owned()),
        }
    }
    if arguments.iter().any(|a| a.starts_with('-')) {
        words.push("--".to_owned());
    }
    words.extend(arguments.iter().map(|a| (*a).to_owned()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_their_quotes() {
        for (word, expected) in [
            ("models/mine", "models/mine"),
            ("my model", "'my model'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
            ("a;b", "'a;b'"),
            ("~x", "'~x'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(path("-m x"), "'./-m x'");
        assert_eq!(path("m"), "m");
    }

    #[test]
    fn arguments_that_look_like_options() {
        let options = [("--out", Some("-x")), ("--bits", Some("4")), ("-q", None)];
        assert_eq!(
            words("convert", &options, &["-m", "b"]),
            ["convert", "--out=-x", "--bits", "4", "-q", "--", "-m", "b"]
        );
        assert_eq!(words("run", &[], &["m", "b"]), ["run", "m", "b"]);
    }
}
