//! `apl-ffi run --chat`

use serde_json::{Value, json};

use apl_ffi::model::Session;
use apl_ffi::runtime::Runtime;

use super::{Arguments, fits, tell};
use crate::interrupts::{self, ends_at_interrupt};
use crate::lines::Lines;
use crate::terminal::{counted, note, say};
use crate::{Failure, Outcome};

/// Holds a conversation. Every turn goes through the template over all of them, and only what is new is fed. It ends where the user
/// ends it, and where the context is full.
pub fn hold(rt: &Runtime, session: &mut Session, a: &Arguments, mut line: String) -> Outcome {
    let model = session.model().clone();
    let tokenizer = model.tokenizer()?;
    let mut lines = Lines::of_stdin();
    let system = a.system.iter();
    let mut messages: Vec<Value> = system
        .map(|text| json!({"role": "system", "content": text}))
        .collect();
    let before = messages.len();
    if lines.are_typed() && !a.quiet {
        note!("[Ctrl-C ends an answer, Ctrl-D the conversation]");
    }
    loop {
        if line.is_empty() {
            line = lines.next("> ")?;
        }
        let text = line.trim();
        if text.is_empty() {
            return Ok(());
        }
        messages.push(json!({"role": "user", "content": text}));
        let ids = tokenizer.encode(&tokenizer.chat(&json!(messages).to_string())?, None)?;
        if ids.is_empty() {
            return Err(Failure::new(
                4,
                format!("the chat template of {} writes nothing", a.model),
            ));
        }
        if messages.len() == before + 1 {
            fits(&ids, session)?;
        } else if ids.len() > session.context() {
            return full(session);
        }
        let common = ids
            .iter()
            .zip(session.tokens())
            .take_while(|(a, b)| a == b)
            .count();
        let common = common.min(ids.len() - 1);
        if session.rewind(rt, common).is_err() {
            session.rewind(rt, 0)?;
        }
        let from = session.position();
        let told = tell(rt, session, &ids[from..], a.tokens);
        say!()?;
        match told {
            Ok(figures) if a.quiet => drop(figures),
            Ok(figures) => note!("[{figures}]"),
            // Who types goes on from what there is of the answer.
            Err(e) if e.is_interruption() && lines.are_typed() && interrupts::forget() => {
                ends_at_interrupt(session.canceller());
                note!("[stopped]");
            }
            Err(e) => return Err(e),
        }
        if session.position() == session.context() {
            return full(session);
        }
        match session.tokens().get(ids.len()..) {
            Some(answer) => {
                let answer = tokenizer.decode(answer)?;
                messages.push(json!({"role": "assistant", "content": answer}));
            }
            // It was stopped before the model had read what was said.
            None => drop(messages.pop()),
        }
        line.clear();
    }
}

/// The end of a conversation that nothing more can be said in.
fn full(session: &Session) -> Outcome {
    note!(
        "the context of {} is full: the conversation ends here",
        counted(session.context(), "token")
    );
    Ok(())
}
