//! The command line: every verb parses its arguments, makes one call into the library, and prints.

mod arguments;
mod bench;
mod bench_page;
mod catalogue;
mod compare;
mod convert;
mod info;
mod input;
mod inspect;
mod interrupts;
mod lines;
mod peer;
mod perplexity;
mod plot;
mod quickstart;
mod run;
mod shell;
mod terminal;
mod validate;

use std::cell::OnceCell;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use apl_ffi::error::{Error, Status, printable};
use apl_ffi::runtime::{Config, Runtime};

/// Quantised language models (1, 2, 4, 8 bits) from the command line: convert, inspect, run, measure.
#[derive(Parser)]
#[command(
    name = "apl-ffi",
    version,
    after_help = "A MODEL is a manifest (.json), a .gguf file, a folder in the Hugging Face layout, a folder that holds one manifest or \
                  one .gguf file, or a name: `demo` is a small story teller that comes with this project, `apl-ffi models` lists others.\n\n\
                  Exit codes: 0 success; 1 it failed; 2 wrong arguments; 3 no such file, or it cannot be read or written; \
                  4 a file is not what it claims, or is not supported; 5 no network, or the download was refused; 130 interrupted.\n\n\
                  Environment:\n  \
                  APL_FFI_THREADS  threads, where --threads is not given\n  \
                  APL_FFI_BACKEND  auto, cpu or cuda\n  \
                  APL_FFI_ISA      auto, scalar, avx2 or avx512: the instruction set at most\n  \
                  APL_FFI_AMX      0: without AMX\n  \
                  APL_FFI_MODELS   a folder in which models are looked for by name, before ./models\n  \
                  HF_TOKEN, HF_HOME, HF_ENDPOINT  the access token, the folder of downloads and the address of the hub\n\n\
                  Examples:\n  \
                  apl-ffi run demo \"Once upon a time\"\n  \
                  apl-ffi convert ./TinyLlama-1.1B --bits 4 --out models/tiny\n  \
                  apl-ffi run models/tiny \"The capital of France is\""
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Threads; 0: as many as there are processors. [default: APL_FFI_THREADS, else 0]
    #[arg(long, global = true, allow_negative_numbers = true, value_parser = arguments::count)]
    threads: Option<usize>,
}

#[derive(Subcommand)]
enum Verb {
    Convert(convert::Arguments),
    Run(run::Arguments),
    Inspect(inspect::Arguments),
    Models(catalogue::Arguments),
    Validate(validate::Arguments),
    Compare(compare::Arguments),
    Perplexity(perplexity::Arguments),
    Bench(bench::Arguments),
    Info(info::Arguments),
    Quickstart(quickstart::Arguments),
    Completions(shell::Arguments),
}

/// What a verb ends with when it does not succeed: an exit code and one line.
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: printable(&message.into()).into_owned(),
        }
    }

    /// Whether it is Ctrl-C.
    fn is_interruption(&self) -> bool {
        self.code == interrupts::CODE
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let code = match e.status() {
            Status::Io => 3,
            Status::Format | Status::Unsupported => 4,
            Status::Config | Status::Range => 2,
            _ => 1,
        };
        Failure::new(code, e.message())
    }
}

/// What a verb, or a part of one, gives; a failure becomes the exit code.
pub type Outcome<T = ()> = Result<T, Failure>;

fn main() -> ExitCode {
    // `apl-ffi models | head` ends quietly, as other programs do; Rust's runtime ignores the signal. What is larger than the limit
    // of `ulimit -f` gives an error, as a full disk does.
    #[cfg(unix)]
    // SAFETY: these actions are no handlers of ours, and there is one thread yet.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let cli = Cli::parse();
    match perform(&Machine::new(cli.threads), &cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::note!("apl-ffi: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs a verb; those that compute nothing need no backend.
fn perform(machine: &Machine, verb: &Verb) -> Outcome {
    let rt = || machine.runtime();
    match verb {
        Verb::Convert(a) => convert::run(rt()?, a),
        Verb::Run(a) => run::run(rt()?, a),
        Verb::Inspect(a) => inspect::run(a),
        Verb::Models(a) => catalogue::run(a),
        Verb::Validate(a) => validate::run(rt()?, a),
        Verb::Compare(a) => compare::run(rt()?, a),
        Verb::Perplexity(a) => perplexity::run(rt()?, a),
        Verb::Bench(a) => bench::run(rt()?, a),
        Verb::Info(a) => info::run(rt()?, a),
        Verb::Quickstart(a) => quickstart::run(machine, a),
        Verb::Completions(a) => shell::run(a),
    }
}

/// The library as it is configured, from the first verb on that computes.
struct Machine {
    threads: Option<usize>,
    runtime: OnceCell<Runtime>,
}

impl Machine {
    fn new(threads: Option<usize>) -> Machine {
        Machine {
            threads,
            runtime: OnceCell::new(),
        }
    }

    fn runtime(&self) -> Outcome<&Runtime> {
        if let Some(made) = self.runtime.get() {
            return Ok(made);
        }
        let made = runtime(self.threads)?;
        Ok(self.runtime.get_or_init(|| made))
    }
}

/// Without `--threads` the library looks at the environment itself.
fn runtime(threads: Option<usize>) -> Outcome<Runtime> {
    let config = match threads {
        Some(threads) => Config::from_json(&format!("{{\"threads\": {threads}}}"))?,
        None => Config::from_json("")?,
    };
    Ok(Runtime::new(config)?)
}
