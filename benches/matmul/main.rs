//! Every bit width, activation mode, batch, shape and number of threads, each timed alternately
//! with the ceiling of the machine that bounds it. `--help` lists the filters; `docs/benchmarks.md`
//! explains the table.

mod args;
mod case;
mod ceilings;
mod latency;
mod report;
mod stats;

use std::process::ExitCode;

use apl_ffi::error::Result;
use apl_ffi::matmul::Activations;
use apl_ffi::quant::Bits;
use apl_ffi::runtime::{BackendChoice, Config, Runtime};

use args::Args;
use case::{Case, Copies};
use ceilings::Ceilings;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|w| w == latency::LOAD_ONCE) {
        let library = words.next().unwrap_or_default();
        return exit(latency::load_once(library.as_ref()));
    }
    if std::env::args().any(|w| w == "--help") {
        print!("{}", args::HELP);
        return ExitCode::SUCCESS;
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let done = if args.latency {
        latency::run(args.library.as_deref())
    } else {
        products(&args).map_err(|e| e.to_string())
    };
    exit(done)
}

fn exit(done: std::result::Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn products(args: &Args) -> Result<()> {
    let runtimes = args
        .threads
        .iter()
        .map(|&threads| {
            Runtime::new(Config {
                backend: BackendChoice::Cpu,
                threads,
                isa: Some(args.isa),
                amx: args.amx,
                ..Config::default()
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut ceilings = Ceilings::new(args.isa, args.rotate);
    let mut report = report::Report::begin(args, &mut ceilings);
    for &(rows, cols) in &args.shapes {
        for &group in &args.groups {
            for &bits in &args.bits {
                for &mode in &args.modes {
                    if mode == Activations::Sign && bits != Bits::One {
                        continue;
                    }
                    // Conversion is shared among threads: the runtime with the most threads makes
                    // the copies.
                    let builder = runtimes
                        .iter()
                        .max_by_key(|rt| rt.pool().threads())
                        .expect("threads have a default");
                    let copies = Copies::new(builder, (rows, cols, group), bits, mode, args)?;
                    for &n in &args.ns {
                        for &place in &args.places {
                            for rt in &runtimes {
                                let case = Case {
                                    rt,
                                    copies: &copies,
                                    place,
                                    n,
                                };
                                let measured = case.measure(&mut ceilings, args.rounds)?;
                                report.row(&case, &measured);
                            }
                        }
                    }
                }
            }
        }
    }
    report.end(args.json.as_deref())
}
