//! `apl-ffi validate`

mod codes;
mod page;
mod sizes;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use apl_ffi::error::Error;
use apl_ffi::matmul::Activations;
use apl_ffi::quant::Bits;
use apl_ffi::runtime::{Backend, Runtime};
use apl_ffi::validate::{
    self, Baselines, Outcome as Found, Plan, Report, Subject, named_tolerance,
};

use crate::arguments::{codes, count};
use crate::terminal::{bar, note, say, table};
use crate::{Failure, Outcome, catalogue, input};

/// What PyTorch found, as it is committed.
const BASELINES: &[u8] = include_bytes!("../../../../tests/data/validation/baselines.safetensors");

/// The report for programs, and that for people.
const JSON: &str = "accuracy_validation_results.json";
const PAGE: &str = "accuracy_validation_results.html";

/// Validate the accuracy of every width: are the kernels right, is the quantisation as good as theory allows, is it still the
/// same model?
///
/// Dense layers, attention, a transformer layer and a model, layer by layer and to the end, beside PyTorch's float32 outcomes
/// (which come with this program: PyTorch is not needed). It ends with a table, a JSON file and a page with plots.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 everything passed; 1 something did not; 2 wrong arguments or an empty text; 3 a file cannot be read or \
                  written; 4 a model or a file of baselines is not one, or is damaged.\n\n\
                  Examples:\n  \
                  apl-ffi validate --out report\n  \
                  apl-ffi validate models/stories --text README.md\n  \
                  apl-ffi validate demo --reference models/stories\n  \
                  apl-ffi validate --no-model --bits 4,8 --group 32,128"
)]
pub struct Arguments {
    /// A model with float weights, which is quantised at every width; or a quantised one, with --reference. Without it, the float
    /// model that the demonstration was made of, if that is here.
    model: Option<String>,
    /// The float model that MODEL was made of: MODEL is then validated as it is stored.
    #[arg(long, requires = "model")]
    reference: Option<String>,
    /// No model: dense layers, attention and a transformer layer only.
    #[arg(long, conflicts_with_all = ["model", "text"])]
    no_model: bool,
    /// A file of UTF-8 text that the model reads; without it, a short English text.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Bits a code: 1, 2, 4, 8.
    #[arg(long, allow_negative_numbers = true, value_delimiter = ',', value_parser = codes, default_values = ["1", "2", "4", "8"])]
    bits: Vec<Bits>,
    /// Weights that share a scale; 0: a whole row.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 32], allow_negative_numbers = true, value_parser = count)]
    group: Vec<usize>,
    /// How products take their inputs.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Inputs::F32, Inputs::Int8, Inputs::Sign])]
    activations: Vec<Inputs>,
    /// What multiplies, such as cpu/avx2; without it, everything that this machine has.
    #[arg(long, value_delimiter = ',')]
    backend: Vec<String>,
    /// Another file of PyTorch's outcomes than the one that comes with this program.
    #[arg(long)]
    baselines: Option<PathBuf>,
    /// The folder that the JSON file and the page are written to.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// A quick look: 4 and 8 bits, groups of 32, the best backend.
    #[arg(long, conflicts_with_all = ["bits", "group", "backend"])]
    quick: bool,
    /// Every result in the table; without it, those of the best backend.
    #[arg(long)]
    all: bool,
    /// The report as JSON on stdout; nothing else is printed.
    #[arg(long)]
    json: bool,
}

/// How products take their inputs.
#[derive(Clone, Copy, ValueEnum)]
enum Inputs {
    /// As float32.
    F32,
    /// Rounded to 8 bits.
    Int8,
    /// Their signs: of dense layers at 1 bit.
    Sign,
}

/// Validates, writes the JSON file and the page, and prints the table; exit code 1 if a result did not pass.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let plan = plan(rt, a)?;
    let baselines = baselines(a)?;
    let subject = subject(rt, a)?;
    std::fs::create_dir_all(&a.out).map_err(|e| {
        let why = match a.out.is_file() {
            true => "is a file, expected a folder".to_owned(),
            false => format!("cannot be made: {e}"),
        };
        Failure::new(3, format!("{} {why}", a.out.display()))
    })?;
    let bar = bar(0, "{bar:30} {pos:>3}/{len} {elapsed:>4} {wide_msg}");
    let mut progress = |what: &str, done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        bar.set_message(what.to_owned());
    };
    let report = validate::run(&plan, &baselines, subject.as_ref(), &mut progress)?;
    bar.finish_and_clear();
    let json = report.to_json();
    write(&a.out.join(JSON), &format!("{json:#}\n"))?;
    write(&a.out.join(PAGE), &page::page(&report))?;
    if a.json {
        say!("{json:#}")?;
    } else {
        tell(a, &report)?;
    }
    match report.counts() {
        (_, 0) => Ok(()),
        (all, failed) => Err(Failure::new(
            1,
            format!("{failed} of {all} results did not pass"),
        )),
    }
}

fn plan(rt: &Runtime, a: &Arguments) -> Outcome<Plan> {
    let mut bits = match a.quick {
        true => vec![Bits::Eight, Bits::Four],
        false => a.bits.clone(),
    };
    // From the widest on.
    bits.sort_by_key(|b| std::cmp::Reverse(b.get()));
    bits.dedup();
    let activations = a.activations.iter().map(|inputs| match inputs {
        Inputs::F32 => Activations::F32,
        Inputs::Int8 => Activations::Int8,
        Inputs::Sign => Activations::Sign,
    });
    let mut backends = validate::backends(rt.pool().threads())?;
    if a.quick {
        // The best of the processor, which also runs the models, and a device.
        let on_cpu = |rt: &Runtime| rt.resolved().backend() == Backend::Cpu;
        let best = backends.iter().rposition(on_cpu).unwrap_or(0);
        backends.drain(..best);
    }
    let here: Vec<String> = backends.iter().map(validate::backend_name).collect();
    if let Some(none) = a.backend.iter().find(|asked| !here.contains(asked)) {
        return Err(Failure::new(
            2,
            format!("--backend has {none}, this machine has {}", here.join(", ")),
        ));
    }
    if !a.backend.is_empty() {
        backends.retain(|rt| a.backend.contains(&validate::backend_name(rt)));
    }
    Ok(Plan {
        bits,
        groups: if a.quick { vec![32] } else { a.group.clone() },
        activations: activations.collect(),
        backends,
    })
}

fn baselines(a: &Arguments) -> Outcome<Baselines> {
    let Some(path) = &a.baselines else {
        return Ok(Baselines::parse(BASELINES)?);
    };
    let bytes = std::fs::read(path).map_err(|e| unreadable(path, &e))?;
    Ok(Baselines::parse(&bytes).map_err(|e| e.within(path.display()))?)
}

/// The model that is validated: MODEL, else the one that is shipped; `None` with --no-model, and where it is not shipped.
fn subject(rt: &Runtime, a: &Arguments) -> Outcome<Option<Subject>> {
    if a.no_model {
        return Ok(None);
    }
    let text = match &a.text {
        Some(path) => {
            let text = input::text(path, None)?;
            if text.trim().is_empty() {
                return Err(Failure::new(
                    2,
                    format!(
                        "{} is empty, expected a text for the model to read",
                        path.display()
                    ),
                ));
            }
            text
        }
        None => apl_ffi::convert::SAMPLE.to_owned(),
    };
    let Some(model) = &a.model else {
        // What is shipped; where it was left out, the rest is validated all the same.
        let Some(path) = catalogue::shipped("stories") else {
            note!("no model is validated: models/stories is not here, give a MODEL");
            return Ok(None);
        };
        return Ok(Some(Subject::open(rt, "stories", &path, None, &text)?));
    };
    let path = catalogue::local(model)?;
    let name = name_of(&path);
    let opened = match &a.reference {
        Some(reference) => {
            Subject::open(rt, &name, &catalogue::local(reference)?, Some(&path), &text)
        }
        None if validate::is_quantised(&path)? => Err(Error::config(format!(
            "{model} is quantised already: --reference says which float model it was made of"
        ))),
        None => Subject::open(rt, &name, &path, None, &text),
    };
    Ok(Some(opened?))
}

/// What a model is called in the report.
fn name_of(path: &Path) -> String {
    // A folder's name may contain dots: TinyLlama-1.1B.
    let name = match path.is_dir() {
        true => path.file_name(),
        false => path.file_stem(),
    };
    let name = name.unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn unreadable(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(3, format!("{} cannot be read: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text)
        .map_err(|e| Failure::new(3, format!("{} cannot be written: {e}", path.display())))
}

fn tell(a: &Arguments, report: &Report) -> Outcome {
    let best = report.backends.last().cloned().unwrap_or_default();
    let head = [
        "", "bits", "group", "inputs", "error", "allowed", "named", "kernel", "allowed", "",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    if a.all {
        rows[0].insert(4, "backend".into());
    }
    let mut last = "";
    for o in report
        .outcomes
        .iter()
        .filter(|o| a.all || o.backend == best)
    {
        let mut row = row(o, last);
        if a.all {
            row.insert(4, o.backend.clone());
        }
        rows.push(row);
        last = &o.scenario;
    }
    table(&rows)?;
    say!()?;
    ends(report)?;
    notes(report)?;
    let (all, failed) = report.counts();
    let worst = report.worst_check();
    say!(
        "float64 here beside PyTorch {} in float32: {} comparisons, the worst differs by {worst:.1e}",
        report.torch,
        report.checks.len()
    )?;
    say!(
        "{} of {all} results passed, on {}; {} and {} are in {}",
        all - failed,
        report.backends.join(", "),
        JSON,
        PAGE,
        a.out.display()
    )?;
    Ok(())
}

fn row(o: &Found, last: &str) -> Vec<String> {
    let verdict = match (o.kernel_passed(), o.quantisation_passed()) {
        (true, true) => "passed",
        (false, true) => "KERNEL",
        (true, false) => "QUANTISATION",
        (false, false) => "BOTH",
    };
    let named = if o.within_named() { "" } else { " over" };
    vec![
        if o.scenario == last {
            String::new()
        } else {
            o.scenario.clone()
        },
        o.bits.get().to_string(),
        if o.group == 0 {
            "row".into()
        } else {
            o.group.to_string()
        },
        o.activations.name().into(),
        format!("{:.4}", o.relative_error),
        format!("{:.4}", o.tolerance),
        format!("{:.0}%{named}", 100.0 * o.named_tolerance),
        format!("{:.1e}", o.kernel_error),
        format!("{:.1e}", o.kernel_tolerance),
        verdict.into(),
    ]
}

/// How the model predicts, at each width.
fn ends(report: &Report) -> Outcome {
    let head = [
        "at the end of the text",
        "bits a weight",
        "group",
        "inputs",
        "logits",
        "divergence",
        "same top",
        "perplexity",
        "of floats",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for o in &report.outcomes {
        let Some(m) = o.agreement else { continue };
        rows.push(vec![
            format!("{} bits", o.bits.get()),
            format!("{:.2}", o.bits_a_weight),
            if o.group == 0 {
                "row".into()
            } else {
                o.group.to_string()
            },
            o.activations.name().into(),
            format!("{:.4}", m.relative_error),
            format!("{:.4}", m.kl),
            format!("{:.0}%", 100.0 * m.same_top),
            format!("{:.3}", m.perplexity),
            format!("{:.3}", m.reference_perplexity),
        ]);
    }
    if rows.len() > 1 {
        table(&rows)?;
        say!()?;
    }
    Ok(())
}

/// Where what a width is named for cannot be had.
fn notes(report: &Report) -> Outcome {
    for bits in Bits::ALL {
        let (named, floor) = (named_tolerance(bits), bits.lloyd_max());
        if named < floor && report.outcomes.iter().any(|o| o.bits == bits) {
            say!(
                "{} bit{}: {:.0}% lies under the {:.1}% that the best {} levels for Gaussian weights lose (Lloyd-Max): no scalar quantiser reaches it",
                bits.get(),
                if bits == Bits::One { "" } else { "s" },
                100.0 * named,
                100.0 * floor,
                1 << bits.get()
            )?;
        }
    }
    Ok(())
}
