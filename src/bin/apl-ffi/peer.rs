//! llama.cpp, as the program `llama-bench`, to compare with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A `llama-bench` that was found.
pub struct Peer {
    program: PathBuf,
}

/// Tokens a second that it reads of a prompt and writes of a text.
pub struct Round {
    pub prompt: f64,
    pub text: f64,
}

impl Peer {
    /// The program on the PATH, if `model` is a file that it takes.
    pub fn find(model: &Path) -> Option<Peer> {
        if model.extension()? != "gguf" {
            return None;
        }
        let name = format!("llama-bench{}", std::env::consts::EXE_SUFFIX);
        let program = std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join(&name))
            .find(|p| p.is_file())?;
        Some(Peer { program })
    }

    /// One round: a prompt, then a text, each in an empty context.
    ///
    /// # Errors
    /// A sentence, if the program fails or says something else than expected.
    pub fn round(
        &self,
        model: &Path,
        prompt: usize,
        text: usize,
        threads: usize,
    ) -> Result<Round, String> {
        let output = Command::new(&self.program)
            .arg("-m")
            .arg(model)
            .args(["-p", &prompt.to_string(), "-n", &text.to_string()])
            .args(["-t", &threads.to_string(), "-ngl", "0"])
            .args(["-r", "1", "-o", "json"])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{}: {e}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("").trim().to_owned();
            return Err(format!("{}: {last}", output.status));
        }
        parse(&output.stdout).ok_or_else(|| {
            "its output is not the JSON of `-o json`, expected n_prompt, n_gen and avg_ts".into()
        })
    }
}

/// Its two tests: one has `n_gen` 0, the other `n_prompt` 0.
fn parse(json: &[u8]) -> Option<Round> {
    let tests: Value = serde_json::from_slice(json).ok()?;
    let speed = |without: &str| {
        let mut tests = tests.as_array()?.iter();
        let test = tests.find(|t| t[without].as_u64() == Some(0))?;
        test["avg_ts"].as_f64().filter(|&s| s > 0.0)
    };
    Some(Round {
        prompt: speed("n_gen")?,
        text: speed("n_prompt")?,
    })
}
