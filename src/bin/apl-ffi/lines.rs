//! Lines that a user types, or that a file or a pipe gives in their place.

use std::io::{IsTerminal, stdin, stdout};

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::interrupts::{asking, go_on_after_interrupts};
use crate::terminal::note;
use crate::{Failure, Outcome, input};

pub enum Lines {
    /// With the keys of readline, which also bring earlier lines back.
    Typed(Box<DefaultEditor>),
    /// As they come, without a prompt: nobody sees one.
    Given,
}

impl Lines {
    /// Those of stdin.
    pub fn of_stdin() -> Lines {
        if !stdin().is_terminal() || !stdout().is_terminal() {
            return Lines::Given;
        }
        let config = Config::builder().auto_add_history(true).build();
        match DefaultEditor::with_config(config) {
            Ok(editor) => {
                go_on_after_interrupts();
                Lines::Typed(Box::new(editor))
            }
            Err(_) => Lines::Given,
        }
    }

    /// Whether a person types them.
    pub fn are_typed(&self) -> bool {
        matches!(self, Lines::Typed(_))
    }

    /// The next line; empty at the end of the input. Ctrl-C drops what is typed so far.
    pub fn next(&mut self, prompt: &str) -> Outcome<String> {
        asking(|| match self {
            Lines::Given => input::line(),
            Lines::Typed(editor) => loop {
                match editor.readline(prompt) {
                    Ok(line) => return Ok(line),
                    Err(ReadlineError::Eof) => return Ok(String::new()),
                    Err(ReadlineError::Interrupted) => note!("[Ctrl-D ends the conversation]"),
                    Err(e) => return Err(Failure::new(3, format!("stdin cannot be read: {e}"))),
                }
            },
        })
    }
}
