//! Options of `apl-ffi convert` that would change nothing: they are refused, so that nobody takes them for done.

use apl_ffi::formats::MatrixView;
use apl_ffi::model::source::{Role, Source};
use apl_ffi::options::Width;
use apl_ffi::quant::{Bits, Codes, Shape};

use super::Arguments;
use crate::{Failure, Outcome};

/// Refuses what means nothing at the width that is asked for.
pub fn check(a: &Arguments) -> Outcome {
    let (bits, takes_group) = match a.bits {
        Some(Width::F16) => (16, false),
        Some(Width::F32) => (32, false),
        Some(Width::Codes(Bits::One)) => (1, true),
        Some(Width::Codes(_)) | None => return Ok(()),
    };
    let idle = given(a, |option| match option {
        Given::Asymmetric => true,
        Given::Group(_) | Given::Method | Given::Calibrate => !takes_group,
    });
    match idle.first() {
        Some(option) => Err(Failure::new(
            2,
            format!("{option} means nothing with --bits {bits}: omit it"),
        )),
        None => Ok(()),
    }
}

/// Refuses what would change nothing because every matrix of the source is copied as it is; where that holds for some of them, it is told.
pub fn check_beside(a: &Arguments, source: &Source) -> Outcome {
    if given(a, |_| true).is_empty() {
        return Ok(());
    }
    let (mut copied, mut matrices) = (0, 0);
    let mut idle = Vec::new();
    for spec in source.tensors().iter().filter(|s| s.role == Role::Matrix) {
        matrices += 1;
        // Of other types all weights would be read.
        if source.stored(&spec.name)?.is_some_and(|s| !s.codes) {
            continue;
        }
        let MatrixView::Codes(view) = source.matrix(&spec.name)? else {
            continue;
        };
        let codes = view.as_codes();
        if a.bits
            .is_some_and(|asked| asked != Width::Codes(codes.bits))
        {
            continue;
        }
        copied += 1;
        for option in given(a, |option| !holds(option, &codes)) {
            if !idle.contains(&option) {
                idle.push(option);
            }
        }
    }
    if idle.is_empty() {
        return Ok(());
    }
    let idle = idle.join(", ");
    if copied == matrices {
        return Err(Failure::new(
            2,
            format!(
                "{} is quantised already and would be copied as it is, so that {idle} would change nothing: ask for another width \
                 with --bits, convert the float model that it was made of, or omit {idle}",
                a.source
            ),
        ));
    }
    crate::terminal::note!(
        "{copied} of {matrices} matrices are quantised already and are copied as they are: {idle} holds for the others"
    );
    Ok(())
}

/// An option that was given.
enum Given {
    Group(usize),
    Method,
    Asymmetric,
    Calibrate,
}

/// The names of those that were given and are `wanted`.
fn given(a: &Arguments, wanted: impl Fn(&Given) -> bool) -> Vec<&'static str> {
    let all = [
        (a.group.map(Given::Group), "--group"),
        (a.method.map(|_| Given::Method), "--method"),
        (a.asymmetric.then_some(Given::Asymmetric), "--asymmetric"),
        (
            a.calibrate.as_ref().map(|_| Given::Calibrate),
            "--calibrate",
        ),
    ];
    let wanted = all
        .into_iter()
        .filter(|(option, _)| option.as_ref().is_some_and(&wanted));
    wanted.map(|(_, name)| name).collect()
}

/// Whether codes are already as an option asks.
fn holds(option: &Given, codes: &Codes<'_>) -> bool {
    match *option {
        Given::Group(group) => {
            let Shape { rows, cols, .. } = codes.shape;
            let asked = Shape::new(rows, cols, group);
            asked.groups == codes.shape.groups
                && (asked.groups <= 1 || asked.group == codes.shape.group)
        }
        Given::Asymmetric => codes.zero_points.is_some(),
        // How they were made is not in all files.
        Given::Method | Given::Calibrate => false,
    }
}
